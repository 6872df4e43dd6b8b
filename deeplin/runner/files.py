"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

__all__ = ["PARTIAL", "create", "replace", "sweep"]

# What ends the name of a file that is still being written.
PARTIAL = ".partial"


def create(path: Path) -> BinaryIO:
    """A new file to write to. Raises: OSError where there is one, or a link, of that name."""
    return path.open("xb")  # O_CREAT | O_EXCL, which follows no link


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole: a reader, or whoever kills this process, finds the old or the new one.

    The new one is written beside it under a name that no other process has, is on the disk before
    it takes its place, and is removed where that fails. What `path` may link to is left alone.
    """
    writer = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
    partial = path.with_name(f".{path.name}.{writer}{PARTIAL}")
    try:
        with create(partial) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:  # Ctrl-C, too
        partial.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some file systems cannot do this to a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in a folder that nobody else writes to."""
    for left in folder.glob(f".*{PARTIAL}"):
        left.unlink(missing_ok=True)
