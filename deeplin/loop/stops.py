"""Judges of a history that say when a run has seen enough."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deeplin.loop.records import History
from deeplin.loop.results import Kind, Result

__all__ = [
    "GradientNormBelow",
    "LossBelow",
    "SingularValueBelow",
    "Stagnation",
    "Stop",
    "Unimproved",
    "first_of",
]

Stop = Callable[[History], "Result | None"]


_NORM = "gradient_norm"
# Records and steps that a run at rest must have stayed there.
_AT_REST = 8


@dataclass(frozen=True)
class GradientNormBelow:
    """Stop once the observable `gradient_norm` is at most `tol` on every trajectory."""

    tol: float

    def __post_init__(self) -> None:
        _check(self, self.tol)

    def __call__(self, history: History) -> Result | None:
        record = history.records[-1]
        norm = max(history.living(_seen(self, history, _NORM)).tolist(), default=0.0)
        if norm > self.tol:
            return None
        return Result(
            Kind.CONVERGED,
            f"converged at t = {record.t:.6g}: gradient norm {norm:.2g} <= {self.tol:.2g}.",
        )


@dataclass(frozen=True)
class LossBelow:
    """Stop once the observable `loss` is at most `tol` on every trajectory."""

    tol: float

    def __call__(self, history: History) -> Result | None:
        record = history.records[-1]
        loss = max(history.living(_seen(self, history, "loss")).tolist(), default=-math.inf)
        if loss > self.tol:
            return None
        return Result(
            Kind.CONVERGED, f"converged at t = {record.t:.6g}: loss {loss:.6g} <= {self.tol:.6g}."
        )


@dataclass(frozen=True)
class SingularValueBelow:
    """Stop once σ_r, the last of `singular_values`, is at most `tol` on some trajectory."""

    tol: float

    def __post_init__(self) -> None:
        _check(self, self.tol)

    def __call__(self, history: History) -> Result | None:
        record = history.records[-1]
        values = _seen(self, history, "singular_values")
        smallest = min(history.living(values[..., -1]).tolist(), default=math.inf)
        if smallest > self.tol:
            return None
        return Result(
            Kind.NEAR_LOWER_RANK,
            f"near a lower rank at t = {record.t:.6g}: the smallest singular value "
            f"{smallest:.2g} <= {self.tol:.2g}.",
        )


@dataclass(frozen=True)
class Stagnation:
    """Stop when nothing has happened for a flow time `duration`: the loss at rest to round-off.

    In all records of that time, eight at least and of eight different steps, the loss has stayed
    within `rtol` of itself and the gradient norm within a factor 2. A flow that leaves a saddle at
    a rate above log 2/duration is not at rest by this.
    """

    duration: float
    rtol: float = 1e-15

    def __post_init__(self) -> None:
        _check(self, self.duration)

    def __call__(self, history: History) -> Result | None:
        records = history.records
        now, steps = records[-1].t, len({record.step for record in records[-_AT_REST:]})
        if records[0].t > now - self.duration or steps < _AT_REST:
            return None
        after, last = _seen(self, history, "loss"), _seen(self, history, _NORM)
        start = bisect.bisect_right(records, now - self.duration, key=lambda record: record.t) - 1
        recent = History(records[min(start, len(records) - _AT_REST) :])
        before, first = (recent.records[0].observed[name] for name in ("loss", _NORM))
        apart = (after - before).abs() > self.rtol * torch.maximum(before.abs(), after.abs())
        if bool((apart | (first > 2 * last) | (last > 2 * first)).any()):
            return None  # whatever lies between
        loss, norm = recent.column("loss"), recent.column(_NORM)
        moved = loss.amax(0) - loss.amin(0) > self.rtol * loss.abs().amax(0)
        moved = moved | (norm.amax(0) > 2 * norm.amin(0))
        if bool(moved.any()):
            return None
        return Result(
            Kind.STAGNATED,
            f"stagnated at t = {now:.6g}: loss and gradient norm at rest for a flow time of "
            f"{now - recent.records[0].t:.3g}, at gradient norm {float(norm[-1].max()):.2g}.",
        )


@dataclass(frozen=True)
class Unimproved:
    """Stop once an observable has not been better for so many records than it was before them.

    - `least`: whether small values are good
    """

    name: str
    records: int
    least: bool = True

    def __post_init__(self) -> None:
        if self.records < 1:
            raise ValueError(f"Unimproved(...) must wait 1 record or more; got {self.records}.")

    def __call__(self, history: History) -> Result | None:
        _seen(self, history, self.name)
        values = history.column(self.name).flatten()
        best = int(values.argmin() if self.least else values.argmax())
        if len(values) - 1 - best < self.records:
            return None
        now, then = history.records[-1], history.records[best]
        return Result(
            Kind.PAST_BEST,
            f"stopped early at t = {now.t:.6g}: {self.name} was best, {float(values[best]):.6g}, "
            f"at t = {then.t:.6g} (step {then.step}), {len(values) - 1 - best} records ago.",
        )


def first_of(results: Sequence[object]) -> Result | None:
    """The first result of those that stops return.

    Raises: TypeError for what is neither a Result nor None.
    """
    for result in results:
        if result is None or result is False:
            continue
        if not isinstance(result, Result):
            raise TypeError(
                "a stop must return None, or why it stops: deeplin.loop.Result(Kind.CONVERGED, "
                f"'...'); got {result!r}."
            )
        return result
    return None


def _check(stop: Stop, number: float) -> None:
    if not 0 <= number < math.inf:
        raise ValueError(f"{type(stop).__name__}(...) must be a finite number >= 0; got {number}.")


def _seen(stop: Stop, history: History, name: str) -> Tensor:
    """The last value of an observable that a stop needs."""
    observed = history.records[-1].observed
    if name not in observed:
        raise ValueError(
            f"{type(stop).__name__} judges the observable {name!r}; observed is "
            f"{', '.join(observed) or 'nothing'}: give observe=lambda t, y: {{{name!r}: ...}}."
        )
    return observed[name]
