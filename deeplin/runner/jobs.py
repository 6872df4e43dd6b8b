"""Runs of a program that composes them itself, by the launchers of sweeps."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from tqdm import tqdm

from deeplin.runner.beside import beside
from deeplin.runner.cli import job
from deeplin.runner.configurations import CONF
from deeplin.runner.folder import RunFolder
from deeplin.runner.launching import PLACED, Accounted
from deeplin.runner.outcomes import NOT_BEGUN, Ended, Outcome, ended, worst
from deeplin.runner.overrides import in_quotes
from deeplin.runner.plugins import most_at_once

__all__ = ["Job", "launched"]

_SECONDS = 0.5  # between two looks at what has ended
# What Hydra itself says of a sweep and of its jobs.
_SILENT = ("hydra/hydra_logging=disabled", "hydra/job_logging=disabled", "hydra.mode=MULTIRUN")


@dataclass(frozen=True)
class Job:
    """A run: the words that compose it, as typed after train.py, and the name of its folder."""

    words: tuple[str, ...]
    name: str


def launched(
    jobs: Sequence[Job], root: Path, words: Sequence[str] = (), conf: Path = CONF
) -> list[Ended]:
    """Run jobs, in folders below `root`, and begin them in their order; how each has ended.

    `words` choose the launcher and set its options, as in a sweep, over the files of `conf`. A job
    prints to log.txt in its folder and draws nothing; what its launcher loses is asked of its
    folder. A bar shows how many have ended.

    Raises: KeyboardInterrupt when this process or a job was stopped by a signal; those at work
        have saved their state.
    """
    own = [*_SILENT, in_quotes("hydra.sweep.dir", str(root)), *words]
    each = [[*job.words, in_quotes(PLACED, job.name)] for job in jobs]
    worst()  # of what this process launched before
    with initialize_config_dir(version_base="1.3", config_dir=str(conf), job_name="train"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("train", own, RunMode.MULTIRUN)
        context = HydraContext(config_loader=loader, callbacks=Callbacks())
        launcher = Accounted(
            Plugins.instance().instantiate_launcher(context, _logged, config), context, config
        )
        size = most_at_once(config) or len(each)
        with _watched([root / job.name for job in jobs]):
            for first in range(0, len(each), size):
                try:
                    launcher.launch(each[first : first + size], first)
                except SystemExit as end:
                    for number in (signal.SIGINT, signal.SIGTERM):
                        if end.code == 128 + number:
                            raise KeyboardInterrupt(number) from None
                    break  # its launcher, which has said why, begins no other
    found = {one.number: one for one in ended()}
    lost = Ended(None, float("inf"), sentence=NOT_BEGUN)
    return [found.get(number, lost) for number in range(len(jobs))]


def _logged(cfg: DictConfig) -> Outcome:
    return job(cfg, quiet=True)


@contextlib.contextmanager
def _watched(folders: Sequence[Path]) -> Iterator[None]:
    """A context with a bar of the jobs that have ended.

    Launchers tell of their jobs when all have ended: what is known before stands in the folders.
    """
    before = {folder: _stamp(folder) for folder in folders}

    def look() -> bool:
        bar.update(sum(_stamp(folder) not in (None, before[folder]) for folder in folders) - bar.n)
        return True

    with tqdm(total=len(folders), unit="run", disable=None) as bar:
        try:
            with beside(look, _SECONDS):
                yield
        finally:
            look()


def _stamp(folder: Path) -> tuple[int, int] | None:
    """What tells one status written to a folder from the next; None where there is none."""
    try:
        found = RunFolder(folder).status.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
