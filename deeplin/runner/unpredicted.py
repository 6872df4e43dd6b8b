"""What is told of a run of which nothing is predicted: where it came to rest, and on what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deeplin.geometry import Point
from deeplin.geometry.points import low_rank_factors
from deeplin.landscape import FactoredHessian, RiemannianHessian
from deeplin.loop import Kind, Result
from deeplin.network import end_to_end
from deeplin.network.balanced import product_ranks
from deeplin.problems.contract import Problem

__all__ = ["Place", "place_of", "told_of"]

_LARGEST = 1500  # dimension of a Hessian of which all eigenvalues are found
_FLAT = 1e-6  # relative to the largest eigenvalue: one below counts as 0


@dataclass(frozen=True)
class Place:
    """The Hessian on the matrices of its rank where a trajectory ended.

    `bounds` are the least and the largest eigenvalue, above 1500 dimensions by Lanczos; None where
    they are not known: off critical points, where Lanczos did not find them, or where the loss has
    no second derivative.
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


def place_of(problem: Problem, matrices: Sequence[Tensor], result: Result) -> Place:
    """What is known of W, in which a trajectory ended; the Hessian where it came to rest.

    W is the product of the matrices, the first applied first; it is formed where M_k is small.

    Cost: as many Hessian products as M_k has dimensions, at most 1500, and their eigenvalues;
        beyond that `FactoredHessian.ends`.
    """
    if (result.rest or result.kind) not in (Kind.CONVERGED, Kind.STAGNATED):
        return Place(0, None)
    m, n = problem.shape
    try:
        k = int(product_ranks(matrices))
        if k * (m + n - k) <= _LARGEST:
            H = RiemannianHessian(problem, end_to_end(matrices), 1)
            return Place(H.k, H.bounds())
        U, s, V = low_rank_factors(matrices, k)
        return Place(k, FactoredHessian(problem, Point(U, torch.diag(s).to(U), V)).ends())
    except (RuntimeError, ValueError):  # W = 0, or a loss without a second derivative there
        return Place(0, None)


def told_of(place: Place, kind: Kind, state: str, found: str, *, stochastic: bool) -> str:
    """The sentence of a run of which nothing is predicted; `found`: what its problem says of W."""
    if stochastic and kind is not Kind.INTERRUPTED:
        how = "mini-batch noise holds W where it ended, at"
    elif kind in (Kind.CONVERGED, Kind.STAGNATED):
        how = "W came to rest at"
    elif kind is Kind.PAST_BEST:
        how = "W was stopped where what is held out is predicted worse again, at"
    elif kind is Kind.INTERRUPTED:
        how = "W was stopped on its way at"
    else:
        how = "W is still on its way (a larger method.t1 or stop.max_steps takes it further), at"
    more = f"; {found}" if found else ""
    return f"Nothing is predicted for this loss: {how} {state}{place.sentence}{more}."
