"""A start from alternating least squares: rows of one factor, then of the other, each by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplin.geometry.coordinates import Point
from deeplin.linalg import tall_qr
from deeplin.problems.contract import Problem
from deeplin.problems.spectral import spectral_start

__all__ = ["alternating_start"]


def alternating_start(
    problem: Problem,
    rank: int,
    *,
    most: int = 5,
    enough: float = 0.05,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    rtol: float = 1e-2,
) -> Point:
    """`spectral_start`, then sweeps of damped alternating least squares, as long as they pay.

    A sweep takes A = US to A − (∇f(W)V)_i (G_i + δμ)⁻¹, row by row (`Problem.inverse_blocks`), and
    B = VSᴴ likewise, δ = f(W)/f(0), orthonormalised between: of completion the least squares fit of
    each row, held back while nothing fits. It ends after `most` of them, once √(f/f(0)) in the
    middle of one is at most `enough`, or where f there is not half of what it was in the last.
    Large completions of few entries a row begin so far closer to the solution than the singular
    vectors are. A problem without blocks has the spectral start.

    Source: completion: [JNS13], AltMinComplete; damping and its size ours.
    Shapes: a point of factors (*batch, m, r), (*batch, r, r), (*batch, n, r).
    Cost: `spectral_start`; for each sweep `Problem.inverse_blocks` and two of `loss_and_products`.
    Raises: as `spectral_start`; ValueError unless most >= 0.
    """
    if isinstance(most, bool) or not isinstance(most, int) or most < 0:
        raise ValueError(f"alternating_start: most must be an integer >= 0; got {most!r}.")
    point = spectral_start(problem, rank, generator=generator, dtype=dtype, rtol=rtol)
    at_zero = problem.pair_loss(0 * point.U[..., :1], 0 * point.V[..., :1])
    before = torch.full_like(at_zero, torch.inf)
    for _ in range(most):
        found = _swept(problem, point, at_zero)
        if found is None:
            break
        point, loss = found
        if bool(((loss <= enough**2 * at_zero) | (loss > 0.5 * before)).all()):
            break
        before = loss
    return point


def _swept(problem: Problem, point: Point, at_zero: Tensor) -> tuple[Point, Tensor] | None:
    """(the point after a sweep, f in its middle); None where the problem has no blocks."""
    U, S, V = point.U, point.S, point.V
    turn = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device).expand(S.shape)
    loss, GV, _ = problem.loss_and_products(U, S, V)
    inverses = problem.inverse_blocks(U, S, V, _damping(loss, at_zero))
    if inverses is None:
        return None
    U, S = tall_qr(U @ S - inverses[0](GV, turn), problem.group)
    loss, _, GhU = problem.loss_and_products(U, S, V)
    inverses = problem.inverse_blocks(U, S, V, _damping(loss, at_zero))
    assert inverses is not None
    V, R = tall_qr(V @ S.mH - inverses[1](GhU, turn), problem.group)
    return Point(U, R.mH, V, group=problem.group), loss


def _damping(loss: Tensor, at_zero: Tensor) -> Tensor:
    return (loss / at_zero).nan_to_num(nan=1.0).clamp(max=1.0)
