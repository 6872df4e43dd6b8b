"""What a run leaves behind: its folder, which one process at a time writes to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from matplotlib.image import imsave
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from deeplin.flows import LayerFlow
from deeplin.flows.contract import Flow
from deeplin.integrators.steppers import Stepper
from deeplin.loop import History, Record, Result
from deeplin.problems.pairs import Pairs
from deeplin.problems.preparation import Preparation
from deeplin.runner import files
from deeplin.runner.best import Best
from deeplin.runner.checkpoints import (
    FORMAT,
    Checkpoint,
    Damaged,
    check_format,
    sealed,
    unsealed,
)
from deeplin.runner.lock import LOCK, locked
from deeplin.runner.observables import factors
from deeplin.runner.schema import flatten

__all__ = ["FORMAT", "Checkpoint", "Checkpointer", "Damaged", "RunFolder"]

# What may lie in a folder before a run begins there: Hydra's record and log of the job, what
# reproduce.py keeps of the output, that a job could not begin, and what a killed process left.
_BEFORE = (".hydra", "train.log", "log.txt", "status.json", LOCK)
_EVENTS = "events.out.tfevents.{moment}.deeplin"

# The last line of config.yaml.
_DIGEST = "# sha256 "


def _digest_line(text: str) -> str:
    return f"{_DIGEST}{hashlib.sha256(text.encode()).hexdigest()}\n"


class RunFolder:
    """The files of one run. Every write replaces the whole file at once, or not at all."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process alone, free of what killed ones left half written.

        Raises: ValueError, with one sentence, where another process holds it; Damaged where
            something lies there that is no run.
        """
        with contextlib.ExitStack() as stack:
            with self.writing(self.path):
                stack.enter_context(locked(self.path))
            self._check_ours()
            for folder in (self.path, self.path / "figures"):
                files.sweep(folder)
            yield

    def _check_ours(self) -> None:
        """Raise Damaged for a folder that holds something, but no run of deeplin."""
        if self.config.exists():  # whose it is, read_config says
            self.sessions()
            return
        for found in self.path.iterdir():
            if found.name not in _BEFORE and not found.name.endswith(files.PARTIAL):
                raise Damaged(
                    f"{self.path} holds {found.name} but no config.yaml of a run: choose a new "
                    "folder, so that nothing there is lost."
                )

    # -- writing -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """What the system says of a file that cannot be written, as one sentence."""
        try:
            yield
        except OSError as error:
            if error.errno is None:  # a sentence already
                raise
            then = f"resume={self.path} continues the run from its last checkpoint"
            raise OSError(
                f"{path} cannot be written ({error.strerror}): when that is mended, "
                f"{then if self.checkpoint.exists() else 'start the run again'}."
            ) from error

    def _replace(self, path: Path, write: Callable[[BinaryIO], object]) -> None:
        with self.writing(path):
            files.replace(path, write)

    def write_text(self, name: str, text: str) -> None:
        self._replace(self.path / name, lambda file: file.write(text.encode()))

    def write_json(self, name: str, content: object) -> None:
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_image(self, name: str, image: np.ndarray) -> None:
        """Save pixels (height, width, 3) as figures/<name>.png."""
        path = self.path / "figures" / f"{name}.png"
        with self.writing(path):
            path.parent.mkdir(exist_ok=True)
        self._replace(path, lambda file: imsave(file, image, format="png"))

    def write_config(self, cfg: DictConfig) -> None:
        """Save a configuration, without references, between the format's number and a digest."""
        text = f"format: {FORMAT}\n{OmegaConf.to_yaml(cfg, resolve=True)}"
        self.write_text("config.yaml", f"{text}{_digest_line(text)}")

    def write_status(self, status: int, error: str = "") -> None:
        """Save the exit status of the process that has ended here, and what stopped it at once."""
        content = {"status": status, **({"error": error} if error else {})}
        if self.read_status() != content:
            self.write_json("status.json", content)

    def refuse(self, error: str) -> None:
        """Save that a job could not begin, unless the folder is that of a run, or somebody's."""
        with contextlib.suppress(ValueError, OSError), self.held():
            if not self.config.exists():
                self.write_status(2, error)

    def begin(self) -> None:
        """Remove what tells of an end; to be called while it is held."""
        for path in (self.summary, self.status):
            path.unlink(missing_ok=True)

    def add_provenance(self, session: Mapping[str, object]) -> None:
        """Note where what is computed from now on comes from, after what stands there already."""
        self.write_json("provenance.json", {"sessions": [*self.sessions(), session]})

    def new_events(self) -> Path:
        """A file for TensorBoard, in place of those of earlier parts of the run."""
        for old in self.path.glob(_EVENTS.format(moment="*")):
            old.unlink(missing_ok=True)
        return self.path / _EVENTS.format(moment=time.time_ns())

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        data = sealed(checkpoint)
        self._replace(self.checkpoint, lambda file: file.write(data))

    def clear(self) -> None:
        """Remove what the run has written, and nothing else; to be called while it is held."""
        written = [*self.path.glob(_EVENTS.format(moment="*")), *self.path.glob("figures/*.png")]
        # The configuration last: it says that the rest is ours.
        told = (self.status, self.summary, self.provenance)
        for path in (*written, self.checkpoint, *told, self.config):
            path.unlink(missing_ok=True)

    # -- reading -------------------------------------------------------------------------------

    def read_config(self) -> DictConfig:
        """The configuration of the run.

        Raises: Damaged for a file that is not as it was written; ValueError for another format.
        """
        try:
            text = self.config.read_bytes().decode()
            stored = OmegaConf.create(text)
        except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
            raise Damaged(self._damaged(self.config, "configuration", "it is no YAML")) from error
        if not isinstance(stored, DictConfig) or not stored:
            raise Damaged(self._damaged(self.config, "configuration", "it holds no options"))
        try:
            check_format(stored.pop("format", 1))
        except ValueError as error:
            raise ValueError(f"{self.path} {error}") from error
        written, mark, _ = text.rpartition(_DIGEST)
        if not mark or text != f"{written}{_digest_line(written)}":
            raise Damaged(self._damaged(self.config, "configuration", "its SHA-256 digest differs"))
        return stored

    def read_summary(self) -> dict[str, object]:
        """How the run ended. Raises ValueError for a file that is no summary."""
        return self._read_json(self.summary, "result", "result_kind", "verdict")

    def read_status(self) -> dict[str, object]:
        """The exit status of the last process here, as `write_status` has it.

        Empty while one is at work, and where the last one was killed.
        """
        try:
            return self._read_json(self.status, "status")
        except (FileNotFoundError, Damaged):
            return {}

    def sessions(self) -> list[dict[str, object]]:
        """Where each part of the run comes from; none before the first."""
        if not self.provenance.exists():
            return []
        sessions = self._read_json(self.provenance, "sessions")["sessions"]
        if not isinstance(sessions, list):
            raise Damaged(self._damaged(self.provenance, "record", "its sessions are no list"))
        return sessions

    def _read_json(self, path: Path, *keys: str) -> dict[str, object]:
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise Damaged(self._damaged(path, "record", "it is no JSON")) from error
        missing = [k for k in keys if not isinstance(content, dict) or k not in content]
        if missing:
            raise Damaged(self._damaged(path, "record", f"it has no {', '.join(missing)}"))
        return content

    def load_checkpoint(self, device: str = "cpu") -> Checkpoint:
        """The last checkpoint.

        Raises: Damaged for a file of which any bit is not as it was written; ValueError for
            another format.
        """
        try:
            return unsealed(self.checkpoint.read_bytes(), device)
        except Damaged as error:
            raise Damaged(self._damaged(self.checkpoint, "checkpoint", str(error))) from error
        except ValueError as error:
            raise ValueError(f"{self.path} {error}") from error

    def check_fits(self, checkpoint: Checkpoint, stepper: Stepper) -> None:
        """Raise ValueError unless the state is one that a stepper of the run could have."""
        try:
            checkpoint.check_fits(stepper)
        except ValueError as error:
            raise Damaged(self._damaged(self.checkpoint, "checkpoint", str(error))) from error

    def _damaged(self, path: Path, what: str, why: str) -> str:
        return f"{path} cannot be read as a {what} ({why}): start the run anew in another folder."


class Checkpointer:
    """Saves stepper and history every `seconds` seconds, and when told to.

    With them what it takes to use W: of the flow its factors, of the data what was done to them;
    and the best W so far by what is held out.
    """

    def __init__(
        self,
        folder: RunFolder,
        stepper: Stepper,
        history: History,
        seconds: float,
        *,
        config: DictConfig,
        inputs: Mapping[str, str],
        flow: Flow,
        preparation: Preparation | Pairs | None,
        best: Best | None = None,
    ):
        self.folder, self.stepper, self.history = folder, stepper, history
        self.interval, self.elapsed_before = seconds, 0.0
        self.config, self.inputs, self.flow = flatten(config), inputs, flow
        self.preparation = None if preparation is None else preparation.state_dict()
        self.best = best
        self._start = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, that before a resumption included."""
        return self.elapsed_before + time.monotonic() - self._start

    def save(self, result: Result | None = None) -> None:
        self.folder.save_checkpoint(
            Checkpoint(
                self.stepper.state_dict(),
                self.history,
                self.seconds,
                result,
                self.config,
                self.inputs,
                factors(self.flow, self.stepper.state),
                isinstance(self.flow, LayerFlow),
                self.preparation,
                () if self.best is None else self.best.factors,
            )
        )
        self._last = time.monotonic()

    def on_record(self, record: Record) -> None:
        pass

    def on_step(self, stepper: Stepper) -> None:
        if time.monotonic() - self._last >= self.interval:
            self.save()
