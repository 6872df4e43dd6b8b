"""Runs on a manifold of matrices of rank r: the targets of conf/manifold and their methods.

geoopt, which takes a second to import, is loaded with this module, for such runs alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deeplin.flows import DLRAFlow, PSDDLRAFlow
from deeplin.flows.contract import State
from deeplin.geometry.metric import DepthMetric, Metric
from deeplin.geometry.points import nearest_point
from deeplin.integrators import Euler, OptimizerStepper
from deeplin.linalg import is_semidefinite
from deeplin.manifolds import FixedRank, FixedRankFactored, PSDFixedRank, PSDFixedRankFactored
from deeplin.manifolds.factored import FactoredManifold
from deeplin.manifolds.optimizers import is_riemannian_sgd
from deeplin.network import DeepLinear
from deeplin.problems import MatrixCompletion
from deeplin.problems.contract import Problem
from deeplin.problems.data import Data
from deeplin.runner.methods import MakeOptimizer, at_rate, is_plain, loss_of_step, scheduled
from deeplin.runner.named_flows import common_rank

__all__ = [
    "OnManifold",
    "fixed_rank",
    "gradient_steps",
    "iterations",
    "psd_fixed_rank",
    "undetermined",
]

Low = FixedRank | FixedRankFactored | PSDFixedRank | PSDFixedRankFactored


@dataclass(frozen=True)
class OnManifold:
    """A point that geoopt's optimizers move, and the flow of its metric.

    - `flow`: that which steps of descent follow, with states (U, S, V), or (U, S) on the cone
    """

    manifold: Low
    flow: DLRAFlow
    point: torch.nn.Parameter

    @property
    def title(self) -> str:
        """The set and its metric in words."""
        m, n = self.flow.problem.shape
        cone = " semidefinite" if isinstance(self.flow, PSDDLRAFlow) else ""
        depth = self.manifold.depth
        metric = f"metric {self.manifold.metric}" if depth is None else f"metric of depth {depth:g}"
        dense = "" if isinstance(self.manifold, FactoredManifold) else ", dense"
        return (
            f"rank {self.manifold.rank} of{cone} {m} x {n}{dense}, {metric}, "
            f"retraction {self.manifold.retraction}"
        )

    def state_of(self, parameters: list[Tensor]) -> State:
        """The flow's state at the parameter."""
        (x,) = parameters
        if isinstance(self.manifold, FactoredManifold):
            return self.manifold.unpack_tensor(x.detach())
        point = nearest_point(x, self.manifold.rank, hermitian=isinstance(self.flow, PSDDLRAFlow))
        return (point.U, point.S) if point.hermitian else (point.U, point.S, point.V)

    @property
    def state(self) -> State:
        return self.state_of([self.point])

    def gradient(self) -> Tensor:
        """What autograd would leave in the parameter's `grad`, for the loss of all samples.

        Raises: LinAlgError where it is not finite.
        """
        gradient = self._gradient()
        if not math.isfinite(gradient.sum().abs()):
            self.point.grad = gradient
            raise torch.linalg.LinAlgError("the gradient is not finite")
        return gradient

    def _gradient(self) -> Tensor:
        problem = self.flow.problem
        if not isinstance(self.manifold, FactoredManifold):
            return problem.egrad(self.point.detach())
        point = self.flow.point(self.state)
        products = problem.egrad_products(point.U, point.S, point.V)
        return self.manifold.pack_products(self.point.detach(), *products)

    def losses(self) -> Tensor:
        """Of all samples, one for each matrix of a batch."""
        point = self.flow.point(self.state)
        return self.flow.problem.pair_loss(point.U @ point.S, point.V)

    def loss(self) -> Tensor:
        """Of all samples, summed over a batch."""
        return self.losses().sum()

    def evaluated(self) -> Tensor:
        """`losses`, and in the parameter their gradient: the closure of deeplin's optimizers."""
        with torch.no_grad():
            self.point.grad = self._gradient()
            return self.losses()

    def predicted(self, x: Tensor) -> Tensor:
        """Wx of samples x, a row each."""
        if isinstance(self.manifold, FactoredManifold):
            A, B = self.manifold.factor_pair(self.point)
            return (x @ B.conj()) @ A.mT
        return x @ self.point.mT


def fixed_rank(
    source: Data,
    network: DeepLinear,
    *,
    rank: int | None = None,
    depth: float | None = None,
    metric: Metric | None = None,
    retraction: str = "auto",
    factored: bool = True,
) -> OnManifold:
    """The m×n matrices of rank r with the metric of a depth, or another, at a network's product."""
    flow = DLRAFlow(source.problem, depth=_metric(depth, metric, network))
    return _at_product(flow, network, rank, retraction, factored)


def psd_fixed_rank(
    source: Data,
    network: DeepLinear,
    *,
    rank: int | None = None,
    depth: float | None = None,
    metric: Metric | None = None,
    retraction: str = "auto",
    factored: bool = True,
) -> OnManifold:
    """The same of the positive semidefinite matrices of rank r."""
    m, n = source.problem.shape
    if m != n or not is_semidefinite(network.end_to_end().detach()):
        raise ValueError(
            "manifold=psd_fixed_rank needs a positive semidefinite W(0): use init=balanced with "
            "init.psd=true, or manifold=fixed_rank."
        )
    flow = PSDDLRAFlow(source.problem, depth=_metric(depth, metric, network))
    return _at_product(flow, network, rank, retraction, factored)


def _metric(depth: float | None, metric: Metric | None, network: DeepLinear) -> float | Metric:
    if metric is None:
        return network.depth if depth is None else depth
    if depth is not None:
        raise ValueError(
            f"manifold.metric is a metric already; got manifold.depth={depth}, too: give one."
        )
    return metric


def _at_product(
    flow: DLRAFlow, network: DeepLinear, rank: int | None, retraction: str, factored: bool
) -> OnManifold:
    """The manifold of a flow, at the product of a network's layers."""
    weights = [W_j.detach() for W_j in network.weights]
    if rank is None:
        rank = common_rank(weights, "a run on a manifold")
    _check_determined(flow.problem, rank)
    state = flow.init_state(weights, rank)
    m, n = flow.problem.shape
    cone, options = isinstance(flow, PSDDLRAFlow), (flow.metric, _retraction(retraction, flow))
    if factored:
        manifold = (
            PSDFixedRankFactored(n, rank, *options, gradient="taped")
            if cone
            else FixedRankFactored(m, n, rank, *options, gradient="taped")
        )
        return OnManifold(manifold, flow, manifold.parameter(manifold.pack_point(*state)))
    dense = PSDFixedRank(rank, *options) if cone else FixedRank(rank, *options)
    return OnManifold(dense, flow, dense.parameter(flow.end_to_end(state)))


def _check_determined(problem: Problem, rank: int) -> None:
    """Raise ValueError where the matrices of a rank have more dimensions than entries are known."""
    m, n = problem.shape
    if isinstance(problem, MatrixCompletion) and rank * (m + n - rank) > len(problem.rows):
        p, most = len(problem.rows), 0
        while (most + 1) * (m + n - most - 1) <= p and most < min(m, n):
            most += 1
        instead = f"network.rank={most} or less" if most else "more entries are needed"
        raise ValueError(
            f"the {p} known entries do not hold rank {rank}: matrices {m}×{n} of that rank have "
            f"{rank * (m + n - rank)} dimensions: {instead}; or, with no limit of the rank but a "
            "small start, the layers of a network, method=sgd init=gaussian."
        )


def undetermined(problem: Problem, rank: int) -> str | None:
    """A sentence where rows or columns have fewer known entries than the rank: any W may fit."""
    if not isinstance(problem, MatrixCompletion):
        return None
    sides = zip((problem.rows, problem.cols), problem.shape, ("row", "column"), strict=True)
    few = {
        name: int((torch.bincount(index, minlength=size) < rank).sum())
        for index, size, name in sides
    }
    told = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in few.items() if count]
    if not told:
        return None
    return (
        f"{' and '.join(told)} with fewer than {rank} known entries, which do not determine W there"
    )


def _retraction(name: str, flow: DLRAFlow) -> str:
    """The name given; auto: that of the layers where the depth is a number of layers, else svd."""
    if name != "auto":
        return name
    depth = flow.metric.depth if isinstance(flow.metric, DepthMetric) else 0.0
    return "layers" if float(depth).is_integer() and depth >= 2 else "svd"


def gradient_steps(
    on: OnManifold,
    source: Data,
    seed: int,
    *,
    optimizer: MakeOptimizer,
    dt: float | Literal["auto"] = "auto",
    safety: float = 0.25,
    batch_size: int | None = None,
    schedule: Mapping[str, object] | None = None,
) -> OptimizerStepper:
    """Retracted steps with the learning rate dt; auto: `safety` times Euler's stability limit.

    Step k is at flow time k·dt, or at the sum of the rates.
    """
    limit = Euler().stability_limit
    step = safety * limit / on.flow.descent_curvature(on.state) if isinstance(dt, str) else dt
    made = at_rate(optimizer, [on.point], step)
    return _stepper(on, made, step, source, batch_size, seed, schedule, counts=False)


def iterations(
    on: OnManifold,
    source: Data,
    seed: int,
    *,
    optimizer: MakeOptimizer,
    batch_size: int | None = None,
    schedule: Mapping[str, object] | None = None,
) -> OptimizerStepper:
    """An optimizer that follows no flow; t counts its iterations."""
    return _stepper(on, optimizer([on.point]), 1.0, source, batch_size, seed, schedule, counts=True)


def _stepper(
    on: OnManifold,
    made: torch.optim.Optimizer,
    dt: float,
    source: Data,
    batch_size: int | None,
    seed: int,
    schedule: Mapping[str, object] | None,
    *,
    counts: bool,
) -> OptimizerStepper:
    def gradients(k: int) -> list[Tensor]:
        return [on.gradient()]

    return OptimizerStepper(
        [on.point],
        made,
        loss_of_step(on.loss, on.predicted, source, batch_size, seed),
        dt,
        on.flow,
        gradients=gradients if batch_size is None else None,
        state_of=on.state_of,
        descends=is_riemannian_sgd(made) and is_plain(made),
        schedule=scheduled(made, schedule),
        counts=counts,
    )
