"""Where critical points are known in closed form: the optimum of a problem, asked for or needed."""

from __future__ import annotations

from jaxtyping import Inexact
from torch import Tensor

from deeplin.problems import Problem
from deeplin.problems.spectrum import Nearest, Spectrum

__all__ = ["closed_form", "known", "nearest_critical_point"]


def known(problem: Problem) -> Spectrum | None:
    """The critical points of a problem in closed form; None where they are not known."""
    optimum = problem.optimum
    return optimum if isinstance(optimum, Spectrum) else None


def closed_form(problem: Problem, what: str) -> Spectrum:
    """The critical points of a problem, for the function `what`, which cannot do without.

    Raises: TypeError where they are not known in closed form.
    """
    optimum = known(problem)
    if optimum is None:
        raise TypeError(
            f"{what} needs the critical points in closed form, as those of LeastSquares and "
            f"MatrixApproximation; {type(problem).__name__} knows none: use is_critical, classify, "
            "hessian or local_rate at a point that a run has found."
        )
    return optimum


def nearest_critical_point(problem: Problem, W: Inexact[Tensor, "*batch d_y d_x"]) -> Nearest:
    """The critical point of L¹, on whichever M_k, that is nearest to W.

    min_J ‖(W − W_J)C^{1/2}‖_F: j ∈ J iff Re u_jᴴWC^{1/2}v_j > σ_j/2, so that no search is needed.

    Source: BRTW Prop. 32, in the coordinates of its proof.
    Shapes: W (*batch, d_y, d_x) -> mask (*batch, q), distance (*batch).
    Cost: O(d_x²(d_x + d_y)) for the problem, once, and O(d_y d_x (d_x + q)) for each W.
    Raises: TypeError where the critical points are not known in closed form.
    """
    return closed_form(problem, "nearest_critical_point").nearest(W)
