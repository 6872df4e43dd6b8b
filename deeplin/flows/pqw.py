"""The end-to-end flow as a polynomial system in three matrices."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.flows.contract import Flow
from deeplin.geometry.points import low_rank_factors

__all__ = ["PQWFlow"]

Triple = tuple[Tensor, Tensor, Tensor]


class PQWFlow(Flow):
    """Ṗ = −WᵀG − GᵀW,  Q̇ = −GWᵀ − WGᵀ,  Ẇ = −Σ_{j=1}^N Q^{N−j} G P^{j−1},  G = WC − B.

    Polynomial, without roots: from P = (WᵀW)^{1/N} and Q = (WWᵀ)^{1/N} it is the end-to-end flow.

    Nothing in this form holds the rank: round-off outside the range of W grows wherever W is no
    minimum over larger ranks. It is the uniqueness proof of the paper, not a method for long times.

    Conserved: P^N − WᵀW = 0, Q^N − WWᵀ = 0; to the order of the integrator.
    Source: BRTW (23).
    Shapes: a state is (P, Q, W): (*batch, n, n), (*batch, m, m), (*batch, m, n).
    Cost: O(N(m + n)mn), by Horner's rule.
    Raises: ValueError unless depth is an integer >= 2.
    """

    def __init__(self, problem: Any, depth: int):
        if depth != int(depth) or depth < 2:
            raise ValueError(f"PQWFlow(depth=...) must be an integer >= 2; got {depth}.")
        self.problem, self.depth = problem, int(depth)

    def init_state(self, W: Float[Tensor, "*batch m n"], rank: int | None = None) -> Triple:
        """(P, Q, W) of the best approximation of W of the given rank."""
        U, s, V = low_rank_factors(W, rank)
        root = (s ** (2 / self.depth))[..., None, :]
        return (V * root) @ V.mT, (U * root) @ U.mT, (U * s[..., None, :]) @ V.mT

    def velocity(self, t: float, y: Triple) -> Triple:
        """(Ṗ, Q̇, Ẇ); autonomous."""
        P, Q, W = y
        G = self.problem.egrad(W)
        WtG, GWt = W.mT @ G, G @ W.mT
        # Σ_j Q^{N−j} G P^{j−1} = Q(…Q(QG + GP) + GP²…) + GP^{N−1}
        total = power = G
        for _ in range(self.depth - 1):
            power = power @ P
            total = Q @ total + power
        return -(WtG + WtG.mT), -(GWt + GWt.mT), -total

    def end_to_end(self, y: Triple) -> Float[Tensor, "*batch m n"]:
        """W."""
        return y[2]

    def gradient_norm(self, y: Triple) -> Float[Tensor, "*batch"]:
        """⟨G, 𝒜_W(G)⟩^{1/2}, that of the layers."""
        G, W_dot = self.problem.egrad(y[2]), self.velocity(0.0, y)[2]
        return (-(G * W_dot).sum((-2, -1))).clamp(min=0).sqrt()

    def conserved(self, y: Triple) -> dict[str, Tensor]:
        """P^N − WᵀW and Q^N − WWᵀ, both 0."""
        P, Q, W = y
        power = torch.linalg.matrix_power
        return {
            "P^N - WtW": power(P, self.depth) - W.mT @ W,
            "Q^N - WWt": power(Q, self.depth) - W @ W.mT,
        }

    def curvature(self, y: Triple) -> float:
        """Nσ^{2−2/N}λ_1(C), the rate of the largest singular value, at y and at the optimum."""
        sigma = torch.linalg.matrix_norm(y[2], 2).amax()
        minimizer = getattr(self.problem, "minimizer", None)
        if minimizer is not None:
            k = getattr(self.problem, "rank_Q", min(y[2].shape[-2:]))
            sigma = torch.maximum(sigma, torch.linalg.matrix_norm(minimizer(k), 2).amax())
        rate = self.depth * float(sigma) ** (2 - 2 / self.depth)
        return rate * self.problem.curvature(y[2])
