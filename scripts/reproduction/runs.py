"""The runs of an experiment: composed from its configuration, executed side by side, read back."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache, cached_property
from multiprocessing import (
    active_children,
    get_all_start_methods,
    get_context,
    parent_process,
)
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

import deeplin.runner.cli as cli  # its resolvers stand in the configurations
from deeplin.loop import History, Kind, Result
from deeplin.problems import LeastSquares
from deeplin.problems.data import Data
from deeplin.runner.build import data_of
from deeplin.runner.configurations import CONF
from deeplin.runner.ending import told
from deeplin.runner.folder import FORMAT, Checkpoint, Damaged, RunFolder
from deeplin.runner.lock import locked
from deeplin.runner.run import run
from deeplin.runner.verdict import fitted_rate

_ = cli.main


class Run:
    """One finished run: its configuration, summary and recorded history."""

    def __init__(self, folder: Path):
        self.files = RunFolder(folder)
        self.cfg: Any = self.files.read_config()
        self.summary: dict[str, Any] = self.files.read_summary()

    @cached_property
    def _saved(self) -> Checkpoint:
        return self.files.load_checkpoint()

    @cached_property
    def history(self) -> History:
        return self._saved.history

    @cached_property
    def t(self) -> np.ndarray:
        return self.history.t.numpy()

    @cached_property
    def steps(self) -> np.ndarray:
        return np.array([record.step for record in self.history.records])

    def __getitem__(self, name: str) -> np.ndarray:
        """An observable: (records, repeats, …), for one trajectory (records, …)."""
        return self.history.column(name).double().numpy()

    @property
    def to_optimum(self) -> np.ndarray:
        """The distance to the optimum of the start's rank, which may not be the limit."""
        name = "distance_to_optimum"
        return self[name if name in self.history.records[0].observed else "distance_to_limit"]

    @property
    def layers(self) -> list[torch.Tensor]:
        """The state in which the run ended."""
        return list(self._saved.stepper["state"])

    @cached_property
    def data(self) -> Data:
        """The data of the run, drawn anew from its configuration."""
        return data_of(self.cfg)

    @property
    def problem(self) -> LeastSquares:
        """Its least squares, those of both papers' figures."""
        problem = self.data.problem
        assert isinstance(problem, LeastSquares)
        return problem

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """Where the parts of the run come from, in order: versions, commit, code."""
        return self.files.sessions()

    @cached_property
    def measured_rate(self) -> float | None:
        """The decay rate of the distance to the limit, fitted to its last e³ above the noise."""
        distance = self.history.column("distance_to_limit").double()
        return fitted_rate(self.history.t, distance, self.noise * self.size)

    @property
    def noise(self) -> float:
        """Of what is below it, relative to W, the integrator's tolerances say nothing."""
        return max(1e3 * torch.finfo(torch.float64).eps, 10 * self.cfg.method.get("atol", 0.0))

    @property
    def size(self) -> float:
        """‖W‖_F at the end."""
        return float(np.linalg.norm(self["singular_values"][-1]))

    @property
    def predicted_rate(self) -> float | None:
        return self.summary["rate_predicted"]

    @property
    def d(self) -> int:
        return self.cfg.problem.d

    @property
    def depth(self) -> int:
        return self.cfg.network.depth

    @property
    def rank(self) -> int:
        return self.cfg.network.rank


def compositions(name: str, changes: Mapping[str, str] | None = None) -> list[DictConfig]:
    """The configurations of all runs of an experiment: of its sweep, if it has one.

    `changes` replace values of the configuration, or of its sweep.
    """
    return copy.deepcopy(_compositions(name, tuple((changes or {}).items())))


@cache
def _compositions(name: str, items: tuple[tuple[str, str], ...]) -> list[DictConfig]:
    changes = dict(items)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        chosen = [f"experiment={name}"]
        whole = compose("train", chosen, return_hydra_config=True)
        sweep = {key: str(value) for key, value in (whole.hydra.sweeper.params or {}).items()}
        sweep |= {key: value for key, value in changes.items() if key in sweep or "," in value}
        fixed = [f"{key}={value}" for key, value in changes.items() if key not in sweep]
        parser = OverridesParser.create()
        groups, values = [], []
        for override in parser.parse_overrides([f"{k}={v}" for k, v in sweep.items()]):
            key = override.key_or_group
            swept = override.is_sweep_override()
            if (CONF / key).is_dir():
                texts = override.sweep_string_iterator() if swept else [override.value()]
                groups.append([f"{key}={text}" for text in texts])
            else:
                each = override.sweep_iterator() if swept else [override.value()]
                values.append([(key, value) for value in each])
        found = []
        # Hydra composes files, which takes long: once for all values of a sweep.
        for files in itertools.product(*groups):
            base = compose("train", [*chosen, *fixed, *files])
            for combination in itertools.product(*values):
                cfg = copy.deepcopy(base)
                for key, value in combination:
                    OmegaConf.update(cfg, key, value, merge=False)
                found.append(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)))
    return found


def left_out(name: str) -> str:
    """What the header of an experiment's configuration says is left out, and what it would cost."""
    file = CONF / "experiment" / f"{name}.yaml"
    if not file.exists():  # a subject without runs
        return ""
    header = file.read_text(encoding="utf-8").split("\n\n")[0]
    _, found, rest = header.partition("# Left out")
    told, _, _ = rest.partition("# python")
    return " ".join(f"{found}{told}".replace("#", " ").split())


def folder_of(cfg: DictConfig, root: Path) -> Path:
    """Where the run of a configuration lies: equal configurations of one format are one run."""
    text = f"format: {FORMAT}\n" + OmegaConf.to_yaml(cfg, resolve=True, sort_keys=True)
    return root / hashlib.sha256(text.encode()).hexdigest()[:16]


def end_of(folder: Path) -> Result | None:
    """How the run in a folder ended, if it did, was told of it and every file is whole."""
    files = RunFolder(folder)
    try:
        files.read_config()
        files.sessions()
        result = files.load_checkpoint().result
    except (FileNotFoundError, Damaged):
        return None
    if result is None or result.kind is Kind.INTERRUPTED or told(files, result) is None:
        return None
    return result


def finished(folder: Path) -> bool:
    """Whether a folder holds a run, every file of it whole, that came to its end."""
    return end_of(folder) is not None


def finished_runs(folders: Sequence[Path]) -> list[Run]:
    return [Run(folder) for folder in folders if finished(folder)]


@contextlib.contextmanager
def workers(processes: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes for runs and figures, which import while the caller goes on; none if only one.

    Ctrl-C lets every run save its state.
    """
    if processes == 1:
        yield None
        return
    once = "forkserver" in get_all_start_methods()  # its processes share one import
    context = get_context("forkserver" if once else "spawn")
    # A thread each: more of them than cores would wait for each other.
    with ProcessPoolExecutor(processes, context, _begin) as pool:
        pool.submit(os.getpid)  # so that the imports begin
        try:
            yield pool
        except KeyboardInterrupt:
            for worker in active_children():  # a signal to this process alone has not told them
                worker.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _begin() -> None:
    """Of each worker: it has one thread, and ends with the process that it works for."""
    torch.set_num_threads(1)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def execute(
    configurations: Sequence[DictConfig], root: Path, pool: ProcessPoolExecutor | None = None
) -> list[str]:
    """Run what is not finished yet, the largest first, with a progress bar.

    Returns a sentence for each run that could not be made, or did not end as was asked. Raises
    KeyboardInterrupt when a run was stopped; the next call continues it.
    """
    todo, failures = {}, []
    for folder, cfg in {folder_of(cfg, root): cfg for cfg in configurations}.items():
        end = end_of(folder)
        if end is None:
            todo[folder] = cfg
        elif end.kind.status:
            failures.append(f"{folder}: {end.sentence}")
    if not todo:
        return failures
    order = sorted(todo, key=lambda folder: -_work(todo[folder]))
    ends = _ends([(OmegaConf.to_yaml(todo[folder]), folder) for folder in order], pool)
    for folder, status, text in tqdm(ends, total=len(todo), unit="run", disable=None):
        if status >= 128:
            raise KeyboardInterrupt
        if status:
            failures.append(f"{folder}: {text}")
    return failures


def _ends(
    jobs: Sequence[tuple[str, Path]], pool: ProcessPoolExecutor | None
) -> Iterator[tuple[Path, int, str]]:
    """(folder, exit status, what went wrong) of each run, as they end."""
    if pool is None:
        for text, folder in jobs:
            yield folder, *_execute(text, folder)
        return
    running = {pool.submit(_execute, text, folder): folder for text, folder in jobs}
    for future in as_completed(running):
        try:
            yield running[future], *future.result()
        except BrokenProcessPool:
            yield running[future], 2, "a process was killed; the same command goes on from here"


def _work(cfg: DictConfig) -> float:
    """A rough measure of how long a run takes, for the order alone."""
    size = cfg.problem.get("d", cfg.problem.get("n", 1)) * cfg.network.depth
    return (
        size**2 * (10 if cfg.flow == "layers" else 1) * (3 if cfg.problem.name == "teacher" else 1)
    )


def _execute(text: str, folder: Path) -> tuple[int, str]:
    """One run, its output in log.txt beside its results: the exit status, and what went wrong."""
    cfg = OmegaConf.create(text)
    assert isinstance(cfg, DictConfig)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "log.txt").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            try:
                status = run(cfg, folder, draw=False)
            except Damaged as error:
                print(f"{error} It is run again here.")
                with locked(folder):
                    RunFolder(folder).clear()
                status = run(cfg, folder, draw=False)
            end = end_of(folder)
            return status, f"{end.sentence if end else 'no end was told'}; see log.txt there"
        except (ValueError, TypeError, OSError) as error:
            return 2, str(error)
