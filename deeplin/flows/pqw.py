"""The end-to-end flow as a polynomial system in three matrices."""

from __future__ import annotations

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.flows.ahead import explicit_rate
from deeplin.flows.contract import Flow, Start, State
from deeplin.flows.starts import start_matrix
from deeplin.geometry.coordinates import Point
from deeplin.geometry.metric import DepthMetric
from deeplin.geometry.points import low_rank_factors
from deeplin.problems.contract import Problem

__all__ = ["PQWFlow"]

Triple = tuple[Tensor, Tensor, Tensor]


class PQWFlow(Flow):
    """Ṗ = −WᴴG − GᴴW,  Q̇ = −GWᴴ − WGᴴ,  Ẇ = −Σ_{j=1}^N Q^{N−j} G P^{j−1},  G = ∇f(W).

    Without roots, and polynomial where G = WC − B is: from P = (WᴴW)^{1/N} and Q = (WWᴴ)^{1/N} it
    is the end-to-end flow.

    Nothing in this form holds the rank: round-off outside the range of W grows wherever W is no
    minimum over larger ranks. It is the uniqueness proof of the paper, not a method for long times.

    Conserved: P^N − WᴴW = 0, Q^N − WWᴴ = 0; to the order of the integrator.
    Source: BRTW (23).
    Shapes: a state is (P, Q, W): (*batch, n, n), (*batch, m, m), (*batch, m, n).
    Cost: O(N(m + n)mn), by Horner's rule.
    Raises: ValueError unless depth is an integer >= 2.
    """

    autonomous = True

    def __init__(self, problem: Problem, depth: int):
        if depth != int(depth) or depth < 2:
            raise ValueError(f"PQWFlow(depth=...) must be an integer >= 2; got {depth}.")
        self.problem, self.depth = problem, int(depth)

    def init_state(self, start: Start, rank: int | None = None) -> Triple:
        """(P, Q, W) of the best approximation of the start's W of the given rank.

        Raises: ValueError for layers that are not balanced, which move by another flow.
        """
        W = start_matrix(start, self.problem.shape, "PQWFlow", balanced=True)
        U, s, V = low_rank_factors(W, rank)
        root = (s ** (2 / self.depth))[..., None, :]
        return (V * root) @ V.mH, (U * root) @ U.mH, (U * s[..., None, :]) @ V.mH

    def velocity(self, t: float | Tensor, y: State) -> Triple:
        """(Ṗ, Q̇, Ẇ); autonomous."""
        P, Q, W = y
        G = self.problem.egrad(W)
        WhG, GWh = W.mH @ G, G @ W.mH
        # Σ_j Q^{N−j} G P^{j−1} = Q(…Q(QG + GP) + GP²…) + GP^{N−1}
        total = power = G
        for _ in range(self.depth - 1):
            power = power @ P
            total = Q @ total + power
        return -(WhG + WhG.mH), -(GWh + GWh.mH), -total

    def end_to_end(self, y: State) -> Inexact[Tensor, "*batch m n"]:
        """W."""
        return y[2]

    def gradient_norm(self, y: State) -> Float[Tensor, "*batch"]:
        """⟨G, 𝒜_W(G)⟩^{1/2}, that of the layers."""
        G, W_dot = self.problem.egrad(y[2]), self.velocity(0.0, y)[2]
        return (-(G.conj() * W_dot).real.sum((-2, -1))).clamp(min=0).sqrt()

    def conserved(self, y: State) -> dict[str, Tensor]:
        """P^N − WᴴW and Q^N − WWᴴ, both 0."""
        P, Q, W = y
        power = torch.linalg.matrix_power
        return {
            "P^N - WtW": power(P, self.depth) - W.mH @ W,
            "Q^N - WWt": power(Q, self.depth) - W @ W.mH,
        }

    def curvature(self, y: State) -> float:
        """That of the end-to-end flow at the rank of W, `flows.ahead.explicit_rate`."""
        U, s, Vh = torch.linalg.svd(y[2], full_matrices=False)
        noise = max(y[2].shape[-2:]) * torch.finfo(s.dtype).eps * s[..., :1]
        k = max(1, int((s > noise).sum(-1).amax()))
        point = Point(U[..., :k], torch.diag_embed(s[..., :k]).to(U), Vh[..., :k, :].mH)
        return explicit_rate(self.problem, DepthMetric(self.depth), point)

    def batch_shape(self, y: State) -> torch.Size:
        return y[2].shape[:-2]
