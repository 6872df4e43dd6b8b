"""Points and tangent vectors of rank-r matrices in factored coordinates, and how to move them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from jaxtyping import Inexact
from torch import Tensor

from deeplin.linalg import (
    adjoint_products,
    gather_rows,
    hermitian_part,
    plus_tall_times,
    sum_of_tall,
    sum_over,
)

__all__ = ["Point", "Tangent", "project_matrix", "project_packed", "project_products", "transport"]

Spectrum = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Point:
    """The rank-r matrix W = U S Vᴴ, with U and V orthonormal and S any invertible r×r matrix.

    A Hermitian positive definite point has ``V is U`` and S Hermitian positive definite; all the
    functions of this package then keep it, and its tangent vectors, Hermitian. The pair
    (U, S, V) is a gauge: (UP, PᴴSR, VR) is the same W for unitary P, R.

    With a `group` its processes share the rows of U, and those of V; S is the same on each.

    Shapes: U (*batch, m, r), S (*batch, r, r), V (*batch, n, r).
    """

    U: Inexact[Tensor, "*batch m r"]
    S: Inexact[Tensor, "*batch r r"]
    V: Inexact[Tensor, "*batch n r"]
    _spectrum: Spectrum | None = field(default=None, init=False, repr=False, compare=False)
    group: dist.ProcessGroup | None = field(default=None, kw_only=True, repr=False, compare=False)

    @property
    def hermitian(self) -> bool:
        return self.V is self.U

    @property
    def spectrum(self) -> Spectrum:
        """(P, σ, Q) with S = P diag(σ) Qᴴ: an r×r SVD, or eigendecomposition, with σ descending.

        Never differentiated through: it is computed from detached factors, once for a point.
        """
        if self._spectrum is None:
            # No cached_property: until Python 3.12 that takes a lock, which nothing can trace.
            object.__setattr__(self, "_spectrum", _spectrum(self.S.detach(), self.hermitian))
        assert self._spectrum is not None
        return self._spectrum

    def decomposed(self) -> Spectrum:
        """`spectrum` of the factors as they are, which autograd follows where the gaps allow."""
        return _spectrum(self.S, self.hermitian)

    def with_spectrum(self, spectrum: Spectrum) -> Point:
        """The same point, which takes `spectrum` as given."""
        point = Point(self.U, self.S, self.V, group=self.group)
        object.__setattr__(point, "_spectrum", spectrum)
        return point

    def dense(self) -> Inexact[Tensor, "*batch m n"]:
        """The matrix W = U S Vᴴ itself."""
        whole = self.gathered()
        return (whole.U @ whole.S) @ whole.V.mH

    def gathered(self) -> Point:
        """The same point with all rows of U and V on each process."""
        if self.group is None:
            return self
        rows = torch.tensor([len(self.U), len(self.V)], device=self.S.device)
        m, n = sum_over(self.group, rows)[0].tolist()
        U, V = gather_rows(self.U, m, self.group), gather_rows(self.V, n, self.group)
        return Point(U, self.S, V)


def _spectrum(S: Inexact[Tensor, "*batch r r"], hermitian: bool) -> Spectrum:
    if hermitian:
        eigenvalues, vectors = torch.linalg.eigh(hermitian_part(S))
        P = vectors.flip(-1)
        return P, eigenvalues.flip(-1).clamp(min=0), P
    P, sigma, Qh = torch.linalg.svd(S)
    return P, sigma, Qh.mH


@dataclass(frozen=True)
class Tangent:
    """The tangent vector ξ = U M Vᴴ + U_p Vᴴ + U V_pᴴ at a point, UᴴU_p = 0 and VᴴV_p = 0.

    At a Hermitian point M is Hermitian and ``Vp is Up``. The Frobenius product of two of them is
    the sum of those of their coordinates (U_p counted twice in the Hermitian case).

    Shapes: M (*batch, r, r), Up (*batch, m, r), Vp (*batch, n, r); batches broadcast.
    """

    M: Inexact[Tensor, "*#batch r r"]
    Up: Inexact[Tensor, "*#batch m r"]
    Vp: Inexact[Tensor, "*#batch n r"]

    def scaled(self, factor: Tensor | float) -> Tangent:
        """The vector times a number, or times one number per matrix of the batch."""
        Up = factor * self.Up
        Vp = Up if self.Vp is self.Up else factor * self.Vp
        return Tangent(factor * self.M, Up, Vp)

    def dense(self, point: Point) -> Inexact[Tensor, "*batch m n"]:
        """The matrix ξ itself."""
        return (point.U @ self.M + self.Up) @ point.V.mH + point.U @ self.Vp.mH


def project_products(
    point: Point, ZV: Inexact[Tensor, "*batch m r"], ZhU: Inexact[Tensor, "*batch n r"]
) -> Tangent:
    """The orthogonal projection P_W(Z) of a matrix Z that is known by Z V and Zᴴ U only.

    M = UᴴZV, U_p = (I − UUᴴ)ZV, V_p = (I − VVᴴ)ZᴴU; at a Hermitian point that of ½(Z + Zᴴ).

    Source: BRTW Lemma 7.
    Shapes: ZV (*batch, m, r), ZhU (*batch, n, r).
    Cost: O((m + n) r²).
    """
    if point.hermitian:
        ZU = (ZV + ZhU) / 2
        core = point.U.mH @ ZU
        Up = plus_tall_times(ZU, point.U, core, alpha=-1)
        return Tangent(hermitian_part(core), Up, Up)
    core, other = adjoint_products((point.U, ZV), (point.V, ZhU), group=point.group)
    Up = plus_tall_times(ZV, point.U, core, alpha=-1)
    return Tangent(core, Up, plus_tall_times(ZhU, point.V, other, alpha=-1))


def project_matrix(point: Point, Z: Inexact[Tensor, "*batch m n"]) -> Tangent:
    """The orthogonal projection P_W(Z) = UUᴴZ + ZVVᴴ − UUᴴZVVᴴ of a dense matrix.

    Source: BRTW Lemma 7.
    Cost: O(m n r).
    """
    return project_products(point, Z @ point.V, Z.mH @ point.U)


def project_packed(point: Point, Zu: Tensor, Zv: Tensor, Zs: Tensor) -> Tangent:
    """The coordinates (U_p, V_p, M) nearest to any (Z_u, Z_v, Z_s) of the same shapes.

    U_p = (I − UUᴴ)Z_u, V_p = (I − VVᴴ)Z_v, M = Z_s (its Hermitian part at a Hermitian point). A
    matrix Z enters as (ZV, ZᴴU, UᴴZV), and then this is P_W(Z).

    Cost: O((m + n) r²).
    """
    right_side = [] if point.hermitian else [(point.V, Zv)]
    left, *right = adjoint_products((point.U, Zu), *right_side, group=point.group)
    Up = plus_tall_times(Zu, point.U, left, alpha=-1)
    if point.hermitian:
        return Tangent(hermitian_part(Zs), Up, Up)
    return Tangent(Zs, Up, plus_tall_times(Zv, point.V, right[0], alpha=-1))


def transport(start: Point, end: Point, tangent: Tangent) -> Tangent:
    """The tangent vector at ``end`` nearest to one at ``start``: P_end(ξ), a vector transport.

    Linear in ξ, and the identity when start = end. Nothing m×n is formed.

    Cost: O((m + n) r²).
    """
    left_side = [] if start.hermitian else [(start.U, end.U)]
    right, vp_right, up_left, *other = adjoint_products(
        (start.V, end.V), (tangent.Vp, end.V), (tangent.Up, end.U), *left_side, group=end.group
    )
    left = other[0] if other else right
    # P_end(ξ) from ξV' = U a + U_p VᴴV' and ξᴴU' = V b + V_p UᴴU'.
    a = tangent.M @ right + vp_right
    core = left.mH @ a + up_left.mH @ right
    Up = sum_of_tall((start.U, a), (tangent.Up, right), (end.U, -core))
    if start.hermitian:
        return Tangent(hermitian_part(core), Up, Up)
    b = tangent.M.mH @ left + up_left
    return Tangent(core, Up, sum_of_tall((start.V, b), (tangent.Vp, left), (end.V, -core.mH)))
