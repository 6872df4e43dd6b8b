"""What is predicted of a start, and of each start of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Inexact
from torch import Tensor

from deeplin.landscape import layer_rate
from deeplin.network import end_to_end
from deeplin.problems.contract import Problem

__all__ = ["Prediction"]

_DISTANCE_TOLERANCE = 1e-3  # relative to the norm of the limit, or absolute if that is below 1
_LARGEST_EIGENPROBLEM = 10_000  # half a minute and 3 GB


@dataclass(frozen=True)
class Prediction:
    """What the theory says of where a flow comes to rest, and why it says no more.

    - `rank`: that of the limit. Of a balanced start it is at most that of W(0), which `start_rank`
      holds (BRTW Prop. 12), of another at most the smallest width; where the optimum is known at
      most the largest rank of a critical point
    - `limit`: the minimizer on M_rank, `loss` its loss (BRTW Prop. 32), `unique` whether there is
      one; None where nothing is known of the optimum, and `missing` says why
    - `rate`: ρ of ‖W(t) − limit‖_F ~ e^{−ρt}; None where it is not predicted, and `rate_missing`
      says why
    - `mode`: P with ⟨P, W(t) − limit⟩ ~ e^{−ρt} alone, without the modes that decay a little faster
      than ρ and are seen in the distance for long; None where it is not known
    - `pace`: the rate of balanced layers, whatever the start: by it a run's length is planned
    - `why`: where what is conserved keeps W(t) from the minimizer of the rank of W(0), the sentence
      that says so, and `limit` is where it ends instead; it is then no minimum of L^N, `escape`
      says whether a plain integrator will leave it, and no W with a loss below `loss` can be
      reached from there
    - `sign`: that of det W, where the flow keeps it; else 0
    - `note`: what else there is to say of the way there
    - `cases`, `case_of`: of a batch the different predictions, and the index of its own for each
      trajectory, the batch laid flat; a single case is the prediction itself
    """

    rank: int
    limit: Tensor | None
    loss: float | None
    unique: bool
    rate: float | None
    rate_missing: str = ""
    pace: float | None = None
    missing: str = ""
    start_rank: int | None = None
    why: str = ""
    escape: str = ""
    sign: int = 0
    note: str = ""
    mode: Tensor | None = None
    cases: tuple[Prediction, ...] = ()
    case_of: tuple[int, ...] = ()

    @property
    def size(self) -> float:
        """‖limit‖_F, 0 where there is none."""
        return 0.0 if self.limit is None else float(torch.linalg.matrix_norm(self.limit))

    @property
    def distance_tolerance(self) -> float:
        """How near the limit counts as there: 1e-3 of its norm, and at least 1e-3."""
        return _DISTANCE_TOLERANCE * max(self.size, 1.0)

    def grouped(self, trajectories: int) -> list[tuple[Prediction, list[int]]]:
        """The predictions of a batch laid flat, each with the trajectories that it is of."""
        if not self.cases:
            return [(self, list(range(trajectories)))]
        return [
            (case, [i for i, index in enumerate(self.case_of) if index == number])
            for number, case in enumerate(self.cases)
        ]

    def limits(self, batch: Sequence[int]) -> Inexact[Tensor, "*batch m n"] | None:
        """The limit of every trajectory of a batch, NaN where none is predicted; None for none.

        Where it is the same for all it has no batch dimensions.
        """
        return self._each([case.limit for case in self.cases or (self,)], batch)

    def modes(self, batch: Sequence[int]) -> Inexact[Tensor, "*batch m n"] | None:
        """The same of the slowest modes."""
        return self._each([case.mode for case in self.cases or (self,)], batch)

    def optima(self, problem: Problem, batch: Sequence[int]) -> Tensor | None:
        """The same of the minimizers of the start's rank; None where they are the limits."""
        cases = self.cases or (self,)
        optimum = problem.optimum
        if optimum is None or not any(case.why for case in cases):
            return None
        ranks = [case.rank if case.start_rank is None else case.start_rank for case in cases]
        return self._each([optimum.minimizer(min(k, optimum.rank)) for k in ranks], batch)

    def _each(self, of_cases: Sequence[Tensor | None], batch: Sequence[int]) -> Tensor | None:
        if not self.cases:
            return of_cases[0]
        known = next((limit for limit in of_cases if limit is not None), None)
        if known is None:
            return None
        nothing = torch.full_like(known, math.nan)
        each = [nothing if limit is None else limit for limit in of_cases]
        chosen = torch.stack(each)[torch.tensor(self.case_of, device=known.device)]
        return chosen.reshape(*batch, *known.shape)

    @property
    def told(self) -> list[str]:
        """A sentence for each case in which what is conserved decides, for a run's first lines."""
        return [
            "predicted"
            + (f" for {len(members)} of {len(self.case_of)}" if self.cases else "")
            + f": {case.because}"
            for case, members in self.grouped(1)
            if case.because
        ]

    @property
    def because(self) -> str:
        """Why W(t) ends at another limit than the optimum, and how stable it is; or the note."""
        return f"{self.why}; that limit is {self.escape}" if self.why else self.note

    def at_rate(self, rate: float | None) -> Prediction:
        """The prediction with another rate, by which a run is planned, too."""
        return replace(self, rate=rate, pace=rate)

    def without_rate(self, why: str) -> Prediction:
        """The prediction of a method whose steps follow no flow, and so have no known rate.

        Neither has it a pace, by which layers that arrive would have a rate of their own.
        """
        if self.cases:
            return replace(self, cases=tuple(case.without_rate(why) for case in self.cases))
        missing = self.rate_missing or why
        return replace(self, rate=None, pace=None, mode=None, rate_missing=missing)

    def in_steps(self, dt: float, order: int) -> Prediction:
        """The rate of a Runge–Kutta method of that order with steps of length dt, not of the flow.

        A step multiplies the distance by Σ_{k<=p} (−ρ·dt)^k/k!, for order 1 by 1 − ρ·dt.

        Source: HLZ Example 1.1, for order 1.
        """
        if self.cases:
            return replace(self, cases=tuple(case.in_steps(dt, order) for case in self.cases))
        if not self.rate:
            return self
        decay = sum((-dt * self.rate) ** k / math.factorial(k) for k in range(1, order + 1))
        return replace(self, rate=-math.log1p(decay) / dt) if -1 < decay < 0 else self

    def arrived(self, problem: Problem, layers: Sequence[Tensor]) -> Prediction:
        """The prediction with the rate that unbalanced layers have near where they ended.

        None is kept where they have not arrived, and where it cannot be had, with the reason: an
        eigenproblem above 10 000, or what `layer_rate` refuses.
        """
        W = end_to_end(layers)
        if self.rate is not None or self.pace is None or self.limit is None or W.ndim != 2:
            return self
        if self.why or float(torch.linalg.matrix_norm(W - self.limit)) > self.distance_tolerance:
            return self
        k = min(W.shape[-1], *(W_j.shape[-2] for W_j in layers))
        dimension = k * (sum(W.shape) - k)
        if dimension > _LARGEST_EIGENPROBLEM:
            reason = f"the rate of unbalanced layers is an eigenproblem of dimension {dimension}"
            return replace(self, rate_missing=reason)
        try:
            return replace(self, rate=layer_rate(problem, layers), rate_missing="")
        except ValueError as error:  # what a run has shown is told all the same
            return replace(self, rate_missing=f"that of these layers is not known: {error}")
