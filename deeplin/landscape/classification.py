"""What a point is: minimum, strict or non-strict saddle, on M_k and for the layers; batched."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeplin.geometry import DepthMetric
from deeplin.landscape.closed_form import known
from deeplin.landscape.critical import (
    DEGENERATE,
    GLOBAL,
    KINDS,
    LOCAL,
    MINIMUM,
    NON_STRICT,
    NOT_CRITICAL,
    STRICT,
)
from deeplin.landscape.criticality import check_tol, is_critical, layers_of, numerical_rank
from deeplin.landscape.curvature import LayerHessian, RiemannianHessian
from deeplin.landscape.operators import SymmetricOperator
from deeplin.landscape.tightened import is_tightened, noise_of
from deeplin.network import DeepLinear, end_to_end
from deeplin.problems import Problem, Spectrum

__all__ = ["Kinds", "classify"]

Kinds = str | list["Kinds"]


def classify(
    problem: Problem, point: Tensor | DeepLinear | Sequence[Tensor], tol: float = 1e-6
) -> Kinds:
    """What a W, or a tuple of layers, is in the landscape of the loss.

    For W, on the manifold M_k of the nearest critical point W_J, k = |J|: "global minimum" (over
    all ranks: k = q), "minimum on M_k" (J picks the k largest σ_j), "strict saddle" (any other J).
    For layers, with r = min_j d_j: "global minimum" of L^N iff W is the minimum on M_k with
    k = min(r, q); "strict saddle" where the Hessian of L^N has a negative eigenvalue: for any J
    that is not optimal, and for N = 2 at all others; else "non-strict saddle", as 0 for N ≥ 3.
    "not critical" for what is not within `tol` of a critical point, such as the end of an
    unfinished run.

    A minimum on M_k with k < min(r, q) is strict for N ≥ 3 iff for some i < j the block
    W_{j−1}···W_{i+1} has rank > k and (W_N···W_{j+1})ᴴ ∇L¹(W) (W_{i−1}···W_1)ᴴ ≠ 0; no Hessian is
    formed.

    Where the critical points are not known in closed form, the extreme eigenvalues of the Hessian
    decide, on M_k for a W of rank k, of L^N for layers: "strict saddle" if one is negative, "local
    minimum" if all are positive, "degenerate" where some vanish and second order does not tell.
    Layers whose product has the rank r are what it is on M_r.

    Source: BRTW Prop. 32, BRTW Prop. 33, BRTW Prop. 35, BRTW Prop. 36, BRTW Prop. 38;
        the rank condition is [AMG24] ("tightened" points), there for distinct σ_j.
    Shapes: W (*batch, d_y, d_x) or layers (*batch, d_j, d_{j−1}); returns a string, or nested lists
    of them in the shape of the batch.
    Cost: a small matrix product each, and for layers O(N²) SVDs of blocks where rank decides;
    without a closed form an eigenproblem each.
    Accuracy: a point counts as critical as `is_critical` has it; layers must be critical
    themselves, and their product too. Singular values of a product of n layers count as 0 below
    δ^{n/N} of their natural size, δ ten times the distance of W from W_J: balanced layers of such a
    W have them. Eigenvalues count as 0 below tol times the largest in modulus.
    Raises: ValueError for tol outside (0, 1) and for shapes that do not fit.

    >>> from deeplin import autoencoder
    >>> problem = autoencoder(torch.diag(torch.tensor([2.0, 1.0])))
    >>> classify(problem, problem.critical_point([2]))
    'strict saddle'
    >>> classify(problem, [torch.zeros(2, 2)] * 3)
    'non-strict saddle'
    """
    check_tol(tol)
    optimum, layers = known(problem), layers_of(point)
    W = end_to_end(layers) if layers else point
    assert isinstance(W, Tensor)
    if W.shape[-2:] != problem.shape:
        d_y, d_x = problem.shape
        raise ValueError(
            f"the point must be a W of shape (*batch, {d_y}, {d_x}) or layers with that product; "
            f"got {tuple(W.shape)}."
        )
    if optimum is None:
        return _by_hessian(problem, W, layers, tol)
    return _names(_in_closed_form(problem, optimum, W, layers, tol).tolist())


def _in_closed_form(
    problem: Problem, optimum: Spectrum, W: Tensor, layers: list[Tensor], tol: float
) -> Tensor:
    """The positions in KINDS."""
    near = optimum.nearest(W)
    critical = near.distance <= tol * optimum.scale
    highest = optimum.rank
    if layers:
        critical &= is_critical(problem, layers, tol)
        highest = min(highest, *(min(W_j.shape[-2:]) for W_j in layers))
    code = torch.full_like(near.rank, KINDS.index(STRICT))
    code[near.optimal] = KINDS.index(MINIMUM)
    code[near.optimal & (near.rank == highest)] = KINDS.index(GLOBAL)
    if layers:
        deficient = near.optimal & (near.rank < highest) & critical
        strict = torch.ones_like(deficient)
        if len(layers) > 2 and bool(deficient.any()):
            chosen = [W_j[deficient] if W_j.ndim > 2 else W_j[None] for W_j in layers]
            ranks = near.rank[deficient] if near.rank.ndim else near.rank[None]
            distance = near.distance[deficient] if near.rank.ndim else near.distance[None]
            noise = noise_of(optimum, distance)
            strict[deficient] = ~is_tightened(optimum, chosen, ranks, noise)
        code[deficient] = KINDS.index(NON_STRICT)
        code[deficient & strict] = KINDS.index(STRICT)
    code[~critical] = KINDS.index(NOT_CRITICAL)
    return code


def _names(codes: int | list) -> Kinds:
    return [_names(c) for c in codes] if isinstance(codes, list) else KINDS[codes]


# -- without a closed form -------------------------------------------------------------------------


def _by_hessian(problem: Problem, W: Tensor, layers: list[Tensor], tol: float) -> Kinds:
    if W.ndim > 2:
        return [_by_hessian(problem, W[i], [W_j[i] for W_j in layers], tol) for i in range(len(W))]
    if not bool(is_critical(problem, layers or W, tol)):
        return NOT_CRITICAL
    k = int(numerical_rank(W, torch.linalg.svdvals(W)))
    if layers and k < min(min(W_j.shape) for W_j in layers):
        return _by_sign(LayerHessian(problem, layers), tol)
    if k == 0:  # M_0 is a point
        return LOCAL
    return _by_sign(RiemannianHessian(problem, W, DepthMetric(1)), tol)


def _by_sign(H: SymmetricOperator, tol: float) -> str:
    """What a critical point with this Hessian is."""
    least, largest = H.bounds()
    noise = tol * max(abs(least), abs(largest))
    if least < -noise:
        return STRICT
    return LOCAL if least > noise else DEGENERATE
