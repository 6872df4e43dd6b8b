"""The gradient flow of the layers of a deep linear network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.flows.ahead import explicit_rate, look_ahead
from deeplin.flows.contract import Flow, Start, State
from deeplin.flows.starts import start_layers
from deeplin.geometry.coordinates import Point
from deeplin.geometry.metric import DepthMetric
from deeplin.linalg import batch_last, product_svd
from deeplin.network import balancedness_gap, end_to_end, layer_gradients, rebalance
from deeplin.problems.contract import Problem

__all__ = ["LayerFlow", "curvature"]

Layers = tuple[Tensor, ...]


class LayerFlow(Flow):
    """Ẇ_j = −∇_{W_j}L^N(W_1, …, W_N), what gradient descent with small steps approximates.

    L^N(W_1, …, W_N) = L¹(W_N···W_1) for any loss L¹. Conserved: W_{j+1}ᴴW_{j+1} − W_jW_jᴴ for
    every j; to the order of the integrator, or, given `balanced_rank` = k, exactly: after each step
    the layers are replaced by balanced ones of the same W of rank k (`network.rebalance`). That is
    for balanced starts of rank k only.
    Source: BRTW (5), BRTW Lemma 2.
    Shapes: a state is the tuple of the layers (*batch, d_j, d_{j−1}), real or complex.
    Cost: that of `network.layer_gradients`: products with as many columns as the narrowest width;
    with least squares nothing depends on the number of samples. Large batches of tiny layers are
    laid out in memory with the batch innermost (`linalg.batch_last`), which changes no shape; fixed
    steps of them are several times faster in compiled code (`integrators.Compiled`).
    """

    autonomous = True

    def __init__(self, problem: Problem, *, balanced_rank: int | None = None):
        self.problem, self.balanced_rank = problem, balanced_rank
        self.normalises = balanced_rank is not None

    def init_state(self, start: Start, rank: int | None = None) -> Layers:
        """The state of a network, or of layers W_1, …, W_N; copied.

        Raises: ValueError for a matrix, for layers that do not fit the problem, and for a rank:
        that of layers is the one they have.
        """
        if rank is not None:
            raise ValueError(
                f"the rank of W(0) is that of the layers; got rank={rank}: leave it out, or start "
                "from layers of that width (deeplin.network.compress)."
            )
        state = tuple(batch_last(W_j.clone()) for W_j in start_layers(start, "LayerFlow"))
        shape = (state[-1].shape[-2], state[0].shape[-1])
        if shape != tuple(self.problem.shape):
            d_y, d_x = self.problem.shape
            raise ValueError(
                "the layers must map R^{d_x} to R^{d_y}: widths from "
                f"{d_x} to {d_y}; got {shape[1]} to {shape[0]}."
            )
        return state

    def velocity(self, t: float | Tensor, y: State) -> Layers:
        """(Ẇ_1, …, Ẇ_N) at the layers y; autonomous. Source: BRTW (5), BRTW Lemma 2(1)."""
        return tuple(G_j.neg_() for G_j in layer_gradients(y, self.problem))

    def batch_shape(self, y: State) -> torch.Size:
        return y[0].shape[:-2]

    def normalised(self, y: State, before: State | None = None) -> State:
        """The layers themselves, or with `balanced_rank` balanced ones of the same product."""
        return y if self.balanced_rank is None else rebalance(y, self.balanced_rank)

    def conserved(self, y: State) -> dict[str, Tensor]:
        """W_{j+1}ᴴW_{j+1} − W_jW_jᴴ by the name gap_j."""
        return {f"gap_{j}": gap for j, gap in enumerate(balancedness_gap(y), start=1)}

    def end_to_end(self, y: State) -> Inexact[Tensor, "*batch d_y d_x"]:
        """W = W_N···W_1."""
        return end_to_end(y)

    def curvature(self, y: State) -> float:
        """The curvature that limits explicit steps: the larger of that at y and at the end.

        max(‖Hess L^N(y)‖, ‖Hess L^N(y*)‖), y* balanced layers of the W* of the rank of the layers
        that a descent of L¹ leads to, the optimum where it is known; at that of an autoencoder this
        is Nλ_1(C). Where no optimum is known also that of the end-to-end flow,
        `flows.ahead.explicit_rate`, which bounds what balanced layers meet between the ends. Steps
        of length limit/curvature, limit being the integrator's (2 for Euler), are stable near both
        ends; layers that grow on the way, as unbalanced ones can, need shorter ones.

        Cost: 2 × 40 Hessian-vector products, and the descent where no optimum is known; accurate
        to a few per cent, from below.
        """
        here = float(curvature(self.problem, y).amax())
        known = self.problem.optimum is not None
        if known and len(y) == 1:
            return here
        k = min(y[0].shape[-1], *(W_j.shape[-2] for W_j in y))
        U, s, Vh = product_svd(y)
        core = torch.diag_embed(s[..., :k]).to(U)
        point = Point(U[..., :k], core, Vh[..., :k, :].mH)
        if not known:
            here = max(here, explicit_rate(self.problem, DepthMetric(len(y)), point))
        end = look_ahead(self.problem, point)
        return max(here, float(curvature(self.problem, _balanced(end, len(y))).amax()))


def _balanced(point: Point, depth: int) -> Layers:
    """Balanced layers of the product W: Σ^{1/N}Vᴴ, Σ^{1/N}, …, UΣ^{1/N}."""
    if depth == 1:
        return (point.dense(),)
    P, sigma, Q = point.spectrum
    root = torch.diag_embed(sigma ** (1 / depth)).to(P)
    right, left = root @ (point.V @ Q).mH, (point.U @ P) @ root
    return (right, *[root] * (depth - 2), left)


def curvature(
    problem: Problem, layers: Sequence[Tensor], iterations: int = 40
) -> Float[Tensor, "*batch"]:
    """‖Hess L^N‖_2 at the layers, by power iteration from a fixed start.

    The Hessian is symmetric, so its products are those of a backward pass through the gradients:
    a loss needs no derivatives but those of reverse mode.

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
    product = torch.func.vjp(gradient, *layers)[1]
    norm, tiny = torch.ones(()), torch.finfo(layers[0].dtype).tiny
    for _ in range(iterations):
        squares = [v.abs().square().sum((-2, -1)) for v in vector]
        norm = torch.stack(squares).sum(0).sqrt()
        unit = tuple(v / norm.clamp(min=tiny)[..., None, None] for v in vector)
        vector = product(unit)
    return norm
