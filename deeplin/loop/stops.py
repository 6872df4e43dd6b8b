"""Judges of a history that say when a run has seen enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deeplin.loop.records import History
from deeplin.loop.results import Kind, Result

__all__ = ["GradientNormBelow", "LossBelow", "SingularValueBelow", "Stagnation", "Stop"]

Stop = Callable[[History], "Result | None"]


@dataclass(frozen=True)
class GradientNormBelow:
    """Stop once the observable `gradient_norm` is at most `tol` on every trajectory."""

    tol: float

    def __call__(self, history: History) -> Result | None:
        record = history.records[-1]
        norm = float(record.observed["gradient_norm"].max())
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
        loss = float(record.observed["loss"].max())
        if loss > self.tol:
            return None
        return Result(
            Kind.CONVERGED, f"converged at t = {record.t:.6g}: loss {loss:.6g} <= {self.tol:.6g}."
        )


@dataclass(frozen=True)
class SingularValueBelow:
    """Stop once σ_r, the last of `singular_values`, is at most `tol` on some trajectory."""

    tol: float

    def __call__(self, history: History) -> Result | None:
        record = history.records[-1]
        smallest = float(record.observed["singular_values"][..., -1].min())
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

    The loss has fallen by less than `rtol` of itself and the gradient norm has stayed within a
    factor 2. A flow that leaves a saddle at a rate above log 2/duration is not at rest by this.
    """

    duration: float
    rtol: float = 1e-15

    def __call__(self, history: History) -> Result | None:
        now = history.records[-1].t
        if history.records[0].t > now - self.duration:
            return None
        start = next(
            i
            for i in range(len(history.records) - 1, -1, -1)
            if history.records[i].t <= now - self.duration
        )
        recent = History(history.records[start:])
        loss, norm = recent.column("loss"), recent.column("gradient_norm")
        fell = (loss[0] - loss[-1]) > self.rtol * loss[0].abs()
        moved = norm.amax(0) > 2 * norm.amin(0)
        if bool((fell | moved).any()):
            return None
        return Result(
            Kind.STAGNATED,
            f"stagnated at t = {now:.6g}: loss and gradient norm at rest for a flow time of "
            f"{self.duration:.3g}, at gradient norm {float(norm[-1].max()):.2g}.",
        )
