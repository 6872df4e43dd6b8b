"""Methods: what advances a flow, or a network's layers. The targets of conf/method.

A method is a function of those of `flow`, `state`, `network`, `source`, `seed`, `t1`, `records`
that it names, and of the options of its file; it returns a stepper.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from deeplin.flows import DLRAFlow
from deeplin.flows.contract import Flow, State
from deeplin.integrators import Compiled, ErrorControlled, Euler, Integrator, ProjectedRungeKutta
from deeplin.integrators.adaptive import AdaptiveStepper
from deeplin.integrators.explicit import OneLine
from deeplin.integrators.optimizers import OptimizerStepper, minibatch_indices
from deeplin.integrators.steppers import IntegratorStepper, Stepper
from deeplin.network import DeepLinear, layer_gradients
from deeplin.problems import LeastSquares
from deeplin.problems.data import Data

__all__ = [
    "adaptive_steps",
    "at_rate",
    "fixed_steps",
    "is_plain",
    "loss_of_step",
    "optimizer_iterations",
    "optimizer_steps",
    "projected_steps",
    "scheduled",
    "unstable_step",
]

MakeOptimizer = Callable[..., torch.optim.Optimizer]

# Schedules that need more than the optimizer and numbers.
_UNFIT = (
    LRScheduler,
    torch.optim.lr_scheduler.ReduceLROnPlateau,
    torch.optim.lr_scheduler.LambdaLR,
    torch.optim.lr_scheduler.MultiplicativeLR,
    torch.optim.lr_scheduler.ChainedScheduler,
    torch.optim.lr_scheduler.SequentialLR,
)


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
    schedule: Mapping[str, object] | None = None,
) -> OptimizerStepper:
    """An optimizer on the layers with the learning rate dt, with a schedule at first.

    Step k is at flow time k·dt, or at the sum of the rates.
    """
    step = _step(dt, safety, Euler().stability_limit, flow, state)
    made = at_rate(optimizer, list(network.weights), step)
    return _on_layers(made, step, flow, network, source, batch_size, seed, schedule)


def optimizer_iterations(
    flow: Flow,
    network: DeepLinear,
    source: Data,
    seed: int,
    *,
    optimizer: MakeOptimizer,
    batch_size: int | None = None,
    schedule: Mapping[str, object] | None = None,
) -> OptimizerStepper:
    """An optimizer that follows no flow, on the layers; t counts its iterations."""
    made = optimizer(list(network.weights))
    return _on_layers(made, 1.0, flow, network, source, batch_size, seed, schedule, counts=True)


def _on_layers(
    made: torch.optim.Optimizer,
    dt: float,
    flow: Flow,
    network: DeepLinear,
    source: Data,
    batch_size: int | None,
    seed: int,
    schedule: Mapping[str, object] | None,
    counts: bool = False,
) -> OptimizerStepper:
    parameters = list(network.weights)

    def whole() -> Tensor:
        return source.problem.loss(network.end_to_end()).sum()

    loss = loss_of_step(whole, network, source, batch_size, seed)

    def gradients(k: int) -> list[Tensor]:
        return layer_gradients([p.detach() for p in parameters], source.problem)

    return OptimizerStepper(
        parameters,
        made,
        loss,
        dt,
        flow,
        gradients=gradients if batch_size is None else None,
        descends=isinstance(made, torch.optim.SGD) and is_plain(made),
        schedule=scheduled(made, schedule),
        counts=counts,
    )


def at_rate(
    make: MakeOptimizer, parameters: list[torch.nn.Parameter], rate: float
) -> torch.optim.Optimizer:
    """The optimizer with a step's length for its learning rate."""
    if isinstance(make, functools.partial) and "lr" in make.keywords:
        raise ValueError("the learning rate of an optimizer is method.dt: leave out lr.")
    return make(parameters, lr=rate)


def is_plain(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an SGD's steps are the gradient's: no momentum, no decay."""
    group = optimizer.param_groups[0]
    return not (group["momentum"] or group["weight_decay"])


def _schedules() -> dict[str, Callable[..., LRScheduler]]:
    """torch's schedules that an optimizer and plain options make, by name."""
    return {
        name: value
        for name, value in vars(torch.optim.lr_scheduler).items()
        if isinstance(value, type) and issubclass(value, LRScheduler) and value not in _UNFIT
    }


def scheduled(
    optimizer: torch.optim.Optimizer, schedule: Mapping[str, object] | None
) -> LRScheduler | None:
    """The schedule of torch.optim.lr_scheduler that a name and options make.

    Raises: ValueError, with one sentence, for a name that is none, or options that it cannot take.
    """
    if schedule is None:
        return None
    options = {str(key): value for key, value in schedule.items() if key != "name"}
    name, fitting = str(schedule["name"]), _schedules()
    if name not in fitting:
        raise ValueError(
            "method.schedule.name must be one of torch.optim.lr_scheduler, "
            f"{', '.join(sorted(fitting))}; got {name}."
        )
    try:
        return fitting[name](optimizer, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"method.schedule={name} cannot be made: {error}.") from error


def _step(
    dt: float | Literal["auto"], safety: float, limit: float, flow: Flow, state: State
) -> float:
    return safety * limit / flow.curvature(state) if isinstance(dt, str) else dt


def _moves_on_manifold(stepper: Stepper, flow: Flow) -> bool:
    """Whether its steps are tangent ones and retractions, which never invert S."""
    if isinstance(stepper, IntegratorStepper):
        return isinstance(stepper.integrator, ProjectedRungeKutta)
    return isinstance(stepper, OptimizerStepper) and isinstance(flow, DLRAFlow)


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
    elif isinstance(stepper, OptimizerStepper) and stepper.descends and stepper.schedule is None:
        limit, of = Euler().stability_limit, "gradient descent"
    else:
        return None
    if _moves_on_manifold(stepper, flow) and isinstance(flow, DLRAFlow):
        curvature = flow.descent_curvature(state)
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


def loss_of_step(
    whole: Callable[[], Tensor],
    predicted: Callable[[Tensor], Tensor],
    source: Data,
    batch_size: int | None,
    seed: int,
) -> Callable[[int], Tensor]:
    """The loss that step k differentiates: `whole` of all samples, or an unbiased mini-batch's.

    - `predicted`: samples x, a row each -> Wx, a row each
    """
    if batch_size is None:
        return lambda step: whole()
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
        return weight * (predicted(x[rows]) - y[rows]).square().sum()

    return loss
