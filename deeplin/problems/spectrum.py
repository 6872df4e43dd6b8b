"""The landscape of ½‖WC^{1/2} − Q‖² + const in closed form: the SVD of Q, and what it decides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from deeplin.problems.contract import Optimum

__all__ = ["Eigen", "Nearest", "Spectrum"]


class Eigen(NamedTuple):
    """Eigenvalues in descending order and the matrix whose columns are their eigenvectors."""

    values: Float[Tensor, " k"]
    vectors: Inexact[Tensor, "d k"]


class Nearest(NamedTuple):
    """The critical point W_J nearest to a W: J as a mask, and how far it is.

    Within equal σ_j, where critical points form continua, the mask counts modes: the first of the
    equal ones are set. `U`, `V` are singular vectors of Q for which W_J is the sum over J.
    """

    modes: Bool[Tensor, "*batch q"]
    distance: Float[Tensor, "*batch"]
    U: Inexact[Tensor, "*batch d_y q"]
    V: Inexact[Tensor, "*batch d_x q"]

    @property
    def rank(self) -> Tensor:
        """k = |J|."""
        return self.modes.sum(-1)

    @property
    def optimal(self) -> Tensor:
        """Whether J picks the k largest σ_j: W_J is the minimum on M_k. Source: BRTW Prop. 32."""
        first = torch.arange(self.modes.shape[-1], device=self.modes.device) < self.rank[..., None]
        return (self.modes == first).all(-1)


@dataclass(frozen=True, eq=False)
class Spectrum(Optimum):
    """What the reduced SVD Q = UΣVᴴ knows of f(W) = ½‖WC^{1/2} − Q‖_F² + residual.

    The critical points on the matrices of rank k are W_J = Σ_{j∈J} σ_j u_j v_jᴴ C^{-1/2}, |J| = k,
    with the loss residual + ½Σ_{j∉J} σ_j². `right` has the columns σ_j C^{-1/2} v_j, so that W_J is
    a sum of u_j right_jᴴ. `C` and its eigenvectors of positive eigenvalues are None for C = I.
    Singular values that differ by at most √eps·σ_1 count as equal, everywhere.

    Source: BRTW (31), BRTW Prop. 32; HLZ §1 for C = I.
    Shapes: U (*batch, m, q), s (*batch, q), V and right (*batch, n, q), residual (*batch); only
        `minimizer` and `optimal_loss` take a batch.
    """

    U: Inexact[Tensor, "*batch m q"]
    s: Float[Tensor, "*batch q"]
    V: Inexact[Tensor, "*batch n q"]
    right: Inexact[Tensor, "*batch n q"]
    residual: Float[Tensor, "*batch"]
    C: Inexact[Tensor, "n n"] | None = None
    eigen: Eigen | None = None

    @classmethod
    def of_matrix(
        cls, Q: Inexact[Tensor, "*batch m n"], residual: Float[Tensor, "*batch"] | None = None
    ) -> Spectrum:
        """That of ½‖W − Q‖²; q counts the singular values above max(m, n)·eps·σ_1."""
        U, s, Vh = torch.linalg.svd(Q, full_matrices=False)
        q = _count(s, max(Q.shape[-2:]) * s[..., :1])
        U, s, V = U[..., :q], s[..., :q], Vh[..., :q, :].mH
        residual = s.new_zeros(s.shape[:-1]) if residual is None else residual
        return cls(U, s, V, V * s[..., None, :], residual)

    @classmethod
    def of_moments(
        cls,
        C: Inexact[Tensor, "n n"],
        B: Inexact[Tensor, "m n"],
        eigen: Eigen,
        residual: Float[Tensor, ""],
        *,
        autoencoder: bool = False,
    ) -> Spectrum:
        """That of ½‖(W − BC⁺)C^{1/2}‖², `eigen` the eigenpairs of C with positive eigenvalues.

        For an autoencoder, B = C, it needs no SVD: u_j = v_j are the eigenvectors, σ_j = √λ_j.
        """
        values, E = eigen
        if autoencoder:
            return cls(E, values.sqrt(), E, E, residual, C, eigen)
        U, s, Vh = torch.linalg.svd(times_inverse_root(B, eigen), full_matrices=False)
        noise = torch.linalg.matrix_norm(B, 2) * values[-1:].rsqrt()
        q = _count(s, max(B.shape) * noise)
        U, s, V = U[:, :q], s[:q], Vh[:q].mH
        right = E @ (values.rsqrt()[:, None] * V * s)
        return cls(U, s, E @ V, right, residual, C, eigen)

    # -- the optimum -----------------------------------------------------------------------------

    @property
    def rank(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """q = rank Q, the largest rank of a critical point."""
        return self.s.shape[-1]

    @property
    def scale(self) -> float:
        """σ_1, or 1 where Q = 0."""
        return float(self.s[..., 0].max()) if self.rank else 1.0

    def minimizer(self, k: int) -> Inexact[Tensor, "*batch m n"]:
        """W_{{1..k}}. Raises: ValueError for k > q, where the infimum is not attained."""
        return self.point(range(1, k + 1))

    def optimal_loss(self, k: int) -> Float[Tensor, "*batch"]:
        """residual + ½Σ_{j>k} σ_j², the infimum over the matrices of rank k."""
        self._check_rank(k)
        return self.residual + 0.5 * self.s[..., k:].square().sum(-1)

    def is_unique(self, k: int) -> bool:
        """Whether σ_k > σ_{k+1}, by more than √eps·σ_1, or k = 0 or q."""
        self._check_rank(k)
        return self.nullity(k) == 0

    def nullity(self, k: int) -> int:
        """The dimension of the continuum of minima on M_k, complex for complex matrices."""
        return sum((k - g.start) * (g.stop - k) for g in self.groups if g.start < k < g.stop)

    # -- critical points -------------------------------------------------------------------------

    @cached_property
    def groups(self) -> list[range]:
        """The maximal runs of indices (from 0) of equal σ_j."""
        if self.s.ndim != 1:
            raise ValueError(
                "the landscape is that of one matrix: MatrixApproximation(X) needs X of shape "
                f"(m, n); got a batch {tuple(self.s.shape[:-1])}: loop over the batch."
            )
        equal = torch.finfo(self.s.dtype).eps ** 0.5 * self.scale
        groups: list[range] = []
        sigma = self.s.tolist()
        for j in range(len(sigma)):
            if groups and sigma[groups[-1].start] - sigma[j] <= equal:
                groups[-1] = range(groups[-1].start, j + 1)
            else:
                groups.append(range(j, j + 1))
        return groups

    def point(self, J: Iterable[int]) -> Inexact[Tensor, "*batch m n"]:
        """W_J for distinct indices from 1. Raises: ValueError for others."""
        indices = sorted(J)
        if len(set(indices)) != len(indices) or any(not 1 <= j <= self.rank for j in indices):
            raise ValueError(
                "a critical point W_J needs distinct indices from 1 to rank Q = "
                f"{self.rank}, as in BRTW Prop. 32; got {indices}."
            )
        rows = [j - 1 for j in indices]
        return self.U[..., rows] @ self.right[..., rows].mH

    def critical_points(self, k: int) -> Iterator[tuple[tuple[int, ...], Inexact[Tensor, "m n"]]]:
        """All (J, W_J) with |J| = k, the minimizer first, lazily: at most binom(q, k).

        Of sets J that differ by equal σ_j the first alone: it represents a continuum.
        """
        self._check_rank(k)
        return ((J, self.point(J)) for J in self.index_sets(k))

    def index_sets(self, k: int) -> Iterator[tuple[int, ...]]:
        """Sets of k indices from 1 that take the first ones of every group; largest σ_j first."""
        return (tuple(j + 1 for j in J) for J in _index_sets(self.groups, int(k)))

    def nearest(self, W: Inexact[Tensor, "*batch m n"]) -> Nearest:
        """The critical point of any rank nearest to W, by ‖(W − W_J)C^{1/2}‖_F.

        The squared distance is ‖Z‖² + Σ_J σ_j(σ_j − 2Re u_jᴴZv_j), Z = WC^{1/2}: j ∈ J iff
        Re u_jᴴZv_j > σ_j/2; for equal σ_j the same with the eigenvalues of the Hermitian part of
        that block.
        """
        dtype = torch.promote_types(W.dtype, self.U.dtype)
        Z, U, V = self.times_root(W.to(dtype)), self.U.to(dtype), self.V.to(dtype)
        ZV = Z @ V
        overlap = (U.conj() * ZV).sum(-2).real
        repeated = [g for g in self.groups if len(g) > 1]
        if repeated:
            overlap = overlap.clone()
            rotation = torch.eye(self.rank, dtype=U.dtype, device=U.device)
            rotation = rotation.repeat(*overlap.shape[:-1], 1, 1)
            for g in repeated:
                block = U[:, g.start : g.stop].mH @ ZV[..., g.start : g.stop]
                values, vectors = torch.linalg.eigh(0.5 * (block + block.mH))
                overlap[..., g.start : g.stop] = values.flip(-1)
                rotation[..., g.start : g.stop, g.start : g.stop] = vectors.flip(-1)
            U, V = U @ rotation, V @ rotation
        modes = overlap > 0.5 * self.s
        Z_J = (U * (modes * self.s)[..., None, :]) @ V.mH
        return Nearest(modes, torch.linalg.matrix_norm(Z - Z_J), U, V)

    # -- coordinates -----------------------------------------------------------------------------

    @cached_property
    def root(self) -> Inexact[Tensor, "n n"] | None:
        """C^{1/2}; None for C = I."""
        if self.eigen is None:
            return None
        values, E = self.eigen
        return (E * values.sqrt()) @ E.mH

    def times_root(self, A: Inexact[Tensor, "*batch k n"]) -> Inexact[Tensor, "*batch k n"]:
        """AC^{1/2}."""
        return A if self.root is None else A @ self.root.to(A.dtype)

    def over_root(self, A: Inexact[Tensor, "*batch k n"]) -> Inexact[Tensor, "*batch k n"]:
        """AC^{-1/2}, of the pseudo-inverse where C is singular."""
        return A if self.eigen is None else times_inverse_root(A, self.eigen) @ self.eigen[1].mH

    @property
    def root_norm(self) -> float:
        """‖C^{1/2}‖, the spectral norm."""
        return 1.0 if self.eigen is None else float(self.eigen.values[:1].sum().sqrt())

    def _check_rank(self, k: int) -> None:
        most = min(self.U.shape[-2], self.V.shape[-2])
        if isinstance(k, bool) or k != int(k) or not 0 <= k <= most:
            raise ValueError(f"the rank k must satisfy 0 <= k <= min(d_y, d_x) = {most}; got {k}.")


def times_inverse_root(
    B: Inexact[Tensor, "*batch k n"], eigen: Eigen
) -> Inexact[Tensor, "*batch k p"]:
    """BC^{-1/2} in the basis of the p eigenvectors of C: BEΛ^{-1/2}."""
    return B @ eigen.vectors * eigen.values.rsqrt()


def _count(s: Tensor, noise: Tensor) -> int:
    """How many singular values, at most over a batch, exceed eps times the noise."""
    counts = (s > torch.finfo(s.dtype).eps * noise).sum(-1)
    return int(counts.max()) if counts.numel() else 0


def _index_sets(groups: list[range], k: int) -> Iterator[list[int]]:
    if k == 0:
        yield []
    elif sum(map(len, groups)) >= k:
        for count in range(min(k, len(groups[0])), -1, -1):
            for rest in _index_sets(groups[1:], k - count):
                yield [*groups[0][:count], *rest]
