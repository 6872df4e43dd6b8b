"""Points of M_r near a spurious critical point: where its escape is watched from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.landscape.spurious import SpuriousPoint, spurious_points
from deeplin.linalg import hermitian_part

__all__ = ["fan_around", "neighbours_of", "spurious_point"]


def spurious_point(X: Float[Tensor, "n n"], keep: Sequence[int]) -> SpuriousPoint:
    """Z_# = Σ_{i∈keep} d_i u_i u_iᵀ of a positive semidefinite X; indices from 1.

    Source: HLZ Definition 2.5.
    Raises: ValueError unless keep is a proper subset of 1..rank X.
    """
    wanted = tuple(sorted(set(keep)))
    for point in spurious_points(X):
        if wanted == point.J:
            return point
    raise ValueError(
        "keep must name some, not all, of the eigenvalues of X, from 1 for the largest; got "
        f"{list(keep)}: for instance [1]."
    )


def neighbours_of(
    point: SpuriousPoint,
    radius: float,
    rank: int,
    count: int,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "count n n"]:
    """R(Z_# + ρH), H uniform on the symmetric matrices of norm 1, ρ the radius.

    R keeps the r largest eigenvalues; the r − s smallest of them are of the order of ρ and almost
    surely positive: points of rank r on the positive semidefinite cone, about ρ from Z_#.

    Source: HLZ §5, which leaves radius and law open.
    Shapes: count matrices.
    Raises: ValueError unless radius > 0.
    """
    _check_radius(radius)
    n = point.U.shape[0]
    H = hermitian_part(torch.randn(count, n, n, dtype=point.U.dtype, generator=generator))
    H = H / torch.linalg.matrix_norm(H, keepdim=True)
    values, vectors = torch.linalg.eigh(point.dense().cpu() + radius * H)
    kept, basis = values[:, -rank:].clamp(min=0), vectors[..., -rank:]
    return (basis * kept[:, None, :]) @ basis.mT


def fan_around(point: SpuriousPoint, radius: float, count: int) -> Float[Tensor, "count n n"]:
    """Z_# + ρvvᵀ, v = cos θ w + sin θ u: θ from 0 evenly to π/2, u the eigenvector that Z_# misses.

    w is orthogonal to the range of X. θ = 0 is the one direction along which descent stays at Z_#.

    Source: HLZ Example 1.1, HLZ Fig. 1.
    Raises: ValueError unless radius > 0, Z_# is of rank r − 1 and r < n.
    """
    _check_radius(radius)
    n, r = point.U.shape[0], point.rank + 1
    if len(point.missing) != 1 or r >= n:
        raise ValueError(
            "a fan needs a Z_# that misses one eigenvalue of an X of rank r < n; got "
            f"{len(point.missing)} missing, r = {point.rank + len(point.missing)}, n = {n}."
        )
    frame = torch.cat([point.U, point.U_missing], -1)
    w = torch.linalg.qr(frame, mode="complete").Q[:, r]
    theta = torch.linspace(0, math.pi / 2, count, dtype=point.U.dtype)
    v = theta.cos()[:, None] * w + theta.sin()[:, None] * point.U_missing[:, 0]
    return point.dense() + radius * v[:, :, None] * v[:, None, :]


def _check_radius(radius: float) -> None:
    if not radius > 0:
        raise ValueError(f"radius must be positive; got {radius}.")
