"""What limits explicit steps: the curvature of a loss, and of a metric, here and where it leads."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.geometry.coordinates import Point, project_products
from deeplin.geometry.metric import Metric
from deeplin.linalg.truncation import psd_tangent_step, tangent_step
from deeplin.problems.contract import Problem

__all__ = ["explicit_rate", "look_ahead"]

_STEPS = 30


def look_ahead(problem: Problem, point: Point) -> Point:
    """Where the flows from USVᴴ lead: the minimizer of rank k if it is known, else a descent's end.

    The descent is Riemannian gradient descent on M_k in the embedded metric, 30 steps of length
    1/λ at most, λ the curvature at the start; a step that would raise the loss is halved. Its time
    does not depend on how small the start is, so that it sees what a flow of layers meets only
    after a plateau. A Hermitian point has an end that is positive semidefinite.

    Cost: without a known minimizer one measurement of the curvature and 30 gradient steps.
    Accuracy: an end that is far or at infinity is not reached.
    """
    optimum, k = problem.optimum, point.S.shape[-1]
    if optimum is not None and not point.hermitian:
        k = min(k, optimum.rank)
        U, s, Vh = torch.linalg.svd(optimum.minimizer(k).to(point.U), full_matrices=False)
        return Point(U[..., :k], torch.diag_embed(s[..., :k]).to(U), Vh[..., :k, :].mH)
    curvature = problem.pair_curvature(point.U @ point.S, point.V)
    return _descended(problem, point, curvature) if curvature > 0 else point


def _descended(problem: Problem, point: Point, curvature: float) -> Point:
    first = loss = problem.pair_loss(point.U @ point.S, point.V)
    h = torch.full_like(loss, 1 / curvature)
    eps = torch.finfo(loss.dtype).eps
    for _ in range(_STEPS):
        moved = _step(problem, point, h)
        lower = problem.pair_loss(moved.U @ moved.S, moved.V)
        better = lower <= loss
        gained = torch.where(better, loss - lower, 0.0)
        old, new = (point.U, point.S, point.V), (moved.U, moved.S, moved.V)
        U, S, V = (
            torch.where(better[..., None, None], b, a) for a, b in zip(old, new, strict=True)
        )
        point = Point(U, S, U if point.hermitian else V)
        h, loss = torch.where(better, h, h / 2), torch.where(better, lower, loss)
        if bool((better & (gained <= 1e-3 * (first - loss) + eps * loss.abs())).all()):
            break
    return point


def _step(problem: Problem, point: Point, h: Tensor) -> Point:
    """The nearest point of M_k to W − h P_T(∇f)."""
    tangent = project_products(point, *problem.egrad_products(point.U, point.S, point.V))
    tangent = tangent.scaled(-h[..., None, None])
    if point.hermitian:
        U, S = psd_tangent_step(point.U, point.S + tangent.M, tangent.Up)
        return Point(U, S, U)
    return Point(*tangent_step(point.U, point.S + tangent.M, point.V, tangent.Up, tangent.Vp))


def explicit_rate(
    problem: Problem, metric: Metric, point: Point, *, rescaled: bool = False
) -> float:
    """The rate that limits explicit steps of Ẇ = −𝒜_W(∇f) on M_k, times σ_k if rescaled.

    λ·max(c, d), λ the curvature of f, c and d what the metric multiplies by, each the largest at
    the point and at the one that a descent leads to (`look_ahead`). Where no minimizer is known
    plus 2‖∇f‖₂·max(d_j/σ_j, c_ij/(σ_i + σ_j)), the rate at which 𝒜_W and M_k turn: of the largest
    of both factors at the ends, or, where the second falls as σ grows, the larger product of one
    end. So it bounds what lies between two ends that are the worst; nothing between is measured.

    Cost: two measurements of the curvature, and those of `look_ahead`.
    Accuracy: that of `Problem.curvature`, from below. At a known minimizer of rank k the turn of
    M_k at most doubles the rate, which is left to the safety of the caller.
    """
    ends = (point, look_ahead(problem, point))
    curvature = max(problem.pair_curvature(end.U @ end.S, end.V) for end in ends)
    sigmas = [torch.linalg.svdvals(end.S) for end in ends]
    clocks = [s[..., -1:] if rescaled else torch.ones_like(s[..., -1:]) for s in sigmas]
    speed = max(
        float((clock[..., None] * metric.core(s)).amax().maximum((clock * metric.side(s)).amax()))
        for clock, s in zip(clocks, sigmas, strict=True)
    )
    if problem.optimum is not None and not point.hermitian:
        return curvature * speed
    gradients = [_gradient_size(problem, end) for end in ends]
    turns = [_turn(metric, s, clock) for clock, s in zip(clocks, sigmas, strict=True)]
    order = 0 if float(sigmas[0].amax()) >= float(sigmas[1].amax()) else 1
    if turns[order] >= turns[1 - order]:
        turn = max(turns) * max(gradients)
    else:
        turn = max(t * g for t, g in zip(turns, gradients, strict=True))
    return curvature * speed + 2 * turn


def _turn(metric: Metric, sigma: Float[Tensor, "*batch k"], clock: Tensor) -> float:
    """The largest d_j/σ_j and c_ij/(σ_i + σ_j), σ not below round-off, times the clock."""
    floor = torch.finfo(sigma.dtype).eps ** 0.5 * sigma[..., :1]
    side, core = metric.growth(torch.maximum(sigma, floor).log())
    return float((clock[..., None] * side).amax().maximum((clock[..., None] * core).amax()))


def _gradient_size(problem: Problem, point: Point) -> float:
    """‖∇f‖₂, by power iteration on both sides at once; from below, a few per cent."""
    A, B = point.U @ point.S, point.V
    generator = torch.Generator().manual_seed(0)

    def drawn(like: Inexact[Tensor, "*batch d k"]) -> Tensor:
        x = torch.randn((*like.shape[:-1], 1), dtype=like.dtype, generator=generator)
        return x.to(like.device)

    left, right, size = drawn(A), drawn(B), 0.0
    for _ in range(_STEPS):
        left, right = (
            x / torch.linalg.vector_norm(x, dim=-2, keepdim=True).clamp(min=1e-30)
            for x in (left, right)
        )
        left, right = problem.egrad_times(A, B, right, left)
        previous, size = size, float(torch.linalg.vector_norm(left, dim=-2).amax())
        if not math.isfinite(size) or abs(size - previous) <= 0.01 * size:
            break
    return size
