"""The gradient flow of the layers of a deep linear network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.network import DeepLinear, end_to_end, layer_gradients
from deeplin.problems import LeastSquares

__all__ = ["LayerFlow", "stiffness"]

Layers = tuple[Tensor, ...]


class LayerFlow:
    """Ẇ_j = −∇_{W_j}L^N(W_1, …, W_N), what gradient descent with small steps approximates.

    Conserved: W_{j+1}ᵀW_{j+1} − W_jW_jᵀ for every j.
    Source: BRTW (5), Lemma 2.
    Shapes: a state is the tuple of the layers (*batch, d_j, d_{j−1}).
    Cost: one egrad and two sweeps of matrix products; nothing depends on the number of samples.
    """

    def __init__(self, problem: LeastSquares):
        self.problem = problem

    def init_state(self, layers: DeepLinear | Sequence[Tensor]) -> Layers:
        """The state of a network, or of layers W_1, …, W_N; copied."""
        weights = layers.weights if isinstance(layers, DeepLinear) else layers
        state = tuple(W_j.detach().clone() for W_j in weights)
        shape = (state[-1].shape[-2], state[0].shape[-1])
        if shape != (self.problem.d_y, self.problem.d_x):
            raise ValueError(
                "the layers must map R^{d_x} to R^{d_y}: widths from "
                f"{self.problem.d_x} to {self.problem.d_y}; got {shape[1]} to {shape[0]}."
            )
        return state

    def velocity(self, t: float, y: Layers) -> Layers:
        """(Ẇ_1, …, Ẇ_N) at the layers y; autonomous. Source: BRTW (5), Lemma 2(1)."""
        gradients = layer_gradients(y, self.problem.egrad(end_to_end(y)))
        return tuple(-G_j for G_j in gradients)

    def end_to_end(self, y: Layers) -> Float[Tensor, "*batch d_y d_x"]:
        """W = W_N···W_1."""
        return end_to_end(y)

    def stiffness(self, y: Layers) -> Float[Tensor, ""]:
        """A bound for the curvature of L^N at the layers y and at the balanced optimum.

        See `stiffness`; explicit steps of length limit/stiffness are stable there, where limit is
        the integrator's (2 for Euler). Rigorous at both ends, not along the way between them.
        """
        return stiffness(self.problem, y)


def stiffness(problem: LeastSquares, layers: Sequence[Tensor]) -> Float[Tensor, ""]:
    """λ_1(C)·Σ_j Π_{i≠j} n_i² + (N − 1)·g·max_{i≠j} Π_{l≠i,j} n_l, a bound for ‖Hess L^N‖.

    The first term bounds the Gauss–Newton part and the second what the residual adds, at layers of
    spectral norms n_j with ‖∇L¹‖_2 = g. To cover the end of the flow too, n_j is the larger of
    ‖W_j‖_2 and ‖W*‖_2^{1/N}, its value at the balanced minimizer W* of the layers' rank, and g the
    larger of the two gradients' norms. At the optimum of an autoencoder the first term is Nλ_1.

    Shapes: layers (*batch, d_j, d_{j−1}) -> the largest value over the batch.
    Cost: N + 2 spectral norms.
    """
    N = len(layers)
    rank = min(layers[0].shape[-1], *(W_j.shape[-2] for W_j in layers))
    optimum = problem.minimizer(min(rank, problem.rank_Q))
    final = torch.linalg.matrix_norm(optimum, 2) ** (1 / N)
    norms = torch.stack(
        [torch.linalg.matrix_norm(W_j, 2).amax().clamp(min=final) for W_j in layers]
    )
    gradients = [problem.egrad(W) for W in (optimum, end_to_end(layers))]
    g = torch.stack([torch.linalg.matrix_norm(G, 2).amax() for G in gradients]).amax()
    product = norms.prod()
    gauss_newton = problem.lipschitz * (product / norms).square().sum()
    smallest = norms.sort().values[:2].prod()
    return gauss_newton + (N - 1) * g * product / smallest if N > 1 else gauss_newton
