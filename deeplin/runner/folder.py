"""What a run leaves behind: its folder, checkpoints, TensorBoard events, provenance, signals."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.image import imsave
from tensorboard.compat.proto.summary_pb2 import (
    Summary,  # pyright: ignore[reportAttributeAccessIssue]
)
from torch import Tensor
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter
from tqdm import tqdm

from deeplin.integrators.steppers import Stepper
from deeplin.loop import History, Record, Result

__all__ = ["Checkpointer", "Interruption", "Progress", "RunFolder", "TensorBoardLog", "provenance"]

# TensorBoard's axes are integers: flow time is logged in thousandths.
TIME_UNIT = 1e-3
_LOG10 = ("excess_loss", "distance_to_limit", "gradient_norm", "balancedness_gap")


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

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_image(self, name: str, image: np.ndarray) -> None:
        """Save pixels (height, width, 3) as figures/<name>.png."""
        path = self.path / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        self._replace(path, lambda file: imsave(file, image, format="png"))

    def save_checkpoint(self, content: Mapping[str, Any]) -> None:
        self._replace(self.checkpoint, lambda file: torch.save(dict(content), file))

    def load_checkpoint(self, device: str = "cpu") -> dict[str, Any]:
        """The last checkpoint. Raises ValueError for a file that cannot be read."""
        try:
            return torch.load(self.checkpoint, weights_only=True, map_location=device)
        except Exception as error:  # torch raises many kinds for a file that is none of its own
            raise ValueError(
                f"{self.checkpoint} cannot be read as a checkpoint: start the run anew."
            ) from error

    def _replace(self, path: Path, write: Callable[[Any], object]) -> None:
        # A reader, or a run killed here, sees the old file or the new one, never half of one.
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


def provenance() -> dict[str, Any]:
    """Versions, commit, machine and command of this process."""
    packages = ("deeplin", "torch", "geoopt", "hydra-core", "tensorboard", "numpy", "scikit-learn")
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": {"python": platform.python_version(), **versions},
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "threads": torch.get_num_threads(),
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _commit() -> str | None:
    """The commit of the checkout that the package lies in, marked if it has local changes."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


class Interruption:
    """A context in which Ctrl-C and SIGTERM ask the run to stop after its current step.

    A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, self._previous[signal.SIGINT])

    def __call__(self) -> str | None:
        """What interrupted the run, or None: the `interrupt` of `deeplin.loop.drive`."""
        return None if self.signal is None else self.signal.name


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
        self.folder.save_checkpoint(
            {
                "stepper": self.stepper.state_dict(),
                "history": self.history.state_dict(),
                "seconds": self.seconds,
                "result": None if result is None else [result.kind, result.sentence],
            }
        )
        self._last = time.monotonic()

    def on_record(self, record: Record) -> None:
        pass

    def on_step(self, stepper: Stepper) -> None:
        if time.monotonic() - self._last >= self.interval:
            self.save()


class Progress:
    """A bar over flow time with loss, distance and remaining time; silent without a terminal."""

    def __init__(self, t1: float, t: float = 0.0):
        self._bar = tqdm(
            total=t1,
            initial=t,
            disable=None,
            leave=False,
            bar_format="{l_bar}{bar}| t = {n:.4g}/{total:.4g} [{elapsed}<{remaining}{postfix}]",
        )

    def on_record(self, record: Record) -> None:
        self._bar.set_postfix_str(
            f"loss {float(record.observed['loss'].median()):.6g}, "
            f"distance {float(record.observed['distance_to_limit'].median()):.2e}",
            refresh=False,
        )
        self._bar.update(min(record.t, self._bar.total or record.t) - self._bar.n)

    def on_step(self, stepper: Stepper) -> None:
        pass

    def close(self) -> None:
        self._bar.close()


class TensorBoardLog:
    """Scalars against step and flow time, figures, config and hyperparameters of one run.

    Small positive quantities are logged as their log10: TensorBoard stores float32 and has linear
    axes by default. With repeats a scalar is their median, and margin charts show their range.
    The events of an earlier part of the run are replaced by those replayed from `history`, so that
    nothing stands there twice.
    """

    def __init__(self, folder: RunFolder, history: History, *, repeats: int, singular_values: int):
        for old in folder.path.glob("events.out.tfevents.*"):
            old.unlink()
        self.writer = SummaryWriter(str(folder.path), flush_secs=5)
        self.repeats, self.singular_values = repeats, singular_values
        self.writer.add_custom_scalars(self._layout())
        for record in history.records:
            self.on_record(record)

    def on_record(self, record: Record) -> None:
        values: dict[str, Tensor] = {"dt": torch.tensor(record.dt)}
        for name, value in record.observed.items():
            if name in ("singular_values", "nearest_modes", "left", "right"):
                continue
            if name in _LOG10 or name.startswith(("drift_", "tie_")):
                # An exact 0 has no logarithm; what is conserved is known to round-off only.
                least = 1e-300 if name in _LOG10[:3] else 1e-18
                name, value = f"log10_{name}", value.abs().clamp(min=least).log10()
            values[name] = value
        spectrum = record.observed["singular_values"][..., : self.singular_values]
        sigmas = {f"{i:02d}": value for i, value in enumerate(spectrum.unbind(-1), start=1)}
        seen: list[tuple[str, str, float]] = []
        for prefix, named in (("", values), ("singular_values_", sigmas)):
            for name, value in named.items():
                median, *ends = _spread(value)
                seen.append((prefix, name, median))
                for kind, end in zip(("min", "max"), ends, strict=False):
                    seen.append((f"range_{prefix}", f"{name}/{kind}", end))
        assert self.writer.file_writer is not None
        for axis, position in (("step", record.step), ("flow_time", round(record.t / TIME_UNIT))):
            # One event for all of them, many times cheaper than `add_scalar` for each.
            scalars = [
                Summary.Value(tag=f"{prefix}by_{axis}/{name}", simple_value=value)
                for prefix, name, value in seen
            ]
            self.writer.file_writer.add_summary(Summary(value=scalars), position)

    def on_step(self, stepper: Stepper) -> None:
        pass

    def _layout(self) -> dict[str, Any]:
        names = ["loss", *(f"log10_{name}" for name in _LOG10)]
        sigmas = [f"{i:02d}" for i in range(1, self.singular_values + 1)]
        layout: dict[str, Any] = {}
        for axis in ("flow_time", "step"):
            groups = {f"by_{axis}": names, f"singular_values_by_{axis}": sigmas}
            if self.repeats == 1:
                charts = {group: ["Multiline", [f"{group}/.*"]] for group in list(groups)[1:]}
            else:
                charts = {
                    f"{name if group.startswith('by') else f'singular value {name}'}": [
                        "Margin",
                        [f"{group}/{name}", *(f"range_{group}/{name}/{k}" for k in ("min", "max"))],
                    ]
                    for group, members in groups.items()
                    for name in members
                }
            layout[f"by {axis.replace('_', ' ')}"] = charts
        return layout

    def text(self, tag: str, text: str, language: str = "") -> None:
        self.writer.add_text(tag, f"```{language}\n{text}\n```")

    def image(self, name: str, image: np.ndarray) -> None:
        self.writer.add_image(f"figures/{name}", image, dataformats="HWC")

    def hparams(self, parameters: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Hyperparameters and final metrics; in this run's own file, unlike `add_hparams`."""
        file_writer = self.writer.file_writer
        assert file_writer is not None
        plain = {
            k: v if isinstance(v, (bool, int, float, str)) else str(v)
            for k, v in parameters.items()
        }
        final = {f"final/{name}": float(value) for name, value in metrics.items()}
        for summary in hparams(plain, final):
            file_writer.add_summary(summary)
        for name, value in final.items():
            self.writer.add_scalar(name, value, 0)

    def close(self) -> None:
        self.writer.close()


def _spread(value: Tensor) -> tuple[float, ...]:
    """The median over repeats and, where there are several, the range."""
    value = value.double()
    if value.numel() == 1:
        return (float(value),)
    return float(value.median()), float(value.min()), float(value.max())
