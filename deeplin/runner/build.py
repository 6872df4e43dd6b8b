"""From a configuration to objects: data, network, initial values, prediction, stepper."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from deeplin.flows.contract import Flow
from deeplin.integrators.steppers import Stepper
from deeplin.landscape import fan_around, neighbours_of, spurious_point
from deeplin.loop import Observe
from deeplin.network import DeepLinear, grid_widths, init
from deeplin.prediction import Prediction, predict_flow, rank_and_balance
from deeplin.problems import data
from deeplin.problems import readers as files
from deeplin.problems.data import Data
from deeplin.runner.methods import make_flow, make_stepper
from deeplin.runner.observables import flow_observables, with_factors

__all__ = ["Experiment", "build", "data_of", "flatten"]

# The smallest value of each number, and which may be null.
_LEAST = {
    "repeats": 1,
    "threads": 1,
    "stop.grad_norm": 0,
    "stop.stagnation": 0,
    "stop.max_steps": 1,
    "log.records": 1,
    "log.singular_values": 0,
    "log.checkpoint_seconds": 0,
}
_DTYPES = {"float64": torch.float64, "float32": torch.float32}
_OPTIONAL = ("threads", "stop.grad_norm", "stop.stagnation", "stop.max_steps")


@dataclass
class Experiment:
    """The objects of one run."""

    cfg: DictConfig
    data: Data
    network: DeepLinear
    prediction: Prediction
    flow: Flow
    stepper: Stepper
    observe: Observe
    t1: float
    notes: list[str]


def flatten(cfg: DictConfig) -> dict[str, Any]:
    """The leaves of a configuration by their dotted names."""

    def walk(prefix: str, node: Any) -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix: node}
        flat: dict[str, Any] = {}
        for key, value in node.items():
            flat |= walk(f"{prefix}.{key}" if prefix else str(key), value)
        return flat

    return walk("", OmegaConf.to_container(cfg, resolve=True))


def build(cfg: DictConfig) -> Experiment:
    """All objects of a run, before anything is written."""
    _check_numbers(cfg)
    _check_device(cfg.device)
    dtype = _choice("dtype", cfg.dtype, _DTYPES)
    source = data_of(cfg).to(cfg.device)
    problem = source.problem
    network = DeepLinear(
        _widths(cfg, source),
        batch_shape=(cfg.repeats,) if cfg.repeats > 1 else (),
        dtype=dtype,
    )
    _initialise(network, cfg, source)
    network.to(cfg.device)
    weights = [W_j.detach() for W_j in network.weights]
    start_rank, _ = rank_and_balance(weights)
    flow, state = make_flow(cfg, network, source, start_rank)
    prediction = predict_flow(problem, flow, state, rank=start_rank)
    t1 = _end_time(cfg, prediction)
    stepper = make_stepper(cfg, flow, state, network, source, t1)
    if cfg.method.name == "rgd":
        prediction = prediction.in_steps(stepper.dt, cfg.method.order)
    observe = flow_observables(flow, problem, prediction.limit, state)
    if cfg.log.factors:
        observe = with_factors(observe, flow)
    notes = list(source.notes)
    return Experiment(cfg, source, network, prediction, flow, stepper, observe, t1, notes)


def _choice(key: str, value: Any, choices: dict[str, Any]) -> Any:
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}; got {value!r}.")
    return choices[value]


def _check_numbers(cfg: DictConfig) -> None:
    for key, least in _LEAST.items():
        value = OmegaConf.select(cfg, key)
        optional = key in _OPTIONAL
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (optional and value is None) and not (number and value >= least):
            or_null = " or null" if optional else ""
            raise ValueError(f"{key} must be >= {least}{or_null}; got {value!r}.")


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device must be one that torch has here, such as cpu or cuda; got {device!r}."
        ) from error


def _generator(seed: int, purpose: int) -> torch.Generator:
    """Independent streams for data (0) and initial values (1) from one seed."""
    if not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ValueError(f"seed must be an integer with 0 <= seed < 2**31; got {seed!r}.")
    return torch.Generator().manual_seed(seed + (purpose << 32))


def data_of(cfg: DictConfig) -> Data:
    """The data of a configuration."""
    dtype = _choice("dtype", cfg.dtype, _DTYPES)
    sources: dict[str, Callable[..., Data]] = {
        "digits": data.digits,
        "gaussian": data.gaussian,
        "approximation": data.approximation,
        "teacher": data.teacher,
        "file": files.from_file,
    }
    options = dict(cfg.problem)
    make = _choice("problem.name", options.pop("name"), sources)
    if "seed" in options:
        options["generator"] = _generator(options.pop("seed"), 0)
    if cfg.problem.name == "file" and options["path"] is None:
        raise ValueError(
            "problem=file needs problem.path=<file>.npz, .pt or .csv, or a pattern of files."
        )
    return make(dtype=dtype, **options)


def _widths(cfg: DictConfig, source: Data) -> list[int]:
    d_x, d_y = source.problem.d_x, source.problem.d_y
    network = cfg.network
    if network.widths is None:
        for name in ("depth", "rank"):
            if not isinstance(network[name], int):
                raise ValueError(f"network.{name} must be an integer; got {network[name]!r}.")
        return grid_widths(d_x, d_y, network.depth, network.rank)
    widths = list(network.widths) if OmegaConf.is_list(network.widths) else [network.widths]
    if len(widths) < 2 or widths[0] != d_x or widths[-1] != d_y:
        raise ValueError(
            f"network.widths must run from d_x = {d_x} to d_y = {d_y}, the sizes of the data; got "
            f"{widths}: for instance network.widths=[{d_x},10,{d_y}]."
        )
    return widths


def _initialise(network: DeepLinear, cfg: DictConfig, source: Data) -> None:
    generator = _generator(cfg.seed, 1)
    options = dict(cfg.init)
    name = options.pop("name")
    if name == "orthogonal":
        if options["tied"] == "auto":
            options["tied"] = source.problem.is_autoencoder
        init.orthogonal_balanced_(network, generator=generator, **options)
    elif name == "balanced":
        W = _start_product(network, cfg, generator)
        init.balanced_(network, W, rotate=options["rotate"], generator=generator)
    elif name == "gaussian":
        std = options["std"]
        init.gaussian_(network, list(std) if OmegaConf.is_list(std) else std, generator=generator)
    elif name == "identity":
        init.identity_(network, **options)
    elif name == "spurious":
        init.balanced_(network, _near_spurious(network, cfg, source, generator))
    elif name == "special":
        V = source.problem.spectrum.vectors[:, : min(network.widths)].cpu()
        init.special_(network, V, **options)
    else:
        raise ValueError(
            "init.name must be orthogonal, balanced, gaussian, identity, special or spurious; got "
            f"{name!r}."
        )


def _start_product(network: DeepLinear, cfg: DictConfig, generator: torch.Generator) -> Tensor:
    """W(0) of init=balanced: as given, or a product of Gaussian factors of spectral norm scale.

    With init.psd the two factors are equal, and W(0) is positive semidefinite.
    """
    dtype = network.weights[0].dtype
    if cfg.init.matrix is not None:
        try:
            return torch.tensor(list(map(list, cfg.init.matrix)), dtype=dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "init.matrix must be a list of rows of numbers; got "
                f"{cfg.init.matrix}: for instance init.matrix=[[1,0],[0,2]]."
            ) from error
    if cfg.init.path is not None:
        W, _ = files.read_arrays(Path(cfg.init.path), dtype)
        return W
    init.check_scale(cfg.init.scale)
    k, batch = min(network.widths), network.batch_shape
    d_in, d_out = network.widths[0], network.widths[-1]
    left = torch.randn(*batch, d_out, k, dtype=dtype, generator=generator)
    if cfg.init.psd and d_in != d_out:
        raise ValueError(
            f"init.psd=true needs d_x = d_y; got {d_in} and {d_out}: use init.psd=false."
        )
    right = left if cfg.init.psd else torch.randn(*batch, d_in, k, dtype=dtype, generator=generator)
    W = left @ right.mT
    return cfg.init.scale * W / torch.linalg.matrix_norm(W, 2, keepdim=True)


def _near_spurious(
    network: DeepLinear, cfg: DictConfig, source: Data, generator: torch.Generator
) -> Tensor:
    """W(0) of init=spurious: a point for each repeat, near the Z_# that keeps init.keep of X."""
    if cfg.problem.name != "approximation":
        raise ValueError(
            "init=spurious lies near a spurious critical point of the approximation of a matrix; "
            f"got problem={cfg.problem.name}: use problem=approximation."
        )
    point = spurious_point(source.problem.B, list(cfg.init.keep))
    count = math.prod(network.batch_shape)
    if cfg.init.law == "fan":
        W = fan_around(point, cfg.init.radius, count)
    elif cfg.init.law == "ball":
        rank = min(network.widths)
        W = neighbours_of(point, cfg.init.radius, rank, count, generator=generator)
    else:
        raise ValueError(f"init.law must be ball or fan; got {cfg.init.law!r}.")
    return W.reshape(*network.batch_shape, *W.shape[-2:])


def _end_time(cfg: DictConfig, prediction: Prediction) -> float:
    t1 = "20/rho" if cfg.method.t1 == "auto" else cfg.method.t1
    if isinstance(t1, str) and (match := re.fullmatch(r"(\d+\.?\d*)/rho", t1)):
        if not prediction.pace or prediction.pace <= 0:
            reason = prediction.rate_missing or "the predicted rate is not positive"
            raise ValueError(
                f"method.t1={cfg.method.t1} needs the predicted rate, which is not known here "
                f"({reason}): give method.t1=<flow time>."
            )
        return float(match[1]) / prediction.pace
    if not isinstance(t1, (int, float)) or not 0 < t1 < math.inf:
        raise ValueError(f"method.t1 must be a positive number, 20/rho or auto; got {t1!r}.")
    return float(t1)
