"""The runs of an experiment: composed from its configuration, launched as a sweep, read back."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from deeplin.loop import History, Kind, Result
from deeplin.problems import LeastSquares
from deeplin.problems.data import Data
from deeplin.runner.build import data_of
from deeplin.runner.configurations import CONF
from deeplin.runner.ending import told
from deeplin.runner.folder import FORMAT, Checkpoint, Damaged, RunFolder
from deeplin.runner.jobs import Job, launched  # its resolvers stand in the configurations
from deeplin.runner.lock import locked
from deeplin.runner.outcomes import NOT_BEGUN
from deeplin.runner.verdict import fitted_rate


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


@dataclass(frozen=True)
class Composition:
    """A run of an experiment: the words that compose it, as in a sweep, and its configuration."""

    words: tuple[str, ...]
    cfg: DictConfig


def compositions(name: str, changes: Mapping[str, str] | None = None) -> list[Composition]:
    """All runs of an experiment: of its sweep, if it has one.

    `changes` replace values of the configuration, or of its sweep.
    """
    return copy.deepcopy(_compositions(name, tuple((changes or {}).items())))


@cache
def _compositions(name: str, items: tuple[tuple[str, str], ...]) -> list[Composition]:
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
            elif swept:
                texts = override.sweep_string_iterator()
                pairs = zip(texts, override.sweep_iterator(), strict=True)
                values.append([(key, f"{key}={text}", value) for text, value in pairs])
            else:
                values.append([(key, override.input_line, override.value())])
        found = []
        # Hydra composes files, which takes long: once for all values of a sweep.
        for files in itertools.product(*groups):
            base = compose("train", [*chosen, *fixed, *files])
            for combination in itertools.product(*values):
                cfg = copy.deepcopy(base)
                for key, _, value in combination:
                    OmegaConf.update(cfg, key, value, merge=False)
                words = *chosen, *fixed, *files, *(word for _, word, _ in combination)
                cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
                assert isinstance(cfg, DictConfig)
                found.append(Composition(words, cfg))
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


def folder_of(run: Composition, root: Path) -> Path:
    """Where a run lies: equal configurations of one format are one run."""
    text = f"format: {FORMAT}\n" + OmegaConf.to_yaml(run.cfg, resolve=True, sort_keys=True)
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


def execute(runs: Sequence[Composition], root: Path, launcher: Sequence[str] = ()) -> list[str]:
    """Run what is not finished yet, the largest first, by the launcher that the words choose.

    Returns a sentence for each run that could not be made, or did not end as was asked. Raises
    KeyboardInterrupt when a run was stopped; the next call continues it.
    """
    todo, failures = {}, []
    for folder, run in {folder_of(run, root): run for run in runs}.items():
        end = end_of(folder)
        if end is None:
            todo[folder] = run
        elif end.kind.status:
            failures.append(f"{folder}: {end.sentence}")
    if not todo:
        return failures
    for folder in filter(Path.exists, todo):
        _clear_damaged(folder)
    order = sorted(todo, key=lambda folder: -_work(todo[folder].cfg))
    jobs = [Job(todo[folder].words, folder.name) for folder in order]
    ends = launched(jobs, root, launcher, CONF)
    for folder, end in zip(order, ends, strict=True):
        if end.status != 0 and end.sentence != NOT_BEGUN:
            failures.append(f"{folder}: {end.sentence}; what it printed is in log.txt there")
    left = sum(end.sentence == NOT_BEGUN for end in ends)
    if left:
        failures.append(f"{left} runs were not begun: the same command begins them")
    return failures


def _clear_damaged(folder: Path) -> None:
    """Clear a folder of which a file is not as it was written: its run begins again there."""
    files = RunFolder(folder)
    with contextlib.suppress(ValueError, OSError):  # of which the run itself will tell
        try:
            with files.held():
                files.read_config()
                files.sessions()
                files.load_checkpoint()
        except Damaged as error:
            with locked(folder):
                files.clear()
            with (folder / "log.txt").open("a", encoding="utf-8") as log:
                print(f"{error} It is run again here.", file=log)


def _work(cfg: DictConfig) -> float:
    """A rough measure of how long a run takes, for the order alone."""
    size = cfg.problem.get("d", cfg.problem.get("n", 1)) * cfg.network.depth
    return (
        size**2 * (10 if cfg.flow == "layers" else 1) * (3 if cfg.problem.name == "teacher" else 1)
    )
