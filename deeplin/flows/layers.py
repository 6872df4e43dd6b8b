"""The gradient flow of the layers of a deep linear network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.flows.contract import Flow
from deeplin.linalg import batch_last
from deeplin.network import DeepLinear, balancedness_gap, end_to_end, layer_gradients, rebalance
from deeplin.problems import LeastSquares

__all__ = ["LayerFlow", "curvature"]

Layers = tuple[Tensor, ...]


class LayerFlow(Flow):
    """Ẇ_j = −∇_{W_j}L^N(W_1, …, W_N), what gradient descent with small steps approximates.

    Conserved: W_{j+1}ᵀW_{j+1} − W_jW_jᵀ for every j; to the order of the integrator, or, given
    `balanced_rank` = k, exactly: after each step the layers are replaced by balanced ones of the
    same W of rank k (`flows.balanced.rebalance`). That is for balanced starts of rank k only.
    Source: BRTW (5), Lemma 2.
    Shapes: a state is the tuple of the layers (*batch, d_j, d_{j−1}).
    Cost: that of `network.layer_gradients`: products with as many columns as the narrowest width;
    nothing depends on the number of samples. Large batches of tiny layers are laid out in memory
    with the batch innermost (`linalg.batch_last`), which changes no shape; fixed steps of them are
    several times faster in compiled code (`integrators.Compiled`).
    """

    def __init__(self, problem: LeastSquares, *, balanced_rank: int | None = None):
        self.problem, self.balanced_rank = problem, balanced_rank
        self.normalises = balanced_rank is not None

    def init_state(self, layers: DeepLinear | Sequence[Tensor]) -> Layers:
        """The state of a network, or of layers W_1, …, W_N; copied."""
        weights = layers.weights if isinstance(layers, DeepLinear) else layers
        state = tuple(batch_last(W_j.detach().clone()) for W_j in weights)
        shape = (state[-1].shape[-2], state[0].shape[-1])
        if shape != (self.problem.d_y, self.problem.d_x):
            raise ValueError(
                "the layers must map R^{d_x} to R^{d_y}: widths from "
                f"{self.problem.d_x} to {self.problem.d_y}; got {shape[1]} to {shape[0]}."
            )
        return state

    def velocity(self, t: float, y: Layers) -> Layers:
        """(Ẇ_1, …, Ẇ_N) at the layers y; autonomous. Source: BRTW (5), Lemma 2(1)."""
        return tuple(G_j.neg_() for G_j in layer_gradients(y, self.problem))

    def normalised(self, y: Layers, before: Layers | None = None) -> Layers:
        """The layers themselves, or with `balanced_rank` balanced ones of the same product."""
        return y if self.balanced_rank is None else rebalance(y, self.balanced_rank)

    def conserved(self, y: Layers) -> dict[str, Tensor]:
        """W_{j+1}ᵀW_{j+1} − W_jW_jᵀ by the name gap_j."""
        return {f"gap_{j}": gap for j, gap in enumerate(balancedness_gap(y), start=1)}

    def end_to_end(self, y: Layers) -> Float[Tensor, "*batch d_y d_x"]:
        """W = W_N···W_1."""
        return end_to_end(y)

    def curvature(self, y: Layers) -> float:
        """The curvature that limits explicit steps: the larger of that at y and at the optimum.

        max(‖Hess L^N(y)‖, ‖Hess L^N(y*)‖), y* balanced layers of the best W* of the rank of the
        layers; at the optimum of an autoencoder this is Nλ_1(C). Steps of length limit/stiffness,
        limit being the integrator's (2 for Euler), are stable near both ends; layers that grow on
        the way, as unbalanced ones can, need shorter ones.

        Cost: 2 × 40 Hessian-vector products; accurate to a few per cent, from below.
        """
        widths = [y[0].shape[-1], *(W_j.shape[-2] for W_j in y)]
        W = self.problem.minimizer(min(*widths, self.problem.rank_Q)).to(y[0])
        U, s, Vh = torch.linalg.svd(W, full_matrices=False)
        root = torch.diag(s[: self.problem.rank_Q] ** (1 / len(y)))
        k = len(root)
        optimum = (root @ Vh[:k], *[root] * (len(y) - 2), U[:, :k] @ root)
        ends = [y] if len(y) == 1 else [y, optimum]
        return max(float(curvature(self.problem, end).amax()) for end in ends)


def curvature(
    problem: LeastSquares, layers: Sequence[Tensor], iterations: int = 40
) -> Float[Tensor, "*batch"]:
    """‖Hess L^N‖_2 at the layers, by power iteration from a fixed start.

    Shapes: layers (*batch, d_j, d_{j−1}).
    Cost: `iterations` Hessian-vector products, each about three gradients.
    Accuracy: from below, a few per cent.
    """

    def gradient(*weights: Tensor) -> Layers:
        return tuple(layer_gradients(weights, problem))

    generator = torch.Generator().manual_seed(0)
    vector = tuple(
        torch.randn(W_j.shape, dtype=W_j.dtype, generator=generator).to(W_j.device)
        for W_j in layers
    )
    norm = torch.ones(())
    for _ in range(iterations):
        norm = sum(v.square().sum((-2, -1)) for v in vector) ** 0.5  # type: ignore[operator]
        unit = tuple(v / norm.clamp(min=1e-300)[..., None, None] for v in vector)
        vector = torch.func.jvp(gradient, tuple(layers), unit)[1]
    return norm
