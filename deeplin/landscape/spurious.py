"""Spurious critical points of low-rank approximation, their fibres and extended Jacobians."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.linalg import is_semidefinite, random_orthogonal
from deeplin.problems import Spectrum

__all__ = [
    "ExtendedJacobian",
    "SpuriousPoint",
    "dlra_jacobian",
    "fibre_point",
    "iteration_jacobian",
    "spurious_points",
]


@dataclass(frozen=True)
class SpuriousPoint:
    """Z_# = Σ_{i∈J} d_i u_i v_i* of rank s < r: a limit of no gradient, outside M_r.

    - `U`, `d`, `V`: its factors, Z_# = U diag(d) V*, V = U for positive semidefinite X;
    - `J`: the indices kept, from 1; `missing`: the d_i that Z_# misses, in descending order;
    - `U_missing`, `V_missing`: their singular vectors;
    - `continuum`: the dimension (complex for complex X) of the continuum of such points on which it
      lies, 0 where the d_i differ.

    Source: HLZ Definition 2.5, §3.
    """

    U: Inexact[Tensor, "m s"]
    d: Float[Tensor, " s"]
    V: Inexact[Tensor, "n s"]
    J: tuple[int, ...]
    missing: Float[Tensor, " r_minus_s"]
    U_missing: Inexact[Tensor, "m r_minus_s"]
    V_missing: Inexact[Tensor, "n r_minus_s"]
    continuum: int = 0

    @property
    def rank(self) -> int:
        """s."""
        return len(self.d)

    def dense(self) -> Inexact[Tensor, "m n"]:
        """Z_# as a matrix."""
        return (self.U * self.d) @ self.V.mH


def spurious_points(X: Inexact[Tensor, "m n"], s: int | None = None) -> Iterator[SpuriousPoint]:
    """All Z_# for a target X of rank r, or those of rank s: the set S_s. Lazily.

    Z_# = Σ_i η_i d_i u_i v_i*, η ∈ {0,1}^r, η ≠ 1: 2^r − 1 points, binom(r, s) of rank s, the
    nearest to X first in each S_s, S_{r−1} before S_{r−2} and so on. Of points that differ by equal
    d_i (to √eps·d_1) one represents the continuum on which they lie.

    Source: HLZ Definition 2.5.
    Shapes: X (m, n), real or complex; rank r by its singular values above max(m, n)·eps·d_1.
    Cost: one SVD.
    Raises: ValueError unless 0 <= s <= r − 1, or for a batch of X.

    >>> [point.J for point in spurious_points(torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0])), s=2)]
    [(1, 2), (1, 3), (2, 3)]
    """
    known = _target(X)
    r = known.rank
    if s is not None and (isinstance(s, bool) or s != int(s) or not 0 <= s < r):
        raise ValueError(f"s must satisfy 0 <= s <= r - 1 = {r - 1}, r the rank of X; got {s}.")
    ranks = range(r - 1, -1, -1) if s is None else [int(s)]
    return (_spurious(known, J) for rank in ranks for J in known.index_sets(rank))


def _target(X: Tensor) -> Spectrum:
    if X.ndim != 2:
        raise ValueError(
            f"X must be one matrix of shape (m, n); got {tuple(X.shape)}: loop over the batch."
        )
    known = Spectrum.of_matrix(X)
    if is_semidefinite(X):  # V = U exactly: the SVD's own V is U up to round-off only
        known = replace(known, V=known.U, right=known.U * known.s)
    return known


def _spurious(known: Spectrum, J: tuple[int, ...]) -> SpuriousPoint:
    kept = [j - 1 for j in J]
    out = [j for j in range(known.rank) if j not in kept]
    inside = [sum(j in kept for j in g) for g in known.groups]
    return SpuriousPoint(
        known.U[:, kept],
        known.s[kept],
        known.V[:, kept],
        J,
        known.s[out],
        known.U[:, out],
        known.V[:, out],
        sum(n * (len(g) - n) for n, g in zip(inside, known.groups, strict=True)),
    )


def fibre_point(
    X: Inexact[Tensor, "n n"],
    point: SpuriousPoint,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Inexact[Tensor, "n r"], Inexact[Tensor, "r r"]]:
    """A random point (U_#, S_#) of the fibre N_{Z#} in St(n, r) ⊕ S_r over Z_# = U_#S_#U_#*.

    U_# = (U_1, U_3)P*, S_# = P diag(D_1, 0)P*, with U_3 ⊥ U_x and P orthogonal or unitary, both
    from the Haar measure.

    Source: HLZ §3.1 (there P ∈ SO(r); any orthogonal P gives a factorisation of Z_#).
    Shapes: X (n, n) positive semidefinite of rank r; needs n − r >= r − s.
    Cost: QR decompositions of n×r and r×r matrices.
    Raises: ValueError for X that is not positive semidefinite, and where n − r < r − s: then no
    U_3 ⊥ U_x exists.
    """
    known = _psd_target(X)
    n, r, s = len(X), known.rank, point.rank
    if n - r < r - s:
        raise ValueError(
            f"the fibre needs n - r >= r - s, so that r - s columns fit beside those of X; got "
            f"n={n}, r={r}, s={s}: take a larger n."
        )
    G = _gaussian(X, n, r - s, generator)
    for _ in range(2):  # twice is enough for orthogonality to round-off
        G = G - known.U @ (known.U.mH @ G)
    U_3 = torch.linalg.qr(G).Q
    if X.is_complex():
        P = torch.linalg.qr(_gaussian(X, r, r, generator)).Q
    else:
        P = random_orthogonal(r, r, dtype=X.dtype, device=X.device, generator=generator)
    weights = torch.cat([point.d, point.d.new_zeros(r - s)])
    return torch.cat([point.U, U_3], 1) @ P.mH, (P * weights) @ P.mH


def _gaussian(X: Tensor, rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    return torch.randn(rows, columns, dtype=X.dtype, device=X.device, generator=generator)


def _psd_target(X: Tensor) -> Spectrum:
    known = _target(X)
    if not is_semidefinite(X):
        raise ValueError(
            "the fibre and the Jacobians of DLRA* are those of SPSD matrices: X must be Hermitian "
            "positive semidefinite; for others use spurious_points(X)."
        )
    return known


@dataclass(frozen=True)
class ExtendedJacobian:
    """The real-linear map v ↦ base·v + rate·P v, P the projection on one escaping direction.

    `apply` takes and returns tuples of matrices; `eigenvalue` is that of `eigenvector`, the
    escaping direction (for complex problems there are two, with iu in place of u); every other
    eigenvalue is `base`.
    """

    base: float
    eigenvalue: float
    eigenvector: tuple[Tensor, ...]
    _u: Tensor
    _p: Tensor

    def apply(self, *v: Tensor) -> tuple[Tensor, ...]:
        """The Jacobian of a direction: (ξ_1, ξ_2) of (U, S) for DLRA*, (ξ,) for the iteration."""
        rate = self.eigenvalue - self.base
        u, p = self._u, self._p
        forward = torch.outer(u, p.conj()) * (u.conj() @ v[0] @ p)
        if len(self.eigenvector) == 2:
            return self.base * v[0] + rate * forward, self.base * v[1]
        backward = torch.outer(p, u.conj()) * (p.conj() @ v[0] @ u)
        return (self.base * v[0] + rate * (forward + backward),)

    def eigenvalues(self, dim: int) -> Float[Tensor, " dim"]:
        """All eigenvalues on a real tangent space of the given dimension, ascending."""
        escaping = 2 if self._u.is_complex() else 1
        values = torch.full((dim,), self.base, dtype=torch.float64)
        values[dim - escaping :] = self.eigenvalue
        return values


def dlra_jacobian(
    X: Inexact[Tensor, "n n"], U: Inexact[Tensor, "n r"], S: Inexact[Tensor, "r r"]
) -> ExtendedJacobian:
    """The Jacobian of DLRA* at a point (U_#, S_#) over Z_# ∈ S_{r−1}, by its C¹ extension.

    (ξ_1, ξ_2) ↦ (d u u*ξ_1 p p*, 0): the eigenvalue d that Z_# misses, with u its eigenvector of X
    and S_#p = 0; the eigenvector is (up*, 0), all other eigenvalues are 0.

    Source: HLZ Lemma 3.7, 3.8, with d the missing eigenvalue in place of their d_r. Derivation:
    P_U^⊥XU and U*XU − S vanish on the fibre, so σ_min(S)S^{-1} → pp* enters undifferentiated.
    Shapes: X (n, n) positive semidefinite of rank r, U (n, r), S (r, r).
    Cost: eigendecompositions of X and S.
    Raises: ValueError if (U, S) is not over a spurious point of rank r − 1. For s <= r − 2 there is
    no extension: σ_min(S)S^{-1} depends on the direction in which S_# is approached.
    """
    d, u, p, _ = _extension(X, U, S)
    vector = (torch.outer(u, p.conj()), torch.zeros_like(S))
    return ExtendedJacobian(0.0, d, vector, u, p)


def iteration_jacobian(
    X: Inexact[Tensor, "n n"],
    U: Inexact[Tensor, "n r"],
    S: Inexact[Tensor, "r r"],
    alpha: float,
) -> ExtendedJacobian:
    """The Jacobian at Z_# ∈ S_{r−1} of Z ↦ R(Z − ασ_r(Z)P_T(Z − X)), by its C¹ extension.

    ξ ↦ ξ + αd(uu*ξu_3u_3* + u_3u_3*ξuu*) on tangent matrices: eigenvalue 1 + αd with eigenvector
    uu_3* + u_3u*, all others 1; d, u the missing eigenpair and u_3 = U_#p, S_#p = 0.

    Source: HLZ Lemma 4.1, whose 1 + 2αD_2 is 1 + αd (its last line has it right).
    Shapes: X (n, n) positive semidefinite of rank r, U (n, r), S (r, r), the limit of the factors.
    Raises: ValueError as `dlra_jacobian`, and for alpha <= 0.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be positive; got {alpha}.")
    d, u, _, u_3 = _extension(X, U, S)
    vector = torch.outer(u, u_3.conj()) + torch.outer(u_3, u.conj())
    return ExtendedJacobian(1.0, 1.0 + alpha * d, (vector,), u, u_3)


def _extension(X: Tensor, U: Tensor, S: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
    """(d, u, p, U_#p) of a point over S_{r−1}."""
    known = _psd_target(X)
    r = known.rank
    if U.shape != (len(X), r) or S.shape != (r, r):
        raise ValueError(
            f"a point over a spurious point of X needs U ({len(X)}, {r}) and S ({r}, {r}), r the "
            f"rank of X; got {tuple(U.shape)} and {tuple(S.shape)}."
        )
    tolerance = 1e3 * len(X) * torch.finfo(X.dtype).eps * known.scale
    near = known.nearest(U @ S @ U.mH)
    values, P = torch.linalg.eigh(S)
    s = int((values.abs() > tolerance).sum())
    if s != r - 1:
        why = (
            "the fields are smooth there: differentiate them"
            if s == r
            else "σ_min(S)S^{-1} has no limit there"
        )
        raise ValueError(
            f"the C^1 extension exists at rank s = r - 1 = {r - 1} alone (HLZ Lemma 3.7); got "
            f"S of rank s = {s}: {why}."
        )
    p = P[:, values.abs().argmin()]
    u_3 = U @ p
    off = float(torch.linalg.vector_norm(known.U.mH @ u_3))
    if float(near.distance) > tolerance or int(near.rank) != r - 1 or off > tolerance:
        raise ValueError(
            "(U, S) must lie over a spurious point, U = (U_1, U_3)P* and S = P diag(D_1, 0)P* with "
            f"U_3 ⊥ U_x; the product is {float(near.distance):.2g} away from the nearest Z_# and "
            f"‖U_x*U_3‖ = {off:.2g}: take one from fibre_point(X, point)."
        )
    j = int((~near.modes).nonzero()[0])
    return float(known.s[j]), near.U[:, j], p, u_3
