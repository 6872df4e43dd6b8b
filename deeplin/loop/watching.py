"""What is seen of a stepper: its records, and which trajectories of its batch are lost."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deeplin.flows.contract import State
from deeplin.integrators.adaptive import AdaptiveStepper
from deeplin.integrators.batches import finite_trajectories
from deeplin.integrators.steppers import Stepper
from deeplin.loop.records import History, Lost, Record
from deeplin.loop.results import Kind, Result

__all__ = ["Observe", "RisenLoss", "Watch"]

Observe = Callable[[float, State], Mapping[str, Tensor]]


@dataclass(frozen=True)
class RisenLoss:
    """Says of which trajectories of a descent the loss has risen far above: those have diverged.

    Above L + factor·max(|L|, |at_zero|), L the loss of the trajectory's start and `at_zero` that
    of W = 0. A gradient flow never raises it; noise of mini-batches and steps that are somewhat too
    long do, and come back, from less than a thousand times as much.
    """

    at_zero: float
    factor: float = 1e3

    def __call__(self, first: Tensor, now: Tensor) -> Tensor:
        scale = first.abs()
        if math.isfinite(self.at_zero):
            scale = scale.clamp(min=abs(self.at_zero))
        return (now > first + self.factor * scale) & (scale > 0)


class Watch:
    """Sees a stepper: makes its records, and takes trajectories out of its batch that are lost.

    Lost is a trajectory whose state or W is no longer finite, or what is observed of it and was
    finite at the start, one of which `risen` says so, and one of which no step can be taken. From
    then on it is shown as it was at the last record, and the others go on.
    """

    def __init__(
        self, stepper: Stepper, history: History, observe: Observe | None, risen: RisenLoss | None
    ):
        self.stepper, self.history, self.observe, self.risen = stepper, history, observe, risen
        self.count = stepper.batch.numel()

    @property
    def all_lost(self) -> bool:
        return bool(self.history.lost) and len(self.history.lost) == self.count

    def record(self, scheduled: bool = True, losing: bool = True) -> Record | None:
        """A record of what is seen now, appended to the history; None where all are lost.

        With `losing=False` none is made either where a trajectory would be lost by it.
        Raises: ValueError where what is observed of the start is not finite.
        """
        stepper, dims = self.stepper, len(self.stepper.batch)
        state = stepper.state
        bad = ~finite_trajectories(state, dims)
        reasons = self._named(bad, self._not_finite())
        while True:
            if reasons and (not losing or not self._lose(reasons)):
                return None
            state = stepper.state
            try:
                seen = dict(self.observe(stepper.t, state)) if self.observe else {}
            except torch.linalg.LinAlgError:  # a factorisation of a W that is not finite
                if not self.history.records:
                    raise ValueError(_of_the_start("W")) from None
                W = stepper.end_to_end()
                bad = torch.ones_like(bad) if W is None else ~finite_trajectories((W,), dims)
                bad = bad if self._named(bad, "") else torch.ones_like(bad)
                reasons = self._named(bad, self._not_finite())
                continue
            seen = {name: value.detach().cpu() for name, value in seen.items()}
            reasons = self._judged(seen)
            if not reasons:
                break
        record = Record(stepper.step, stepper.t, stepper.dt, seen, scheduled)
        self.history.records.append(record)
        if scheduled and dims:
            self.history.shown = tuple(part.clone() for part in state)
        return record

    def lose(self, reasons: Mapping[int, str], kind: Kind) -> None:
        """Take trajectories out, by their numbers, with a sentence why for each."""
        self._lose(reasons, kind)

    def lose_failing(self, target: float) -> None:
        """Take those out of which the step cannot be taken that has just raised."""
        self._lose(self._named(self.stepper.failing(target), self._not_finite()))

    def ended(self, result: Result) -> Result:
        """A result with where it was, and with the trajectories that were lost on the way."""
        stepper, lost = self.stepper, self.history.lost
        result = replace(result, step=stepper.step, t=stepper.t)
        if not lost:
            return result
        whole = self.all_lost
        kind = Kind.DIVERGED if any(w.kind is Kind.DIVERGED for w in lost.values()) else Kind.FAULT
        told = self._told()
        others = "" if whole else f" The others: {result.sentence}"
        return replace(
            result,
            kind=result.kind if result.kind is Kind.INTERRUPTED and not whole else kind,
            sentence=told + others,
            lost=tuple(sorted(lost)) if self.stepper.batch else (),
            rest=None if whole else result.kind,
        )

    # -- inside --------------------------------------------------------------------------------

    def _lost(self) -> Tensor:
        mask = torch.zeros(self.count, dtype=torch.bool)
        mask[list(self.history.lost)] = True
        return mask.reshape(self.stepper.batch)

    def _named(self, bad: Tensor, sentence: str) -> dict[int, str]:
        numbers = bad.flatten().nonzero().flatten().tolist()
        return {i: sentence for i in numbers if i not in self.history.lost}

    def _not_finite(self) -> str:
        return f"the state is no longer finite with {self._steps()}"

    def _steps(self) -> str:
        smaller = "rtol" if isinstance(self.stepper, AdaptiveStepper) else "dt"
        return f"dt = {self.stepper.dt:.3g}; take a smaller {smaller}."

    def _lose(self, reasons: Mapping[int, str], kind: Kind = Kind.DIVERGED) -> bool:
        """Whether some are left."""
        step, t = self.stepper.step, self.stepper.t
        self.history.lost |= {i: Lost(step, t, kind, why) for i, why in reasons.items()}
        if self.all_lost:
            return False
        assert self.history.shown is not None
        lost = self._lost().to(self.history.shown[0].device)
        self.stepper.freeze(lost, self.history.shown)
        return True

    def _judged(self, seen: Mapping[str, Tensor]) -> dict[int, str]:
        """Why, for those of which what is seen is no longer finite, or the loss has risen."""
        batch, records = self.stepper.batch, self.history.records
        for name, value in seen.items():
            # The quick way to see that all are.
            if cmath.isfinite(value.item() if value.numel() == 1 else value.sum().item()):
                continue
            finite = torch.isfinite(value)
            if bool(finite.all()):
                continue
            if not records:
                if not bool(finite.any()):
                    raise ValueError(_of_the_start(name))
                continue
            gone = torch.isfinite(records[0].observed[name]) & ~finite
            if value.shape[: len(batch)] == batch:
                gone = gone.reshape(self.count, -1).any(-1)
            else:
                gone = gone.any().expand(self.count)
            if reasons := self._named(gone, self._not_finite()):
                return reasons
        if self.risen is None or not records or "loss" not in seen:
            return {}
        first, now = records[0].observed["loss"], seen["loss"]
        return {
            i: f"its loss rose from {float(first.flatten()[i]):.4g} to "
            f"{float(now.flatten()[i]):.4g} with {self._steps()}"
            for i in self._named(self.risen(first, now), "")
        }

    def _told(self) -> str:
        """Which trajectories were lost, when and why."""
        lost = self.history.lost
        first = min(lost, key=lambda i: (lost[i].t, i))
        w = lost[first]
        when = f"t = {w.t:.6g}"
        what = f"diverged before {when} (step {w.step})"
        if w.kind is Kind.FAULT:
            what = f"stopped at {when}"
        if not self.stepper.batch:
            return f"{what}: {w.sentence}"
        numbers = sorted(i + 1 for i in lost)
        if len(numbers) == 1:
            return f"trajectory {numbers[0]} of {self.count} {what}: {w.sentence}"
        some = ", ".join(map(str, numbers[:10])) + (", ..." if numbers[10:] else "")
        return (
            f"{len(numbers)} of {self.count} trajectories were lost, {some}; the first, "
            f"{first + 1}, {what}: {w.sentence}"
        )


def _of_the_start(name: str) -> str:
    return f"what is observed of the start must be finite; {name} is not: take another start."
