"""The best W of a run by what was held out, which is what a run that stops early gives."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig
from torch import Tensor

from deeplin.flows.contract import Flow
from deeplin.integrators import Stepper
from deeplin.loop import History, Record
from deeplin.problems.contract import Problem
from deeplin.runner.observables import factors

__all__ = ["Best", "check_early_stop", "held_out_score"]

# Scores of what is held out, the first that there is counts, and whether small ones are good.
_SCORES = {"test_rmse": True, "test_r2": False}


def held_out_score(problem: Problem, like: Tensor) -> str | None:
    """The name of the score that a problem reports of what it holds out; None where it does not.

    - `like`: a tensor of the dtype, and on the device, of its matrices
    """
    reported = problem.report_pair(*(like.new_zeros(d, 1) for d in problem.shape))
    return next((name for name in _SCORES if name in reported), None)


def check_early_stop(stop: DictConfig, repeats: int, problem: Problem, like: Tensor) -> None:
    """Raise ValueError, with one sentence, where stop.held_out has nothing to go by."""
    if stop.get("held_out") is None:
        return
    if held_out_score(problem, like) is None:
        raise ValueError(
            f"stop.held_out={stop.held_out} needs samples, or known entries, that are held out: "
            "add problem.test=0.1, or use stop.held_out=null."
        )
    if repeats > 1:
        raise ValueError(
            f"stop.held_out={stop.held_out} ends one run at its best; got repeats={repeats}: use "
            "repeats=1, or seeds in a sweep."
        )


class Best:
    """Keeps the factors of W at the record whose held-out score `name` is the best so far.

    Of records that were due: a run that is resumed knows the same. `factors` are those of an
    earlier part of the run, whose records are in `history`.
    """

    def __init__(
        self, name: str, history: History, flow: Flow, stepper: Stepper, factors: Sequence[Tensor]
    ):
        self.name, self.flow, self.stepper = name, flow, stepper
        self.sign = 1 if _SCORES[name] else -1
        self.factors = tuple(factors)
        self.at: Record | None = None
        if self.factors:
            for record in history.records:
                if record.scheduled and self._better(record):
                    self.at = record

    def _score(self, record: Record) -> float:
        return float(record.observed[self.name])

    def _better(self, record: Record) -> bool:
        return self.at is None or self.sign * self._score(record) < self.sign * self._score(self.at)

    def on_record(self, record: Record) -> None:
        if record.scheduled and self._better(record):
            self.at = record
            self.factors = tuple(W_j.clone() for W_j in factors(self.flow, self.stepper.state))

    def on_step(self, stepper: Stepper) -> None:
        pass

    def summary(self) -> dict[str, object]:
        """The best score, and at which step it was."""
        if self.at is None:
            return {}
        return {f"best_{self.name}": self._score(self.at), "best_step": self.at.step}
