"""The spectral start: leading singular vectors of what the data say, nothing m×n formed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Inexact
from torch import Tensor

from deeplin.geometry.coordinates import Point
from deeplin.linalg import leading_svd, own_rows, sum_over
from deeplin.problems.contract import Problem

__all__ = ["spectral_start"]


def spectral_start(
    problem: Problem,
    rank: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    rtol: float = 1e-2,
) -> Point:
    """W = t Σ_{i≤r} σ_i u_i v_iᴴ, the best rank-r approximation of −∇f(0), of the best length t.

    Of a completion −∇f(0) is the matrix of the known entries, zeros elsewhere; its rows and columns
    of very large sums of squares are weighed down (`MatrixCompletion.back_projection`). t is the
    exact step along the quadratic model of f at 0: mn/p, in the mean, for p entries known at
    random.

    Of a problem that processes share each gets its own rows; what the iteration starts from is
    drawn whole on each.

    Source: completion: [KMO10], §1.2, where t is mn/p.
    Shapes: a point of factors (*batch, m, r), (*batch, r, r), (*batch, n, r), *batch that of the
        problem's data; S diagonal, descending.
    Cost: two products of −∇f(0) with about 1.5 r columns an iteration (`linalg.leading_svd`), as
        a rule 5 to 20.
    Accuracy: σ_i to about rtol·σ_1, and better with each gap.
    Raises: ValueError for a rank that does not fit, and where −∇f(0) has not that rank.

    Args:
        generator: of the start of the iteration; by default a fixed one.
        dtype: by default that of the problem's tensors.
        rtol: of the singular values.
    """
    m, n = problem.shape
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(m, n):
        raise ValueError(
            f"spectral_start: rank must satisfy 1 <= rank <= min(m, n) = {min(m, n)}; got {rank!r}."
        )
    like = _like(problem, dtype)
    generator = torch.Generator(like.device).manual_seed(0) if generator is None else generator
    columns = min(m, n, rank + max(4, rank // 2))
    start = torch.randn(
        (n, columns), dtype=like.dtype, device=generator.device, generator=generator
    )
    times, adjoint_times = problem.back_projection(like)
    start = start.to(like.device)[own_rows(n, problem.group)]
    U, sigma, V = leading_svd(times, adjoint_times, start, rank, rtol=rtol, group=problem.group)
    found = (sigma > max(m, n) * torch.finfo(sigma.dtype).eps * sigma[..., :1]).sum(-1).min()
    if int(found) < rank:
        raise ValueError(
            f"spectral_start: the data must hold rank {rank}; −∇f(0) has rank {int(found)}: take "
            f"rank={max(1, int(found))}, or start at random."
        )
    left = U * sigma[..., None, :]
    zero = torch.zeros_like(U[..., :1]), torch.zeros_like(V[..., :1])
    slope = -(problem.egrad_times(*zero, V, U[..., :0])[0] * left.conj()).real.sum((-2, -1))
    (slope,) = sum_over(problem.group, slope)
    curvature = problem.quadratic_along(left, V)
    if curvature is None:
        H = problem.hessian_times(*zero, left, V, V, U)[0]
        (curvature,) = sum_over(problem.group, (H * left.conj()).real.sum((-2, -1)))
    t = slope / curvature
    # Along the data a convex loss falls and bends up; of another one the length says nothing.
    t = torch.where(torch.isfinite(t) & (t > 0), t, 1.0)
    S = torch.diag_embed(t[..., None] * sigma).to(U.dtype)
    return Point(U, S, V, group=problem.group)


def _like(problem: Problem, dtype: torch.dtype | None) -> Inexact[Tensor, ""]:
    """A number of the dtype, and on the device, of the problem's tensors."""
    return next(_tensors(problem), torch.empty(0)).new_zeros((), dtype=dtype)


def _tensors(value: object) -> Iterator[Tensor]:
    """Those of numbers that a problem has, or one inside it."""
    if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
        yield value
    elif isinstance(value, Problem | tuple):
        for part in value if isinstance(value, tuple) else vars(value).values():
            yield from _tensors(part)
