"""The command line: checked before Hydra sees it, errors as one sentence."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from deeplin.runner import flags
from deeplin.runner.command_line import Checked, check_words
from deeplin.runner.configurations import CONF, Configurations
from deeplin.runner.devices import own_device
from deeplin.runner.errors import EXPECTED, is_out_of_memory, sentence
from deeplin.runner.experiments import Draw, show_pictures
from deeplin.runner.folder import RunFolder
from deeplin.runner.help import help_page
from deeplin.runner.launching import accounted, ended_in, in_sweep, relative
from deeplin.runner.names import job_folder, run_folder
from deeplin.runner.outcomes import Outcome, ended, noted, worst
from deeplin.runner.overrides import whole
from deeplin.runner.plugins import told_to_launcher
from deeplin.runner.run import RESUMABLE, run
from deeplin.runner.signals import abandonable, ending_with_parent, leave, number_of
from deeplin.runner.studies import trials_left
from deeplin.runner.sweeps import conclude_sweep
from deeplin.runner.terminal import columns, command, complain, patient, say_command

__all__ = ["job", "main", "train"]


_EXCLUDED = "hydra.job.config.override_dirname.exclude_keys"  # what does not name a job's folder
_SHORT = 24  # characters of a job's name that go before each of its lines

# Sizes that depend on others in an experiment's file: [a/b], half rounded up, and a·b.
OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
OmegaConf.register_new_resolver("nearest", lambda a, b: math.floor(a / b + 0.5), replace=True)
OmegaConf.register_new_resolver("times", lambda a, b: a * b, replace=True)


def main(
    entry: Callable[[], object],
    config_dir: Path,
    arguments: Sequence[str],
    draw: Draw | None = None,
) -> int:
    """Check the command line, run Hydra's entry point, return the process's exit status.

    `draw` makes the figure of an experiment from its runs.
    """
    with patient():
        try:
            with abandonable():
                return _main(entry, config_dir, arguments, draw)
        except KeyboardInterrupt as stop:
            before = "" if ended() else " before the start: nothing ran"
            complain(f"stopped by {number_of(stop).name}{before}.")
            return 128 + number_of(stop)


def _main(
    entry: Callable[[], object], config_dir: Path, arguments: Sequence[str], draw: Draw | None
) -> int:
    if not _stands_somewhere():
        complain("the working directory is gone: change to another.")
        return 2
    try:
        line = flags.read(arguments)
        words = tuple(whole(word) for word in line.overrides)
        checked = None
        if not line.shows:
            configurations = Configurations(config_dir, line.name or "train", line.folder)
            checked = check_words(words, configurations, sweep=line.sweep)
            words = checked.words
            if line.help:
                print(help_page(configurations, checked.first, checked.chosen, columns()))
                return 0
            if line.package and OmegaConf.select(checked.first, line.package) is None:
                raise ValueError(f"--package={line.package} is no part of the configuration.")
            _check_folders(checked)
    except EXPECTED as error:
        complain(sentence(error))
        return 2
    worst()  # of an earlier call in this process
    # Hydra's parser wants flags before overrides; people type them anywhere.
    sys.argv[1:] = [*line.flags, *words]
    if checked is None:
        entry()
        return worst()
    with contextlib.ExitStack() as stack:
        if checked.is_sweep:
            sys.argv += [f"{_EXCLUDED}=[{','.join(checked.constant)}]"]
            try:
                left = stack.enter_context(trials_left(checked.first))
            except EXPECTED as error:
                complain(sentence(error))
                return 2
            if left == 0:
                return 0
            sys.argv += told_to_launcher(checked.first)
            sys.argv += [] if left is None else [f"hydra.sweeper.n_trials={left}"]
            stack.enter_context(_concluded(arguments))
        entry()
    show_pictures(ended(), checked.chosen.get("experiment"), arguments, draw)
    return worst()


@contextlib.contextmanager
def _concluded(arguments: Sequence[str]) -> Iterator[None]:
    """A context at whose end the jobs of a sweep are told, also of one that was stopped."""
    stopped = True
    try:
        with accounted():
            yield
        stopped = False
    finally:
        if jobs := ended():
            sweep = Path(jobs[0].sweep)
            conclude_sweep(jobs, sweep)
            if stopped:
                words = [word for word in arguments if not word.startswith("hydra.sweep.dir=")]
                words = shlex.join([*words, f"hydra.sweep.dir={sweep}"])
                say_command("To go on, without the jobs that are finished", f"{command()} {words}")


def _stands_somewhere() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def job(cfg: DictConfig, *, quiet: bool = False) -> Outcome:
    """Run one configuration in Hydra's folder; bad input is one sentence, and a sweep goes on.

    A quiet job of a sweep prints to log.txt there, and draws nothing.
    """
    hydra_config = HydraConfig.get()
    folder = relative(Path(hydra_config.runtime.output_dir))
    objective = cfg.get("objective", "auto")
    if hydra_config.mode != RunMode.MULTIRUN:
        with patient():
            status, told = _job(cfg, folder)
        outcome = noted(ended_in(folder, status, told, objective))
    else:
        sweep, number = relative(Path(hydra_config.sweep.dir)), int(hydra_config.job.num)
        name = os.path.relpath(folder, sweep)
        # A launcher may have brought the job to another process.
        label = f"[{name if len(name) <= _SHORT else f'#{number}'}] "
        output = _written(folder) if quiet else patient(label)
        with output, ending_with_parent(), own_device(cfg.device):
            status, told = _job(cfg, folder, quiet=quiet)
        if status == 2:
            RunFolder(folder).refuse(told)
        constant = hydra_config.job.config.override_dirname.exclude_keys
        ended_here = ended_in(folder, status, told, objective)
        words = hydra_config.overrides.task
        outcome = noted(in_sweep(ended_here, sweep, number, words, constant))
    if status >= 128:  # stopped by a signal: so is the whole sweep
        leave(status)
    return outcome


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def train(cfg: DictConfig) -> Outcome:
    """Hydra's entry point: one job of the command line in `sys.argv`."""
    return job(cfg)


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    """A context in which what is printed goes to a file in a folder."""
    with (
        (folder / "log.txt").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            yield
        except Exception:  # a fault of the program's own
            traceback.print_exc()
            raise


def _job(cfg: DictConfig, folder: Path, *, quiet: bool = False) -> tuple[int, str]:
    """The status of one run, and the sentence of what went wrong before it could end."""
    options = {"draw": False} if quiet else {}
    with abandonable() as abandoned:
        try:
            status = run(cfg if cfg.resume is None else _resumed(cfg, folder), folder, **options)
            told = ""
        except KeyboardInterrupt as stop:
            status, told = _stopped(number_of(stop), folder)
        except Exception as error:
            if abandoned.number is not None:  # a library has made another error of it
                status, told = _stopped(abandoned.number, folder)
            elif _is_expected(error) and not os.environ.get("HYDRA_FULL_ERROR"):
                status, told = 2, sentence(error)
            else:
                raise
        if told:
            complain(told)
    _remove_if_empty(folder)
    return status, told


def _is_expected(error: Exception) -> bool:
    return isinstance(error, EXPECTED) or is_out_of_memory(error)


def _stopped(number: signal.Signals, folder: Path) -> tuple[int, str]:
    """The status of a job that a signal ended at once, and a sentence."""
    left = f"resume={folder} continues the run from its last checkpoint"
    found = left if RunFolder(folder).checkpoint.exists() else "there is no checkpoint yet"
    return 128 + number, f"stopped at once by {number.name}: {found}."


def _resumed(cfg: DictConfig, folder: Path) -> DictConfig:
    """The stored configuration of a run, with those options changed that may change on the way."""
    stored = RunFolder(folder).read_config()
    for word in HydraConfig.get().overrides.task:
        key = word.split("=")[0].lstrip("+~")
        if key == "resume":
            continue
        if not key.startswith(RESUMABLE):
            raise ValueError(
                f"resume continues the stored run, in which only {', '.join(RESUMABLE)} can "
                f"change; got {word}: leave it out."
            )
        OmegaConf.update(stored, key, OmegaConf.select(cfg, key))
    return stored


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _check_folders(checked: Checked) -> None:
    """Raise ValueError unless the run to resume is there, and outputs can be written."""
    resume = checked.first.resume
    if resume is not None and not Path(resume, "checkpoint.pt").is_file():
        raise ValueError(
            f"resume={resume} must name the folder of a run with a checkpoint; "
            f"there is no {Path(resume, 'checkpoint.pt')}."
        )
    folder = Path(checked.folder)
    if resume is not None and (checked.is_sweep or folder.resolve() != Path(resume).resolve()):
        raise ValueError(
            f"resume={resume} goes on in the folder of that run, one run at a time; got outputs in "
            f"{folder}: leave that out."
        )
    try:
        existing = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
        with tempfile.TemporaryDirectory(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"outputs go to {folder}, which is no folder that can be written "
            f"({(error.strerror or str(error)).lower()}): choose another with "
            f"{'hydra.sweep.dir' if checked.is_sweep else 'hydra.run.dir'}=<folder>."
        ) from error
