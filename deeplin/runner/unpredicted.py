"""What is told of a run of which nothing is predicted: where it came to rest, and on what."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Inexact
from torch import Tensor

from deeplin.landscape import RiemannianHessian
from deeplin.loop import Kind, Result
from deeplin.problems.contract import Problem

__all__ = ["Place", "place_of", "told_of"]

_LARGEST = 1500  # dimension of the Hessian, of which all eigenvalues are found
_FLAT = 1e-6  # relative to the largest eigenvalue: one below counts as 0


@dataclass(frozen=True)
class Place:
    """The Hessian on the matrices of its rank where a trajectory ended.

    `bounds` are the least and the largest eigenvalue; None where they are not known: off critical
    points, of more than 1500 dimensions, or where the loss has no second derivative.
    """

    rank: int
    bounds: tuple[float, float] | None

    @property
    def sentence(self) -> str:
        if self.bounds is None:
            return ""
        least, largest = self.bounds
        on = f"the Hessian on the matrices of rank {self.rank}, of least eigenvalue {least:.4g}, "
        if least > _FLAT * largest:
            return f"; {on}is positive there: a local minimum"
        if least < -_FLAT * max(abs(least), largest):
            return f"; {on}has a direction of descent there: a saddle"
        return f"; {on}is flat in some direction there and negative in none"


def place_of(problem: Problem, W: Inexact[Tensor, "m n"], result: Result) -> Place:
    """What is known of W, in which a trajectory ended; the Hessian where it came to rest.

    Cost: as many Hessian products as M_k has dimensions, at most 1500, and their eigenvalues.
    """
    if (result.rest or result.kind) not in (Kind.CONVERGED, Kind.STAGNATED):
        return Place(0, None)
    try:
        H = RiemannianHessian(problem, W, 1)
        return Place(H.k, H.bounds() if H.dim <= _LARGEST else None)
    except (RuntimeError, ValueError):  # W = 0, or a loss without a second derivative there
        return Place(0, None)


def told_of(place: Place, kind: Kind, state: str, *, stochastic: bool) -> str:
    """The sentence of a run of which nothing is predicted."""
    if stochastic and kind is not Kind.INTERRUPTED:
        how = "mini-batch noise holds W where it ended, at"
    elif kind in (Kind.CONVERGED, Kind.STAGNATED):
        how = "W came to rest at"
    elif kind is Kind.INTERRUPTED:
        how = "W was stopped on its way at"
    else:
        how = "W is still on its way (a larger method.t1 or stop.max_steps takes it further), at"
    return f"Nothing is predicted for this loss: {how} {state}{place.sentence}."
