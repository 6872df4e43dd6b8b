"""What is printed: a reader who has left, or an encoding without Greek, ends no run."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

__all__ = ["patient"]


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """A context in which what cannot be printed is left out, and nothing else suffers.

    Characters that the encoding does not have are written as Python's escapes. When whoever reads
    a pipe has left (`| head -1`), what follows is dropped; for another reason, that is said once.
    """
    stdout, stderr = sys.stdout, sys.stderr
    try:
        sys.stderr = _patient(stderr, None)
        sys.stdout = _patient(stdout, sys.stderr)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = stdout, stderr


def _patient(stream: TextIO, told: TextIO | None) -> TextIO:
    return io.TextIOWrapper(
        _Bytes(stream, told),  # pyright: ignore[reportArgumentType]
        encoding=stream.encoding,
        errors="backslashreplace",
        write_through=True,
    )


class _Bytes(io.RawIOBase):
    """The bytes of a stream, dropped once they cannot be written; the reason goes to `told`."""

    def __init__(self, stream: TextIO, told: TextIO | None):
        self._stream, self._told, self._lost = stream, told, False

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, data: bytes) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not self._lost:
            try:
                self._stream.flush()
                self._stream.buffer.write(data)
                self._stream.buffer.flush()
            except OSError as error:
                self._lose(error)
        return len(data)

    def _lose(self, error: OSError) -> None:
        self._lost = True
        with contextlib.suppress(OSError):  # what is left in the buffer goes nowhere at the exit
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if error.errno != errno.EPIPE and self._told is not None:
            reason = error.strerror or str(error)
            print(
                f"error: the output cannot be written ({reason}): what was to be shown is left "
                "out, and the folder of the run holds the results.",
                file=self._told,
            )
