"""A problem solved from a point of factors, by one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deeplin.geometry import Metric
from deeplin.geometry.coordinates import Point
from deeplin.manifolds import FixedRankFactored, ShardedFixedRank
from deeplin.optim.conjugate_gradient import ConjugateGradient
from deeplin.optim.solver import Solver, number
from deeplin.optim.trust_region import TrustRegion
from deeplin.problems import Problem

__all__ = ["METHODS", "Minimum", "minimize"]

# It inverts nothing and costs least; steps are as many as with the others, to a tenth.
_RETRACTION = "splitting"

METHODS: dict[str, type[ConjugateGradient] | type[TrustRegion]] = {
    "cg": ConjugateGradient,
    "trust_region": TrustRegion,
}


@dataclass(frozen=True)
class Minimum:
    """Where a solver has come to, and what it knows there.

    Shapes: loss, gradient_norm, converged (*batch); `iterations` of the matrix that took most.
    """

    point: Point
    loss: Float[Tensor, "*batch"]
    gradient_norm: Float[Tensor, "*batch"]
    converged: Bool[Tensor, "*batch"]
    """‖grad f‖ <= tol"""
    iterations: int
    evaluations: int


@torch.no_grad()
def minimize(
    problem: Problem,
    start: Point,
    *,
    method: str = "cg",
    depth: float | Metric = 1,
    tol: float = 0.0,
    max_iter: int = 500,
    after_each: Callable[[Solver, Point], bool | None] | None = None,
    **options,
) -> Minimum:
    """A minimizer of f on the matrices of the rank of `start`, from there.

    `ConjugateGradient` or `TrustRegion` on `FixedRankFactored`, step by step until ‖grad f‖ <= tol
    or no step decreases f, for each matrix of a batch, or for `max_iter` steps, by the retraction
    "splitting". On `ShardedFixedRank` where problem and start are spread over processes.

    Source: as the solvers.
    Shapes: those of the start's factors.
    Cost: as the solvers.
    Raises: ValueError for an unknown method, and as the solvers for their `options`.

    Args:
        after_each: called with the solver and the point after each step; what returns True ends it.

    >>> from deeplin.problems import MatrixCompletion, spectral_start
    >>> generator = torch.Generator().manual_seed(0)
    >>> problem, _ = MatrixCompletion.planted(
    ...     (40, 30), 2, oversampling=4, generator=generator, dtype=torch.float64
    ... )
    >>> found = minimize(problem, spectral_start(problem, 2), tol=1e-10)
    >>> bool(found.converged), bool(found.loss < 1e-18)
    (True, True)
    """
    if method not in METHODS:
        raise ValueError(
            f"minimize: method must be one of {', '.join(map(repr, METHODS))}; got {method!r}."
        )
    most = int(number("minimize", "max_iter", max_iter, 1, 1e9))
    manifold = _manifold(problem.shape, start, depth)
    x = manifold.parameter(manifold.pack_point(start.U, start.S, start.V))
    solver = METHODS[method]([x], problem=problem, tol=tol, **options)
    loss, iterations = torch.zeros(()), 0
    for iterations in range(1, most + 1):  # noqa: B007
        loss = solver.step()
        if bool(solver.finished.all()):
            break
        if after_each is not None and after_each(solver, _point(manifold, x)):
            break
    norm = solver.gradient_norm
    return Minimum(_point(manifold, x), loss, norm, norm <= tol, iterations, solver.evaluations)


def _manifold(shape: tuple[int, int], start: Point, depth: float | Metric) -> FixedRankFactored:
    rank = start.S.shape[-1]
    if start.group is None:
        return FixedRankFactored(*shape, rank, depth, _RETRACTION)
    return ShardedFixedRank(*shape, rank, depth, _RETRACTION, group=start.group)


def _point(manifold: FixedRankFactored, x: Tensor) -> Point:
    U, S, V = manifold.unpack_tensor(x.detach().as_subclass(Tensor))
    return Point(U, S, V, group=manifold.group)
