"""Compiled code on as many threads as torch has: ctypes lets go of Python's lock in a call."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

__all__ = ["in_parts"]


def in_parts(part: Callable[[int, int], None], total: int, multiple: int = 1) -> None:
    """part(begin, stop) over all of range(total), one part per thread of torch.

    Parts begin at multiples of `multiple`; one thread gets all at once.
    """
    threads = torch.get_num_threads()
    length = -(-total // (threads * multiple)) * multiple
    if threads == 1 or length >= total:
        part(0, total)
        return
    begins = range(0, total, length)
    list(_pool(threads).map(part, begins, [min(begin + length, total) for begin in begins]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)
