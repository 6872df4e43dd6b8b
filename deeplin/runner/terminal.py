"""What is printed: as wide as the terminal, in its colours; no reader who has left ends a run."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TextIO

__all__ = [
    "columns",
    "command",
    "complain",
    "laid_out",
    "patient",
    "say",
    "say_command",
    "say_table",
    "slow",
]

_COLOURS = {"ok": "32", "NO": "1;31", "unfinished": "33", "error:": "1;31"}
_SECONDS = 1.0  # a wait that is announced
_label = ""  # of the lines of a job


def say(text: str = "") -> None:
    """Print, lines that are longer than the terminal broken between words."""
    _put(text, sys.stdout)


def say_command(what: str, typed: str) -> None:
    """Print what a command does, and the command in a line of its own, to be copied whole."""
    say(f"{what}:")
    print(f"    {typed}", flush=True)


def complain(sentence: str) -> None:
    """Print an error: one line, however long, where nobody looks at it as a terminal."""
    _put(f"error: {sentence}", sys.stderr)


def columns(stream: TextIO | None = None) -> int | None:
    """The width of a terminal, by default of standard output; None where nobody looks at one."""
    seen = sys.stdout if stream is None else stream
    return shutil.get_terminal_size().columns - len(_label) if seen.isatty() else None


def laid_out(rows: Sequence[Sequence[str]], columns: int | None = None) -> str:
    """Rows of cells, one under the other, in so many columns; the last cell is broken to fit.

    Where not even the others fit, every row has lines of its own.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) for cell, w in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    if columns is None or max(map(len, lines)) <= columns:
        return "\n".join(lines)
    start = sum(widths) + 2 * len(widths)
    if columns - start >= 24:  # the last cell in a column of its own
        lines = []
        for row in rows:
            cells = [cell.ljust(w) for cell, w in zip(row, widths, strict=False)]
            broken = wrap(row[-1], columns - start) or [""]
            lines.append("  ".join([*cells, broken[0]]).rstrip())
            lines += [" " * start + line for line in broken[1:]]
        return "\n".join(lines)
    lines = []
    for row in rows:
        numbers = "  ".join(c.ljust(w) for c, w in zip(row[1:-1], widths[1:], strict=True))
        lines += [line for line in (row[0], f"  {numbers}".rstrip()) if line.strip()]
        lines += [f"    {line}" for line in wrap(row[-1], columns - 4)]
    return "\n".join(lines)


def say_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells, the words of a verdict at the beginning of the last one in colour."""
    text = laid_out(rows, columns())
    for word in ("ok", "NO", "unfinished"):
        text = re.sub(rf"(?m)(^|  ){word}(?=   |$)", rf"\1{_painted(word, sys.stdout)}", text)
    print(text, flush=True)


def command() -> str:
    """How this program is called, for a command that can be copied."""
    called = Path(sys.argv[0])
    if called.name == "train.py":
        return f"python {called}"
    return "python -m deeplin" if called.name == "__main__.py" else "deeplin"


@contextlib.contextmanager
def slow(what: str) -> Iterator[None]:
    """A context that says what is being done, if that takes longer than a second."""
    timer = threading.Timer(_SECONDS, lambda: say(f"  {what} ..."))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _put(text: str, stream: TextIO) -> None:
    most = columns(stream)
    lines = []
    for line in text.split("\n"):
        if most is None or len(line) <= most:
            lines.append(line)
            continue
        indent = " " * (len(line) - len(line.lstrip()))
        lines += wrap(
            line.strip(),
            most,
            initial_indent=indent,
            subsequent_indent=f"{indent}  ",
            break_long_words=False,  # a path
            break_on_hyphens=False,
        )
    if lines[0].startswith("error:"):
        lines[0] = f"{_painted('error:', stream)}{lines[0].removeprefix('error:')}"
    print("\n".join(lines), file=stream, flush=True)


def _painted(word: str, stream: TextIO) -> str:
    """A word in its colour, where the stream has colours and nobody minds (no-color.org)."""
    plain = not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return word if plain else f"\033[{_COLOURS[word]}m{word}\033[0m"


@contextlib.contextmanager
def patient(label: str = "") -> Iterator[None]:
    """A context in which what cannot be printed is left out, and nothing else suffers.

    Characters that the encoding does not have are written as Python's escapes. When whoever reads
    a pipe has left (`| head -1`), what follows is dropped; for another reason, that is said once.
    Every line begins with the label, and is written whole, beside those of other processes.
    """
    global _label
    stdout, stderr, before = sys.stdout, sys.stderr, _label
    try:
        sys.stderr = _patient(stderr, None, label)
        sys.stdout = _patient(stdout, sys.stderr, label)
        _label = label
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr, _label = stdout, stderr, before


def _patient(stream: TextIO, told: TextIO | None, label: str) -> TextIO:
    return io.TextIOWrapper(
        _Bytes(stream, told, label),  # pyright: ignore[reportArgumentType]
        encoding=stream.encoding,
        errors="backslashreplace",
        write_through=True,
    )


class _Bytes(io.RawIOBase):
    """The bytes of a stream, dropped once they cannot be written; the reason goes to `told`."""

    def __init__(self, stream: TextIO, told: TextIO | None, label: str):
        self._stream, self._told, self._lost = stream, told, False
        self._label, self._line = label.encode(stream.encoding, "backslashreplace"), b""

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, data: bytes) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not self._label:
            self._put(data)
        elif b"\r" in data:  # a progress bar, which is no line
            self._put(bytes(data))
        else:
            self._line += bytes(data)
            whole, _, self._line = self._line.rpartition(b"\n")
            if whole:
                lines = whole.split(b"\n")
                self._put(b"".join((self._label + line).rstrip() + b"\n" for line in lines))
        return len(data)

    def flush(self) -> None:
        if not self.closed and self._line:
            line, self._line = self._line, b""
            self._put(line)
        super().flush()

    def _put(self, data: bytes) -> None:
        if not self._lost:
            try:
                self._stream.flush()
                self._stream.buffer.write(data)
                self._stream.buffer.flush()
            except OSError as error:
                self._lose(error)

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
