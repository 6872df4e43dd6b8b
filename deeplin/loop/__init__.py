"""The loop: step, observe, stop, report. Every method of deeplin runs in it."""

from deeplin.loop.driving import Listener, Observe, drive
from deeplin.loop.records import Every, History, Lost, Record
from deeplin.loop.results import Kind, Result
from deeplin.loop.solving import Solution, solve
from deeplin.loop.stops import (
    GradientNormBelow,
    LossBelow,
    SingularValueBelow,
    Stagnation,
    Stop,
    Unimproved,
)
from deeplin.loop.watching import RisenLoss

__all__ = [
    "Every",
    "GradientNormBelow",
    "History",
    "Kind",
    "Listener",
    "LossBelow",
    "Lost",
    "Observe",
    "Record",
    "Result",
    "RisenLoss",
    "SingularValueBelow",
    "Solution",
    "Stagnation",
    "Stop",
    "Unimproved",
    "drive",
    "solve",
]
