"""A thread that looks at something now and then, beside what runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

__all__ = ["beside"]


@contextlib.contextmanager
def beside(look: Callable[[], bool], seconds: float) -> Iterator[None]:
    """A context beside which `look` is called now and every so many seconds, while it is true."""
    over = threading.Event()

    def watch() -> None:
        while look():
            if over.wait(seconds):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
