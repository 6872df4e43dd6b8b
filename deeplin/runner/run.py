"""From a configuration to a run: build the objects, drive them, judge the end."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from deeplin.integrators import AdaptiveStepper, OptimizerStepper, Stepper
from deeplin.loop import (
    Every,
    GradientNormBelow,
    History,
    Result,
    RisenLoss,
    Stagnation,
    Stop,
    Unimproved,
    drive,
)
from deeplin.runner.automatic import kept_choice
from deeplin.runner.best import Best, held_out_score
from deeplin.runner.build import Experiment, build
from deeplin.runner.concluding import conclude
from deeplin.runner.ending import settled, told, unchanged
from deeplin.runner.folder import Checkpoint, Checkpointer, RunFolder
from deeplin.runner.progress import Progress
from deeplin.runner.provenance import digests, provenance
from deeplin.runner.ranks import processes
from deeplin.runner.schema import check, flatten
from deeplin.runner.signals import Interruption
from deeplin.runner.tensorboard import TIME_UNIT, TensorBoardLog
from deeplin.runner.terminal import say, slow

__all__ = ["RESUMABLE", "run"]

# What may differ when a run is resumed: how far it goes and what is written on the way.
RESUMABLE = ("method.t1", "stop", "log", "objective")


def run(cfg: DictConfig, folder: Path, *, draw: bool = True) -> int:
    """Run the experiment of a configuration in a folder; the process's exit status.

    With `draw=False` it makes no figures, for callers that draw from many runs.

    A finished run of the same configuration is reported, an unfinished one is continued: jobs are
    idempotent. The status is that of `loop.Kind`: 0 for an end that was asked for, 1: diverged,
    3: the method could take no step, 128 + n: stopped by signal n. It stands in the folder's
    status.json, which a killed process does not write.

    Raises: ValueError, TypeError and OSError, with one sentence, for bad input.
    """
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[assignment]
    check(cfg)
    run_folder = RunFolder(folder)
    with run_folder.held():
        status = _run(cfg, run_folder, draw)
        run_folder.write_status(status)
        return status


def _run(cfg: DictConfig, folder: RunFolder, draw: bool) -> int:
    if folder.config.exists():
        cfg.method = kept_choice(cfg.method, folder.read_config().method)
    given = flatten(cfg)
    with slow("computing the digests of the files"):
        inputs = digests(cfg)
    if folder.config.exists():
        _check_same(given, flatten(folder.read_config()), folder.path)
    saved, ended = None, None
    if folder.checkpoint.exists():
        with slow("reading the checkpoint"):
            saved = folder.load_checkpoint(cfg.device)
        _check_same(given, saved.config, folder.checkpoint)
        _check_inputs(given, inputs, saved.inputs, folder)
        ended = settled(saved, given)
        summary = None if ended is None else told(folder, ended)
        if ended and summary and unchanged(given, saved.config, "log"):
            say(f"{folder.path} is finished already: {summary['result']}\n{summary['verdict']}")
            return ended.kind.status
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    experiment = build(cfg)
    if saved is not None:
        folder.check_fits(saved, experiment.stepper)
    since = saved.history.records[-1].t if saved and saved.history.records else 0.0
    if ended is None:  # it goes on, and ends otherwise than was told
        folder.begin()
    cfg.method = experiment.method
    folder.write_config(cfg)
    of = {"processes": processes(), "files": inputs, "from_t": since}
    folder.add_provenance({**provenance(), **of})
    return _drive(cfg, experiment, folder, saved, ended, inputs, draw)


# -- configuration ---------------------------------------------------------------------------------


def _check_same(given: Mapping[str, object], kept: Mapping[str, object], where: Path) -> None:
    """Raise ValueError if a folder, or a checkpoint, is that of another configuration."""
    for key in sorted(given.keys() | kept.keys()):
        if given.get(key) != kept.get(key) and not key.startswith(RESUMABLE):
            raise ValueError(
                f"{where} holds a run with {key}={kept.get(key)}, not {given.get(key)}; only "
                f"{', '.join(RESUMABLE)} can change on the way: choose another folder."
            )


def _check_inputs(
    given: Mapping[str, object],
    inputs: Mapping[str, str],
    kept: Mapping[str, str],
    folder: RunFolder,
) -> None:
    """Raise ValueError if a file that the run was made from is not what it was."""
    for key, digest in kept.items():
        if inputs.get(key) != digest:
            now = f"has SHA-256 {inputs[key][:12]}…" if inputs.get(key) else "is gone"
            raise ValueError(
                f"{folder.path} holds a run on {key}={given.get(key)} with SHA-256 {digest[:12]}…, "
                f"and that file now {now}: put it back, or choose another folder."
            )


# -- run -------------------------------------------------------------------------------------------


def _drive(
    cfg: DictConfig,
    experiment: Experiment,
    folder: RunFolder,
    saved: Checkpoint | None,
    ended: Result | None,
    inputs: Mapping[str, str],
    draw: bool,
) -> int:
    stepper, title = experiment.stepper, _title(cfg, experiment)
    history = History()
    if saved is not None:
        stepper.load_state_dict(saved.stepper)
        history = saved.history
    cost = ""
    if saved is None:
        observe, records = experiment.observe, cfg.log.records
        with slow("measuring what the run will cost"):
            forecast = experiment.forecast()
            if forecast is not None:
                cost = forecast.line(cfg.method.name, observe, records, experiment.t1)
    resumed_at = history.t[-1] if saved else None
    say(_headline(title, experiment, folder, cost, resumed_at))
    shown = min(cfg.log.singular_values, *experiment.network.widths)
    like = experiment.network.weights[0].detach()
    score = held_out_score(experiment.data.problem, like)
    log = TensorBoardLog(
        folder,
        history,
        repeats=cfg.repeats,
        singular_values=shown,
        errors=score == "test_rmse",
    )
    log.text("4_config", OmegaConf.to_yaml(cfg), "yaml")
    log.text("5_provenance", json.dumps(folder.sessions(), indent=2), "json")
    log.text(
        "3_axes",
        "by_step: the number of steps taken, of the repeat that took most. "
        f"by_flow_time: t in units of {TIME_UNIT:g}, so that 400k is t = 400.",
    )
    every = cfg.log.checkpoint_seconds
    best = None
    if score is not None and cfg.repeats == 1:
        kept = () if saved is None else saved.best
        best = Best(score, history, experiment.flow, stepper, kept)
    checkpointer = Checkpointer(
        folder,
        stepper,
        history,
        every,
        config=cfg,
        inputs=inputs,
        flow=experiment.flow,
        preparation=experiment.data.preparation,
        best=best,
    )
    if saved is not None:
        checkpointer.elapsed_before = saved.seconds
    progress = Progress(experiment.t1, stepper.t)
    stretches = math.ceil(experiment.t1 / stepper.stretch)
    limits = [n for n in (cfg.stop.max_steps, experiment.most_steps) if n is not None]
    stretches = min(stretches, *limits) if limits else stretches
    with Interruption() as interruption:
        result = ended
        if result is None:
            result, history = drive(
                stepper,
                experiment.t1,
                record_at=Every(max(1, math.ceil(stretches / cfg.log.records))),
                observe=experiment.observe,
                stop=[*_stops(cfg, experiment.t1, best), *experiment.stops],
                risen=RisenLoss(_loss_at_zero(experiment)),
                max_steps=min(limits, default=None),
                interrupt=interruption,
                listeners=[*([] if best is None else [best]), log, progress, checkpointer],
                history=history,
            )
        progress.close()
        # Of one that had ended: with the options given now.
        checkpointer.save(result)
        seconds = checkpointer.seconds
        conclude(cfg, title, experiment, folder, log, history, result, seconds, draw, best)
        log.close()
    if interruption.signal is not None:
        return 128 + interruption.signal
    return result.kind.status


def _loss_at_zero(experiment: Experiment) -> float:
    problem, like = experiment.data.problem, experiment.network.weights[0]
    A, B = (like.new_zeros(d, 1) for d in problem.shape)
    try:
        return float(problem.pair_loss(A, B))
    except torch.linalg.LinAlgError:  # a loss that factorises W
        return math.nan


def _stops(cfg: DictConfig, t1: float, best: Best | None) -> list[Stop]:
    stops: list[Stop] = []
    if cfg.stop.grad_norm is not None:
        stops.append(GradientNormBelow(cfg.stop.grad_norm))
    if cfg.stop.stagnation is not None:
        stops.append(Stagnation(cfg.stop.stagnation * t1))
    if cfg.stop.get("held_out") is not None and best is not None:
        stops.append(Unimproved(best.name, cfg.stop.held_out, least=best.sign > 0))
    return stops


def _title(cfg: DictConfig, experiment: Experiment) -> str:
    network = experiment.network
    repeats = f", {cfg.repeats} repeats" if cfg.repeats > 1 else ""
    widths = f"widths {'-'.join(map(str, network.widths))}"
    what = widths if experiment.on is None else experiment.on.title
    return (
        f"{cfg.problem.name}, {what}, {cfg.init.name} start, {cfg.method.name}"
        f"{_steps(experiment.stepper)}{repeats}"
    )


def _steps(stepper: Stepper) -> str:
    if isinstance(stepper, AdaptiveStepper):
        return f" with rtol = {stepper.rtol:.3g}"
    if isinstance(stepper, OptimizerStepper) and stepper.counts:
        return ""  # t counts its steps
    return f" with dt = {stepper.stretch:.3g}"


def _headline(
    title: str, experiment: Experiment, folder: RunFolder, cost: str, resumed_at: Tensor | None
) -> str:
    lines = [f"deeplin: {title}"]
    lines += [f"  {note}" for note in experiment.notes]
    lines += [f"  {cost}"] if cost else []
    stepper = experiment.stepper
    if isinstance(stepper, OptimizerStepper) and stepper.counts:
        end = f"{math.ceil(experiment.t1)} steps"
    else:
        end = f"to flow time t = {experiment.t1:.6g}, the time of the flow: a step adds its dt"
    lines.append(f"  {end}; log in {folder.path}")
    if resumed_at is not None:
        lines.append(f"  resumed at t = {float(resumed_at):.6g}")
    return "\n".join(lines)
