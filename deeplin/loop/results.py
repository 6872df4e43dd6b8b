"""Why a run ended: a kind that programs test and a sentence that people read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Kind", "Result"]


class Kind(StrEnum):
    """The ways in which a run ends; `meaning` says each in a sentence.

    >>> Kind("time").meaning
    'The end time was reached.'
    """

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Kind:
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    TIME = "time", "The end time was reached."
    STEPS = "steps", "The largest number of steps allowed was taken."
    CONVERGED = "converged", "A stop found its quantity, gradient norm or loss, small enough."
    NEAR_LOWER_RANK = "near_lower_rank", "The smallest singular value fell below its bound."
    STAGNATED = "stagnated", "Loss and gradient norm stayed at rest for the time given."
    DIVERGED = "diverged", "The state, or something observed of it, is no longer finite."
    FAULT = "fault", "The method could not take another step."
    INTERRUPTED = "interrupted", "A signal asked the run to stop; it can be resumed."


@dataclass(frozen=True)
class Result:
    """Why a run ended: a kind that programs test and a sentence that people read."""

    kind: Kind
    sentence: str
