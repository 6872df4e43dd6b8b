"""The gradient flow of the end-to-end matrix on the manifold of matrices of rank k."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.graded import graded_svd
from deeplin.linalg import power_divided_difference

__all__ = ["EndToEndFlow", "Factors", "egrad_products", "low_rank_factors"]

Factors = tuple[Tensor, Tensor, Tensor]


class EndToEndFlow:
    """Ẇ = −𝒜_W(∇L¹(W)) on M_k, factored as W = U diag(s) Vᵀ and moved by multiplication.

    With the reduced SVD W = UΣVᵀ, G = ∇L¹(W), g = UᵀGV and
    K_ij = g_ij (σ_i − σ_j)/(σ_i^{2/N} − σ_j^{2/N}) the flow is Ẇ = −(M_U Uᵀ)W − W(V M_Vᵀ),
    M_U = UK + P_U^⊥ G V Σ^{1−2/N},  M_V = VKᵀ + P_V^⊥ Gᵀ U Σ^{1−2/N}.
    So W(t) = A(t) W(0) B(t)ᵀ with invertible A, B: along a step the middle factor s stands still,
    U̇ = −M_U(UᵀU), V̇ = −M_V(VᵀV), and after it `normalised` renews the decomposition with every
    singular value to relative accuracy. Hence **any** Runge–Kutta method keeps the rank and the
    sign of det W here, at its full order, down to the smallest numbers of the format; no
    singular value passes through 0. For N ≥ 2 nothing is divided by σ_k or by gaps.

    `depth` N is a real number ≥ 1 or ∞. N = 1 is the embedded metric (DLRA), whose coefficients
    grow like 1/σ_k; `rescaled` multiplies the field by σ_k (DLRA*), which bounds them again.
    At N = ∞ the time is scaled by 1/N: only the core moves, row and column space stand still.

    Conserved: the rank k and, for k = m = n, the sign of det W.
    Source: BRTW (9), (24), Prop. 12; N = 1: HLZ (1), (DLRA*); the form: theory.md §3(c).
    Shapes: a state is (U, s, V): (*batch, m, k), (*batch, k), (*batch, n, k); s > 0 descends, U and
    V are orthonormal at the ends of steps.
    Cost: O((m+n)k² + k³) and the products of C and B with k columns, whatever the depth.
    Raises: ValueError for depth < 1.

    >>> problem = MatrixApproximation(torch.eye(2, dtype=torch.float64))
    >>> flow = EndToEndFlow(problem, depth=2)
    >>> U, s, V = flow.init_state(torch.eye(2, dtype=torch.float64) / 2, rank=1)
    >>> s
    tensor([0.5000], dtype=torch.float64)
    """

    def __init__(self, problem: Any, depth: float, *, rescaled: bool = False):
        if not depth >= 1:
            raise ValueError(
                f"EndToEndFlow(depth=...) must be a real number >= 1 or math.inf; got {depth}."
            )
        self.problem, self.depth, self.rescaled = problem, float(depth), rescaled

    def init_state(self, W: Float[Tensor, "*batch m n"], rank: int | None = None) -> Factors:
        """The factors of W at the given rank, or at its numerical rank."""
        return low_rank_factors(W, rank)

    def velocity(self, t: float, y: Factors) -> Factors:
        """(U̇, 0, V̇) at factors U, V of full column rank, orthonormal or not; autonomous."""
        U, s, V, A, B = _orthonormal(y)
        M_U, M_V = self._generators(U, s, V)
        return -(M_U @ A), torch.zeros_like(y[1]), -(M_V @ B)

    def _generators(self, U: Tensor, s: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        """M_U and M_V at orthonormal U, V."""
        GV, GtU = egrad_products(self.problem, U, s, V)
        if self.depth == 2:
            M_U, M_V = GV, GtU
        else:
            g, root = U.mT @ GV, s.sqrt()
            half = power_divided_difference(root[..., :, None], root[..., None, :], self.depth / 2)
            if math.isinf(self.depth):
                K = 0.5 * half * g
                M_U, M_V = U @ K, V @ K.mT
            else:
                K, p = half * g, (s ** (1 - 2 / self.depth))[..., None, :]
                M_U = GV * p + U @ (K - g * p)
                M_V = GtU * p + V @ (K.mT - g.mT * p)
        if self.rescaled:
            scale = s[..., -1:, None]
            return scale * M_U, scale * M_V
        return M_U, M_V

    def normalised(self, y: Factors, before: Factors | None = None) -> Factors:
        """The same W with orthonormal U, V and its singular values s.

        Given the state before the step, a trajectory whose step was so long that a singular value
        would have passed through 0 becomes NaN instead: no silent change of sign.
        """
        U, s, V, _, _ = _orthonormal(y)
        if before is not None:
            passed = (torch.linalg.det(before[0].mT @ y[0]) > 0) & (
                torch.linalg.det(before[2].mT @ y[2]) > 0
            )
            s = torch.where(passed[..., None], s, math.nan)
        return U, s, V

    def end_to_end(self, y: Factors) -> Float[Tensor, "*batch m n"]:
        """W = U diag(s) Vᵀ."""
        U, s, V = y
        return (U * s[..., None, :]) @ V.mT

    def singular_values(self, y: Factors) -> Float[Tensor, "*batch k"]:
        """The singular values of W, each to relative accuracy."""
        return y[1]

    def gradient_norm(self, y: Factors) -> Float[Tensor, "*batch"]:
        """g_W(∇^g L, ∇^g L)^{1/2} = ⟨∇L¹, 𝒜_W ∇L¹⟩^{1/2}; for balanced layers that of ∇L^N."""
        U, s, V = y
        GV, GtU = egrad_products(self.problem, U, s, V)
        M_U, M_V = self._generators(U, s, V)
        rate = (s[..., None, :] * (GV * M_U)).sum((-2, -1))
        rate = rate + (s[..., None, :] * (GtU * M_V)).sum((-2, -1))
        return rate.clamp(min=0).sqrt()

    def conserved(self, y: Factors) -> dict[str, Tensor]:
        """UᵀU, VᵀV (= I), the rank, and for square W of full rank the sign of det W."""
        U, s, V = y
        quantities = {"UtU": U.mT @ U, "VtV": V.mT @ V, "rank": (s > 0).sum(-1).to(s)}
        if U.shape[-2] == V.shape[-2] == s.shape[-1]:
            quantities["sign_det"] = torch.sign(torch.linalg.det(U) * torch.linalg.det(V))
        return quantities

    def fault(self, y: Factors) -> str | None:
        """A sentence once σ_k is below what the number format carries."""
        smallest = float(y[1][..., -1].amin())
        info = torch.finfo(y[1].dtype)
        if smallest >= info.tiny / info.eps:
            return None
        return (
            f"the smallest singular value of W, {smallest:.3g}, has left the range of "
            f"{str(y[1].dtype).removeprefix('torch.')}: W stays of rank {y[1].shape[-1]} under "
            "the exact flow, but these numbers cannot show it any longer."
        )

    def stiffness(self, y: Factors) -> float:
        """The rate that limits explicit steps: Nσ^{2−2/N}λ_1(C) at y and at the optimum.

        And the norm of the generators at y: a step multiplies by about 1 − hM.
        """
        U, s, V = y
        largest = s[..., 0].amax()
        minimizer = getattr(self.problem, "minimizer", None)
        if minimizer is not None:
            k = min(s.shape[-1], getattr(self.problem, "rank_Q", s.shape[-1]))
            largest = torch.maximum(largest, torch.linalg.matrix_norm(minimizer(k), 2).amax())
        power = 2.0 if math.isinf(self.depth) else 2 - 2 / self.depth
        factor = 1.0 if math.isinf(self.depth) else self.depth
        rate = factor * float(largest) ** power * getattr(self.problem, "lipschitz", 1.0)
        if self.rescaled:
            rate *= float(largest)
        norms = [float(torch.linalg.matrix_norm(M, 2).amax()) for M in self._generators(U, s, V)]
        return max(rate, *norms)


def egrad_products(
    problem: Any, U: Tensor, s: Tensor, V: Tensor
) -> tuple[Float[Tensor, "*batch m k"], Float[Tensor, "*batch n k"]]:
    """(GV, GᵀU) of G = ∇f(U diag(s) Vᵀ) at orthonormal U, V; without m×n matrices if f can."""
    products = getattr(problem, "egrad_products", None)
    if products is not None:
        return products(U, s, V)
    G = problem.egrad((U * s[..., None, :]) @ V.mT)
    return G @ V, G.mT @ U


def low_rank_factors(W: Float[Tensor, "*batch m n"], rank: int | None) -> Factors:
    """(U, s, V) of the best approximation of W of the given rank, by default its numerical rank.

    Raises: ValueError if rank is not 1 <= rank <= min(m, n), or W has fewer singular values above
    round-off.
    """
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    noise = max(W.shape[-2:]) * torch.finfo(s.dtype).eps * s[..., :1]
    ranks = (s > noise).sum(-1)
    k = int(ranks.max()) if rank is None else rank
    if not 1 <= k <= s.shape[-1]:
        raise ValueError(
            f"rank must satisfy 1 <= rank <= min(m, n) = {s.shape[-1]}; got rank={k}."
        )
    if int(ranks.min()) < k:
        raise ValueError(
            f"W(0) must have rank {k}; its numerical rank is {int(ranks.min())}: give that as rank."
        )
    return U[..., :k].contiguous(), s[..., :k].contiguous(), Vh[..., :k, :].mT.contiguous()


def _orthonormal(y: Factors) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(U, σ, V, A, B): the SVD UΣVᵀ of the product of the factors y = (UA, s, VB)."""
    left, s, right = y
    grams = torch.stack(torch.broadcast_tensors(left.mT @ left, right.mT @ right))
    L, failed = torch.linalg.cholesky_ex(grams)
    if bool(failed.any()):
        L = torch.where(failed[..., None, None] > 0, math.nan, L)
    R = L.mT
    P, sigma, Q = graded_svd(R[0], s, R[1])
    PQ = torch.stack([P, Q])
    T = torch.linalg.solve_triangular(R, PQ, upper=True)
    A = PQ.mT @ R
    return left @ T[0], sigma, right @ T[1], A[0], A[1]
