"""Matrices of rank exactly r, stored as U, V, S in one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Inexact
from torch import Tensor

from deeplin.geometry.coordinates import Point
from deeplin.geometry.metric import Metric
from deeplin.manifolds.factored import FactoredManifold

__all__ = ["FixedRankFactored"]


class FixedRankFactored(FactoredManifold):
    """The m×n matrices W = U S Vᴴ of rank exactly r, as factors, with the metric of depth N.

    Set and metric: those of ``FixedRank``. Representation: one tensor with the rows of U, then V,
    then S, where UᴴU = VᴴV = I and S is any invertible r×r matrix; a gauge, not a manifold of
    triples. Tangent space: UMVᴴ + U_pVᴴ + UV_pᴴ with UᴴU_p = 0, VᴴV_p = 0, stored as the rows of
    U_p, V_p, M, so that momentum and state_dict just work.

    Source: BRTW §4 (metric); HLZ (1), Koch, Lubich 2007 (coordinates).
    Shapes: points and vectors (*batch, m+n+r, r); batch dimensions broadcast.
    Cost: O((m+n)r² + r³) in every operation; nothing m×n is formed but by ``to_dense``.
    Accuracy: round-off where S is diagonal, as ``random``, ``from_dense`` and ``retraction="svd"``
        leave it, also relative to each singular value. For a general S the parts that belong to
        σ_r are known to ε·σ_1; for depth 1 see ``gradient`` in FactoredManifold.
    Raises: ValueError for a rank that does not fit, a depth below 1, an unknown retraction.

    >>> import geoopt
    >>> manifold = FixedRankFactored(30, 20, 3)
    >>> generator = torch.Generator().manual_seed(0)
    >>> target = manifold.to_dense(manifold.random(dtype=torch.float64, generator=generator))
    >>> p = geoopt.ManifoldParameter(manifold.random(dtype=torch.float64, generator=generator))
    >>> optimizer = geoopt.optim.RiemannianSGD([p], lr=0.2)
    >>> for _ in range(300):
    ...     optimizer.zero_grad()
    ...     U, S, V = p.unpack_tensor()
    ...     (0.5 * (U @ S @ V.mT - target).square().sum()).backward()
    ...     optimizer.step()
    >>> bool((manifold.to_dense(p) - target).norm() < 1e-10)
    True
    """

    name = "FixedRankFactored"

    def __init__(
        self,
        m: int,
        n: int,
        rank: int,
        depth: float | Metric = 2,
        retraction: str = "svd",
        *,
        gradient: str = "partials",
    ) -> None:
        super().__init__(rank, depth, retraction, gradient)
        if not rank <= min(m, n):
            raise ValueError(
                "FixedRankFactored(m, n, rank) must satisfy 1 <= rank <= min(m, n); got "
                f"rank={rank} for m={m}, n={n}."
            )
        self.m, self.n = m, n

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        U, V, S = x.split([self.m, self.n, self.rank], dim=-2)
        return U, S, V

    def _stack(self, U: Tensor, S: Tensor, V: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(U.shape[:-2], S.shape[:-2], V.shape[:-2])
        return torch.cat([part.expand(*batch, *part.shape[-2:]) for part in (U, V, S)], dim=-2)

    def pack_point(self, *tensors: Tensor) -> Tensor:
        """One tensor from U, S, V, in this order.

        Shapes: U (*batch, m, r), S (*batch, r, r), V (*batch, n, r) -> (*batch, m+n+r, r).
        Raises: ValueError for another number of tensors, or other shapes.
        """
        wanted = [(self.m, self.rank), (self.rank, self.rank), (self.n, self.rank)]
        shapes = [tuple(tensor.shape[-2:]) for tensor in tensors]
        if shapes != wanted:
            raise ValueError(
                f"pack_point(U, S, V) must get matrices of shapes {wanted}; got {shapes}."
            )
        U, S, V = tensors
        return self._stack(U, S, V)

    def unpack_tensor(self, tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The factors U, S, V of a point, to write a loss with: W = U S Vᴴ.

        Views, through which autograd sees the three partials; detached when ``gradient="taped"``.
        """
        return self._split(tensor.detach() if self.gradient == "taped" else tensor)

    def from_dense(self, W: Inexact[Tensor, "*batch m n"]) -> Inexact[Tensor, "*batch k r"]:
        """The packed factors of the nearest matrix of rank r, with S diagonal.

        Cost: an SVD, O(m n min(m, n)).
        Raises: ValueError when W has another shape or a lower rank.
        """
        if tuple(W.shape[-2:]) != (self.m, self.n):
            raise ValueError(
                f"from_dense(W) must get W of shape (*batch, {self.m}, {self.n}); got "
                f"{tuple(W.shape)}."
            )
        U, sigma, Vh = torch.linalg.svd(W.detach(), full_matrices=False)
        r = self.rank
        S = torch.diag_embed(sigma[..., :r]).to(U.dtype)
        point = Point(U[..., :r], S, Vh[..., :r, :].mH)
        reason = self._core_defect(point, 1.0)
        if reason:
            raise ValueError(f"from_dense: {reason}")
        return self._store_point(point)

    def random(self, *size, dtype=None, device=None, generator=None):
        """A random point, as ``LowRankManifold.random``; one of them when no size is given."""
        size = size or (self.m + self.n + self.rank, self.rank)
        return super().random(*size, dtype=dtype, device=device, generator=generator)

    def origin(self, *size, dtype=None, device=None, seed=42):
        """The point of ``LowRankManifold.origin``; one of them when no size is given."""
        size = size or (self.m + self.n + self.rank, self.rank)
        return super().origin(*size, dtype=dtype, device=device, seed=seed)

    def _matrix_sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        return self.m, self.n

    def _shape_error(self, shape: Sequence[int], name: str) -> str | None:
        wanted = (self.m + self.n + self.rank, self.rank)
        if tuple(shape[-2:]) == wanted:
            return None
        return (
            f"{name} on FixedRankFactored({self.m}, {self.n}, {self.rank}) must have shape "
            f"(*batch, m+n+r, r) = (*batch, {wanted[0]}, {wanted[1]}); got {tuple(shape)}; use "
            "pack_point(U, S, V) or from_dense(W)."
        )

    def extra_repr(self) -> str:
        return f"m={self.m}, n={self.n}, {super().extra_repr()}"
