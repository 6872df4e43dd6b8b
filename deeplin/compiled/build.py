"""A C file to a library in memory: built once per machine and kept where only the user writes."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["TALL", "cache_folder", "library"]

# Products with tall matrices, for sources that include it.
TALL = Path(__file__).with_name("tall.h")

_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC")
# For some processors gcc leaves multiply-adds out of sums, but not elsewhere: then the same sum in
# two loops differs in its last bits. The others ignore this.
if platform.machine() in ("x86_64", "AMD64"):
    _FLAGS = (*_FLAGS, "--param=avoid-fma-max-bits=0")


def library(
    source: Path,
    macros: Sequence[str],
    *,
    headers: Sequence[Path] = (),
    what: str = "compiled steps",
    instead: str = "use the integrator itself",
) -> ctypes.CDLL:
    """The library that the system's C compiler, cc or what CC names, makes of a source.

    It is kept in `cache_folder()` under a name made of source, headers, macros, flags, CC and
    processor, so that a later process calls no compiler, and a home that several machines share
    holds one for each. Beside it stands its own digest: a file that was damaged is built anew.
    `what` needs it, and `instead` is what to do without, in the words of the refusal.

    Raises: ValueError without a compiler, or where it refuses.
    """
    compiler = os.environ.get("CC", "cc")
    key = _digest(
        *(path.read_bytes() for path in (source, *headers)),
        *(part.encode() for part in (*macros, *_FLAGS, _compiler(compiler), _processor())),
    )
    name, reason = f"{source.stem}-{key[:32]}.so", ""
    # The second for a disk that is full, or one from which no code may be loaded.
    for folder in (cache_folder, _own_folder):
        try:
            kept = folder() / name
            if not _is_whole(kept):
                _build(compiler, source, macros, kept, (what, instead))
            return ctypes.CDLL(str(kept))
        except OSError as error:
            reason = error.strerror or str(error)
    raise ValueError(
        f"{what} need a folder to keep and load code in, here or in {tempfile.gettempdir()}; got "
        f"{reason!r}: make room, set XDG_CACHE_HOME or TMPDIR to one that allows it, or {instead}."
    )


def cache_folder() -> Path:
    """Where libraries are kept: $XDG_CACHE_HOME/deeplin, or ~/.cache/deeplin.

    Code is loaded from there, so it must be the user's own, no link, and nobody else may write
    there; where it is not, or cannot be made, a folder of this process takes its place.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # As the XDG specification has it: a relative path counts as none.
        home = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
        folder = home / "deeplin"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Whoever may write to the parent could put another folder there.
        shared = home.stat().st_mode
        open_to_all = shared & stat.S_IWOTH and not shared & stat.S_ISVTX
        if not open_to_all and _is_private(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (OSError, RuntimeError):  # no such place can be made; there is no home
        pass
    return _own_folder()


def _is_private(path: Path) -> bool:
    """Whether a folder or file, itself no link, is this user's and nobody else may write to it."""
    seen = path.lstat()
    others = stat.S_IWGRP | stat.S_IWOTH
    is_link = stat.S_ISLNK(seen.st_mode)
    return not is_link and seen.st_uid == os.geteuid() and not seen.st_mode & others


@functools.cache
def _own_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="deeplin-")  # 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _seal(kept: Path) -> Path:
    return kept.with_suffix(".sha256")


def _is_whole(kept: Path) -> bool:
    """Whether a library is there, this user's, and as it was built."""
    try:
        return (
            _is_private(kept)
            and _is_private(_seal(kept))
            and _digest(kept.read_bytes()) == _seal(kept).read_text()
        )
    except (OSError, UnicodeDecodeError):
        return False


def _build(
    compiler: str, source: Path, macros: Sequence[str], kept: Path, words: tuple[str, str]
) -> None:
    """Build a library beside its place and move it there, so that nobody sees half of one."""
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".build-") as folder:
        target = Path(folder, kept.name)
        command = [*shlex.split(compiler), *_FLAGS, *macros, "-o", str(target), str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise ValueError(_needs(compiler, error.strerror or str(error), *words)) from error
        if done.returncode or not target.exists():
            ended = f"exit status {done.returncode}" if done.returncode else "it made no library"
            reason = (done.stderr.strip().splitlines() or [ended])[0]
            raise ValueError(_needs(compiler, reason, *words))
        target.chmod(0o700)
        seal = Path(folder, "seal")
        seal.write_text(_digest(target.read_bytes()))
        seal.chmod(0o600)
        # Between the two moves the seal is not that of the library: another process builds, too.
        os.replace(target, kept)
        os.replace(seal, _seal(kept))


def _compiler(command: str) -> str:
    """Which compiler a command names: its words, and the file's place, size and time.

    Asking it for its version would start it in every process; a new version is a new file.
    """
    words = shlex.split(command)
    found = shutil.which(words[0]) if words else None
    if found is None:
        return command
    place = Path(found).resolve()
    seen = place.stat()
    return f"{command} {place} {seen.st_size} {seen.st_mtime_ns}"


@functools.cache
def _processor() -> str:
    """What -march=native depends on: the processor's model and what it can do."""
    lines: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name = line.partition(":")[0].strip()
            if name in {"vendor_id", "cpu family", "model", "model name", "flags", "Features"}:
                lines.add(line)
    return "\n".join([platform.system(), platform.machine(), platform.processor(), *sorted(lines)])


def _digest(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()


def _needs(compiler: str, reason: str, what: str, instead: str) -> str:
    return (
        f"{what} need a C compiler, cc or what CC names; got {compiler!r} ({reason}): install gcc "
        f"or clang, or {instead}."
    )
