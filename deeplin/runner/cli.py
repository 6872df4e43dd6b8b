"""The command line: checked before Hydra sees it, errors as one sentence."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from deeplin.runner import flags
from deeplin.runner.command_line import Checked, check_words
from deeplin.runner.configurations import CONF, Configurations
from deeplin.runner.errors import EXPECTED, is_out_of_memory, sentence
from deeplin.runner.folder import RunFolder
from deeplin.runner.help import help_page
from deeplin.runner.run import RESUMABLE, run
from deeplin.runner.signals import abandonable, number_of
from deeplin.runner.statuses import Status, noted, worst
from deeplin.runner.terminal import columns, complain, patient

__all__ = ["job", "main", "train"]


# Of a job's folder's name; most file systems take 255 bytes.
_LONGEST = 60


def _run_folder(resume: str | None, problem: str, now: str) -> str:
    return str(resume) if resume else f"runs/{problem}/{now}"


# Sizes that depend on others in an experiment's file: [a/b], half rounded up, and a·b.
OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)
OmegaConf.register_new_resolver("nearest", lambda a, b: math.floor(a / b + 0.5), replace=True)
OmegaConf.register_new_resolver("times", lambda a, b: a * b, replace=True)


def _job_folder(overrides: str) -> str:
    """The name of a job's folder in a sweep: the same for the same options, whatever the others."""
    plain = overrides.replace("/", "_").replace(" ", "_")[:_LONGEST]
    if plain != overrides:
        plain += f"-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"
    return plain or "defaults"


OmegaConf.register_new_resolver("job_folder", _job_folder, replace=True)


def main(entry: Callable[[], object], config_dir: Path, arguments: Sequence[str]) -> int:
    """Check the command line, run Hydra's entry point, return the process's exit status."""
    with patient():
        try:
            with abandonable():
                return _main(entry, config_dir, arguments)
        except KeyboardInterrupt as stop:
            complain(f"stopped by {number_of(stop).name} before the start: nothing ran.")
            return 128 + number_of(stop)


def _main(entry: Callable[[], object], config_dir: Path, arguments: Sequence[str]) -> int:
    if not _stands_somewhere():
        complain("the working directory is gone: change to another.")
        return 2
    try:
        line = flags.read(arguments)
        words = line.overrides
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
    # Hydra's parser wants flags before overrides; people type them anywhere.
    sys.argv[1:] = [*line.flags, *words]
    worst()  # of an earlier call in this process
    entry()
    return worst()


def _stands_somewhere() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def job(cfg: DictConfig) -> Status:
    """Run one configuration in Hydra's folder; bad input is one sentence, and a sweep goes on."""
    with patient():  # a launcher may have brought it to another process
        status = _job(cfg)
    noted(status)
    if status >= 128:  # stopped by a signal: so is the whole sweep
        sys.exit(status)
    return Status(status)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def train(cfg: DictConfig) -> Status:
    """Hydra's entry point: one job of the command line in `sys.argv`."""
    return job(cfg)


def _job(cfg: DictConfig) -> int:
    folder = Path(HydraConfig.get().runtime.output_dir)
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    with abandonable() as abandoned:
        try:
            status = run(cfg if cfg.resume is None else _resumed(cfg, folder), folder)
        except KeyboardInterrupt as stop:
            status = _stopped(number_of(stop), folder)
        except Exception as error:
            if abandoned.number is not None:  # a library has made another error of it
                status = _stopped(abandoned.number, folder)
            elif _is_expected(error) and not os.environ.get("HYDRA_FULL_ERROR"):
                complain(sentence(error))
                status = 2
            else:
                raise
    _remove_if_empty(folder)
    return status


def _is_expected(error: Exception) -> bool:
    return isinstance(error, EXPECTED) or is_out_of_memory(error)


def _stopped(number: signal.Signals, folder: Path) -> int:
    """The status of a job that a signal ended at once, after a sentence."""
    left = f"resume={folder} continues the run from its last checkpoint"
    found = left if RunFolder(folder).checkpoint.exists() else "there is no checkpoint yet"
    complain(f"stopped at once by {number.name}: {found}.")
    return 128 + number


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
