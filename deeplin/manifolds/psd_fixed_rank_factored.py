"""Hermitian positive semidefinite matrices of rank exactly r, stored as U, S in one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Inexact
from torch import Tensor

from deeplin.geometry.coordinates import Point
from deeplin.geometry.metric import Metric
from deeplin.linalg import hermitian_part
from deeplin.manifolds.factored import FactoredManifold

__all__ = ["PSDFixedRankFactored"]


class PSDFixedRankFactored(FactoredManifold):
    """The n×n Hermitian positive semidefinite W = U S Uᴴ of rank exactly r, as factors.

    Set and metric: those of ``PSDFixedRank``. Representation: one tensor with the rows of U, then
    S, where UᴴU = I and S is Hermitian positive definite. Tangent space: UMUᴴ + U_pUᴴ + UU_pᴴ with
    M = Mᴴ and UᴴU_p = 0, stored as the rows of U_p, M. The Frobenius product counts U_p twice.

    Source: HLZ (DLRA) (coordinates); BRTW (8) (metric).
    Shapes: points and vectors (*batch, n+r, r); batch dimensions broadcast.
    Cost: O(n r² + r³) in every operation; nothing n×n is formed but by ``to_dense``.
    Accuracy: as for ``FixedRankFactored``.
    Raises: ValueError for a rank that does not fit, a depth below 1, an unknown retraction.

    >>> manifold = PSDFixedRankFactored(4, 2)
    >>> U, S = manifold.unpack_tensor(manifold.origin())
    >>> (U @ S @ U.mT).diagonal()
    tensor([1., 1., 0., 0.])
    """

    name = "PSDFixedRankFactored"
    _hermitian = True

    def __init__(
        self,
        n: int,
        rank: int,
        depth: float | Metric = 2,
        retraction: str = "svd",
        *,
        gradient: str = "partials",
    ) -> None:
        super().__init__(rank, depth, retraction, gradient)
        if not rank <= n:
            raise ValueError(
                "PSDFixedRankFactored(n, rank) must satisfy 1 <= rank <= n; got "
                f"rank={rank} for n={n}."
            )
        self.n = n

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        U, S = x.split([self.n, self.rank], dim=-2)
        return U, S, U

    def _stack(self, U: Tensor, S: Tensor, V: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(U.shape[:-2], S.shape[:-2])
        return torch.cat([part.expand(*batch, *part.shape[-2:]) for part in (U, S)], dim=-2)

    def pack_point(self, *tensors: Tensor) -> Tensor:
        """One tensor from U, S, in this order.

        Shapes: U (*batch, n, r), S (*batch, r, r) -> (*batch, n+r, r).
        Raises: ValueError for another number of tensors, or other shapes.
        """
        wanted = [(self.n, self.rank), (self.rank, self.rank)]
        shapes = [tuple(tensor.shape[-2:]) for tensor in tensors]
        if shapes != wanted:
            raise ValueError(
                f"pack_point(U, S) must get matrices of shapes {wanted}; got {shapes}."
            )
        U, S = tensors
        return self._stack(U, S, U)

    def unpack_tensor(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """The factors U, S of a point, to write a loss with: W = U S Uᴴ.

        Views, through which autograd sees the two partials; detached when ``gradient="taped"``.
        """
        U, S, _ = self._split(tensor.detach() if self.gradient == "taped" else tensor)
        return U, S

    def from_dense(self, W: Inexact[Tensor, "*batch n n"]) -> Inexact[Tensor, "*batch k r"]:
        """The packed factors of the nearest PSD matrix of rank r, with S diagonal.

        Cost: an eigendecomposition, O(n³).
        Raises: ValueError when W has another shape, or fewer than r positive eigenvalues.
        """
        if tuple(W.shape[-2:]) != (self.n, self.n):
            raise ValueError(
                f"from_dense(W) must get W of shape (*batch, {self.n}, {self.n}); got "
                f"{tuple(W.shape)}."
            )
        eigenvalues, vectors = torch.linalg.eigh(hermitian_part(W.detach()))
        r = self.rank
        U = vectors[..., -r:].flip(-1)
        point = Point(U, torch.diag_embed(eigenvalues[..., -r:].flip(-1)).to(U.dtype), U)
        reason = self._core_defect(point, 1.0)
        if reason:
            raise ValueError(f"from_dense: {reason}")
        return self._store_point(point)

    def random(self, *size, dtype=None, device=None, generator=None):
        """A random point, as ``LowRankManifold.random``; one of them when no size is given."""
        size = size or (self.n + self.rank, self.rank)
        return super().random(*size, dtype=dtype, device=device, generator=generator)

    def origin(self, *size, dtype=None, device=None, seed=42):
        """The point of ``LowRankManifold.origin``; one of them when no size is given."""
        size = size or (self.n + self.rank, self.rank)
        return super().origin(*size, dtype=dtype, device=device, seed=seed)

    def _matrix_sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        return self.n, self.n

    def _shape_error(self, shape: Sequence[int], name: str) -> str | None:
        wanted = (self.n + self.rank, self.rank)
        if tuple(shape[-2:]) == wanted:
            return None
        return (
            f"{name} on PSDFixedRankFactored({self.n}, {self.rank}) must have shape "
            f"(*batch, n+r, r) = (*batch, {wanted[0]}, {wanted[1]}); got {tuple(shape)}; use "
            "pack_point(U, S) or from_dense(W)."
        )

    def extra_repr(self) -> str:
        return f"n={self.n}, {super().extra_repr()}"
