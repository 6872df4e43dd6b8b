"""The TensorBoard log of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from tensorboard.compat.proto.summary_pb2 import (
    Summary,  # pyright: ignore[reportAttributeAccessIssue]
)
from torch import Tensor
from torch.utils.tensorboard.summary import custom_scalars, hparams, image, scalar, text

from deeplin.integrators.steppers import Stepper
from deeplin.loop import History, Record
from deeplin.prediction import Prediction
from deeplin.runner.drawing import predicted_decay
from deeplin.runner.events import EventFile
from deeplin.runner.folder import RunFolder
from deeplin.runner.observables import KEPT_ASIDE

__all__ = ["TIME_UNIT", "TensorBoardLog"]

# TensorBoard's axes are integers: flow time is logged in thousandths.
TIME_UNIT = 1e-3
_LATEST = 2.0**62  # and of 64 bits
_LOG10 = (
    *("excess_loss", "distance_to_limit", "gradient_norm"),
    *("balancedness_gap", "largest_drift", "relative_error"),
)
_GAPS = "drift_gap_"  # of each pair of neighbouring layers: shown is the largest
# The first page has what a run is about, the pages of `more_by_…` all else.
_FIRST = ("loss", *(f"log10_{name}" for name in _LOG10[:3]))
_ERRORS = ("train_rmse", "test_rmse", "log10_relative_error")


class TensorBoardLog:
    """Scalars against step and flow time, figures, config and hyperparameters of one run.

    Small positive quantities are logged as their log10: TensorBoard stores float32 and has linear
    axes by default. With repeats a scalar is their median, and margin charts show their range.
    With `errors` a chart has the errors on known entries and on those held out beside each other.
    The events of an earlier part of the run are replaced by those replayed from `history`, so that
    nothing stands there twice.
    """

    def __init__(
        self,
        folder: RunFolder,
        history: History,
        *,
        repeats: int,
        singular_values: int,
        errors: bool = False,
    ):
        self.folder, self.path = folder, folder.new_events()
        with folder.writing(self.path):
            self.file = EventFile(self.path)
        self.repeats, self.singular_values, self.errors = repeats, singular_values, errors
        self._add(custom_scalars(self._layout()))
        for record in history.records:
            self.on_record(record)

    def _add(self, summary: Summary, step: int = 0) -> None:
        with self.folder.writing(self.path):
            self.file.add(summary, step)

    def on_record(self, record: Record) -> None:
        values: dict[str, tuple[float, ...]] = {"dt": (record.dt,)}
        gaps = [value for name, value in record.observed.items() if name.startswith(_GAPS)]
        largest = {"drift_largest_gap": torch.stack(gaps).amax(0)} if gaps else {}
        for name, value in (record.observed | largest).items():
            if name.startswith(_GAPS) or name == "singular_values" or name in KEPT_ASIDE:
                continue
            if name in _LOG10 or name.startswith(("drift_", "tie_")):
                # An exact 0 has no logarithm; what is conserved is known to round-off only.
                least = 1e-300 if name in _LOG10[:3] else 1e-18
                logs = (math.log10(max(x, least)) for x in _spread(value.abs()))
                values[f"log10_{name}"] = tuple(logs)
            else:
                values[name] = _spread(value)
        spectrum = record.observed["singular_values"][..., : self.singular_values]
        each = enumerate(spectrum.unbind(-1), start=1)
        sigmas = {f"{i:02d}": _spread(value) for i, value in each}
        seen: list[tuple[str, str, float]] = []
        shown = (*_FIRST, *_ERRORS)
        first = {name: value for name, value in values.items() if name in shown}
        more = {name: value for name, value in values.items() if name not in shown}
        for prefix, named in (("", first), ("more_", more), ("singular_values_", sigmas)):
            for name, (median, *ends) in named.items():
                seen.append((prefix, name, median))
                for kind, end in zip(("min", "max"), ends, strict=False):
                    seen.append((f"range_{prefix}", f"{name}/{kind}", end))
        for axis, position in _positions(record):
            # One event for all of them, many times cheaper than one for each.
            scalars = [
                Summary.Value(tag=f"{prefix}by_{axis}/{name}", simple_value=value)
                for prefix, name, value in seen
            ]
            self._add(Summary(value=scalars), position)

    def on_step(self, stepper: Stepper) -> None:
        pass

    def predicted(self, history: History, prediction: Prediction) -> None:
        """The predicted loss and decay, which *Custom scalars* has beside the measured ones."""
        records = history.records
        if not records:
            return
        curves: dict[str, dict[float, float]] = {}
        if prediction.loss is not None:
            curves["loss"] = {record.t: prediction.loss for record in (records[0], records[-1])}
        if prediction.rate and "distance_to_limit" in records[0].observed:
            distance = history.column("distance_to_limit").double()
            median = distance.reshape(len(records), -1).median(1).values.numpy()
            shown, line = predicted_decay(history.t.numpy(), median, prediction.rate)
            with np.errstate(divide="ignore"):
                decay = np.maximum(np.log10(line), -300.0)
            named = zip(shown.tolist(), decay.tolist(), strict=True)
            curves["log10_distance_to_limit"] = dict(named)
        for name, curve in curves.items():
            for record in records:
                if record.t in curve:
                    for axis, position in _positions(record):
                        self._add(scalar(f"predicted_by_{axis}/{name}", curve[record.t]), position)

    def _layout(self) -> dict[str, object]:
        """Loss, distance, gradient norm with what is predicted; with repeats their range, too."""
        sigmas = [f"{i:02d}" for i in range(1, self.singular_values + 1)]
        layout: dict[str, object] = {}
        for axis in ("flow_time", "step"):
            by = f"by_{axis}"
            charts: dict[str, object] = {
                name: ["Multiline", [f"{by}/{name}$", f"predicted_{by}/{name}$"]]
                for name in ("loss", "log10_distance_to_limit", "log10_gradient_norm")
            }
            if self.errors:
                charts["error"] = ["Multiline", [f"{by}/{name}$" for name in _ERRORS[:2]]]
            if self.repeats == 1:
                charts["singular values"] = ["Multiline", [f"singular_values_{by}/.*"]]
            else:
                groups = {by: _FIRST, f"singular_values_{by}": sigmas}
                charts |= {
                    f"range of {name if group == by else f'singular value {name}'}": [
                        "Margin",
                        [f"{group}/{name}", *(f"range_{group}/{name}/{k}" for k in ("min", "max"))],
                    ]
                    for group, members in groups.items()
                    for name in members
                }
            layout[f"by {axis.replace('_', ' ')}"] = charts
        return layout

    def text(self, tag: str, content: str, language: str = "") -> None:
        self._add(text(tag, f"```{language}\n{content}\n```"))

    def image(self, name: str, pixels: np.ndarray) -> None:
        self._add(image(f"figures/{name}", pixels, dataformats="HWC"))

    def hparams(self, parameters: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """Hyperparameters and final metrics, in this run's own file."""
        plain = {
            k: v if isinstance(v, (bool, int, float, str)) else str(v)
            for k, v in parameters.items()
        }
        final = {f"final/{name}": float(value) for name, value in metrics.items()}
        for summary in hparams(plain, final):
            self._add(summary)
        for name, value in final.items():
            self._add(scalar(name, value))

    def close(self) -> None:
        with self.folder.writing(self.path):
            self.file.close()


def _positions(record: Record) -> tuple[tuple[str, int], ...]:
    """Where a record stands on each axis."""
    flow_time = round(min(record.t / TIME_UNIT, _LATEST))
    return ("step", record.step), ("flow_time", flow_time)


def _spread(value: Tensor) -> tuple[float, ...]:
    """The median over repeats and, where there are several, the range."""
    if value.numel() == 1:
        return (float(value),)
    value = value.double()
    return float(value.median()), float(value.min()), float(value.max())
