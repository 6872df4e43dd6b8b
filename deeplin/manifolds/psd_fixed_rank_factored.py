"""Hermitian positive semidefinite matrices of rank exactly r, stored as U, S in one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeplin.geometry.metric import Metric
from deeplin.manifolds.defects import whole_number
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
    _factors = ("U", "S")

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
        self.n = whole_number(type(self).__name__, "n", n)
        if not rank <= n:
            raise ValueError(
                "PSDFixedRankFactored(n, rank) must satisfy 1 <= rank <= n; got "
                f"rank={rank} for n={n}."
            )

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        U, S = x.split([self.n, self.rank], dim=-2)
        return U, S, U

    def _stack(self, U: Tensor, S: Tensor, V: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(U.shape[:-2], S.shape[:-2])
        return torch.cat([part.expand(*batch, *part.shape[-2:]) for part in (U, S)], dim=-2)

    def unpack_tensor(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tensor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The factors U, S of a point, to write a loss with: W = U S Uᴴ.

        Views, through which autograd sees the two partials.

        Raises: RuntimeError when ``gradient="taped"`` and a gradient is wanted of the tensor: it
            would be lost.
        """
        U, S, _ = self._split(self._readable(tensor))
        return U, S

    def _matrix_sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        return self.n, self.n

    def extra_repr(self) -> str:
        return f"n={self.n}, {super().extra_repr()}"
