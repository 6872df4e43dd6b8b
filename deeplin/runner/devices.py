"""Which devices there are, and one for each job of a sweep that runs beside others."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from deeplin.runner.lock import locked

__all__ = ["check_device", "own_device"]


def check_device(device: str) -> None:
    """Raises: ValueError, with one sentence, for a device that torch does not have here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that torch once had
            float(torch.zeros(1, device=device))
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"device must be one that torch has here, such as cpu or cuda; got {device!r}."
        ) from error


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
