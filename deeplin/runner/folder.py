"""What a run leaves behind: its folder and its checkpoints."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from matplotlib.image import imsave
from omegaconf import DictConfig, OmegaConf

from deeplin.integrators.steppers import Stepper
from deeplin.loop import History, Kind, Record, Result

__all__ = ["FORMAT", "Checkpoint", "Checkpointer", "RunFolder"]

# The format of folders and checkpoints; one of another number is refused. 1 carried no number.
FORMAT = 2
_LAST_OF_FORMAT_1 = "91e24ea"


@dataclass(frozen=True)
class Checkpoint:
    """From what a run goes on: the stepper's state, all records, the seconds used, how it ended."""

    stepper: dict
    history: History
    seconds: float
    result: Result | None


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

    def write_text(self, name: str, text: str) -> None:
        self._replace(self.path / name, lambda file: file.write(text.encode()))

    def write_json(self, name: str, content: Mapping[str, object]) -> None:
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_image(self, name: str, image: np.ndarray) -> None:
        """Save pixels (height, width, 3) as figures/<name>.png."""
        path = self.path / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        self._replace(path, lambda file: imsave(file, image, format="png"))

    def write_config(self, cfg: DictConfig) -> None:
        """Save a configuration, without references, after the format's number."""
        self.write_text("config.yaml", f"format: {FORMAT}\n{OmegaConf.to_yaml(cfg, resolve=True)}")

    def read_config(self) -> DictConfig:
        """The configuration of the run. Raises ValueError for a folder of another format."""
        stored = OmegaConf.load(self.config)
        if not isinstance(stored, DictConfig):
            raise ValueError(f"{self.config} is no configuration: start the run anew.")
        self._check_format(stored.pop("format", 1))
        return stored

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        result = checkpoint.result
        content = {
            "format": FORMAT,
            "stepper": dict(checkpoint.stepper),
            "history": checkpoint.history.state_dict(),
            "seconds": checkpoint.seconds,
            "result": None if result is None else [str(result.kind), result.sentence],
        }
        self._replace(self.checkpoint, lambda file: torch.save(content, file))

    def load_checkpoint(self, device: str = "cpu") -> Checkpoint:
        """The last checkpoint. Raises ValueError for a file that cannot be read, or another format.

        Nothing but tensors and plain values is ever unpickled.
        """
        try:
            saved = torch.load(self.checkpoint, weights_only=True, map_location=device)
            number = saved.get("format", 1)
        except Exception as error:  # torch raises many kinds for a file that is none of its own
            raise ValueError(
                f"{self.checkpoint} cannot be read as a checkpoint: start the run anew."
            ) from error
        self._check_format(number)
        result = None
        if saved["result"] is not None:
            kind, sentence = saved["result"]
            result = Result(Kind(kind), sentence)
        history = History.from_state_dict(saved["history"])
        return Checkpoint(saved["stepper"], history, saved["seconds"], result)

    def _check_format(self, number: object) -> None:
        if number == FORMAT:
            return
        writer = "deeplin 0.1.0 before folders carried a number" if number == 1 else "another one"
        remedy = f", or continue it with commit {_LAST_OF_FORMAT_1}" if number == 1 else ""
        raise ValueError(
            f"{self.path} was written in format {number} of run folders ({writer}); this deeplin "
            f"reads format {FORMAT}: start the run anew in another folder{remedy}."
        )

    def _replace(self, path: Path, write: Callable[[BinaryIO], object]) -> None:
        # A reader, or a run killed here, sees the old file or the new one, never half of one.
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


class Checkpointer:
    """Saves stepper and history every `seconds` seconds, and when told to."""

    def __init__(self, folder: RunFolder, stepper: Stepper, history: History, seconds: float):
        self.folder, self.stepper, self.history = folder, stepper, history
        self.interval, self.elapsed_before = seconds, 0.0
        self._start = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, that before a resumption included."""
        return self.elapsed_before + time.monotonic() - self._start

    def save(self, result: Result | None = None) -> None:
        state = self.stepper.state_dict()
        self.folder.save_checkpoint(Checkpoint(state, self.history, self.seconds, result))
        self._last = time.monotonic()

    def on_record(self, record: Record) -> None:
        pass

    def on_step(self, stepper: Stepper) -> None:
        if time.monotonic() - self._last >= self.interval:
            self.save()
