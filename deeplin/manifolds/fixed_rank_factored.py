"""Matrices of rank exactly r, stored as U, V, S in one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeplin.geometry.metric import Metric
from deeplin.manifolds import descent
from deeplin.manifolds.defects import whole_number
from deeplin.manifolds.factored import FactoredManifold

__all__ = ["FixedRankFactored"]


class FixedRankFactored(FactoredManifold):
    """The m×n matrices W = U S Vᴴ of rank exactly r, as factors, with the metric of depth N.

    Set and metric: those of ``FixedRank``. Representation: one tensor with the rows of U, then V,
    then S, where UᴴU = VᴴV = I and S is any invertible r×r matrix; a gauge, not a manifold of
    triples. Tangent space: UMVᴴ + U_pVᴴ + UV_pᴴ with UᴴU_p = 0, VᴴV_p = 0, stored as the rows of
    U_p, V_p, M, so that momentum and state_dict just work.

    Source: BRTW §4 (metric); HLZ (1), [KL07] (coordinates).
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
        self.m, self.n = (
            whole_number(type(self).__name__, "m", m),
            whole_number(type(self).__name__, "n", n),
        )
        if not rank <= min(m, n):
            raise ValueError(
                "FixedRankFactored(m, n, rank) must satisfy 1 <= rank <= min(m, n); got "
                f"rank={rank} for m={m}, n={n}."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n), of the matrices."""
        return self.m, self.n

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        U, V, S = x.split_with_sizes([self.m, self.n, self.rank], -2)
        return U, S, V

    def _stack(self, U: Tensor, S: Tensor, V: Tensor) -> Tensor:
        if U.ndim == S.ndim == V.ndim == 2:
            return torch.cat([U, V, S])
        batch = torch.broadcast_shapes(U.shape[:-2], S.shape[:-2], V.shape[:-2])
        return torch.cat([part.expand(*batch, *part.shape[-2:]) for part in (U, V, S)], dim=-2)

    def unpack_tensor(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tensor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The factors U, S, V of a point, to write a loss with: W = U S Vᴴ.

        Views, through which autograd sees the three partials.

        Raises: RuntimeError when ``gradient="taped"`` and a gradient is wanted of the tensor: it
            would be lost.
        """
        return self._split(self._readable(tensor))

    def _matrix_sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        return self.m, self.n

    def descend(
        self,
        x: Tensor,
        grad: Tensor,
        buffer: Tensor | None = None,
        *,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As every manifold's; by "splitting", on a CPU, in one pass of compiled code."""
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "nesterov": nesterov}
        vectors = (grad,) if buffer is None else (grad, buffer)
        ours = x.shape[-2:] == (self.m + self.n + self.rank, self.rank)
        ours = ours and self.retraction == "splitting" and self.group is None
        if ours and descent.takes(x, *vectors):
            plain = self.gradient == "taped" and self.depth == 1
            rgrad = grad if plain else self.egrad2rgrad(x, grad)
            done = descent.descend(x, rgrad, buffer, self.m, tangent=not plain, **options)
            if done is not None:
                return done
        return super().descend(x, grad, buffer, **options)

    def extra_repr(self) -> str:
        return f"m={self.m}, n={self.n}, {super().extra_repr()}"
