"""Why a run ended: a kind that programs test and a sentence that people read."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Kind", "Result"]


class Kind(StrEnum):
    """The ways in which a run ends: `meaning` says each in a sentence, `status` is the process's.

    | status | kind |
    |---|---|
    | 0 | time, steps, converged, near_lower_rank, stagnated, past_best: the ends asked for |
    | 1 | diverged |
    | 2 | none: bad input, nothing was run |
    | 3 | fault |
    | 128 + n | interrupted by signal n |

    >>> Kind("time").meaning, Kind("time").status
    ('The end time was reached.', 0)
    """

    meaning: str
    status: int

    def __new__(cls, value: str, status: int, meaning: str) -> Kind:
        member = str.__new__(cls, value)
        member._value_ = value
        member.status, member.meaning = status, meaning
        return member

    TIME = "time", 0, "The end time was reached."
    STEPS = "steps", 0, "The largest number of steps allowed was taken."
    CONVERGED = "converged", 0, "A stop found its quantity, gradient norm or loss, small enough."
    NEAR_LOWER_RANK = "near_lower_rank", 0, "The smallest singular value fell below its bound."
    STAGNATED = "stagnated", 0, "Loss and gradient norm stayed at rest for the time given."
    PAST_BEST = "past_best", 0, "What was held out was predicted best some records before."
    DIVERGED = "diverged", 1, "A trajectory left what is finite, or its loss rose far above."
    FAULT = "fault", 3, "The method could not take another step of a trajectory."
    INTERRUPTED = "interrupted", 128, "A signal asked the run to stop; it can be resumed."


@dataclass(frozen=True)
class Result:
    """Why a run ended: a kind that programs test and a sentence that people read.

    `step` and `t` say where; what a stop returns does not know them yet. Where trajectories of a
    batch were lost, `lost` has their numbers, from 0, and `rest` the way in which the others
    ended, None if there are none; the kind is then that of the loss, unless a signal came first.
    """

    kind: Kind
    sentence: str
    step: int = field(default=0, compare=False)
    t: float = field(default=0.0, compare=False)
    lost: tuple[int, ...] = ()
    rest: Kind | None = None

    @property
    def resumable(self) -> bool:
        """Whether other options could take it further: not all is lost or stuck."""
        return (self.rest or self.kind) not in (Kind.DIVERGED, Kind.FAULT)
