"""Ctrl-C and SIGTERM end a run after its current step, before the first one at once."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from deeplin.runner.beside import beside

__all__ = [
    "Abandoned",
    "Interruption",
    "abandonable",
    "ending_with_parent",
    "leave",
    "number_of",
    "passed_on",
    "unbegun",
]

Handler = Callable[[int, FrameType | None], object] | int | None
_ENDING = (signal.SIGINT, signal.SIGTERM)
_SECONDS = 1.0  # between two looks at whether a parent lives
_AT_MOST = 10.0  # that jobs have to save their state


@functools.cache
def _works_for(process: int) -> int | None:
    """What started a process to work for it, seen when it begins; None for one of a user's."""
    parent = multiprocessing.parent_process()
    return None if parent is None or parent.pid != os.getppid() else parent.pid


class Interruption:
    """A context in which Ctrl-C and SIGTERM ask the run to stop after its current step.

    A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Handler] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in _ENDING:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
        if number == signal.SIGINT and os.isatty(2):
            # Past Python's buffers, which the main thread may just be writing to.
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")

    def __call__(self) -> str | None:
        """What interrupted the run, or None: the `interrupt` of `deeplin.loop.drive`."""
        return None if self.signal is None else self.signal.name


class Abandoned:
    """Which signal came, if one has: libraries may make other errors of what it raises."""

    number: signal.Signals | None = None


@contextlib.contextmanager
def abandonable() -> Iterator[Abandoned]:
    """A context in which Ctrl-C and SIGTERM raise KeyboardInterrupt."""
    abandoned = Abandoned()

    def abandon(number: int, frame: object) -> None:
        abandoned.number = signal.Signals(number)
        raise KeyboardInterrupt(number)

    with _handled_by(abandon):
        yield abandoned


@contextlib.contextmanager
def ending_with_parent() -> Iterator[None]:
    """A context in which a worker of multiprocessing gets SIGTERM when who started it has gone.

    A sweep that was killed leaves its workers behind, which would hold the folders of the jobs
    that the same command is to continue, and take up further ones.
    """
    parent = _works_for(os.getpid())
    if parent is None:
        yield
        return

    def look() -> bool:
        alone = os.getppid() != parent
        if alone:
            os.kill(os.getpid(), signal.SIGTERM)
        return not alone

    with beside(look, _SECONDS):
        yield


def leave(status: int) -> NoReturn:
    """Ends what was stopped by a signal; a worker whose parent has gone, its process as well.

    That would wait for further jobs, of nobody, for minutes.
    """
    if _works_for(os.getpid()) not in (None, os.getppid()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


@contextlib.contextmanager
def passed_on(at_work: Callable[[], Collection[Path]]) -> Iterator[None]:
    """A context in which Ctrl-C and SIGTERM reach the workers of this process before itself.

    joblib kills its workers when it is interrupted: first the folders that are at work have the
    time to save the state of their runs.
    """

    def pass_on(number: int, frame: object) -> None:
        workers = multiprocessing.active_children()
        theirs = set(at_work()) if workers else set()
        for worker in workers:
            worker.terminate()
        latest = time.monotonic() + _AT_MOST
        while theirs.intersection(at_work()) and time.monotonic() < latest:
            time.sleep(_SECONDS / 20)
        raise KeyboardInterrupt(number)

    with _handled_by(pass_on):
        yield


@contextlib.contextmanager
def unbegun(words: Sequence[str], *, silent: bool = False) -> Iterator[None]:
    """A context in which Ctrl-C and SIGTERM end the process at once: nothing is there to be lost.

    Without an exception, which would end somewhere inside the imports of others. `words` are the
    command line's: a run that was to be continued stays as it is. `silent` where another process
    says so.
    """
    resumed = next((word for word in words if word.startswith("resume=")), None)

    def end(number: int, frame: object) -> None:
        name = signal.Signals(number).name
        left = f"{resumed} goes on from its last checkpoint" if resumed else "nothing ran"
        with contextlib.suppress(OSError):
            if not silent:
                os.write(2, f"error: stopped by {name} before the start: {left}.\n".encode())
        sys.stdout.flush()
        os._exit(128 + number)

    with _handled_by(end):
        yield


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """A context with a handler of both signals, of Ctrl-C unless the shell has it ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {
        number: signal.signal(number, handler)
        for number in _ENDING
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def number_of(interrupt: KeyboardInterrupt) -> signal.Signals:
    """The signal that raised KeyboardInterrupt."""
    return signal.Signals(interrupt.args[0] if interrupt.args else signal.SIGINT)
