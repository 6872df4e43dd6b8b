"""One device for each job of a sweep, where there are several and the jobs run side by side."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from deeplin.runner.lock import locked

__all__ = ["own_device"]


@contextlib.contextmanager
def own_device(device: str) -> Iterator[None]:
    """A context in which `cuda` is a device that no other job of this user has, if one is free.

    With more jobs than devices some share one. A device that is named, cuda:1, stays that one; a
    launcher that gives each job a device of its own lets it see no other.
    """
    count = torch.cuda.device_count() if device == "cuda" else 0
    if count < 2:
        yield
        return
    with contextlib.ExitStack() as stack:
        number = os.getpid() % count
        for i in range(count):
            try:
                stack.enter_context(locked(_folder(i)))
            except (ValueError, OSError):  # another job has it
                continue
            number = i
            break
        stack.enter_context(torch.cuda.device(number))
        yield


def _folder(device: int) -> Path:
    """What stands for a device, by the number that it has in every process, whichever those see."""
    name = str(torch.cuda.get_device_properties(device).uuid)
    return Path(tempfile.gettempdir(), f"deeplin-{Path.home().name}", name)
