"""Where a descent of a loss leads, and how curved the loss is on the way: what limits steps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Inexact
from torch import Tensor

from deeplin.linalg.truncation import tangent_step
from deeplin.problems.contract import Problem

__all__ = ["Ahead", "largest_curvature", "look_ahead"]

_STEPS = 30


class Ahead(NamedTuple):
    """The reduced SVD of the matrix UΣVᴴ that a descent arrives at.

    Shapes: U (*batch, m, k), σ (*batch, k) descending, V (*batch, n, k); without batch dimensions
    where the optimum is known.
    """

    U: Tensor
    sigma: Tensor
    V: Tensor


def look_ahead(
    problem: Problem,
    U: Inexact[Tensor, "*batch m k"],
    S: Inexact[Tensor, "*batch k k"],
    V: Inexact[Tensor, "*batch n k"],
) -> Ahead:
    """Where the flows from USVᴴ lead: the minimizer of rank k if it is known, else a descent's end.

    The descent is Riemannian gradient descent on M_k in the embedded metric, 30 steps of length
    1/λ at most, λ the curvature at the start; a step that would raise the loss is halved. Its time
    does not depend on how small the start is, so that it sees what a flow of layers meets only
    after a plateau.

    Cost: without an optimum one measurement of the curvature and 30 gradient steps.
    Accuracy: an end that is far or at infinity is not reached.
    """
    optimum, k = problem.optimum, S.shape[-1]
    if optimum is not None:
        k = min(k, optimum.rank)
        left, sigma, Vh = torch.linalg.svd(optimum.minimizer(k).to(U), full_matrices=False)
        return Ahead(left[..., :k], sigma[..., :k], Vh[..., :k, :].mH)
    U, S, V = _descended(problem, U, S, V)
    P, sigma, Qh = torch.linalg.svd(S)
    return Ahead(U @ P, sigma, V @ Qh.mH)


def largest_curvature(
    problem: Problem,
    U: Inexact[Tensor, "*batch m k"],
    S: Inexact[Tensor, "*batch k k"],
    V: Inexact[Tensor, "*batch n k"],
    ahead: Ahead,
) -> float:
    """The larger curvature of the loss of those at USVᴴ and at the end; nothing between is seen."""
    end = ahead.U * ahead.sigma[..., None, :]
    return max(problem.pair_curvature(U @ S, V), problem.pair_curvature(end, ahead.V))


def _descended(problem: Problem, U: Tensor, S: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The factors after Riemannian gradient descent; the start where the loss has no curvature."""
    curvature = problem.pair_curvature(U @ S, V)
    if not curvature > 0:
        return U, S, V
    first = loss = problem.pair_loss(U @ S, V)
    h = torch.full_like(loss, 1 / curvature)
    eps = torch.finfo(loss.dtype).eps
    for _ in range(_STEPS):
        GV, GhU = problem.egrad_products(U, S, V)
        M, length = U.mH @ GV, -h[..., None, None]
        Up, Vp = length * (GV - U @ M), length * (GhU - V @ M.mH)
        moved = tangent_step(U, S + length * M, V, Up, Vp)
        lower = problem.pair_loss(moved[0] @ moved[1], moved[2])
        better = lower <= loss
        gained = torch.where(better, loss - lower, 0.0)
        U, S, V = (
            torch.where(better[..., None, None], new, old)
            for new, old in zip(moved, (U, S, V), strict=True)
        )
        h, loss = torch.where(better, h, h / 2), torch.where(better, lower, loss)
        if bool((better & (gained <= 1e-3 * (first - loss) + eps * loss.abs())).all()):
            break
    return U, S, V
