"""The exit statuses of the jobs of a sweep, wherever they ran."""

from __future__ import annotations

__all__ = ["Status", "noted", "worst"]

_noted: list[int] = []


class Status(int):
    """A job's exit status, which is what it returns to Hydra.

    A launcher that runs jobs in other processes, on other machines, sends back what they return:
    where it arrives, it is noted.
    """

    def __reduce__(self) -> tuple[object, ...]:
        return noted, (int(self),)


def noted(status: int) -> Status:
    """The status, noted as that of one job of this process."""
    _noted.append(status)
    return Status(status)


def worst() -> int:
    """The largest status noted; 0 if there is none. What was noted is forgotten."""
    found = max(_noted, default=0)
    _noted.clear()
    return found
