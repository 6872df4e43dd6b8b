"""The jobs of a sweep, whichever launcher runs them: each is accounted for, by its own folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

from hydra._internal.core_plugins import basic_sweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from deeplin.runner.configurations import task
from deeplin.runner.ending import unchanged
from deeplin.runner.folder import RunFolder
from deeplin.runner.lock import LOCK, holder
from deeplin.runner.names import job_folder
from deeplin.runner.outcomes import NOT_BEGUN, Ended, ended, noted
from deeplin.runner.overrides import read_overrides
from deeplin.runner.schema import flatten
from deeplin.runner.signals import passed_on
from deeplin.runner.sweeps import objective_of
from deeplin.runner.terminal import complain

__all__ = ["PLACED", "Accounted", "accounted", "ended_in", "in_sweep", "relative"]

PLACED = "hydra.sweep.subdir"  # what gives a job a folder of its own name
_KILLED = 137  # 128 + SIGKILL: whatever else ends a process lets it say so


@contextlib.contextmanager
def accounted() -> Iterator[None]:
    """A context in which every job of a sweep is noted, also what its launcher loses.

    Launchers report what their jobs return. Of one that was killed, or was not begun when another
    was, some report nothing, and the sweep would seem to be done: here its folder is asked.
    """
    make_sweeper, make_launcher = Plugins.instantiate_sweeper, Plugins.instantiate_launcher
    made: list[Accounted] = []
    sweepers: list[Sweeper] = []

    def sweeper(
        self: Plugins,
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,
        config: DictConfig,
    ) -> Sweeper:
        sweepers.append(
            make_sweeper(
                self, hydra_context=hydra_context, task_function=task_function, config=config
            )
        )
        return sweepers[-1]

    def launcher(
        self: Plugins, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> Launcher:
        its = make_launcher(self, hydra_context, task_function, config)
        made.append(Accounted(its, hydra_context, config))
        return made[-1]

    Plugins.instantiate_sweeper, Plugins.instantiate_launcher = sweeper, launcher
    try:
        yield
    finally:
        Plugins.instantiate_sweeper, Plugins.instantiate_launcher = make_sweeper, make_launcher
        for one, its in zip(sweepers, made, strict=False):
            # Its class is looked up now: Hydra loads the modules of plugins anew.
            if isinstance(one, basic_sweeper.BasicSweeper) and one.overrides and its.has_launched:
                its.note([words for batch in one.overrides for words in batch], 0)


class Accounted(Launcher):
    """A launcher whose jobs are all noted when it has ended, however it ends."""

    def __init__(self, launcher: Launcher, context: HydraContext, config: DictConfig):
        self._launcher, self._context, self._config = launcher, context, config
        self.has_launched = False

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self._launcher.setup(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        returned: Sequence[JobReturn] = ()
        self.has_launched = True
        try:
            with passed_on(self._at_work):
                returned = self._launcher.launch(job_overrides, initial_job_idx)
            return returned
        except Exception as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            fault = error
        finally:
            self.note(job_overrides, initial_job_idx, returned)
        name = self._config.hydra.runtime.choices["hydra/launcher"]
        told = f"{type(fault).__name__}: {fault}".splitlines()[0]
        complain(f"hydra/launcher={name} has not run all jobs ({told})")
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        mine = [one for one in ended() if one.number in numbers]
        status = max((one.status or 0 for one in mine), default=0)
        was_killed = isinstance(fault, BrokenProcessPool) or any(one.began for one in mine)
        raise SystemExit(status if status >= 128 else _KILLED if was_killed else 2)

    def _at_work(self) -> set[Path]:
        """The folders that processes write to."""
        locks = Path(self._config.hydra.sweep.dir).glob(f"*/{LOCK}")
        return {lock.parent for lock in locks if holder(lock.parent)}

    def note(
        self, jobs: Sequence[Sequence[str]], first: int, returned: Sequence[JobReturn] = ()
    ) -> None:
        """Note those jobs of which no outcome has arrived, by what lies in their folders."""
        known = {one.number for one in ended()}
        for number, words in enumerate(jobs, first):
            if number in known:
                continue
            job = self._found(number, words)
            i = number - first
            if i < len(returned) and returned[i].status is JobStatus.FAILED:
                error = returned[i]._return_value
                job = replace(job, sentence=f"{type(error).__name__}: {error}".splitlines()[0])
            noted(job)

    def _found(self, number: int, words: Sequence[str]) -> Ended:
        of_hydra = self._config.hydra
        constant = of_hydra.job.config.override_dirname.exclude_keys
        sweep = relative(Path(of_hydra.sweep.dir))
        own = [word for word in words if not word.startswith("hydra")]
        cfg = None
        written = OmegaConf.to_container(of_hydra.sweep)
        assert isinstance(written, dict)
        placed = [word for word in words if word.startswith(f"{PLACED}=")]
        if placed:  # by the program that composed it
            folder = sweep / str(read_overrides(placed, {})[-1].value)
        elif str(written["subdir"]).startswith("${job_folder:"):
            folder = sweep / job_folder(own, constant, str(sweep))
        else:
            cfg = self._composed(number, words)
            folder = sweep / cfg.hydra.sweep.subdir
        if folder.exists():
            cfg = cfg or self._composed(number, words)
            standing = _standing(RunFolder(folder), flatten(task(cfg)))
            job = ended_in(folder, *standing, cfg.objective)
        else:  # composing takes long, and there may be thousands
            job = ended_in(folder, None, NOT_BEGUN)
        return in_sweep(job, sweep, number, own, constant)

    def _composed(self, number: int, words: Sequence[str]) -> DictConfig:
        """The configuration of a job, as launchers make it."""
        cfg = self._context.config_loader.load_sweep_config(self._config, list(words))
        with open_dict(cfg):
            cfg.hydra.job.num, cfg.hydra.job.id = number, str(number)
        own = HydraConfig.instance()
        before = own.cfg
        own.set_config(cfg)
        try:
            whole = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
            assert isinstance(whole, DictConfig)
            return whole
        finally:
            own.cfg = before


def _standing(folder: RunFolder, given: Mapping[str, object]) -> tuple[int | None, str]:
    """The exit status that stands in a folder, None where there is none, and why."""
    by = holder(folder.path)
    if by:
        return None, f"still at work, {by}"
    stored: Mapping[str, object] = {}
    if folder.config.exists():
        with contextlib.suppress(ValueError, OSError):
            stored = flatten(folder.read_config())
    told = folder.read_status()
    status = told.get("status")
    if isinstance(status, int) and (not stored or unchanged(given, stored, "method.t1", "stop")):
        return status, str(told.get("error", ""))
    if folder.checkpoint.exists():
        return None, "not finished: it goes on from its last checkpoint"
    return None, "not finished: it starts again" if stored else NOT_BEGUN


def ended_in(folder: Path, status: int | None, sentence: str, objective: str = "auto") -> Ended:
    """How a job ended with a status in a folder, with what the summary there says."""
    summary: dict[str, object] = {}
    if status not in (None, 2):  # else nothing has ended there, or perhaps another run
        with contextlib.suppress(OSError, ValueError):
            summary = RunFolder(folder).read_summary()
    small = objective_of(objective, summary) if status == 0 else float("inf")
    told = sentence or ("" if status == 0 else str(summary.get("result", "")))
    return Ended(status, small, folder=str(folder), summary=summary, sentence=told)


def in_sweep(
    job: Ended, sweep: Path, number: int, words: Sequence[str], constant: Collection[str]
) -> Ended:
    """The same with the job's place in its sweep, and what varies there."""
    pairs = [word.lstrip("+~").partition("=") for word in words]
    return replace(
        job,
        number=number,
        name=os.path.relpath(job.folder, sweep),
        sweep=str(sweep),
        options={key: value for key, _, value in pairs if key not in constant},
    )


def relative(path: Path) -> Path:
    """A path as seen from where this process works, if it is below."""
    folder = path.absolute()
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
