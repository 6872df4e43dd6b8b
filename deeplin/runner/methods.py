"""From the options of a method to a flow and the stepper that advances it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from deeplin.flows import (
    CoupledAutoencoderFlow,
    DLRAFlow,
    EndToEndFlow,
    LayerFlow,
    OjaFlow,
    PQWFlow,
    PSDDLRAFlow,
    RiccatiFlow,
    compress,
)
from deeplin.flows.contract import Flow
from deeplin.integrators import (
    RK4,
    Compiled,
    DormandPrince,
    ErrorControlled,
    Euler,
    Integrator,
    ProjectedRungeKutta,
    State,
)
from deeplin.integrators.adaptive import AdaptiveStepper
from deeplin.integrators.chebyshev import RKC
from deeplin.integrators.rosenbrock import Rosenbrock
from deeplin.integrators.steppers import (
    IntegratorStepper,
    OptimizerStepper,
    Stepper,
    minibatch_indices,
)
from deeplin.network import DeepLinear, end_to_end
from deeplin.problems import LeastSquares
from deeplin.problems.data import Data

__all__ = ["FLOWS", "METHODS", "make_flow", "make_stepper"]

# The flow that each method integrates unless told.
METHODS = {
    "sgd": "layers",
    "euler": "layers",
    "rk4": "layers",
    "dopri5": "layers",
    "rkc": "layers",
    "rosenbrock": "end_to_end",
    "structure": "end_to_end",
    "rgd": "dlra",
}
_PROJECTED = ("dlra", "dlra_rescaled", "psd_dlra", "psd_dlra_rescaled")
_TWO_LAYERS = ("oja", "coupled", "riccati")
FLOWS = ("layers", "compressed", "end_to_end", "pqw", *_PROJECTED, *_TWO_LAYERS)
_FITS = {
    "sgd": ("layers",),
    "structure": ("end_to_end", "dlra", "dlra_rescaled"),
    "rgd": _PROJECTED,
}


def make_flow(
    cfg: DictConfig, network: DeepLinear, source: Data, start_rank: int
) -> tuple[Flow, State]:
    """(flow, its state at the network's layers).

    Raises: ValueError for names that do not exist or do not fit each other.
    """
    method, name, problem = cfg.method.name, cfg.flow, source.problem
    if method not in METHODS:
        raise ValueError(f"method.name must be one of {', '.join(METHODS)}; got {method!r}.")
    fitting = _FITS.get(method, FLOWS)
    name = METHODS[method] if name == "auto" else name
    if name not in fitting:
        raise ValueError(
            f"flow must be auto or one of {', '.join(fitting)} for method={method}; got {name!r}."
        )
    weights = [W_j.detach() for W_j in network.weights]
    if name == "layers":
        balanced = bool(cfg.method.get("rebalance", False))
        flow = LayerFlow(problem, balanced_rank=start_rank if balanced else None)
        return flow, flow.init_state(network)
    if name == "compressed":
        flow = LayerFlow(problem)
        return flow, flow.init_state(compress(weights))
    if name in _TWO_LAYERS:
        return _two_layer_flow(name, problem, weights)
    W = end_to_end(weights)
    if name.startswith("dlra") and method == "structure":
        flow = EndToEndFlow(problem, 1, rescaled=name.endswith("rescaled"))
    else:
        kinds: dict[str, Callable[[], Flow]] = {
            "end_to_end": lambda: EndToEndFlow(problem, network.depth),
            "pqw": lambda: PQWFlow(problem, network.depth),
            "dlra": lambda: DLRAFlow(problem),
            "dlra_rescaled": lambda: DLRAFlow(problem, rescaled=True),
            "psd_dlra": lambda: PSDDLRAFlow(problem),
            "psd_dlra_rescaled": lambda: PSDDLRAFlow(problem, rescaled=True),
        }
        flow = kinds[name]()
    return flow, flow.init_state(W, start_rank)


def _two_layer_flow(name: str, problem: LeastSquares, weights: list[Tensor]) -> tuple[Flow, State]:
    """Oja's flow, the coupled one of V = W_2 = W_1ᵀ, or the untied one of V = (W_1ᵀ; W_2)."""
    if len(weights) != 2 or not problem.is_autoencoder:
        raise ValueError(
            f"flow={name} is that of an autoencoder of two layers; got {len(weights)} layers"
            f"{'' if problem.is_autoencoder else ' and labels'}: use network.depth=2 with "
            "problem=digits or gaussian."
        )
    W_1, W_2 = weights
    if name == "riccati":
        flow = RiccatiFlow(problem.C)
        return flow, flow.init_state(torch.cat([W_1.mT, W_2], -2))
    flow = OjaFlow(problem.C) if name == "oja" else CoupledAutoencoderFlow(problem.C)
    if float((W_2 - W_1.mT).abs().max()) > 1e-12 * float(W_2.abs().max()):
        raise ValueError(f"flow={name} needs tied layers, W_2 = W_1ᵀ: use init=orthogonal.")
    return flow, flow.init_state(W_2)


def make_stepper(
    cfg: DictConfig, flow: Flow, state: State, network: DeepLinear, source: Data, t1: float
) -> Stepper:
    """The stepper of cfg.method: an optimizer, fixed steps, or steps by tolerance."""
    method = cfg.method
    controlled: dict[str, ErrorControlled] = {
        "dopri5": DormandPrince(),
        "structure": DormandPrince(),
        "rkc": RKC(),
        "rosenbrock": Rosenbrock(),
    }
    if method.name in controlled:
        for key in ("rtol", "atol"):
            if not isinstance(method[key], (int, float)) or not 0 <= method[key] < math.inf:
                raise ValueError(f"method.{key} must be a number >= 0; got {method[key]!r}.")
        return AdaptiveStepper(
            flow,
            state,
            rtol=method.rtol,
            atol=method.atol,
            stretch=t1 / cfg.log.records,
            integrator=controlled[method.name],
        )
    integrators: dict[str, Integrator] = {
        "sgd": Euler(),
        "euler": Euler(),
        "rk4": RK4(),
        "rgd": ProjectedRungeKutta(_order(method)),
    }
    integrator = integrators[method.name]
    dt = method.dt
    if dt == "auto":
        if not 0 < method.safety <= 1:
            raise ValueError(f"method.safety must be in (0, 1]; got {method.safety}.")
        dt = method.safety * integrator.stability_limit / flow.curvature(state)
    elif not isinstance(dt, (int, float)) or not dt > 0:
        raise ValueError(f"method.dt must be a positive number or auto; got {dt!r}.")
    if method.get("compiled", False):
        integrator = _compiled(integrator, flow, state)
    if method.name != "sgd":
        return IntegratorStepper(flow, state, integrator, dt)
    parameters = list(network.weights)
    optimizer = torch.optim.SGD(parameters, lr=dt)
    return OptimizerStepper(parameters, optimizer, _loss_of_step(network, cfg, source), dt)


def _compiled(integrator: Any, flow: Flow, state: State) -> Compiled:
    """The integrator in compiled code; a step of length 0 finds out whether it fits."""
    compiled = Compiled(integrator)
    try:
        compiled.step(flow, 0.0, state, 0.0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"method.compiled must be false here: {error}") from error
    return compiled


def _order(method: DictConfig) -> int:
    order = method.get("order", 1)
    if order not in (1, 2, 4):
        raise ValueError(f"method.order must be 1, 2 or 4; got {order!r}.")
    return order


def _loss_of_step(network: DeepLinear, cfg: DictConfig, source: Data) -> Callable[[int], Tensor]:
    """The loss that step k of SGD differentiates: of all samples, or an unbiased mini-batch's."""
    if cfg.method.batch_size is None:
        return lambda step: source.problem.loss(network.end_to_end()).sum()
    x, y = source.x, source.y
    if x is None or y is None:
        raise ValueError(
            "method.batch_size needs the samples in memory; this problem is known by its moments "
            "alone: use method.batch_size=null."
        )
    indices = minibatch_indices(len(x), cfg.method.batch_size, cfg.seed)
    weight = 0.5 * len(x) / cfg.method.batch_size

    def loss(step: int) -> Tensor:
        rows = indices(step)
        return weight * (network(x[rows]) - y[rows]).square().sum()

    return loss
