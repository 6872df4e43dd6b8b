"""Dynamical low-rank approximation: gradient flows on M_r in factored form, HLZ's equations."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deeplin.flows.contract import TangentFlow
from deeplin.geometry.points import low_rank_factors
from deeplin.linalg import plus_tall_times
from deeplin.linalg.truncation import psd_tangent_step, tangent_step

__all__ = ["DLRAFlow", "PSDDLRAFlow"]

Factors = tuple[Tensor, ...]


class DLRAFlow(TangentFlow):
    """U̇ = P_U^⊥FVS^{-1},  V̇ = P_V^⊥FᵀUS^{-T},  Ṡ = UᵀFV,  F = −∇f(Z),  Z = USVᵀ.

    The gradient flow of f on M_r with the embedded metric. `rescaled` multiplies the field by
    σ_r(S) (DLRA*): the same path by another clock, and one that runs through σ_r → 0 with bounded
    coefficients. Explicit integrators of this form feel S^{-1}; those that do not are
    `integrators.ProjectedRungeKutta` on this flow, which never inverts S, and any Runge–Kutta
    method on the multiplicative form `EndToEndFlow(problem, depth=1)`.

    Conserved: UᵀU = VᵀV = I, the rank.
    Source: HLZ (1), Lemma 2.6; rescaled: (DLRA*), Lemma 3.5.
    Shapes: a state is (U, S, V): (*batch, m, r), (*batch, r, r), (*batch, n, r).
    Cost: O((m + n)r² + r³) and the gradient's products with r columns.
    """

    def __init__(self, problem: Any, rescaled: bool = False):
        self.problem, self.rescaled = problem, rescaled

    def init_state(self, W: Float[Tensor, "*batch m n"], rank: int | None = None) -> Factors:
        """The factors of W at the given rank, or at its numerical rank."""
        U, s, V = low_rank_factors(W, rank)
        return U, torch.diag_embed(s), V

    def velocity(self, t: float, y: Factors) -> Factors:
        """(U̇, Ṡ, V̇); autonomous."""
        U, S, V = y
        FV, FtU = self._products(U, S, V)
        M = U.mT @ FV
        U_dot = torch.linalg.solve(S, FV - U @ M, left=False)
        V_dot = torch.linalg.solve(S.mT, FtU - V @ M.mT, left=False)
        return self._clocked(S, (U_dot, M, V_dot))

    def _products(self, U: Tensor, S: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        """FV and FᵀU at orthonormal U, V."""
        GV, GtU = self._egrad_products(U, S, V)
        return -GV, -GtU

    def _egrad_products(self, U: Tensor, S: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        """GV and GᵀU, G = −F."""
        products = getattr(self.problem, "egrad_products", None)
        if products is not None:
            return products(U, S, V)
        G = self.problem.egrad(U @ S @ V.mT)
        return G @ V, G.mT @ U

    def _clocked(self, S: Tensor, velocity: Factors) -> Factors:
        if not self.rescaled:
            return velocity
        scale = self.clock_rate(S)[..., None, None]
        return tuple(scale * part for part in velocity)

    def clock_rate(self, S: Float[Tensor, "*batch r r"]) -> Float[Tensor, "*batch"]:
        """σ_r(S): DLRA's time passed per unit of DLRA*'s."""
        return torch.linalg.svdvals(S)[..., -1]

    def tangent_step(self, y: Factors, at: Factors) -> tuple[Tensor, Tensor]:
        """(L, R) with LRᵀ = P_T(F) at the point `at` (times σ_r if rescaled); y sets the shapes.

        P_T(F) = U(FᵀU)ᵀ + (P_U^⊥FV)Vᵀ: rank 2r, and no inverse of S.
        """
        U, S, V = at
        FV, FtU = self._products(U, S, V)
        L = torch.cat([U, FV - U @ (U.mT @ FV)], -1)
        if self.rescaled:
            L = self.clock_rate(S)[..., None, None] * L
        return L, torch.cat([FtU, V], -1)

    def gradient_step(self, y: Factors, h: float) -> Factors:
        """The nearest matrix of rank r to Z + h P_T(F), Riemannian gradient descent.

        With h times σ_r if rescaled. Source: HLZ Lemma 2.4, (2).
        """
        U, S, V = y
        GV, GtU = self._egrad_products(U, S, V)
        M = U.mT @ GV
        Up = plus_tall_times(GV, U, M, beta=-h, alpha=h)
        Vp = plus_tall_times(GtU, V, M.mT, beta=-h, alpha=h)
        M = h * M
        if self.rescaled:
            scale = self.clock_rate(S)[..., None, None]
            M, Up, Vp = scale * M, scale * Up, scale * Vp
        return tangent_step(U, S - M, V, Up, Vp)

    def truncated(self, y: Factors, steps: list[tuple[float, tuple[Tensor, Tensor]]]) -> Factors:
        """The nearest matrix of rank r to USVᵀ + Σ_i h_i L_iR_iᵀ. Source: HLZ Def. 2.3."""
        U, S, V = y
        left = torch.cat([U @ S, *(h * L for h, (L, _) in steps)], -1)
        right = torch.cat([V, *(R for _, (_, R) in steps)], -1)
        Q_L, R_L = torch.linalg.qr(left)
        Q_R, R_R = torch.linalg.qr(right)
        r = S.shape[-1]
        P, s, Qh = torch.linalg.svd(R_L @ R_R.mT, full_matrices=False)
        return Q_L @ P[..., :r], torch.diag_embed(s[..., :r]), Q_R @ Qh[..., :r, :].mT

    def end_to_end(self, y: Factors) -> Float[Tensor, "*batch m n"]:
        """Z = USVᵀ."""
        U, S, V = y
        return U @ S @ V.mT

    def singular_values(self, y: Factors) -> Float[Tensor, "*batch r"]:
        """Those of S."""
        return torch.linalg.svdvals(y[1])

    def rank(self, y: Factors) -> Int[Tensor, "*batch"]:
        """The number of singular values of S that are not 0."""
        return (self.singular_values(y) > 0).sum(-1)

    def gradient_norm(self, y: Factors) -> Float[Tensor, "*batch"]:
        """‖P_T ∇f(Z)‖_F, also for the rescaled flow."""
        U, S, V = y
        FV, FtU = self._products(U, S, V)
        M = U.mT @ FV
        parts = (M, FV - U @ M, FtU - V @ M.mT)
        return sum(part.square().sum((-2, -1)) for part in parts) ** 0.5  # type: ignore

    def conserved(self, y: Factors) -> dict[str, Tensor]:
        """UᵀU and VᵀV."""
        return {"UtU": y[0].mT @ y[0], "VtV": y[2].mT @ y[2]}

    def curvature(self, y: Factors) -> float:
        """The rate that limits explicit steps: λ_1(Hess f) and ‖P^⊥F‖/σ_r, times σ_r if rescaled.

        Projected methods need only the first; the second is the price of S^{-1}.
        """
        s = self.singular_values(y)[..., -1]
        norm = max(float(torch.linalg.matrix_norm(v, 2).amax()) for v in (self.velocity(0.0, y)))
        scale = float(s.amax()) if self.rescaled else 1.0
        return max(self.problem.curvature(self.end_to_end(y)) * scale, norm)


class PSDDLRAFlow(DLRAFlow):
    """U̇ = P_U^⊥FUS^{-1},  Ṡ = UᵀFU on the positive semidefinite matrices Z = USUᵀ of rank r.

    For f = ½‖Z − X‖² this is U̇ = P_U^⊥XUS^{-1}, Ṡ = −S + UᵀXU. Its projected methods keep the top
    r *algebraic* eigenvalues: plain truncation to rank r leaves the cone.

    Conserved: UᵀU = I, the rank, S positive definite: σ_r decays no faster than e^{−t} (Lemma
    2.7), and under `rescaled` no faster than 1/(1/σ_0 + t) (Lemma 3.5, corrected).
    Source: HLZ (DLRA), (DLRA*).
    Shapes: a state is (U, S): (*batch, n, r), (*batch, r, r), S symmetric.
    """

    def init_state(self, W: Float[Tensor, "*batch n n"], rank: int | None = None) -> Factors:
        """The factors of a positive semidefinite W.

        Raises: ValueError if W has a negative eigenvalue beyond round-off, or less than the rank.
        """
        values, vectors = torch.linalg.eigh(0.5 * (W + W.mT))
        noise = W.shape[-1] * torch.finfo(values.dtype).eps * values.abs().amax(-1, keepdim=True)
        if bool((values < -noise).any()):
            raise ValueError(
                "PSDDLRAFlow needs a positive semidefinite W(0); its smallest eigenvalue is "
                f"{float(values.min()):.3g}: use DLRAFlow."
            )
        ranks = (values > noise).sum(-1)
        r = int(ranks.max()) if rank is None else rank
        if not 1 <= r <= int(ranks.min()):
            raise ValueError(
                f"rank must satisfy 1 <= rank <= rank W(0) = {int(ranks.min())}; got rank={r}."
            )
        kept = values[..., -r:].flip(-1)
        return vectors[..., -r:].flip(-1).mT.contiguous().mT, torch.diag_embed(kept)

    def _forced(self, U: Tensor, S: Tensor) -> Tensor:
        """FU."""
        if hasattr(self.problem, "egrad_split"):
            K, N = self.problem.egrad_split(S, U)
            return N - U @ K
        return self._products(U, S, U)[0]

    def gradient_step(self, y: Factors, h: float) -> Factors:
        """The nearest semidefinite matrix of rank r to Z + h P_T(F); with h σ_r if rescaled."""
        U, S = y
        if hasattr(self.problem, "egrad_split"):
            K, N = self.problem.egrad_split(S, U)  # FU = N − UK: what is along U is not formed
        else:
            K, N = 0.0, self._forced(U, S)
        along = U.mT @ N
        M = along - K
        M = (0.5 * h) * (M + M.mT)
        Up = plus_tall_times(N, U, along, beta=h, alpha=-h)
        if self.rescaled:
            scale = self.clock_rate(S)[..., None, None]
            M, Up = scale * M, scale * Up
        return psd_tangent_step(U, S + M, Up)

    def velocity(self, t: float, y: Factors) -> Factors:
        """(U̇, Ṡ); autonomous."""
        U, S = y
        FU = self._forced(U, S)
        M = U.mT @ FU
        U_dot = torch.linalg.solve(S.mT, (FU - U @ M).mT).mT
        return self._clocked(S, (U_dot, 0.5 * (M + M.mT)))

    def clock_rate(self, S: Float[Tensor, "*batch r r"]) -> Float[Tensor, "*batch"]:
        """The smallest eigenvalue of S."""
        return torch.linalg.eigvalsh(S)[..., 0]

    def tangent_step(self, y: Factors, at: Factors) -> tuple[Tensor, Tensor]:
        """(L, R) with LRᵀ + RLᵀ = P_T(F) at `at`: L = U, R = ½UM + P_U^⊥FU."""
        U, S = at
        FU = self._forced(U, S)
        M = U.mT @ FU
        R = FU - U @ (M - 0.25 * (M + M.mT))
        return U, self.clock_rate(S)[..., None, None] * R if self.rescaled else R

    def truncated(self, y: Factors, steps: list[tuple[float, tuple[Tensor, Tensor]]]) -> Factors:
        """The nearest semidefinite matrix of rank r to USUᵀ + Σ_i h_i(L_iR_iᵀ + R_iL_iᵀ)."""
        U, S = y
        r = S.shape[-1]
        Q, T = torch.linalg.qr(torch.cat([U, *(part for _, pair in steps for part in pair)], -1))
        T_U, *columns = T.split(r, dim=-1)
        core = T_U @ S @ T_U.mT
        for i, (h, _) in enumerate(steps):
            half = h * columns[2 * i] @ columns[2 * i + 1].mT
            core = core + half + half.mT
        values, vectors = torch.linalg.eigh(0.5 * (core + core.mT))
        kept = values[..., -r:].flip(-1)
        return Q @ vectors[..., -r:].flip(-1), torch.diag_embed(kept)

    def end_to_end(self, y: Factors) -> Float[Tensor, "*batch n n"]:
        """Z = USUᵀ."""
        U, S = y
        return U @ S @ U.mT

    def gradient_norm(self, y: Factors) -> Float[Tensor, "*batch"]:
        """‖P_T ∇f(Z)‖_F, also for the rescaled flow."""
        U, S = y
        FU = self._forced(U, S)
        M = U.mT @ FU
        normal = FU - U @ M
        return (M.square().sum((-2, -1)) + 2 * normal.square().sum((-2, -1))).sqrt()

    def conserved(self, y: Factors) -> dict[str, Tensor]:
        """UᵀU."""
        return {"UtU": y[0].mT @ y[0]}
