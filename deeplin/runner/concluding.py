"""What is told of a run that has ended: figures, summary, log and the table on the terminal."""

from __future__ import annotations

import shlex

import numpy as np
from omegaconf import DictConfig

from deeplin.flows import LayerFlow
from deeplin.integrators import OptimizerStepper, Stepper
from deeplin.landscape import Plateau, plateau_table, plateaus_of_modes
from deeplin.loop import History, Kind, Result
from deeplin.runner import figures
from deeplin.runner.best import Best
from deeplin.runner.build import Experiment
from deeplin.runner.configurations import changed
from deeplin.runner.folder import RunFolder
from deeplin.runner.observables import factors
from deeplin.runner.tensorboard import TensorBoardLog
from deeplin.runner.terminal import command, complain, say, say_command, say_table
from deeplin.runner.verdict import judge

__all__ = ["conclude"]


def conclude(
    cfg: DictConfig,
    title: str,
    experiment: Experiment,
    folder: RunFolder,
    log: TensorBoardLog,
    history: History,
    result: Result,
    seconds: float,
    draw: bool,
    best: Best | None = None,
) -> None:
    """Figures, summary, hyperparameters and the table on the terminal."""
    problem = experiment.data.problem
    prediction = experiment.prediction
    gone = result.kind is Kind.DIVERGED and result.rest is None
    if isinstance(experiment.flow, LayerFlow) and not gone:
        prediction = prediction.arrived(problem, experiment.stepper.state)
    passed = _plateaus(experiment, history)
    stochastic = cfg.method.get("batch_size") is not None
    verdict = judge(
        problem,
        prediction,
        history,
        result,
        seconds=seconds,
        stochastic=stochastic,
        plateaus=passed,
        unstable=experiment.unstable,
        matrices=factors(experiment.flow, experiment.stepper.state),
        follows_no_flow=_follows_no_flow(experiment.stepper),
    )
    if draw:
        counts = isinstance(experiment.stepper, OptimizerStepper) and experiment.stepper.counts
        time = "steps" if counts else "flow time t"
        figure = figures.convergence(history, prediction, title, time=time)
        _show("convergence", figures.rendered(figure), folder, log)
    if passed and len(passed[verdict.shown]) > 1:
        shown = f"{title}, repeat {verdict.shown + 1}" if len(passed) > 1 else title
        _show_plateaus(shown, folder, log, history, passed[verdict.shown], verdict.shown, draw)
    best_of = {} if best is None else best.summary()
    told = {"method": cfg.method.name, **verdict.summary, **best_of, "notes": experiment.notes}
    folder.write_json("summary.json", told)
    metrics = {
        name: value
        for name, value in verdict.summary.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    log.predicted(history, prediction)
    log.hparams(changed(cfg), metrics)
    # TensorBoard sorts by name: what the run came to stands on top.
    log.text("1_verdict", f"{verdict.sentence}\n\n{verdict}")
    say()
    say_table(verdict.table)
    steps = verdict.summary["steps"]
    say(f"\n{steps} step{'' if steps == 1 else 's'} in {seconds:.1f} s; {result.sentence}")
    say(verdict.sentence)
    if result.kind is Kind.PAST_BEST and best is not None and best.at is not None:
        say(f"deeplin.load gives the W of step {best.at.step}, whose {best.name} was the best.")
    _say_where_to_look(folder, draw)
    _say_how_to_go_on(result, folder)
    if result.kind in (Kind.DIVERGED, Kind.FAULT):
        complain(result.sentence)


def _say_where_to_look(folder: RunFolder, draw: bool) -> None:
    if draw:
        figure = folder.path / "figures" / "convergence.png"
        say(f"Loss, distance and singular values over t, what is predicted dotted:\n    {figure}")
    say_command(
        "The same for all runs there, under Scalars, and this table, under Text",
        f"tensorboard --logdir {shlex.quote(str(folder.path.parent))}",
    )


def _say_how_to_go_on(result: Result, folder: RunFolder) -> None:
    """Of a run that ended by what it was given, not by where it was."""
    further = {
        Kind.INTERRUPTED: "",
        Kind.TIME: " method.t1=<later>",
        Kind.STEPS: " stop.max_steps=<more>",
    }
    if result.kind in further:
        resumed = shlex.quote(f"resume={folder.path}")
        say_command("To go on from here", f"{command()} {resumed}{further[result.kind]}")


def _follows_no_flow(stepper: Stepper) -> str | None:
    """The name of an optimizer whose steps are no descent's."""
    if isinstance(stepper, OptimizerStepper) and not stepper.descends:
        return stepper.name
    return None


def _show(name: str, image: np.ndarray, folder: RunFolder, log: TensorBoardLog) -> None:
    folder.write_image(name, image)
    log.image(name, image)


def _plateaus(experiment: Experiment, history: History) -> list[list[Plateau]]:
    """Which critical points each trajectory passed; none where they are not known."""
    problem = experiment.data.problem
    if "nearest_modes" not in history.records[0].observed:
        return []
    records, rank = len(history.records), min(experiment.network.widths)
    modes = history.column("nearest_modes")
    modes = modes.reshape(records, -1, modes.shape[-1])
    distance = history.column("nearest_distance").reshape(records, -1)
    return [
        plateaus_of_modes(problem, history.t, modes[:, i], distance[:, i], rank=rank)
        for i in range(distance.shape[1])
    ]


def _show_plateaus(
    title: str,
    folder: RunFolder,
    log: TensorBoardLog,
    history: History,
    report: list[Plateau],
    repeat: int,
    draw: bool,
) -> None:
    """The table and the figure of the critical points that one trajectory passed."""
    if draw:
        figure = figures.saddle_to_saddle(history, report, title, repeat=repeat)
        _show("plateaus", figures.rendered(figure), folder, log)
    log.text("2_plateaus", plateau_table(report))
    say(f"\ncritical points passed:\n{plateau_table(report)}")
