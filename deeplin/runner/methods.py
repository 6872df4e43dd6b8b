"""Methods: what advances a flow, or a network's layers. The targets of conf/method.

A method is a function of those of `flow`, `state`, `network`, `source`, `seed`, `t1`, `records`
that it names, and of the options of its file; it returns a stepper.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from deeplin.flows import DLRAFlow
from deeplin.flows.contract import Flow, State
from deeplin.integrators import Compiled, ErrorControlled, Euler, Integrator, ProjectedRungeKutta
from deeplin.integrators.adaptive import AdaptiveStepper
from deeplin.integrators.explicit import OneLine
from deeplin.integrators.steppers import (
    IntegratorStepper,
    OptimizerStepper,
    Stepper,
    minibatch_indices,
)
from deeplin.network import DeepLinear, layer_gradients
from deeplin.problems import LeastSquares
from deeplin.problems.data import Data

__all__ = [
    "adaptive_steps",
    "fixed_steps",
    "optimizer_steps",
    "projected_steps",
    "unstable_step",
]

MakeOptimizer = Callable[..., torch.optim.Optimizer]


def fixed_steps(
    flow: Flow,
    state: State,
    *,
    integrator: Integrator,
    dt: float | Literal["auto"] = "auto",
    safety: float = 0.5,
    compiled: bool = False,
) -> IntegratorStepper:
    """Steps of length dt; auto: `safety` times what the integrator is stable for."""
    step = _step(dt, safety, integrator.stability_limit, flow, state)
    method = _compiled(integrator, flow, state) if compiled else integrator
    return IntegratorStepper(flow, state, method, step)


def projected_steps(
    flow: Flow, state: State, *, order: int = 1, dt: float | Literal["auto"] = "auto"
) -> IntegratorStepper:
    """Tangent steps and truncations of a projected Runge–Kutta method of that order."""
    return fixed_steps(flow, state, integrator=ProjectedRungeKutta(order), dt=dt)


def adaptive_steps(
    flow: Flow,
    state: State,
    t1: float,
    records: int,
    *,
    integrator: ErrorControlled,
    rtol: float,
    atol: float,
) -> AdaptiveStepper:
    """Steps by the error, each repeat its own."""
    return AdaptiveStepper(
        flow, state, rtol=rtol, atol=atol, stretch=t1 / records, integrator=integrator
    )


def optimizer_steps(
    flow: Flow,
    state: State,
    network: DeepLinear,
    source: Data,
    seed: int,
    *,
    optimizer: MakeOptimizer,
    dt: float | Literal["auto"] = "auto",
    safety: float = 0.25,
    batch_size: int | None = None,
) -> OptimizerStepper:
    """An optimizer with the learning rate dt on the layers; step k is at flow time k·dt."""
    if isinstance(optimizer, functools.partial) and "lr" in optimizer.keywords:
        raise ValueError("the learning rate of an optimizer is method.dt: leave out lr.")
    step = _step(dt, safety, Euler().stability_limit, flow, state)
    parameters = list(network.weights)
    loss = _loss_of_step(network, source, batch_size, seed)

    def gradients(k: int) -> list[Tensor]:
        return layer_gradients([p.detach() for p in parameters], source.problem)

    known = gradients if batch_size is None else None
    made = optimizer(parameters, lr=step)
    return OptimizerStepper(parameters, made, loss, step, flow, gradients=known)


def _step(
    dt: float | Literal["auto"], safety: float, limit: float, flow: Flow, state: State
) -> float:
    return safety * limit / flow.curvature(state) if isinstance(dt, str) else dt


def unstable_step(stepper: Stepper, flow: Flow, state: State, t1: float) -> str | None:
    """A sentence where the step is beyond what the method is stable for, at the start or the end.

    None for steps by tolerance, and for optimizers other than plain gradient descent, which have
    no such limit that is known here. Tangent steps are those of Riemannian gradient descent, whose
    limit is 2 over the curvature of the loss: they do not pay for S^{-1}, as the flow's does.

    Cost: the flow's `curvature`.
    """
    if isinstance(stepper, IntegratorStepper):
        limit, of = stepper.integrator.stability_limit, type(stepper.integrator).__name__
        if isinstance(stepper.integrator, Compiled):
            of = "the method"
    elif isinstance(stepper, OptimizerStepper) and _is_plain_descent(stepper.optimizer):
        limit, of = Euler().stability_limit, "gradient descent"
    else:
        return None
    projected = isinstance(stepper, IntegratorStepper) and isinstance(
        stepper.integrator, ProjectedRungeKutta
    )
    if projected and isinstance(flow, DLRAFlow):
        curvature = flow.problem.curvature(flow.end_to_end(state))
        if flow.rescaled:
            curvature *= float(flow.clock_rate(flow.point(state).S).amax())
    else:
        curvature = flow.curvature(state)
    dt, whole = stepper.stretch, isinstance(stepper, IntegratorStepper) and stepper.stretch >= t1
    if not (t1 if whole else dt) * curvature > limit:
        return None
    most = limit / curvature
    run = f", and the whole run is one step of {t1:.4g}" if whole else ""
    return (
        f"method.dt={dt:.4g} is above {most:.3g}, beyond which {of} is unstable here{run}: this "
        f"does not follow the flow; type method.dt=auto, or method.dt={0.5 * most:.2g} or less."
    )


def _is_plain_descent(optimizer: torch.optim.Optimizer) -> bool:
    return isinstance(optimizer, torch.optim.SGD) and not any(
        group["momentum"] for group in optimizer.param_groups
    )


def _compiled(integrator: Integrator, flow: Flow, state: State) -> Integrator:
    """The integrator in compiled code; a step of length 0 finds out whether it fits."""
    try:
        if not isinstance(integrator, OneLine):
            raise TypeError(f"{type(integrator).__name__} has no compiled steps.")
        compiled = Compiled(integrator)
        compiled.step(flow, 0.0, state, 0.0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"method.compiled must be false here: {error}") from error
    return compiled


def _loss_of_step(
    network: DeepLinear, source: Data, batch_size: int | None, seed: int
) -> Callable[[int], Tensor]:
    """The loss that step k differentiates: of all samples, or an unbiased mini-batch's."""
    if batch_size is None:
        return lambda step: source.problem.loss(network.end_to_end()).sum()
    x, y = source.x, source.y
    if not isinstance(source.problem, LeastSquares):
        raise ValueError(
            "method.batch_size takes mini-batches of least squares; this problem is a "
            f"{type(source.problem).__name__}: use method.batch_size=null."
        )
    if x is None or y is None:
        raise ValueError(
            "method.batch_size needs the samples in memory; this problem is known by its moments "
            "alone: use method.batch_size=null."
        )
    indices = minibatch_indices(len(x), batch_size, seed)
    weight = 0.5 * len(x) / batch_size

    def loss(step: int) -> Tensor:
        rows = indices(step)
        return weight * (network(x[rows]) - y[rows]).square().sum()

    return loss
