"""The coordinates Z = WC^{1/2} in which L¹ is ½‖Z − Q‖² + const, and the SVD of Q in them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from deeplin.problems import LeastSquares, MatrixApproximation

__all__ = ["Frame", "Nearest", "Problem", "as_least_squares", "nearest_critical_point"]

Problem = LeastSquares | MatrixApproximation


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
        """Whether J picks the k largest σ_j: W_J is the minimum on M_k (Prop. 32(2))."""
        first = torch.arange(self.modes.shape[-1], device=self.modes.device) < self.rank[..., None]
        return (self.modes == first).all(-1)


@dataclass(frozen=True)
class Frame:
    """Q = UΣVᴴ, the square roots of C that carry W to Z = WC^{1/2} and back, and what is constant.

    `groups` are the index ranges of equal σ_j: those that differ by at most √eps·σ_1.
    """

    U: Tensor
    s: Tensor
    V: Tensor
    root: Tensor
    inverse_root: Tensor
    residual: Tensor

    @classmethod
    def of(cls, problem: Problem) -> Frame:
        """The frame of a problem. Raises ValueError for a batch of approximation problems."""
        if isinstance(problem, LeastSquares):
            values, vectors = problem.spectrum
            kept, E = values[: problem.rank_X], vectors[:, : problem.rank_X]
            U, s, Vh = problem.svd_Q
            roots = ((E * kept.sqrt()) @ E.mT, (E * kept.rsqrt()) @ E.mT)
            return cls(U, s, Vh.mT, *roots, problem.residual_loss)
        X = problem.X
        if X.ndim != 2:
            raise ValueError(
                "the landscape is that of one matrix: MatrixApproximation(X) needs X of shape "
                f"(m, n); got {tuple(X.shape)}: loop over the batch."
            )
        U, s, Vh = torch.linalg.svd(X, full_matrices=False)
        q = int((s > max(X.shape) * torch.finfo(s.dtype).eps * s[:1]).sum())
        eye = torch.eye(X.shape[1], dtype=X.dtype, device=X.device)
        return cls(U[:, :q], s[:q], Vh[:q].mH, eye, eye, s.new_zeros(()))

    @property
    def q(self) -> int:
        """rank Q."""
        return len(self.s)

    @property
    def scale(self) -> float:
        """σ_1, or 1 where Q = 0."""
        return float(self.s[0]) if self.q else 1.0

    @cached_property
    def groups(self) -> list[range]:
        """The maximal runs of indices (from 0) of equal σ_j."""
        equal = torch.finfo(self.s.dtype).eps ** 0.5 * self.scale
        groups: list[range] = []
        sigma = self.s.tolist()
        for j in range(len(sigma)):
            if groups and sigma[groups[-1].start] - sigma[j] <= equal:
                groups[-1] = range(groups[-1].start, j + 1)
            else:
                groups.append(range(j, j + 1))
        return groups

    def point(self, J: list[int]) -> Tensor:
        """W_J for indices from 0."""
        return (self.U[:, J] * self.s[J]) @ self.V[:, J].mH @ self.inverse_root

    @cached_property
    def _white(self) -> bool:
        """Whether C = I, so that nothing need be multiplied by C^{1/2}."""
        eye = torch.eye(len(self.root), dtype=self.root.dtype, device=self.root.device)
        return bool(torch.equal(self.root, eye))

    def nearest(self, W: Inexact[Tensor, "*batch d_y d_x"]) -> Nearest:
        """The critical point of any rank nearest to W, by ‖(W − W_J)C^{1/2}‖_F.

        The squared distance is ‖Z‖² + Σ_J σ_j(σ_j − 2Re u_jᴴZv_j): j ∈ J iff Re u_jᴴZv_j > σ_j/2;
        for equal σ_j the same with the eigenvalues of the Hermitian part of that block.
        """
        W = W.to(self.U.dtype)
        Z = W if self._white else W @ self.root
        U, V = self.U, self.V
        ZV = Z @ V
        overlap = (U.conj() * ZV).sum(-2).real
        repeated = [g for g in self.groups if len(g) > 1]
        if repeated:
            overlap = overlap.clone()
            rotation = torch.eye(self.q, dtype=U.dtype, device=U.device)
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


def nearest_critical_point(problem: Problem, W: Inexact[Tensor, "*batch d_y d_x"]) -> Nearest:
    """The critical point of L¹, on whichever M_k, that is nearest to W.

    min_J ‖(W − W_J)C^{1/2}‖_F: j ∈ J iff u_jᵀWC^{1/2}v_j > σ_j/2, so that no search is needed.

    Source: BRTW Prop. 32, in the coordinates of its proof.
    Shapes: W (*batch, d_y, d_x) -> mask (*batch, q), distance (*batch).
    Cost: O(d_x²(d_x + d_y)) for the problem and O(d_y d_x (d_x + q)) for each W.
    """
    return Frame.of(problem).nearest(W)


def as_least_squares(problem: Problem) -> LeastSquares:
    """The problem as LeastSquares: ½‖W − X‖² has C = I, B = X.

    Raises: TypeError for a complex X.
    """
    if isinstance(problem, LeastSquares):
        return problem
    if problem.X.is_complex():
        raise TypeError(
            "Hessians are formed for real problems only; got a complex X: use the closed-form "
            "index and directions of critical_points(problem, k)."
        )
    X = problem.X
    eye = torch.eye(X.shape[1], dtype=X.dtype, device=X.device)
    return LeastSquares.from_moments(eye, X, X.square().sum())
