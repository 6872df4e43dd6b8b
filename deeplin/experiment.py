"""From a configuration to a run: build the objects, drive them, judge the end."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from deeplin import data, figures, files, init
from deeplin.data import Data
from deeplin.flows import LayerFlow
from deeplin.integrators import RK4, Euler, Integrator
from deeplin.network import DeepLinear, grid_widths
from deeplin.observables import gap_norm, layer_observables
from deeplin.solve import Every, GradientNormBelow, History, Result, Stagnation, Stop, drive
from deeplin.steppers import IntegratorStepper, OptimizerStepper, Stepper, minibatch_indices
from deeplin.tracking import (
    TIME_UNIT,
    Checkpointer,
    Interruption,
    Progress,
    RunFolder,
    TensorBoardLog,
    provenance,
)
from deeplin.verdict import Prediction, judge

__all__ = ["RESUMABLE", "run"]

# What may differ when a run is resumed: how far it goes and what is written on the way.
RESUMABLE = ("method.t1", "stop", "log")
# The smallest value of each number, and which may be null.
_LEAST = {
    "repeats": 1,
    "threads": 1,
    "stop.grad_norm": 0,
    "stop.stagnation": 2,
    "stop.max_steps": 1,
    "log.records": 1,
    "log.singular_values": 0,
    "log.checkpoint_seconds": 0,
}
_OPTIONAL = ("threads", "stop.grad_norm", "stop.stagnation", "stop.max_steps")


@dataclass
class Experiment:
    """The objects of one run."""

    cfg: DictConfig
    data: Data
    network: DeepLinear
    prediction: Prediction
    stepper: Stepper
    t1: float
    notes: list[str]


def run(cfg: DictConfig, folder: Path) -> int:
    """Run the experiment of a configuration in a folder; the process's exit status.

    A finished run of the same configuration is reported, an unfinished one is continued: jobs are
    idempotent. 0: ended by itself; 1: diverged; 128 + n: stopped by signal n.

    Raises: ValueError, TypeError and OSError, with one sentence, for bad input.
    """
    files_of_run = RunFolder(folder)
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[assignment]
    _check_same_run(cfg, files_of_run)
    saved = None
    if files_of_run.checkpoint.exists():
        saved = files_of_run.load_checkpoint(cfg.device)
        if _is_finished(saved, cfg):
            _report_again(files_of_run)
            return 0
    experiment = build(cfg)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    folder.mkdir(parents=True, exist_ok=True)
    files_of_run.write_text("config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    files_of_run.write_json("provenance.json", provenance())
    return _drive(experiment, files_of_run, saved)


# -- configuration ---------------------------------------------------------------------------------


def _check_same_run(cfg: DictConfig, folder: RunFolder) -> None:
    """Raise ValueError if the folder holds a run of another configuration."""
    if not folder.config.exists():
        return
    stored = OmegaConf.load(folder.config)
    assert isinstance(stored, DictConfig)
    given, kept = _flatten(cfg), _flatten(stored)
    for key in sorted(given.keys() | kept.keys()):
        if given.get(key) != kept.get(key) and not key.startswith(RESUMABLE):
            raise ValueError(
                f"{folder.path} holds a run with {key}={kept.get(key)}, not {given.get(key)}; only "
                f"{', '.join(RESUMABLE)} can change on the way: choose another folder."
            )


def _flatten(cfg: DictConfig) -> dict[str, Any]:
    def walk(prefix: str, node: Any) -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix: node}
        flat: dict[str, Any] = {}
        for key, value in node.items():
            flat |= walk(f"{prefix}.{key}" if prefix else str(key), value)
        return flat

    return walk("", OmegaConf.to_container(cfg, resolve=True))


def _is_finished(saved: dict[str, Any], cfg: DictConfig) -> bool:
    if saved["result"] is None:
        return False
    kind = saved["result"][0]
    step, t, _ = saved["history"]["moments"][-1]
    if kind == "time" and cfg.method.t1 != "auto" and float(cfg.method.t1) > t * (1 + 1e-9):
        return False
    if kind == "steps" and (cfg.stop.max_steps is None or cfg.stop.max_steps > step):
        return False
    return kind != "interrupted"


def _report_again(folder: RunFolder) -> None:
    summary = json.loads(folder.summary.read_text())
    print(f"{folder.path} is finished already: {summary['result']}\n{summary['verdict']}")


# -- construction ----------------------------------------------------------------------------------


def build(cfg: DictConfig) -> Experiment:
    """All objects of a run, before anything is written."""
    _check_numbers(cfg)
    _check_device(cfg.device)
    dtypes = {"float64": torch.float64, "float32": torch.float32}
    dtype = _choice("dtype", cfg.dtype, dtypes)
    source = _source(cfg, dtype).to(cfg.device)
    problem = source.problem
    network = DeepLinear(
        _widths(cfg, source),
        batch_shape=(cfg.repeats,) if cfg.repeats > 1 else (),
        dtype=dtype,
    )
    _initialise(network, cfg, source)
    network.to(cfg.device)
    weights = [W_j.detach() for W_j in network.weights]
    observe = layer_observables(problem, problem.solution)
    round_off = 1e3 * torch.finfo(dtype).eps * max(float(W_j.norm() ** 2) for W_j in weights)
    balanced = bool((gap_norm(weights) <= round_off).all())
    start_rank = int(observe(0.0, weights)["rank"].min()) if balanced else min(network.widths)
    prediction = Prediction.of(problem, network.depth, start_rank, balanced=balanced)
    stepper = _stepper(network, cfg, source)
    return Experiment(
        cfg, source, network, prediction, stepper, _end_time(cfg, prediction), list(source.notes)
    )


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


def _source(cfg: DictConfig, dtype: torch.dtype) -> Data:
    sources: dict[str, Callable[..., Data]] = {
        "digits": data.digits,
        "gaussian": data.gaussian,
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
    elif name == "special":
        V = source.problem.spectrum.vectors[:, : min(network.widths)].cpu()
        init.special_(network, V, **options)
    else:
        raise ValueError(
            f"init.name must be orthogonal, balanced, gaussian, identity or special; got {name!r}."
        )


def _start_product(network: DeepLinear, cfg: DictConfig, generator: torch.Generator) -> Tensor:
    """W(0) of init=balanced: from a file, or a product of Gaussian factors of spectral norm scale.

    With init.psd the two factors are equal, and W(0) is positive semidefinite.
    """
    dtype = network.weights[0].dtype
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


def _stepper(network: DeepLinear, cfg: DictConfig, source: Data) -> Stepper:
    method, problem = cfg.method, source.problem
    integrator: Integrator = _choice("method.name", method.name, {"sgd": Euler(), "rk4": RK4()})
    flow = LayerFlow(problem)
    state = flow.init_state(network)
    dt = method.dt
    if dt == "auto":
        if not 0 < method.safety <= 1:
            raise ValueError(f"method.safety must be in (0, 1]; got {method.safety}.")
        dt = method.safety * integrator.stability_limit / flow.stiffness(state)
    elif not isinstance(dt, (int, float)) or not dt > 0:
        raise ValueError(f"method.dt must be a positive number or auto; got {dt!r}.")
    if method.name != "sgd":
        return IntegratorStepper(flow, state, integrator, dt)
    parameters = list(network.weights)
    optimizer = torch.optim.SGD(parameters, lr=dt)
    return OptimizerStepper(parameters, optimizer, _loss_of_step(network, cfg, source), dt)


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


def _end_time(cfg: DictConfig, prediction: Prediction) -> float:
    t1 = cfg.method.t1
    if t1 == "auto":
        if not prediction.rate or prediction.rate <= 0:
            reason = prediction.rate_missing or "the predicted rate is not positive"
            raise ValueError(
                f"method.t1=auto is 20 / the predicted rate, which is not known here ({reason}): "
                "give method.t1=<flow time>."
            )
        return 20 / prediction.rate
    if not isinstance(t1, (int, float)) or not 0 < t1 < math.inf:
        raise ValueError(f"method.t1 must be a positive number or auto; got {t1!r}.")
    return float(t1)


# -- run -------------------------------------------------------------------------------------------


def _drive(experiment: Experiment, folder: RunFolder, saved: dict[str, Any] | None) -> int:
    cfg, stepper, prediction = experiment.cfg, experiment.stepper, experiment.prediction
    history = History()
    if saved is not None:
        stepper.load_state_dict(saved["stepper"])
        history = History.from_state_dict(saved["history"])
    print(_headline(experiment, folder, resumed_at=history.t[-1] if saved else None), flush=True)
    shown = min(cfg.log.singular_values, *experiment.network.widths)
    log = TensorBoardLog(folder, history, repeats=cfg.repeats, singular_values=shown)
    log.text("config", OmegaConf.to_yaml(cfg), "yaml")
    log.text("provenance", json.dumps(provenance(), indent=2), "json")
    log.text("axes", f"by_step: the number of steps. by_flow_time: t in units of {TIME_UNIT:g}.")
    checkpointer = Checkpointer(folder, stepper, history, cfg.log.checkpoint_seconds)
    if saved is not None:
        checkpointer.elapsed_before = saved["seconds"]
    progress = Progress(experiment.t1, stepper.t)
    steps = math.ceil(experiment.t1 / stepper.dt)
    if cfg.stop.max_steps is not None:
        steps = min(steps, cfg.stop.max_steps)
    with Interruption() as interruption:
        result, history = drive(
            stepper,
            experiment.t1,
            record_at=Every(max(1, math.ceil(steps / cfg.log.records))),
            observe=layer_observables(experiment.data.problem, prediction.limit),
            stop=_stops(cfg),
            max_steps=cfg.stop.max_steps,
            interrupt=interruption,
            listeners=[log, progress, checkpointer],
            history=history,
        )
        progress.close()
        if result.kind != "diverged":
            checkpointer.save(result)
        _conclude(experiment, folder, log, history, result, checkpointer.seconds)
        log.close()
    if interruption.signal is not None:
        return 128 + interruption.signal
    return int(result.kind == "diverged")


def _stops(cfg: DictConfig) -> list[Stop]:
    stops: list[Stop] = []
    if cfg.stop.grad_norm is not None:
        stops.append(GradientNormBelow(cfg.stop.grad_norm))
    if cfg.stop.stagnation is not None:
        stops.append(Stagnation(cfg.stop.stagnation))
    return stops


def _title(experiment: Experiment) -> str:
    cfg, network = experiment.cfg, experiment.network
    repeats = f", {cfg.repeats} repeats" if cfg.repeats > 1 else ""
    return (
        f"{cfg.problem.name}, widths {'-'.join(map(str, network.widths))}, {cfg.init.name} start, "
        f"{cfg.method.name} with dt = {experiment.stepper.dt:.3g}{repeats}"
    )


def _headline(experiment: Experiment, folder: RunFolder, resumed_at: Any) -> str:
    lines = [f"deeplin: {_title(experiment)}"]
    lines += [f"  {note}" for note in experiment.notes]
    lines.append(f"  to flow time {experiment.t1:.6g}; log in {folder.path}")
    if resumed_at is not None:
        lines.append(f"  resumed at t = {float(resumed_at):.6g}")
    return "\n".join(lines)


def _conclude(
    experiment: Experiment,
    folder: RunFolder,
    log: TensorBoardLog,
    history: History,
    result: Result,
    seconds: float,
) -> None:
    """Figures, summary, hyperparameters and the table on the terminal."""
    cfg, prediction = experiment.cfg, experiment.prediction
    stochastic = cfg.method.get("batch_size") is not None
    verdict = judge(
        experiment.data.problem,
        prediction,
        history,
        result,
        seconds=seconds,
        stochastic=stochastic,
    )
    figure = figures.convergence(history, prediction, _title(experiment))
    folder.write_figure("convergence", figure)
    log.figure("convergence", figure)
    folder.write_json("summary.json", verdict.summary)
    metrics = {
        name: value
        for name, value in verdict.summary.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    parameters = {k: v for k, v in _flatten(cfg).items() if not k.startswith("log.")}
    log.hparams(parameters, metrics)
    log.text("verdict", f"{verdict}\n\n{verdict.summary['verdict']}")
    print(f"\n{verdict}\n")
    print(f"{verdict.summary['steps']} steps in {seconds:.1f} s; {result.sentence}")
    print(verdict.summary["verdict"])
    print(f"Look: tensorboard --logdir {folder.path.parent}, or {folder.path / 'figures'}")
    if result.kind == "diverged":
        print(f"error: {result.sentence}", file=sys.stderr)
