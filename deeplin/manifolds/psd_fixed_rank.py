"""Hermitian positive semidefinite matrices of rank exactly r, stored dense."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeplin.geometry.coordinates import Point, Tangent
from deeplin.geometry.metric import Metric
from deeplin.linalg import hermitian_part
from deeplin.manifolds.defects import spectrum_defect
from deeplin.manifolds.dense import DenseManifold

__all__ = ["PSDFixedRank"]


class PSDFixedRank(DenseManifold):
    """The n×n Hermitian positive semidefinite matrices of rank exactly r, as dense tensors.

    Set: {W = Wᴴ ≥ 0 : rank W = r}, of real dimension nr − r(r−1)/2 over R and (2n − r)r over C.
    Representation: W itself. Tangent space: {UMUᴴ + U_pUᴴ + UU_pᴴ, M = Mᴴ, UᴴU_p = 0}, dense.
    Metric: that of ``FixedRank``, restricted; at depth 2 it is the Bures-Wasserstein metric (up to
    a constant), whose exponential map is ``retraction="layers"``. A Euclidean gradient that is not
    Hermitian counts with its Hermitian part.

    Source: HLZ §2, §3; BRTW (8). HLZ Lemma 2.1 prints another complex dimension.
    Shapes: points and vectors (*batch, n, n), n >= r; batch dimensions broadcast.
    Cost: an eigendecomposition of W in every operation, O(n³).
    Accuracy: as for ``FixedRank``.
    Raises: ValueError for a rank that does not fit, a depth below 1, an unknown retraction.

    >>> PSDFixedRank(rank=2, depth=1)
    PSDFixedRank(rank=2, depth=1, retraction='svd') manifold
    """

    name = "PSDFixedRank"
    _hermitian = True

    def __init__(self, rank: int, depth: float | Metric = 2, retraction: str = "svd") -> None:
        super().__init__(rank, depth, retraction)

    def _store_point(self, point: Point) -> Tensor:
        return hermitian_part(point.dense())

    def _store_tangent(self, point: Point, tangent: Tangent) -> Tensor:
        return hermitian_part(tangent.dense(point))

    def _matrix_sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        return shape[-1], shape[-1]

    def _shape_error(self, shape: Sequence[int], name: str) -> str | None:
        if shape[-2] != shape[-1]:
            return f"{name} on PSDFixedRank must be square; got shape {tuple(shape)}."
        if self.rank <= shape[-1]:
            return None
        return (
            f"PSDFixedRank(rank=...) must satisfy 1 <= rank <= n; got rank={self.rank} for points "
            f"of shape ({shape[-2]}, {shape[-1]})."
        )

    def _point_defect(self, x: Tensor, tolerance: float) -> str | None:
        eigenvalues = torch.linalg.eigvalsh(hermitian_part(x)).flip(-1)
        largest = eigenvalues[..., :1]
        skew = torch.linalg.matrix_norm(x - x.mH) / torch.linalg.matrix_norm(x)
        if float(skew.nan_to_num(nan=0.0).max()) > tolerance:
            return (
                f"x must be Hermitian; ‖x − xᴴ‖/‖x‖ = {skew.max().item():.3g} is above "
                f"{tolerance:.3g}; use projx(x)."
            )
        negative = (-eigenvalues[..., -1:] / largest.abs()).nan_to_num(nan=0.0).max().item()
        if negative > tolerance:
            return (
                f"x must be positive semidefinite; -λ_n/|λ_1| = {negative:.3g} is above "
                f"{tolerance:.3g}; use projx(x)."
            )
        r = self.rank
        kept = eigenvalues[..., :r]
        beyond = eigenvalues[..., r] if r < x.shape[-1] else torch.zeros_like(kept[..., 0])
        return spectrum_defect(kept, beyond, self.rank, tolerance)
