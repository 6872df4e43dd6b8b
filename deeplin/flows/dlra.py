"""Gradient flows on M_r in factored form: HLZ's equations, in the metric of any depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor

from deeplin.flows.ahead import explicit_rate
from deeplin.flows.contract import Start, State, TangentFlow
from deeplin.flows.gaps import may_be_differentiated, without_derivative_at_gaps
from deeplin.flows.starts import start_matrix, start_product
from deeplin.geometry.coordinates import Point, Tangent, project_products
from deeplin.geometry.metric import DepthMetric, Metric, as_metric, metric_operator
from deeplin.geometry.points import low_rank_factors
from deeplin.linalg import hermitian_part, plus_tall_times, random_orthogonal, values_known
from deeplin.linalg.truncation import psd_tangent_step, tangent_step
from deeplin.problems.contract import Problem

__all__ = ["DLRAFlow", "PSDDLRAFlow"]

Factors = tuple[Tensor, ...]
Pair = tuple[Tensor, Tensor]


class DLRAFlow(TangentFlow):
    """U̇ = P_U^⊥FVS^{-1},  V̇ = P_V^⊥FᴴUS^{-H},  Ṡ = UᴴFV,  F = −∇f(Z),  Z = USVᴴ.

    The gradient flow of f on M_r with the embedded metric; with the metric of another `depth`, a
    number ≥ 1 or ∞ or a `Metric`, 𝒜_Z(F) stands for F: the flow of balanced layers, whose product
    is moved as `EndToEndFlow` moves it. `rescaled` multiplies the field by
    σ_r(S) (DLRA*): the same path by another clock, and one that runs through σ_r → 0 with bounded
    coefficients. Explicit integrators of this form feel S^{-1}; those that do not are
    `integrators.ProjectedRungeKutta` on this flow, which never inverts S, and any Runge–Kutta
    method on the multiplicative form `EndToEndFlow(problem, depth)`.

    Conserved: UᴴU = VᴴV = I, the rank.
    Source: HLZ (1), HLZ Lemma 2.6; rescaled: HLZ (DLRA*), HLZ Lemma 3.5; other depths: BRTW (22).
    Shapes: a state is (U, S, V): (*batch, m, r), (*batch, r, r), (*batch, n, r), real or complex.
    Cost: O((m + n)r² + r³) and the gradient's products with r columns, whatever the depth.
    """

    autonomous = True

    def __init__(self, problem: Problem, rescaled: bool = False, *, depth: float | Metric = 1):
        self.problem, self.rescaled, self.metric = problem, rescaled, as_metric(depth)

    def init_state(self, start: Start, rank: int | None = None) -> Factors:
        """The factors of the start's W at the given rank, or at its numerical rank."""
        matrices = start_product(start, self.problem.shape, type(self).__name__)
        U, s, V = low_rank_factors(matrices, rank)
        return U, torch.diag_embed(s).to(U.dtype), V

    # -- what the cone of semidefinite matrices has otherwise --------------------------------------

    def point(self, y: State) -> Point:
        """The state as a point of M_r."""
        return Point(*y)

    def _projected(self, point: Point) -> Tangent:
        """P_T(F), whatever the clock."""
        GV, GhU = self.problem.egrad_products(point.U, point.S, point.V)
        return project_products(point, -GV, -GhU)

    @property
    def _embedded(self) -> bool:
        """Whether 𝒜_Z is the identity on tangent vectors."""
        return self.metric == DepthMetric(1)

    def _descent(self, point: Point) -> Tangent:
        """𝒜_Z(F), whatever the clock."""
        projected = self._projected(point)
        return projected if self._embedded else metric_operator(point, projected, self.metric)

    def _moved(self, point: Point, tangent: Tangent) -> Factors:
        """The rates of the factors that move the point along a tangent vector."""
        U_dot = torch.linalg.solve(point.S, tangent.Up, left=False)
        V_dot = torch.linalg.solve(point.S.mH, tangent.Vp, left=False)
        return U_dot, tangent.M, V_dot

    def clock_rate(self, S: Inexact[Tensor, "*batch r r"]) -> Float[Tensor, "*batch"]:
        """σ_r(S): DLRA's time passed per unit of DLRA*'s."""
        return torch.linalg.svdvals(S)[..., -1]

    def tangent_step(self, y: State, at: State) -> Pair:
        """(L, R) with LRᴴ = 𝒜(F) at the point `at` (times σ_r if rescaled); y sets the shapes.

        P_T(F) = U(FᴴU)ᴴ + (P_U^⊥FV)Vᴴ: rank 2r, and no inverse of S.
        """
        U, S, V = at
        if self._embedded:
            GV, GhU = self.problem.egrad_products(U, S, V)
            L, R = torch.cat([U, U @ (U.mH @ GV) - GV], -1), torch.cat([-GhU, V], -1)
        else:
            tangent = self._descent(self.point(at))
            L, R = torch.cat([U, U @ tangent.M + tangent.Up], -1), torch.cat([tangent.Vp, V], -1)
        return (self.clock_rate(S)[..., None, None] * L if self.rescaled else L), R

    def gradient_step(self, y: State, h: float) -> Factors:
        """The nearest matrix of rank r to Z + h 𝒜_Z(F), Riemannian gradient descent.

        With h times σ_r if rescaled. Source: HLZ Lemma 2.4, HLZ (2).
        """
        U, S, V = y
        if not self._embedded:
            move = self._step_of_descent(self.point(y), h)
            return tangent_step(U, S + move.M, V, move.Up, move.Vp)
        GV, GhU = self.problem.egrad_products(U, S, V)
        M = U.mH @ GV
        Up = plus_tall_times(GV, U, M, beta=-h, alpha=h)
        Vp = plus_tall_times(GhU, V, M.mH, beta=-h, alpha=h)
        M = h * M
        if self.rescaled:
            scale = self.clock_rate(S)[..., None, None]
            M, Up, Vp = scale * M, scale * Up, scale * Vp
        return tangent_step(U, S - M, V, Up, Vp)

    def _step_of_descent(self, point: Point, h: float) -> Tangent:
        """h 𝒜_Z(F), times σ_r if rescaled."""
        move = self._descent(point).scaled(h)
        return move.scaled(self.clock_rate(point.S)[..., None, None]) if self.rescaled else move

    def truncated(self, y: State, steps: Sequence[tuple[float, Pair]]) -> Factors:
        """The nearest matrix of rank r to USVᴴ + Σ_i h_i L_iR_iᴴ. Source: HLZ Definition 2.3."""
        U, S, V = y
        left = torch.cat([U @ S, *(h * L for h, (L, _) in steps)], -1)
        right = torch.cat([V, *(R for _, (_, R) in steps)], -1)
        Q_L, R_L = torch.linalg.qr(left)
        Q_R, R_R = torch.linalg.qr(right)
        r = S.shape[-1]
        P, s, Qh = torch.linalg.svd(R_L @ R_R.mH, full_matrices=False)
        return Q_L @ P[..., :r], torch.diag_embed(s[..., :r]).to(S.dtype), Q_R @ Qh[..., :r, :].mH

    def conserved(self, y: State) -> dict[str, Tensor]:
        """UᴴU and VᴴV."""
        return {"UtU": y[0].mH @ y[0], "VtV": y[2].mH @ y[2]}

    # -- what both share ---------------------------------------------------------------------------

    def velocity(self, t: float | Tensor, y: State) -> Factors:
        """The rates of the factors; autonomous.

        Accuracy: of its derivatives by autograd, where the depth is not 1, as `EndToEndFlow`'s.
        Raises: ValueError there where singular values of S agree to √ε and y requires gradients.
        """
        point = self.point(y)
        if not self._embedded and may_be_differentiated(point.S):
            point = self._point_with_taped_spectrum(point)
        rates = self._moved(point, self._descent(point))
        if not self.rescaled:
            return rates
        scale = self.clock_rate(point.S)[..., None, None]
        return tuple(scale * part for part in rates)

    def _point_with_taped_spectrum(self, point: Point) -> Point:
        """The same point, whose spectrum autograd follows."""
        P, s, Q = point.decomposed()
        s = without_derivative_at_gaps(s.log(), type(self).__name__).exp()
        return point.with_spectrum((P, s, Q))

    def end_to_end(self, y: State) -> Inexact[Tensor, "*batch m n"]:
        """Z = USVᴴ."""
        return self.point(y).dense()

    def batch_shape(self, y: State) -> torch.Size:
        return y[1].shape[:-2]

    def singular_values(self, y: State) -> Float[Tensor, "*batch r"]:
        """Those of S."""
        return torch.linalg.svdvals(y[1])

    def rank(self, y: State) -> Int[Tensor, "*batch"]:
        """The number of singular values of S that are not 0."""
        return (self.singular_values(y) > 0).sum(-1)

    def gradient_norm(self, y: State) -> Float[Tensor, "*batch"]:
        """⟨∇f(Z), 𝒜_Z(∇f(Z))⟩^{1/2}, for depth 1 ‖P_T ∇f(Z)‖_F, also for the rescaled flow."""
        point = self.point(y)
        first = self._projected(point)
        second = first if self._embedded else metric_operator(point, first, self.metric)
        pairs = ((first.M, second.M), (first.Up, second.Up), (first.Vp, second.Vp))
        products = torch.stack([(a.conj() * b).real.sum((-2, -1)) for a, b in pairs])
        return products.sum(0).clamp(min=0).sqrt()

    def curvature(self, y: State) -> float:
        """The rate that limits explicit steps: the larger of two, both times σ_r if rescaled.

        `flows.ahead.explicit_rate` of the metric, from the curvature of f at y and at the end of a
        descent; and ‖P^⊥F‖/σ_r at y, the price of S^{-1}, which projected methods do not pay.
        """
        rate = explicit_rate(self.problem, self.metric, self.point(y), rescaled=self.rescaled)
        norms = [torch.linalg.matrix_norm(part, 2).amax() for part in self.velocity(0.0, y)]
        return max(rate, *map(float, norms))

    def descent_curvature(self, y: State) -> float:
        """What limits steps of descent, `gradient_step` and retractions, which never invert S.

        The curvature of f at y, for another depth `flows.ahead.explicit_rate`; times σ_r if
        rescaled.
        """
        if not self._embedded:
            return explicit_rate(self.problem, self.metric, self.point(y), rescaled=self.rescaled)
        if self.problem.optimum is None:  # of a loss that may never form W
            point = self.point(y)
            curvature = self.problem.pair_curvature(point.U @ point.S, point.V)
        else:
            curvature = self.problem.curvature(self.end_to_end(y))
        if self.rescaled:
            curvature *= float(self.clock_rate(self.point(y).S).amax())
        return curvature


class PSDDLRAFlow(DLRAFlow):
    """U̇ = P_U^⊥FUS^{-1},  Ṡ = UᴴFU on the positive semidefinite matrices Z = USUᴴ of rank r.

    F is the Hermitian part of −∇f(Z): f counts on Hermitian matrices alone. For f = ½‖Z − X‖² this
    is U̇ = P_U^⊥XUS^{-1}, Ṡ = −S + UᴴXU. Its projected methods keep the top r *algebraic*
    eigenvalues: plain truncation to rank r leaves the cone.

    Conserved: UᴴU = I, the rank, S positive definite: σ_r decays no faster than e^{−t} (HLZ Lemma
    2.7), and under `rescaled` no faster than 1/(1/σ_0 + t) (HLZ Lemma 3.5, corrected).
    Source: HLZ (DLRA), HLZ (DLRA*).
    Shapes: a state is (U, S): (*batch, n, r), (*batch, r, r), S Hermitian.
    Raises: ValueError for a problem whose matrices are not square.
    """

    def __init__(self, problem: Problem, rescaled: bool = False, *, depth: float | Metric = 1):
        m, n = problem.shape
        if m != n:
            raise ValueError(
                f"PSDDLRAFlow needs a loss of square matrices; got shape {(m, n)}: use DLRAFlow, "
                "flow=dlra."
            )
        super().__init__(problem, rescaled, depth=depth)
        self._hermitian: bool | None = None

    def init_state(self, start: Start, rank: int | None = None) -> Factors:
        """The factors of a positive semidefinite W.

        Raises: ValueError if W is not Hermitian or has a negative eigenvalue, beyond round-off, or
        less than the rank.
        """
        W = start_matrix(start, self.problem.shape, type(self).__name__)
        skew, size = torch.linalg.matrix_norm(W - W.mH), torch.linalg.matrix_norm(W)
        if bool((skew > 100 * torch.finfo(size.dtype).eps * size).any()):
            raise ValueError(
                "PSDDLRAFlow needs a positive semidefinite W(0); it is not Hermitian, "
                f"‖W − Wᴴ‖ = {float(skew.max()):.3g}: use DLRAFlow, flow=dlra."
            )
        values, vectors = torch.linalg.eigh(hermitian_part(W))
        noise = W.shape[-1] * torch.finfo(values.dtype).eps * values.abs().amax(-1, keepdim=True)
        if bool((values < -noise).any()):
            raise ValueError(
                "PSDDLRAFlow needs a positive semidefinite W(0); its smallest eigenvalue is "
                f"{float(values.min()):.3g}: use DLRAFlow, flow=dlra."
            )
        ranks = (values > noise).sum(-1)
        r = int(ranks.max()) if rank is None else rank
        if not 1 <= r <= int(ranks.min()):
            raise ValueError(
                f"rank must satisfy 1 <= rank <= rank W(0) = {int(ranks.min())}; got rank={r}."
            )
        S = torch.diag_embed(values[..., -r:].flip(-1)).to(W.dtype)
        return vectors[..., -r:].flip(-1).mT.contiguous().mT, S

    def point(self, y: State) -> Point:
        """The state as a Hermitian point of M_r."""
        U, S = y
        return Point(U, S, U)

    def _split(self, U: Tensor, S: Tensor) -> tuple[Tensor | float, Tensor]:
        """(K, N) with FU = N − UK; with one product of the gradient where it is Hermitian."""
        split = self.problem.egrad_split(S, U)
        if split is not None and self._is_hermitian(U, S):
            return split
        GU, GhU = self.problem.egrad_products(U, S, U)
        return 0.0, -0.5 * (GU + GhU)

    def _is_hermitian(self, U: Tensor, S: Tensor) -> bool:
        """Whether ∇f is Hermitian on Hermitian matrices, by one generic matrix; asked once.

        For a loss that offers `egrad_split`, a quadratic one: there one matrix is enough.
        """
        if self._hermitian is None:
            if not values_known():
                return False
            shape, generator = (U.shape[-2], S.shape[-1]), torch.Generator().manual_seed(0)
            V = random_orthogonal(*shape, dtype=U.dtype, generator=generator).to(U.device)
            core = torch.eye(shape[1], dtype=U.dtype, device=U.device)
            GV, GhV = self.problem.egrad_products(V, core, V)
            size = torch.linalg.matrix_norm(GV)
            odd = torch.linalg.matrix_norm(GV - GhV)
            self._hermitian = bool((odd <= 1e3 * torch.finfo(size.dtype).eps * size).all())
        return self._hermitian

    def _projected(self, point: Point) -> Tangent:
        K, N = self._split(point.U, point.S)
        along = point.U.mH @ N
        Up = N - point.U @ along
        return Tangent(hermitian_part(along - K), Up, Up)

    def _moved(self, point: Point, tangent: Tangent) -> Factors:
        return torch.linalg.solve(point.S, tangent.Up, left=False), tangent.M

    def clock_rate(self, S: Inexact[Tensor, "*batch r r"]) -> Float[Tensor, "*batch"]:
        """The smallest eigenvalue of S."""
        return torch.linalg.eigvalsh(S)[..., 0]

    def tangent_step(self, y: State, at: State) -> Pair:
        """(L, R) with LRᴴ + RLᴴ = 𝒜(F) at `at`: L = U, R = ½UM + U_p, of P_T(F) U_p = P_U^⊥FU."""
        U, S = at
        tangent = self._descent(self.point(at))
        R = tangent.Up + U @ (0.5 * tangent.M)
        return U, self.clock_rate(S)[..., None, None] * R if self.rescaled else R

    def gradient_step(self, y: State, h: float) -> Factors:
        """The nearest semidefinite matrix of rank r to Z + h 𝒜_Z(F); with h σ_r if rescaled."""
        U, S = y
        if not self._embedded:
            move = self._step_of_descent(self.point(y), h)
            return psd_tangent_step(U, S + move.M, move.Up)
        K, N = self._split(U, S)  # FU = N − UK: what is along U is not formed
        along = U.mH @ N
        M = along - K
        M = (0.5 * h) * (M + M.mH)
        Up = plus_tall_times(N, U, along, beta=h, alpha=-h)
        if self.rescaled:
            scale = self.clock_rate(S)[..., None, None]
            M, Up = scale * M, scale * Up
        return psd_tangent_step(U, S + M, Up)

    def truncated(self, y: State, steps: Sequence[tuple[float, Pair]]) -> Factors:
        """The nearest semidefinite matrix of rank r to USUᴴ + Σ_i h_i(L_iR_iᴴ + R_iL_iᴴ)."""
        U, S = y
        r = S.shape[-1]
        Q, T = torch.linalg.qr(torch.cat([U, *(part for _, pair in steps for part in pair)], -1))
        T_U, *columns = T.split(r, dim=-1)
        core = T_U @ S @ T_U.mH
        for i, (h, _) in enumerate(steps):
            half = h * columns[2 * i] @ columns[2 * i + 1].mH
            core = core + half + half.mH
        values, vectors = torch.linalg.eigh(hermitian_part(core))
        kept = torch.diag_embed(values[..., -r:].flip(-1)).to(S.dtype)
        return Q @ vectors[..., -r:].flip(-1), kept

    def conserved(self, y: State) -> dict[str, Tensor]:
        """UᴴU."""
        return {"UtU": y[0].mH @ y[0]}
