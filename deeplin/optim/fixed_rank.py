"""`FixedRankFactored` for vectors that are known to be tangent: nothing is projected again."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.geometry import retractions
from deeplin.geometry.coordinates import Point, Tangent, project_products, transport
from deeplin.geometry.metric import DepthMetric, metric_inner, metric_operator
from deeplin.linalg import adjoint_products, sum_over
from deeplin.manifolds import FixedRankFactored

__all__ = ["TangentFixedRank"]


class TangentFixedRank:
    """The operations of a solver, whose vectors come from gradients and transports alone.

    Names and arguments are geoopt's.

    Shapes: points and vectors (*batch, m+n+r, r).
    Cost: as the manifold's operations, less the projection of each vector.
    """

    def __init__(self, manifold: FixedRankFactored):
        self._manifold, self.metric = manifold, manifold.metric
        self.embedded = manifold.metric == DepthMetric(1)
        self.bends_least = manifold.retraction != "layers"
        self.egrad2rgrad = manifold.egrad2rgrad
        self._split = partial(torch.split_with_sizes, split_sizes=self._sizes, dim=-2)

    @property
    def _sizes(self) -> list[int]:
        return [self._manifold.m, self._manifold.n, self._manifold.rank]

    def point(self, x: Tensor) -> Point:
        """The factors of a stored point."""
        U, V, S = self._split(x)
        return Point(U, S, V, group=self._manifold.group)

    def tangent(self, u: Tensor) -> Tangent:
        """The coordinates of a stored tangent vector."""
        Up, Vp, M = self._split(u)
        return Tangent(M, Up, Vp)

    def stored(self, tangent: Tangent) -> Tensor:
        """One tensor from coordinates."""
        return torch.cat([tangent.Up, tangent.Vp, tangent.M], -2)

    def gradient(self, point: Point, GV: Tensor, GhU: Tensor) -> Tensor:
        """𝒜_W(P_W(G)) from products of G = ∇f(W)."""
        G = project_products(point, GV, GhU)
        return self.stored(G if self.embedded else metric_operator(point, G, self.metric))

    def inner(self, x: Tensor, u: Tensor, v: Tensor, keepdim: bool) -> Float[Tensor, "*batch"]:
        """g_W(u, v), of each matrix, whatever `keepdim` is."""
        group = self._manifold.group
        if not self.embedded:
            return metric_inner(self.point(x), self.tangent(u), self.tangent(v), self.metric)
        if group is None:
            value = torch.linalg.vecdot(u.flatten(-2), v.flatten(-2))
            return value.real if value.is_complex() else value
        r = self._manifold.rank  # the rows of M are on every process
        sides, core = (
            torch.linalg.vecdot(a.flatten(-2), b.flatten(-2)).real
            for a, b in ((u[..., :-r, :], v[..., :-r, :]), (u[..., -r:, :], v[..., -r:, :]))
        )
        return core + sum_over(group, sides)[0]

    def across(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Float[Tensor, "*batch"]:
        """g_Y(P_Y(u), v) for u tangent at W and v at Y; embedded: ⟨u, v⟩ itself, P_Y(v) being v.

        With u = U M Vᴴ + U_p Vᴴ + U V_pᴴ and v alike: Re⟨uV', U'M' + U'_p⟩ + Re⟨uᴴU', V'_p⟩, from
        products of tall matrices alone.
        """
        if not self.embedded:
            return self.inner(y, self.transp(x, y, u), v, keepdim=True)
        start, end, at, to = self.point(x), self.point(y), self.tangent(u), self.tangent(v)
        UU, UUp, UpU, UpUp, VV, VVp, VpV, VpVp = adjoint_products(
            *((a, b) for a in (start.U, at.Up) for b in (end.U, to.Up)),
            *((a, b) for a in (start.V, at.Vp) for b in (end.V, to.Vp)),
            group=self._manifold.group,
        )
        terms = (
            (at.M @ VV + VpV, UU @ to.M + UUp),  # uV' = U(·) + U_p VᴴV'
            (VV, UpU @ to.M + UpUp),
            (at.M.mH @ UU + UpU, VVp),  # uᴴU' = V(·) + V_p UᴴU'
            (UU, VpVp),
        )
        return sum((a.conj() * b).real.sum((-2, -1)) for a, b in terms)  # pyright: ignore

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """R_W(u), shortened where it would lose rank."""
        name = self._manifold.retraction
        new = retractions.retract(self.point(x), self.tangent(u), name, self.metric).point
        return torch.cat([new.U, new.V, new.S], -2)

    def transp(self, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """P_y(u)."""
        return self.stored(transport(self.point(x), self.point(y), self.tangent(u)))
