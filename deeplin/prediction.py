"""What the theory knows of a start: the limit, its loss and rank, and how fast it is reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deeplin.flows import DLRAFlow, EndToEndFlow, LayerFlow, OjaFlow, PQWFlow, RiccatiFlow
from deeplin.flows.contract import Flow, Start, State, TangentFlow
from deeplin.geometry.metric import DepthMetric, Metric, as_metric
from deeplin.landscape import layer_rate, local_rate
from deeplin.linalg import product_svdvals
from deeplin.network import DeepLinear, end_to_end, gap_norm
from deeplin.problems import LeastSquares
from deeplin.problems.contract import Problem

__all__ = ["Prediction", "predict", "predict_flow", "rank_and_balance"]

_DISTANCE_TOLERANCE = 1e-3  # relative to the norm of the limit, or absolute if that is below 1
_LARGEST_EIGENPROBLEM = 10_000  # two minutes and 3 GB


@dataclass(frozen=True)
class Prediction:
    """What the theory says of where a flow comes to rest, and why it says no more.

    - `rank`: that of W(0) for a balanced start (BRTW Prop. 12), the smallest width for another;
      where the optimum is known at most the largest rank of a critical point
    - `limit`: the minimizer on M_rank, `loss` its loss (BRTW Prop. 32), `unique` whether there is
      one; None where nothing is known of the optimum, and `missing` says why
    - `rate`: ρ of ‖W(t) − limit‖_F ~ e^{−ρt}; None where it is not predicted, and `rate_missing`
      says why
    - `pace`: the rate of balanced layers, whatever the start: by it a run's length is planned
    """

    rank: int
    limit: Tensor | None
    loss: float | None
    unique: bool
    rate: float | None
    rate_missing: str = ""
    pace: float | None = None
    missing: str = ""

    @property
    def size(self) -> float:
        """‖limit‖_F, 0 where there is none."""
        return 0.0 if self.limit is None else float(torch.linalg.matrix_norm(self.limit))

    @property
    def distance_tolerance(self) -> float:
        """How near the limit counts as there: 1e-3 of its norm, and at least 1e-3."""
        return _DISTANCE_TOLERANCE * max(self.size, 1.0)

    def at_rate(self, rate: float | None) -> Prediction:
        """The prediction with another rate, by which a run is planned, too."""
        return replace(self, rate=rate, pace=rate)

    def in_steps(self, dt: float, order: int) -> Prediction:
        """The rate of a Runge–Kutta method of that order with steps of length dt, not of the flow.

        A step multiplies the distance by Σ_{k<=p} (−ρ·dt)^k/k!, for order 1 by 1 − ρ·dt.

        Source: HLZ Example 1.1, for order 1.
        """
        if not self.rate:
            return self
        decay = sum((-dt * self.rate) ** k / math.factorial(k) for k in range(1, order + 1))
        return replace(self, rate=-math.log1p(decay) / dt) if -1 < decay < 0 else self

    def arrived(self, problem: Problem, layers: Sequence[Tensor]) -> Prediction:
        """The prediction with the rate that unbalanced layers have near where they ended.

        None is kept where they have not arrived, or where the eigenproblem is above 10 000.
        """
        W = end_to_end(layers)
        if self.rate is not None or self.pace is None or self.limit is None or W.ndim != 2:
            return self
        if float(torch.linalg.matrix_norm(W - self.limit)) > self.distance_tolerance:
            return self
        dimension = min(W_j.shape[-2] for W_j in layers) * sum(W.shape)
        if dimension > _LARGEST_EIGENPROBLEM:
            reason = f"the rate of unbalanced layers is an eigenproblem of dimension {dimension}"
            return replace(self, rate_missing=reason)
        return replace(self, rate=layer_rate(problem, layers), rate_missing="")


def predict(problem: Problem, depth: float | Metric, start: Start) -> Prediction:
    """What the theory says of the gradient flow of a problem at a depth from a start.

    The start is a network, its layers from the first to the last, or the matrix W(0) of balanced
    layers. Depth 1 is the flow of W itself, a real depth that of the metric of BRTW (8). Of a
    batch of starts the least rank counts.

    Source: BRTW Prop. 12 (the rank), BRTW Theorem 39 and BRTW Prop. 32 (the limit); the rate by
    linearisation, `deeplin.landscape.local_rate`.
    Shapes: W (*batch, m, n), layers (*batch, d_j, d_{j−1}).
    Raises: ValueError for a depth that is not the number of layers, or a start of another shape.

    >>> import torch, deeplin
    >>> problem = deeplin.autoencoder(torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)))
    >>> prediction = deeplin.predict(problem, 2, torch.tensor([[0.1, 0], [0, 0]]).double())
    >>> prediction.rank, prediction.loss, round(prediction.rate, 4)
    (1, 0.5, 0.6972)
    """
    metric = as_metric(depth)
    if isinstance(start, Tensor):
        layers = [start]
        rank, balanced = rank_and_balance(layers)
    else:
        weights = start.weights if isinstance(start, DeepLinear) else start
        layers = [W_j.detach() for W_j in weights]
        if metric != as_metric(len(layers)):
            raise ValueError(
                f"depth must be the number of layers, {len(layers)}; got depth={depth}: give that, "
                "or W(0) instead of layers."
            )
        rank, balanced = rank_and_balance(layers)
    shape = (layers[-1].shape[-2], layers[0].shape[-1])
    if shape != tuple(problem.shape):
        raise ValueError(
            f"the start must be a matrix W(0) of the problem's shape {tuple(problem.shape)}; got "
            f"{shape}."
        )
    return _of_rank(problem, metric, rank, balanced=balanced)


def predict_flow(problem: Problem, flow: Flow, y0: State, *, rank: int | None = None) -> Prediction:
    """The same of a flow from its state y0, in the flow's own time.

    Oja's flow has a rate of its own, λ_r − λ_{r+1} (closed form `deeplin.exact.oja`; the untied
    flow arrives as layers of depth 2 do), and the clock of rescaled flows runs at σ_r.

    - `rank`: that of the start; by default what the state's numbers show.
    """
    balanced = True
    if isinstance(flow, LayerFlow):
        seen, balanced = rank_and_balance(y0)
        rank = seen if rank is None else rank
    rank = int(flow.rank(y0).min()) if rank is None else rank
    prediction = _of_rank(problem, _metric_of(flow, y0), rank, balanced=balanced)
    limit, k = prediction.limit, prediction.rank
    if isinstance(flow, OjaFlow) and not isinstance(flow, RiccatiFlow) and prediction.unique:
        values = torch.linalg.eigvalsh(flow.C).flip(0)
        return prediction.at_rate(float(values[k - 1] - values[k]) if k < len(values) else None)
    rescaled = isinstance(flow, EndToEndFlow | DLRAFlow) and flow.rescaled
    if rescaled and prediction.rate and limit is not None:
        return prediction.at_rate(prediction.rate * float(torch.linalg.svdvals(limit)[k - 1]))
    return prediction


def rank_and_balance(layers: Sequence[Tensor]) -> tuple[int, bool]:
    """The rank that the flow of layers keeps, and whether they are balanced, to round-off.

    Balanced layers keep the rank of W(0) (BRTW Prop. 12), of a batch the least; for others it is
    the smallest width.
    """
    eps = torch.finfo(layers[0].dtype).eps
    round_off = 1e3 * eps * max(float(W_j.norm() ** 2) for W_j in layers)
    if not bool((gap_norm(layers) <= round_off).all()):
        return min(layers[0].shape[-1], *(W_j.shape[-2] for W_j in layers)), False
    s = product_svdvals(layers)
    noise = max(layers[-1].shape[-2], layers[0].shape[-1]) * eps * s[..., :1]
    return int((s > noise).sum(-1).min()), True


def _metric_of(flow: Flow, y0: State) -> Metric | None:
    """The metric in which W follows the gradient; None where there is none."""
    if isinstance(flow, EndToEndFlow):
        return flow.metric
    if isinstance(flow, LayerFlow):
        return DepthMetric(len(y0))
    if isinstance(flow, PQWFlow):
        return DepthMetric(flow.depth)
    if isinstance(flow, OjaFlow | RiccatiFlow):
        return DepthMetric(2)
    return DepthMetric(1) if isinstance(flow, TangentFlow) else None


def _of_rank(
    problem: Problem, metric: Metric | None, start_rank: int, *, balanced: bool
) -> Prediction:
    """The prediction for a start of that rank in a metric."""
    optimum = problem.optimum
    if optimum is None:
        missing = f"nothing is known in advance of the optimum of {type(problem).__name__}"
        return Prediction(start_rank, None, None, False, None, missing, None, missing)
    k = min(start_rank, optimum.rank)
    limit, unique = optimum.minimizer(k), optimum.is_unique(k)
    rate, pace, missing = None, None, ""
    if k == 0:
        missing = "W(0) = 0 stays 0"
    elif not unique:
        missing = f"σ_{k} = σ_{k + 1}: the minimizer is not unique"
    elif start_rank > optimum.rank:
        missing = "the rank of W(0) exceeds rank Q: the limit lies on the boundary of M_k"
    elif isinstance(problem, LeastSquares) and problem.rank_X < problem.d_x:
        missing = "XXᵀ is singular"
    elif metric is None:
        missing = "the flow is none of those whose rate is known"
    else:
        pace = local_rate(problem, limit, metric)
        if balanced:
            rate = pace
        else:
            missing = "unbalanced layers have a rate of their own, known once they arrived"
    return Prediction(k, limit, float(optimum.optimal_loss(k)), unique, rate, missing, pace)
