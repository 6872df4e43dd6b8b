"""From a configuration to objects: every builder gets its own group, and cfg goes no further."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig, OmegaConf

from deeplin.flows.contract import Flow, State
from deeplin.integrators import (
    AdaptiveStepper,
    Euler,
    IntegratorStepper,
    OptimizerStepper,
    ProjectedRungeKutta,
    Stepper,
)
from deeplin.loop import Observe, Stop
from deeplin.network import DeepLinear, grid_widths
from deeplin.prediction import Prediction
from deeplin.problems import LeastSquares
from deeplin.problems.contract import Problem
from deeplin.problems.data import Data
from deeplin.problems.memory import ask_for_memory
from deeplin.runner.automatic import Forecast, as_chosen, fitting, is_for_sgd
from deeplin.runner.best import check_early_stop
from deeplin.runner.cost import Stiffness, check_size
from deeplin.runner.devices import check_device
from deeplin.runner.following import (
    Followed,
    check_edge_of_cone,
    check_fits,
    followed,
    followed_on,
)
from deeplin.runner.methods import unstable_step
from deeplin.runner.named_flows import FLOWS, choose_flow
from deeplin.runner.observables import Known, Observables, flow_observables, with_factors
from deeplin.runner.rank_choice import check_planted_rank, chosen_rank
from deeplin.runner.ranks import shared
from deeplin.runner.schema import check
from deeplin.runner.targets import make, options_of
from deeplin.runner.terminal import slow

if TYPE_CHECKING:
    from deeplin.runner.riemannian import OnManifold

__all__ = ["Experiment", "build", "data_of", "widths_of"]

_MOST_STEPS = 2.0**53  # with more of them t + dt is t
_SLOWEST = 10_000  # by how much of the steepest direction a run of an unknown loss is planned
_RANK = 10  # of network.rank=auto, at most
_DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass
class Experiment:
    """The objects of one run.

    - `network`: what the method advances, or, beside a manifold, what W(0) is the product of
    - `on`: the manifold and the point on it that the method moves, where the run is on one
    - `stops`: those that the method brings
    - `most_steps`: where steps change by a schedule, those that steps of the first length would be
    - `unstable`: a sentence where the steps are beyond what the method is stable for
    - `method`: its options; where method=auto chose it, those of what it chose
    - `forecast`: finds out what the run will cost; None where nothing is known of its steps
    """

    data: Data
    network: DeepLinear
    prediction: Prediction
    flow: Flow
    stepper: Stepper
    observe: Observe
    t1: float
    notes: list[str]
    unstable: str | None
    method: DictConfig
    forecast: Callable[[], Forecast | None]
    on: OnManifold | None = None
    most_steps: int | None = None
    stops: tuple[Stop, ...] = ()


def build(cfg: DictConfig) -> Experiment:
    """All objects of a run, before anything is written.

    Raises: ValueError, with one sentence, for a value that an option cannot take.
    """
    check(cfg)
    check_device(cfg.device)
    with slow("reading the data"):
        source = data_of(cfg).to(cfg.device)
    problem = source.problem
    dtype = _DTYPES[cfg.dtype]
    dtype = dtype.to_complex() if problem.field == "complex" else dtype
    manifold = cfg.get("manifold")
    rank, why = chosen_rank(cfg.network, manifold, problem)
    widths = widths_of(cfg.network, problem.shape, _largest_rank(problem), rank)
    network = _network(widths, cfg.repeats, dtype)
    offered = {"net": network, "problem": problem, "generator": _generator(cfg.seed, 1)}
    with slow(f"making the start, init={cfg.init.name}"):
        make(options_of(cfg.init, "name"), "init", **offered)
    network.to(cfg.device)
    check_early_stop(cfg.stop, cfg.repeats, problem, network.weights[0].detach())
    check_fits(cfg, list(cfg.method.get("_flows_", FLOWS)))
    if manifold is not None:
        method, at = cfg.method, followed_on(manifold, source, network)
        chosen = [] if at.noted is None else [at.noted]
    else:
        method, at, chosen = _chosen(cfg, network, problem)
    source = replace(source, notes=(*source.notes, *why, *chosen))
    flow, state, prediction = at.flow, at.state, at.prediction
    _check_rank(min(widths), problem, prediction, method.t1)
    t1, told = _end_time(method.t1, prediction, problem, flow, state)

    def made(state: State, network: DeepLinear, records: int, method: DictConfig) -> Stepper:
        return _stepper(
            method,
            flow=flow,
            state=state,
            network=network,
            source=source,
            seed=cfg.seed,
            t1=t1,
            records=records,
            on=at.on,
        )

    what = "compiling the steps" if method.get("compiled") else "measuring the curvature"
    with slow(f"{what} for method={method.name}"):
        stepper = made(state, network, cfg.log.records, method)
    check_size(flow, state, stepper)
    check_edge_of_cone(problem, flow, stepper, prediction)
    if not t1 / stepper.stretch <= _MOST_STEPS:
        raise ValueError(
            f"a run of {t1:.4g} in steps of {stepper.stretch:.4g} has more of them than can be "
            "counted: take a larger method.dt or method.safety, or a smaller method.t1."
        )
    warning = None
    if not isinstance(method.get("dt", "auto"), str):
        warning = unstable_step(stepper, flow, state, t1)
        source = source if warning is None else replace(source, notes=(*source.notes, warning))
    if isinstance(stepper, IntegratorStepper):
        integrator = stepper.integrator
        if isinstance(integrator, ProjectedRungeKutta | Euler):
            prediction = prediction.in_steps(stepper.stretch, integrator.order)
    most_steps = None
    if isinstance(stepper, OptimizerStepper):
        if not stepper.descends:
            prediction = prediction.without_rate(f"{stepper.name} follows no flow")
        elif stepper.schedule is not None:
            prediction = prediction.without_rate("the learning rate changes on the way")
        else:
            prediction = prediction.in_steps(stepper.stretch, Euler().order)
        if stepper.schedule is not None:
            most_steps = math.ceil(t1 / stepper.stretch)
    batch = flow.batch_shape(state)
    limits, optima = prediction.limits(batch), prediction.optima(problem, batch)
    modes, stops = prediction.modes(batch), ()

    def observables(known: Callable[[], Known] = dict) -> Observables:
        seen = flow_observables(flow, problem, limits, state, optima, modes, known)
        return with_factors(seen, flow) if cfg.log.factors else seen

    if at.on is None:
        observe = observables()
    else:
        from deeplin.runner.solvers import observed  # geoopt, for such runs alone

        observe, stops = observed(stepper, observables)
    notes = [*source.notes, *prediction.told, *told]

    def forecast() -> Forecast | None:
        if isinstance(stepper, OptimizerStepper) and (at.on is not None or not stepper.descends):
            return None  # steps by a line search, of another clock, or on a manifold
        at_most = [n for n in (cfg.stop.max_steps, most_steps) if n is not None]
        start, same = tuple(part.clone() for part in state), method.copy()
        if method.get("dt") == "auto" and not isinstance(stepper, AdaptiveStepper):
            same.dt = stepper.stretch  # else the curvature would be measured again
        return Forecast.of(
            problem,
            network,
            at.name,
            at.prediction,
            stiffness=_stiffness(cfg, at, network, problem, t1),
            stepper=made(start, copy.deepcopy(network), 1, same),
            max_steps=min(at_most, default=None),
        )

    return Experiment(
        source,
        network,
        prediction,
        flow,
        stepper,
        observe,
        t1,
        notes,
        warning,
        method,
        forecast,
        at.on,
        most_steps,
        stops,
    )


def _chosen(
    cfg: DictConfig, network: DeepLinear, problem: Problem
) -> tuple[DictConfig, Followed, list[str]]:
    """(the options of the method, those of what auto takes, the flow that it advances, why)."""
    method, at, told = cfg.method, None, []
    if method.name == "auto":
        at = followed(cfg.flow, "auto", FLOWS, network, problem)
        _check_rank(min(network.widths), problem, at.prediction, method.t1)
        name, why = _fitting(cfg, at, network, problem)
        method = as_chosen(method, name)
        told.append(f"method=auto takes {name}: {why}")
    flows = list(method.get("_flows_", FLOWS))
    if at is None or choose_flow(cfg.flow, method.name, flows, network)[0] != at.name:
        at = followed(
            cfg.flow,
            method.name,
            flows,
            network,
            problem,
            rebalance=method.get("rebalance", False),
            multiplicative=method.get("_multiplicative_", False),
        )
    return method, at, told if at.noted is None else [*told, at.noted]


def _stiffness(
    cfg: DictConfig, at: Followed, network: DeepLinear, problem: Problem, t1: float
) -> Stiffness:
    return Stiffness.of(problem, network, at.flow, at.state, at.prediction, t1, cfg.stop.grad_norm)


def _fitting(
    cfg: DictConfig, at: Followed, network: DeepLinear, problem: Problem
) -> tuple[str, str]:
    """(the name of the method that method=auto takes, why)."""
    if is_for_sgd(cfg.method):
        return "sgd", "method.dt or method.batch_size is given"
    t1 = _end_time(cfg.method.t1, at.prediction, problem, at.flow, at.state)[0]
    stiffness = _stiffness(cfg, at, network, problem, t1)
    fit = fitting(problem, network, cfg.flow, at.prediction, stiffness)
    keeps = "it keeps what decides the limit, " if fit.keeps else ""
    return fit.name, f"{keeps}{stiffness}, a state of {fit.size} numbers"


def _stepper(method: DictConfig, **offered: object) -> Stepper:
    """What advances a state, by the options of a method."""
    kept = ("name", "t1", "rebalance", "_flows_", "_multiplicative_")
    stepper = make(options_of(method, *kept), "method", **offered)
    if not isinstance(stepper, IntegratorStepper | AdaptiveStepper | OptimizerStepper):
        raise TypeError(
            f"the target of method={method.name} must return a stepper of "
            f"deeplin.integrators; got {type(stepper).__name__}."
        )
    return stepper


def data_of(cfg: DictConfig) -> Data:
    """The data of a configuration."""
    problem, dtype = cfg.problem, _DTYPES[cfg.dtype]
    check_planted_rank(problem)
    seed = problem.get("seed", cfg.seed)
    options = options_of(problem, "name", "seed", "_rank_", "_depth_")
    group = shared(cfg)
    more = {} if group is None else {"group": group}
    made = make(options, "problem", dtype=dtype, generator=_generator(seed, 0), **more)
    if not isinstance(made, Data):
        raise TypeError(
            f"the target of problem={problem.name} must return Data; got {type(made).__name__}."
        )
    return made


def _generator(seed: int, purpose: int) -> torch.Generator:
    """Independent streams for data (0) and initial values (1) from one seed."""
    return torch.Generator().manual_seed(seed + (purpose << 32))


def _network(widths: Sequence[int], repeats: int, dtype: torch.dtype) -> DeepLinear:
    batch = (repeats,) if repeats > 1 else ()
    numbers = repeats * sum(d_in * d_out for d_in, d_out in itertools.pairwise(widths))
    ask_for_memory(
        f"a run of {repeats} networks of {len(widths) - 1} layers",
        4 * numbers * dtype.itemsize,  # at least: the layers, the state, its velocity, the next
        "take fewer repeats or smaller widths",
    )
    return DeepLinear(widths, batch_shape=batch, dtype=dtype)


def _largest_rank(problem: Problem) -> int:
    """The largest that a minimizer can have, as far as it is known."""
    known = [] if problem.optimum is None else [problem.optimum.rank]
    return max(1, min(*problem.shape, *known))


def widths_of(
    group: DictConfig, shape: Sequence[int], largest: int, chosen: int | None = None
) -> list[int]:
    """The widths of a network for matrices of that shape; rank=auto is `largest`, at most 10.

    Of square matrices auto leaves out the full rank: the flow keeps the sign of det W, which may be
    another than the minimizer's.

    - `chosen`: the rank where it is that of a manifold, or was found
    """
    d_y, d_x = shape
    if group.widths is None:
        fitting = min(_RANK, largest, max(1, max(d_x, d_y) - 1))
        rank = group.rank if chosen is None else chosen
        rank = fitting if rank == "auto" else rank
        if rank > min(d_x, d_y):
            raise ValueError(
                f"rank must satisfy 1 <= rank <= min(d_x, d_y) = {min(d_x, d_y)}; "
                f"got {rank}: network.rank={fitting}, or auto."
            )
        if group.get("_hidden_") == "thin":
            return [d_x, *[rank] * (group.depth - 1), d_y]
        return grid_widths(d_x, d_y, group.depth, rank)
    widths = list(group.widths) if OmegaConf.is_list(group.widths) else [group.widths]
    if len(widths) < 2 or widths[0] != d_x or widths[-1] != d_y:
        raise ValueError(
            f"network.widths must run from d_x = {d_x} to d_y = {d_y}, the sizes of the data; got "
            f"{widths}: for instance network.widths=[{d_x},10,{d_y}]."
        )
    return widths


def _check_rank(rank: int, problem: Problem, prediction: Prediction, t1: float | str) -> None:
    """Raise ValueError where no minimizer has this rank, so that there is no rate to go by."""
    largest = _largest_rank(problem)
    if not isinstance(t1, str) or prediction.pace or rank <= largest:
        return
    if not isinstance(problem, LeastSquares) or problem.is_autoencoder:
        return
    classes = f", as those of {problem.d_y} classes do once centred" if _sum_to_0(problem) else ""
    raise ValueError(
        f"rank {rank} has no minimum here: the labels that x explains have rank {largest}"
        f"{classes}: type network.rank={largest}, or give method.t1=<flow time> to see W go there."
    )


def _sum_to_0(problem: LeastSquares) -> bool:
    """Whether the columns of y add up to 0, as those of centred one-hot labels."""
    sums = problem.B.sum(0).abs().max()
    return bool(sums <= 1e-12 * problem.B.abs().max())


def _end_time(
    t1: float | str, prediction: Prediction, problem: Problem, flow: Flow, state: State
) -> tuple[float, list[str]]:
    """The flow time of a number, or of a multiple of 1/rho, and what there is to say of it.

    auto is 20/rho; of a loss of which nothing is known in advance 10 000/λ, λ the flow's curvature
    at the start: until what is 1/10 000 as steep as the steepest direction has decayed by e.
    """
    if not isinstance(t1, str):
        return float(t1), []
    if t1 == "auto" and problem.optimum is None and (curvature := flow.curvature(state)) > 0:
        end = _SLOWEST / curvature
        return end, [
            f"no rate is known of this loss: to t = {_SLOWEST}/λ, λ = {curvature:.4g} the largest "
            f"curvature of the flow at the start; method.t1=<flow time> goes as far as you like"
        ]
    if not prediction.pace or prediction.pace <= 0:
        reason = prediction.rate_missing or "the predicted rate is not positive"
        raise ValueError(
            f"method.t1={t1} needs the predicted rate, which is not known here ({reason}): give "
            "method.t1=<flow time>."
        )
    times = 20.0 if t1 == "auto" else float(t1.removesuffix("/rho"))
    if not 0 < times < math.inf:
        raise ValueError(f"method.t1 must be a positive number, 20/rho or auto; got {t1!r}.")
    return times / prediction.pace, []
