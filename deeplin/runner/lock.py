"""One writer at a time: the lock of a run's folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

__all__ = ["LOCK", "holder", "locked"]

LOCK = ".lock"
_NO_LINK = 0 if sys.platform == "win32" else os.O_NOFOLLOW
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, made if it is not there, for this process alone; an empty one goes again.

    The system holds the lock, and lets go of it however the process ends; the file says who has
    it. One that a process on another machine left stays in force, for that process may be alive.

    Raises: ValueError, with one sentence, for a folder that another process holds.
    """
    held = _acquire(folder)
    try:
        os.ftruncate(held, 0)
        os.lseek(held, 0, os.SEEK_SET)
        os.write(held, json.dumps(_this_process()).encode())
        yield
    finally:
        if sys.platform == "win32":  # which removes no open file
            os.close(held)
        with contextlib.suppress(OSError):  # the folder may have been moved
            (folder / LOCK).unlink()
        if sys.platform != "win32":
            os.close(held)
        with contextlib.suppress(OSError):  # unless it holds something
            folder.rmdir()


def holder(folder: Path) -> str:
    """Who holds a folder, or may, if that is another machine's process; "" for nobody."""
    try:
        file = os.open(folder / LOCK, os.O_RDWR | _NO_LINK)
    except OSError:
        return ""
    try:
        owner = _owner(file)
        alive = _is_alive(owner.get("pid")) and not _is_free(file)  # or another has its number
        return _named(owner) if _is_elsewhere(owner) or alive else ""
    finally:
        os.close(file)


def _acquire(folder: Path) -> int:
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
        except FileNotFoundError:  # the folder went with the process that held it
            continue
        try:
            free = _is_free(file)
            owner = _owner(file)
            if not free or _is_elsewhere(owner):
                raise ValueError(_refusal(path, owner, seen=not free))
            if _is_at(file, path):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its owner removed it meanwhile


def _is_free(file: int) -> bool:
    """Whether the lock was free; then it is ours."""
    if sys.platform == "win32":
        return not _owner(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: the owner's name has to do
        return not _is_alive(_owner(file).get("pid"))
    return True


def _owner(file: int) -> dict[str, object]:
    """Whom a lock names; nobody if it is new, or was cut off."""
    try:
        os.lseek(file, 0, os.SEEK_SET)
        named = json.loads(os.read(file, 4096))
    except ValueError:
        return {}
    return named if isinstance(named, dict) else {}


def _this_process() -> dict[str, object]:
    here = {"pid": os.getpid(), "host": socket.gethostname(), "boot": _boot()}
    job = os.environ.get("SLURM_JOB_ID")
    start = os.environ.get("SLURM_RESTART_COUNT", "0")
    return {**here, "job": job, "start": start} if job else here


def _boot() -> str | None:
    """What tells one run of one machine's kernel from all others."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return None


def _is_elsewhere(owner: dict[str, object]) -> bool:
    """Whether an owner ran on another machine, whose locks this one may not see.

    Of a job that Slurm has put into its queue again, the process before has ended.
    """
    here = _this_process()
    if "job" in here and owner.get("job") == here["job"] and owner["start"] != here["start"]:
        return False
    return bool(owner) and all(owner.get(name) != here[name] for name in ("host", "boot"))


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False


def _named(owner: dict[str, object]) -> str:
    return f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'this machine')}"


def _refusal(path: Path, owner: dict[str, object], *, seen: bool) -> str:
    who = _named(owner)
    if not seen:
        return (
            f"{path.parent} was being written by {who}, and from here nobody can tell whether it "
            f"still is: if that process has ended, delete {path}."
        )
    return f"{path.parent} is being written by {who}: wait for its end, or choose another folder."
