"""Memory is asked for before it is taken: a refusal is a sentence, running out of it is not."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

__all__ = ["ask_for_memory"]


def ask_for_memory(
    what: str,
    size: int,
    instead: str = "take less of it, or store it in parts that are read one at a time",
) -> None:
    """Raises ValueError unless `size` bytes are less than the memory of the machine.

    That of its container where that is less. What other objects hold is not counted: this refuses
    what cannot fit at all. `instead` says what to do then.
    """
    most = _memory()
    if most is not None and size >= most:
        raise ValueError(
            f"{what} needs {_readable(size)} of memory; the machine has {_readable(most)} in all: "
            f"{instead}."
        )


@lru_cache
def _memory() -> int | None:
    """The memory of the machine, or of its container, in bytes; None where nothing tells."""
    try:
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such function, or name, on this system
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(most, int(text)) if text.isdigit() else most


def _readable(size: int) -> str:
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.3g} {unit}"
        amount /= 1024
    return f"{amount:.3g} TiB"
