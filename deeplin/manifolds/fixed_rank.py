"""Matrices of rank exactly r, stored dense."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeplin.geometry.coordinates import Point, Tangent
from deeplin.geometry.metric import Metric
from deeplin.manifolds.defects import spectrum_defect
from deeplin.manifolds.dense import DenseManifold

__all__ = ["FixedRank"]


class FixedRank(DenseManifold):
    """The m×n matrices of rank exactly r, as dense tensors, with the metric of depth N.

    Set: M_r = {W ∈ F^{m×n} : rank W = r}, F = R or C, of dimension r(m+n−r), over C twice that.
    Representation: W itself. Tangent space: T_W M_r = {WA + BW}, also dense. Metric:
    g_W(Z_1, Z_2) = Re⟨𝒜̄_W⁻¹Z_1, Z_2⟩_F with 𝒜_W(Z) = Σ_{j=1}^N (WWᴴ)^{(N−j)/N} Z (WᴴW)^{(j−1)/N}.

    Source: BRTW §4 (metric); HLZ §2 (depth 1). HLZ Lemma 2.1 prints another complex dimension.
    Shapes: points and vectors (*batch, m, n), min(m, n) >= r; batch dimensions broadcast.
    Cost: an SVD of W in every operation, O(m n min(m, n)). FixedRankFactored needs none.
    Accuracy: what depends on the tangent space is accurate to ε·σ_1/σ_r, since a matrix rounded
        to ε does not know its small singular vectors better. The entries of 𝒜_W differ by its
        condition number κ, N(σ_1/σ_r)^{2−2/N}, and a dense vector is rounded to ε of its largest
        part: g_W(𝒜_W(Z), ξ) is known to ε√N·σ_1/σ_r of the norms, and 𝒜̄_W⁻¹ of 𝒜_W(ξ) to ε·κ of ξ.
        For N = 10⁶ in float32 nothing of that is left. FixedRankFactored with diagonal S keeps both
        to round-off at every N and σ_r.
    Raises: ValueError for a rank that does not fit, a depth below 1, an unknown retraction.

    >>> import geoopt
    >>> manifold = FixedRank(rank=2)
    >>> generator = torch.Generator().manual_seed(0)
    >>> target = manifold.random(6, 5, dtype=torch.float64, generator=generator)
    >>> W = geoopt.ManifoldParameter(manifold.origin(6, 5, dtype=torch.float64))
    >>> optimizer = geoopt.optim.RiemannianSGD([W], lr=0.2)
    >>> for _ in range(300):
    ...     optimizer.zero_grad()
    ...     (0.5 * (W - target).square().sum()).backward()
    ...     optimizer.step()
    >>> bool((W - target).norm() < 1e-10)
    True
    """

    name = "FixedRank"

    def __init__(self, rank: int, depth: float | Metric = 2, retraction: str = "svd") -> None:
        super().__init__(rank, depth, retraction)

    def _store_point(self, point: Point) -> Tensor:
        return point.dense()

    def _store_tangent(self, point: Point, tangent: Tangent) -> Tensor:
        return tangent.dense(point)

    def _matrix_sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        return shape[-2], shape[-1]

    def _shape_error(self, shape: Sequence[int], name: str) -> str | None:
        m, n = self._matrix_sizes(shape)
        if self.rank <= min(m, n):
            return None
        return (
            f"FixedRank(rank=...) must satisfy 1 <= rank <= min(m, n); got rank={self.rank} for "
            f"points of shape ({m}, {n})."
        )

    def _point_defect(self, x: Tensor, tolerance: float) -> str | None:
        sigma = torch.linalg.svdvals(x)
        r = self.rank
        beyond = sigma[..., r] if r < sigma.shape[-1] else torch.zeros_like(sigma[..., 0])
        return spectrum_defect(sigma[..., :r], beyond, self.rank, tolerance)
