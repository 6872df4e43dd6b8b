"""What the theory says of a start: its limit, that limit's loss and rank, and the rate."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from deeplin.flows import (
    DLRAFlow,
    EndToEndFlow,
    LayerFlow,
    OjaFlow,
    PQWFlow,
    PSDDLRAFlow,
    RiccatiFlow,
)
from deeplin.flows.contract import Flow, Start, State, TangentFlow
from deeplin.geometry.metric import DepthMetric, Metric, as_metric
from deeplin.network import DeepLinear, end_to_end
from deeplin.prediction.cone import case_on_cone, positive_part
from deeplin.prediction.conserved import are_balanced, ranks_of, reach
from deeplin.prediction.limits import prediction_in_reach, prediction_of_rank
from deeplin.prediction.statement import Prediction
from deeplin.problems.contract import Problem
from deeplin.problems.spectrum import Spectrum

__all__ = ["predict", "predict_flow"]


def predict(problem: Problem, depth: float | Metric, start: Start) -> Prediction:
    """What the theory says of the gradient flow of a problem at a depth from a start.

    The start is a network, its layers from the first to the last, or the matrix W(0) of balanced
    layers. Depth 1 is the flow of W itself, a real depth that of the metric of BRTW (8). Of a
    batch every start has a prediction of its own, `Prediction.cases`; the fields themselves are
    those of the case of the least rank, of the first such.

    What is used of a balanced start: its rank; for k = d_x = d_y the sign of det W(0), which
    N >= 2 keeps; the invariant subspaces it lies in (`deeplin.prediction.conserved.reach`). Of the
    exceptional set of BRTW Theorem 39 and BRTW Theorem 40 no more than that is decided: stable sets
    of saddles inside a block have measure 0 and no known equation.

    Source: BRTW Prop. 12 (the rank), BRTW Theorem 39 and BRTW Prop. 32 (the limit), BRTW Remark 42
    (an invariant subspace); the rate by linearisation, `deeplin.landscape.local_rate`.
    Shapes: W (*batch, m, n), layers (*batch, d_j, d_{j−1}).
    Raises: ValueError for a depth that is not the number of layers, or a start of another shape.

    >>> import torch, deeplin
    >>> problem = deeplin.autoencoder(torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)))
    >>> prediction = deeplin.predict(problem, 2, torch.tensor([[0.1, 0.1], [0, 0]]).double())
    >>> prediction.rank, prediction.loss, round(prediction.rate, 4)
    (1, 0.5, 0.6972)
    >>> prediction = deeplin.predict(problem, 2, torch.tensor([[0.1, 0.3], [0.3, 0.1]]).double())
    >>> print(prediction.rank, prediction.why)
    1 det W < 0 is conserved, the optimum of rank 2 has det W > 0: W(t) ends at rank 1, loss 0.5
    """
    metric = as_metric(depth)
    if isinstance(start, Tensor):
        layers = [start]
    else:
        weights = start.weights if isinstance(start, DeepLinear) else start
        layers = [W_j.detach() for W_j in weights]
        if metric != as_metric(len(layers)):
            raise ValueError(
                f"depth must be the number of layers, {len(layers)}; got depth={depth}: give that, "
                "or W(0) instead of layers."
            )
    shape = (layers[-1].shape[-2], layers[0].shape[-1])
    if shape != tuple(problem.shape):
        raise ValueError(
            f"the start must be a matrix W(0) of the problem's shape {tuple(problem.shape)}; got "
            f"{shape}."
        )
    passes = metric == DepthMetric(1)
    return _of_layers(problem, metric, layers, passes=passes)


def predict_flow(problem: Problem, flow: Flow, y0: State, *, rank: int | None = None) -> Prediction:
    """The same of a flow from its state y0, in the flow's own time.

    Oja's flow has a rate of its own, λ_r − λ_{r+1} (closed form `deeplin.exact.oja`; the untied
    flow arrives as layers of depth 2 do), and the clock of rescaled flows runs at σ_r. Where W
    stays semidefinite the limit of ½‖W − X‖² is that of the positive part of ½(X + Xᴴ).

    - `rank`: that of the start; by default what the state's numbers show. Layers show theirs.
    """
    metric = _metric_of(flow, y0)
    rescaled = isinstance(flow, EndToEndFlow | DLRAFlow) and flow.rescaled
    cone = isinstance(flow, PSDDLRAFlow)
    positive = positive_part(problem) if cone else None
    known = problem if positive is None else positive
    passes = isinstance(flow, LayerFlow | TangentFlow) and not rescaled and known is problem
    if isinstance(flow, LayerFlow):
        prediction = _of_layers(
            problem, metric, y0, passes=passes and len(y0) == 1, most=flow.balanced_rank
        )
    else:
        ranks = flow.rank(y0) if rank is None else y0[0].new_full((), rank, dtype=torch.int64)
        balanced = not isinstance(flow, RiccatiFlow) or _riccati_is_balanced(flow, y0)
        W = flow.end_to_end(y0) if balanced and problem.optimum is not None else None
        prediction = _of_batch(known, metric, W, ranks, balanced=True, passes=passes)

    def in_own_time(case: Prediction) -> Prediction:
        case = case_on_cone(problem, positive, metric, case) if cone else case
        limit, k = case.limit, case.rank
        oja = isinstance(flow, OjaFlow) and not isinstance(flow, RiccatiFlow)
        if case.why and (oja or rescaled):
            return replace(case, rate=None, rate_missing="the clock of this flow is its own")
        if isinstance(flow, OjaFlow) and oja and case.unique:
            values = torch.linalg.eigvalsh(flow.C).flip(0)
            own = case.at_rate(float(values[k - 1] - values[k]) if k < len(values) else None)
            return replace(own, mode=None)
        if rescaled and case.rate and limit is not None:
            return case.at_rate(case.rate * float(torch.linalg.svdvals(limit)[k - 1]))
        return case

    cases = prediction.cases or (prediction,)
    return _joined([in_own_time(case) for case in cases], prediction.case_of)


def _riccati_is_balanced(flow: RiccatiFlow, y0: State) -> bool:
    gap = flow.conserved(y0)["W2tW2 - W1W1t"]
    return float(gap.norm()) <= 1e3 * torch.finfo(y0[0].dtype).eps * float(y0[0].norm() ** 2)


def _metric_of(flow: Flow, y0: State) -> Metric | None:
    """The metric in which W follows the gradient; None where there is none."""
    if isinstance(flow, EndToEndFlow | DLRAFlow):
        return flow.metric
    if isinstance(flow, LayerFlow):
        return DepthMetric(len(y0))
    if isinstance(flow, PQWFlow):
        return DepthMetric(flow.depth)
    if isinstance(flow, OjaFlow | RiccatiFlow):
        return DepthMetric(2)
    return DepthMetric(1) if isinstance(flow, TangentFlow) else None


def _of_layers(
    problem: Problem,
    metric: Metric | None,
    layers: State | list[Tensor],
    *,
    passes: bool,
    most: int | None = None,
) -> Prediction:
    """The prediction for layers, or for one matrix; `most`: the rank that is kept at most."""
    if not are_balanced(layers):
        rank = min(layers[0].shape[-1], *(W_j.shape[-2] for W_j in layers))
        return prediction_of_rank(problem, metric, rank, balanced=False)
    ranks = ranks_of(layers).clamp(max=most) if most is not None else ranks_of(layers)
    W = None if problem.optimum is None else end_to_end(layers)
    return _of_batch(problem, metric, W, ranks, balanced=True, passes=passes)


def _of_batch(
    problem: Problem,
    metric: Metric | None,
    W: Tensor | None,
    ranks: Tensor,
    *,
    balanced: bool,
    passes: bool,
) -> Prediction:
    """The prediction for balanced starts, each of its own.

    - `passes`: whether W(t) can pass through det W = 0 where N < 2
    """
    optimum = problem.optimum
    if W is None or metric is None or not isinstance(optimum, Spectrum) or optimum.s.ndim != 1:
        each = ranks.reshape(-1).tolist()
        order = sorted(set(each))
        cases = [prediction_of_rank(problem, metric, k, balanced=balanced) for k in order]
        return _joined(cases, tuple(order.index(k) for k in each))
    flat = W.reshape(-1, *W.shape[-2:])
    dtype = torch.promote_types(W.dtype, optimum.U.dtype)
    ranks = ranks.expand(W.shape[:-2]).reshape(-1)
    seen = reach(optimum, flat.to(dtype), ranks)
    marks = (ranks, seen.sign, seen.blocks, seen.negative, seen.scalar)
    keys = torch.cat([torch.stack([mark.long() for mark in marks], 1), seen.modes.long()], 1)
    unique, case_of = keys.unique(dim=0, return_inverse=True)
    cases = []
    for number in range(len(unique)):
        first = int((case_of == number).nonzero()[0])
        start, rank, of = flat[first], int(ranks[first]), seen.of(first)
        cases.append(prediction_in_reach(problem, optimum, metric, start, rank, of, passes=passes))
    return _joined(cases, tuple(case_of.tolist()))


def _joined(cases: list[Prediction], case_of: tuple[int, ...]) -> Prediction:
    """One prediction of a batch from its cases: the first, with the slowest pace."""
    if len(cases) == 1:
        return replace(cases[0], cases=(), case_of=())
    paces = [case.pace for case in cases if case.pace]
    pace = min(paces) if paces else None
    return replace(cases[0], pace=pace, cases=tuple(cases), case_of=case_of)
