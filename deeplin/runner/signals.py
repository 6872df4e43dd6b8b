"""Ctrl-C and SIGTERM end a run after its current step, before the first one at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["Interruption", "abandonable", "number_of"]

Handler = Callable[[int, FrameType | None], object] | int | None


class Interruption:
    """A context in which Ctrl-C and SIGTERM ask the run to stop after its current step.

    A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Handler] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, self._previous[signal.SIGINT])

    def __call__(self) -> str | None:
        """What interrupted the run, or None: the `interrupt` of `deeplin.loop.drive`."""
        return None if self.signal is None else self.signal.name


@contextlib.contextmanager
def abandonable() -> Iterator[None]:
    """A context in which SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _abandon)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _abandon(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)


def number_of(interrupt: KeyboardInterrupt) -> signal.Signals:
    """The signal that raised KeyboardInterrupt."""
    return signal.Signals(interrupt.args[0] if interrupt.args else signal.SIGINT)
