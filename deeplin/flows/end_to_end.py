"""The gradient flow of the end-to-end matrix on the manifold of matrices of rank k."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor

from deeplin.flows.ahead import explicit_rate
from deeplin.flows.contract import Flow, Start, State
from deeplin.flows.gaps import may_be_differentiated, without_derivative_at_gaps
from deeplin.flows.starts import start_matrix
from deeplin.geometry.coordinates import Point
from deeplin.geometry.metric import DepthMetric, Metric, as_metric
from deeplin.geometry.points import low_rank_factors
from deeplin.linalg import graded_svd, tall_times
from deeplin.problems.contract import Problem

__all__ = ["EndToEndFlow", "Factors"]

Factors = tuple[Tensor, Tensor, Tensor]


class EndToEndFlow(Flow):
    """Ẇ = −𝒜_W(∇L¹(W)) on M_k, factored as W = U diag(e^ℓ) Vᵀ and moved by multiplication.

    With the reduced SVD W = UΣVᵀ, G = ∇L¹(W), g = UᵀGV and
    K_ij = g_ij (σ_i − σ_j)/(σ_i^{2/N} − σ_j^{2/N}) the flow is Ẇ = −(M_U Uᵀ)W − W(V M_Vᵀ),
    M_U = UK + P_U^⊥ G V Σ^{1−2/N},  M_V = VKᵀ + P_V^⊥ Gᵀ U Σ^{1−2/N}.
    So W(t) = A(t) W(0) B(t)ᵀ with invertible A, B. Along a step U and V move by M_U and M_V but
    for the growth of each column, which goes to ℓ, the logarithms of the singular values; after
    it `normalised` renews the decomposition with every singular value to relative accuracy. Hence
    **any** Runge–Kutta method keeps the rank and the sign of det W here, at its full order, however
    small σ_k becomes, below the range of the number format too; no singular value passes through
    0. For N ≥ 2 nothing is divided by σ_k or by gaps.

    `depth` N is a real number ≥ 1 or ∞. N = 1 is the embedded metric (DLRA), whose coefficients
    grow like 1/σ_k; `rescaled` multiplies the field by σ_k (DLRA*), which bounds them again.
    At N = ∞ the time is scaled by 1/N: only the core moves, row and column space stand still.

    Conserved: the rank k and, for k = m = n, the sign of det W.
    Source: BRTW (9), BRTW (24), BRTW Prop. 12; N = 1: HLZ (1), HLZ (DLRA*). The multiplicative form
        is ours.
    Shapes: a state is (U, ℓ, V): (*batch, m, k), (*batch, k), (*batch, n, k); ℓ descends, U and V
    are orthonormal at the ends of steps.
    Cost: O((m+n)k² + k³) and the products of C and B with k columns, whatever the depth.
    Raises: ValueError for depth < 1.

    >>> import torch
    >>> from deeplin.problems import MatrixApproximation
    >>> problem = MatrixApproximation(torch.eye(2, dtype=torch.float64))
    >>> flow = EndToEndFlow(problem, depth=2)
    >>> y = flow.init_state(torch.eye(2, dtype=torch.float64) / 2, rank=1)
    >>> flow.singular_values(y)
    tensor([0.5000], dtype=torch.float64)
    """

    # Errors of ℓ, logarithms, are relative already: `adaptive` measures them against 1.
    autonomous = True
    logarithmic_parts = (1,)
    normalises = True

    def __init__(self, problem: Problem, depth: float | Metric, *, rescaled: bool = False):
        self.problem, self.metric, self.rescaled = problem, as_metric(depth), rescaled

    def init_state(self, start: Start, rank: int | None = None) -> Factors:
        """The factors of the start's W at the given rank, or at its numerical rank.

        Raises: ValueError for layers that are not balanced, which move by another flow; for N = 1,
        HLZ's flow of matrices, their product is the start, whatever they are.
        """
        layers = self.metric != DepthMetric(1)
        W = start_matrix(start, self.problem.shape, "EndToEndFlow", balanced=layers)
        U, s, V = low_rank_factors(W, rank)
        return U, s.log(), V

    def velocity(self, t: float | Tensor, y: State) -> Factors:
        """(U̇, ℓ̇, V̇) at factors U, V of full column rank, orthonormal or not; autonomous.

        Accuracy: of its derivatives by autograd, which pass through the SVD of W, ε over the
            relative gaps of the singular values. Where two agree to √ε, as those of orthogonal
            starts do, autograd does not know the derivative, though there is one: take differences,
            as `integrators.Rosenbrock` does.
        Raises: ValueError there, where y requires gradients; torch.func's derivatives are NaN.
        """
        if y[1].shape[-1] == 1 and not self.rescaled:
            return self._velocity_of_rank_one(y)
        U, log_s, V, A, B = _orthonormal(y, spread=1e4)  # a derivative: 1e-12 of it is enough
        if may_be_differentiated(U):
            log_s = without_derivative_at_gaps(log_s, "EndToEndFlow")
        M_U, M_V = self._generators(U, log_s, V)
        U_dot, growth_U = _without_growth(y[0], tall_times(M_U, -A))
        V_dot, growth_V = _without_growth(y[2], tall_times(M_V, -B))
        return U_dot, growth_U + growth_V, V_dot

    def _velocity_of_rank_one(self, y: State) -> Factors:
        """The same for k = 1, where K = c_11 g/(2σ) and the growth is twice that."""
        a, b = (torch.linalg.vector_norm(part, dim=-2, keepdim=True) for part in (y[0], y[2]))
        U, V = y[0] / a, y[2] / b
        log_s = torch.add(y[1], (a * b)[..., 0].log())
        GV, GtU = self.problem.egrad_products(U, log_s.exp(), V)
        g = (U.conj() * GV).sum(-2, keepdim=True)
        p, core = self.metric.growth(log_s)
        if U.is_complex():
            phase = 1j * core * g.imag
            U_dot = torch.addcmul(p * (GV - U * g), U, phase) * -a
            V_dot = torch.addcmul(p * (GtU - V * g.conj()), V, phase, value=-1) * -b
            return U_dot, (core * g.real)[..., 0] * -2, V_dot
        U_dot = torch.addcmul(GV, U, g, value=-1) * (a * p).neg_()
        V_dot = torch.addcmul(GtU, V, g, value=-1) * (b * p).neg_()
        return U_dot, (core * g)[..., 0] * -2, V_dot

    def _generators(self, U: Tensor, log_s: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        """M_U and M_V at orthonormal U, V."""
        GV, GtU = self.problem.egrad_products(U, log_s.exp(), V)
        g = U.mH @ GV
        p, weights = self.metric.growth(log_s)
        beyond = weights - p  # what the core has more than its share of GVΣ^{1−2/N}
        M_U = torch.addcmul(tall_times(U, g * beyond), GV, p)
        M_V = torch.addcmul(tall_times(V, g.mH * beyond), GtU, p)
        if self.rescaled:
            scale = log_s.exp()[..., -1:, None]
            return scale * M_U, scale * M_V
        return M_U, M_V

    def normalised(self, y: State, before: State | None = None) -> Factors:
        """The same W with orthonormal U, V and its singular values s.

        Given the state before the step, a trajectory whose step was so long that a singular value
        would have passed through 0 becomes NaN instead: no silent change of sign.
        """
        U, log_s, V, _, _ = _orthonormal(y)
        if before is not None and not U.is_complex():  # complex determinants have no sign
            passed = (torch.linalg.det(before[0].mT @ y[0]) > 0) & (
                torch.linalg.det(before[2].mT @ y[2]) > 0
            )
            log_s = torch.where(passed[..., None], log_s, math.nan)
        return U, log_s, V

    def end_to_end(self, y: State) -> Inexact[Tensor, "*batch m n"]:
        """W = U diag(e^ℓ) Vᴴ."""
        U, log_s, V = y
        return (U * log_s.exp()[..., None, :]) @ V.mH

    def singular_values(self, y: State) -> Float[Tensor, "*batch k"]:
        """The singular values e^ℓ of W, each to relative accuracy; 0 below the number format."""
        return y[1].exp()

    def rank(self, y: State) -> Int[Tensor, "*batch"]:
        """The number of singular values of W, however small; conserved."""
        return torch.isfinite(y[1]).sum(-1)

    def gradient_norm(self, y: State) -> Float[Tensor, "*batch"]:
        """g_W(∇^g L, ∇^g L)^{1/2} = ⟨∇L¹, 𝒜_W ∇L¹⟩^{1/2}; for balanced layers that of ∇L^N."""
        U, s, V = y[0], y[1].exp(), y[2]
        GV, GtU = self.problem.egrad_products(U, s, V)
        M_U, M_V = self._generators(U, y[1], V)
        rate = (s[..., None, :] * (GV.conj() * M_U).real).sum((-2, -1))
        rate = rate + (s[..., None, :] * (GtU.conj() * M_V).real).sum((-2, -1))
        return rate.clamp(min=0).sqrt()

    def conserved(self, y: State) -> dict[str, Tensor]:
        """UᴴU, VᴴV (= I), the rank, and for real square W of full rank the sign of det W.

        That of a complex W turns: d/dt log det W = −2 tr K, which is real only by chance.
        """
        U, log_s, V = y
        rank = torch.isfinite(log_s).sum(-1).to(log_s)
        quantities = {"UtU": U.mH @ U, "VtV": V.mH @ V, "rank": rank}
        if U.shape[-2] == V.shape[-2] == log_s.shape[-1] and not U.is_complex():
            quantities["sign_det"] = torch.sign(torch.linalg.det(U) * torch.linalg.det(V))
        return quantities

    def remark(self, y: State) -> str | None:
        """A sentence once σ_k is below what the number format can show; ℓ still carries it."""
        smallest = float(y[1][..., -1].amin())
        info = torch.finfo(y[1].dtype)
        if not smallest < math.log(info.tiny):
            return None
        return (
            f"The smallest singular value of W, 10^{smallest / math.log(10):.1f}, is below what "
            f"{str(y[1].dtype).removeprefix('torch.')} can carry as a number: W is of rank "
            f"{y[1].shape[-1]}, but a dense W does not show it."
        )

    def curvature(self, y: State) -> float:
        """The rate that limits explicit steps: the larger of two.

        `flows.ahead.explicit_rate`, from the metric and the curvature of f at y and at the end of a
        descent, and the norm of the generators at y: a step multiplies by about 1 − hM.
        """
        U, log_s, V = y
        point = Point(U, torch.diag_embed(log_s.exp()).to(U), V)
        rate = explicit_rate(self.problem, self.metric, point, rescaled=self.rescaled)
        norms = [torch.linalg.matrix_norm(M, 2).amax() for M in self._generators(U, log_s, V)]
        return max(rate, *map(float, norms))

    def batch_shape(self, y: State) -> torch.Size:
        return y[1].shape[:-1]


def _orthonormal(y: State, spread: float = 1e2) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(U, log σ, V, A, B): the SVD UΣVᴴ of the product of the factors y = (UA, ℓ, VB)."""
    left, log_s, right = y
    if log_s.shape[-1] == 1:
        a, b = (torch.linalg.vector_norm(part, dim=-2, keepdim=True) for part in (left, right))
        return left / a, log_s + (a * b).log()[..., 0], right / b, a, b
    grams = torch.stack([left.mH @ left, right.mH @ right])
    L, failed = torch.linalg.cholesky_ex(grams)
    R = torch.where(failed[..., None, None] > 0, math.nan, L).mH
    P, log_sigma, Q = graded_svd(R[0], log_s, R[1], spread=spread)
    PQ = torch.stack([P, Q])
    T = torch.linalg.solve_triangular(R, PQ, upper=True)
    A = PQ.mH @ R
    return tall_times(left, T[0]), log_sigma, tall_times(right, T[1]), A[0], A[1]


def _without_growth(columns: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """(rate without its part along each column, that part: the rate of log‖column‖).

    Of complex columns the real part: a turn of the phase stays in the column.
    """
    if columns.is_complex():
        growth = (columns.conj() * rate).real.sum(-2) / columns.abs().square().sum(-2)
    else:
        growth = (columns * rate).sum(-2) / columns.square().sum(-2)
    return rate - columns * growth[..., None, :], growth
