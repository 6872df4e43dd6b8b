"""Continuation over the rank: solve, add the singular pair that is missing most, solve again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from deeplin.geometry import Metric
from deeplin.geometry.coordinates import Point
from deeplin.linalg import leading_svd
from deeplin.optim.solver import number
from deeplin.optim.solving import Minimum, minimize
from deeplin.problems import Problem, spectral_start

__all__ = ["continuation", "continuation_start", "with_next_pair"]

# Columns of the iteration for one singular pair, and how exact its value is to be.
_COLUMNS, _RTOL = 6, 1e-2
# Of the gradient at 0: what is left of one where it vanishes.
_ROUND_OFF = 1e-13


def continuation(
    problem: Problem,
    rank: int,
    *,
    method: str = "cg",
    depth: float | Metric = 1,
    tol: float = 0.0,
    share: float = 0.1,
    max_iter: int = 500,
    generator: torch.Generator | None = None,
    **options,
) -> Iterator[Minimum]:
    """Minima of f on the matrices of rank 1, 2, …, `rank`, each begun from the last.

    The first start is `spectral_start`; W_k then gets the top singular pair of −∇f(W_k), along
    which f falls fastest out of rank k, with the best weight (`with_next_pair`). Before the last
    rank a solve ends where ‖grad f‖ is at most `share` times the singular value of that pair: what
    is missing is then a direction, no more of those that are there. Ill-conditioned truths are
    found so, of which a start of full rank sees the large singular values alone.

    It ends early where −∇f(W_k) vanishes: W_k is a minimizer over all matrices.

    Source: [UV14], §4; for completion [Van13], §5.
    Cost: a `minimize` for each rank, and some products of ∇f with 6 columns.
    Raises: ValueError for a rank that does not fit, `share` outside [0, 1]; as `minimize`.
    """
    options = {"method": method, "depth": depth, "max_iter": max_iter, **options}
    start = None
    for found, following in _grown(problem, rank, tol, share, generator, options):
        start = following
        if found is not None:
            yield found
    if start is not None:
        yield minimize(problem, start, tol=tol, **options)


def continuation_start(
    problem: Problem,
    rank: int,
    *,
    method: str = "trust_region",
    depth: float | Metric = 1,
    share: float = 0.1,
    max_iter: int = 500,
    generator: torch.Generator | None = None,
    **options,
) -> Point:
    """From where `continuation` begins its last solve: W_{r−1} and the pair that is missing most.

    Shapes: a point of factors of rank r, without batches.
    Cost, source, raises: as `continuation`; ValueError where W_k, k < r, is a minimizer over all
        matrices.
    """
    options = {"method": method, "depth": depth, "max_iter": max_iter, **options}
    start = None
    for found, following in _grown(problem, rank, 0.0, share, generator, options):
        start = following
        if found is not None and start is None:
            k = found.point.S.shape[-1]
            raise ValueError(
                f"continuation_start: the gradient is 0 at a matrix of rank {k}, which no further "
                f"pair betters; got rank = {rank}: take {k}."
            )
    assert start is not None
    return start


def _grown(
    problem: Problem,
    rank: int,
    tol: float,
    share: float,
    generator: torch.Generator | None,
    options: dict,
) -> Iterator[tuple[Minimum | None, Point | None]]:
    """(W_{k−1}, the start of rank k), k = 1, …; ends with None for it where −∇f(W_{k−1}) vanishes.

    That is to `tol`, or to the round-off of ∇f(0).
    """
    _require_one_process(problem)
    m, n = problem.shape
    most = int(number("continuation", "rank", rank, 1, min(m, n)))
    share = number("continuation", "share", share, 0, 1)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    point = spectral_start(problem, 1, generator=generator)
    missing = _size_at_0(problem, point)
    tol = max(tol, _ROUND_OFF * missing)
    yield None, point
    for _ in range(most - 1):
        goal, before = max(tol, share * missing), float("inf")
        while True:
            found = minimize(problem, point, tol=goal, **options)
            following, missing = with_next_pair(problem, found.point, generator=generator)
            norm, most_taken = float(found.gradient_norm), found.iterations == options["max_iter"]
            if norm <= max(tol, share * missing) or most_taken or norm >= before:
                break
            point, before = found.point, norm
            goal = max(tol, min(share * missing, 0.1 * norm))
        if missing <= tol:
            yield found, None
            return
        yield found, following
        point = following


def _size_at_0(problem: Problem, point: Point) -> float:
    """‖∇f(0)v‖, v the first right singular vector of a start."""
    v, none = point.V[:, :1], point.U[:, :0]
    times = problem.egrad_at(torch.zeros_like(point.U[:, :1]), torch.zeros_like(v))
    return float(times(v, none)[0].norm())


def with_next_pair(
    problem: Problem, point: Point, *, generator: torch.Generator | None = None
) -> tuple[Point, float]:
    """(W + tuvᴴ, s): u, v, s the top singular pair of −∇f(W), t the best weight along it.

    t = s/⟨uvᴴ, D∇f[uvᴴ]⟩, exact for quadratic losses. No batches.

    Shapes: the point has one column more.
    Cost: some products of ∇f(W) with 6 columns.
    """
    _require_one_process(problem)
    m, n = problem.shape
    A, B = point.U @ point.S, point.V
    times = problem.egrad_at(A, B)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    start = torch.randn((n, min(m, n, _COLUMNS)), dtype=A.dtype, generator=generator).to(A.device)
    u, s, v = leading_svd(
        _first(times, A.new_zeros((m, 0))),
        _second(times, A.new_zeros((n, 0))),
        start,
        1,
        rtol=_RTOL,
    )
    curvature = problem.quadratic_along(u, v)
    if curvature is None:
        H = problem.hessian_times(A, B, u, v, v, u)[0]
        curvature = (H * u.conj()).real.sum()
    t = torch.where(curvature > 0, s[0] / curvature, s[0])
    Q, R = torch.linalg.qr(torch.cat([point.U, -u], -1))
    P, T = torch.linalg.qr(torch.cat([point.V, v], -1))
    core = torch.block_diag(point.S, t.to(A.dtype).reshape(1, 1))
    X, sigma, Yh = torch.linalg.svd(R @ core @ T.mH)
    return Point(Q @ X, torch.diag(sigma).to(A.dtype), P @ Yh.mH), float(s[0])


def _require_one_process(problem: Problem) -> None:
    if problem.group is not None:
        raise ValueError(
            "continuation takes a problem that one process has; got one that "
            f"{dist.get_world_size(problem.group)} share: minimise from spectral_start."
        )


def _first(times: Callable, none: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda P: times(P, none)[0]


def _second(times: Callable, none: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda Q: times(none, Q)[1]
