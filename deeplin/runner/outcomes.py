"""How the jobs of a command ended, wherever they ran: what each returns to Hydra is noted here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["NOT_BEGUN", "Ended", "Outcome", "ended", "noted", "worst"]

NOT_BEGUN = "not begun"  # the sentence of a job that no process has taken up


@dataclass(frozen=True)
class Ended:
    """How one job ended.

    - `status`: the process's, if it were alone; None: it has not ended
    - `objective`: what a sweeper is to make small
    - `folder`: the run's; of a job of a sweep its `number`, its `name` in the folder `sweep`, and
    `options`: what varies in it
    - `summary`: that of its folder; empty where nothing ran
    - `sentence`: why, where its status is not 0
    """

    status: int | None
    objective: float
    number: int = 0
    name: str = ""
    folder: str = ""
    sweep: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, object] = field(default_factory=dict)
    sentence: str = ""

    @property
    def began(self) -> bool:
        """Whether it has begun, or is at work, and has not ended."""
        return self.status is None and self.sentence != NOT_BEGUN


_noted: dict[tuple[int, str], Ended] = {}


class Outcome(float):
    """What a job returns to Hydra: its objective, and how it ended.

    A launcher that runs jobs in other processes, on other machines, sends back what they return:
    where it arrives, it is noted.
    """

    ended: Ended

    def __new__(cls, ended: Ended) -> Outcome:
        made = super().__new__(cls, ended.objective)
        made.ended = ended
        return made

    def __reduce__(self) -> tuple[object, ...]:
        return noted, (self.ended,)


def noted(ended: Ended) -> Outcome:
    """The outcome, noted as that of one job of this process."""
    _noted[ended.number, ended.folder] = ended
    return Outcome(ended)


def ended() -> list[Ended]:
    """What was noted, by the numbers of the jobs."""
    return [_noted[key] for key in sorted(_noted)]


def worst() -> int:
    """The largest status noted; 0 if there is none. What was noted is forgotten."""
    found = max((one.status or 0 for one in _noted.values()), default=0)
    _noted.clear()
    return found
