"""The loop: step, observe, stop, report. Every method of deeplin runs in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from deeplin.flows.contract import State
from deeplin.integrators.steppers import Stepper
from deeplin.loop.records import Every, History, Record
from deeplin.loop.results import Kind, Result
from deeplin.loop.stops import Stop

__all__ = ["Listener", "Observe", "drive"]

Observe = Callable[[float, State], Mapping[str, Tensor]]


class Listener(Protocol):
    """Something that follows a run: a log, a progress bar, a writer of checkpoints."""

    def on_record(self, record: Record) -> None: ...

    def on_step(self, stepper: Stepper) -> None: ...


def drive(
    stepper: Stepper,
    t1: float,
    *,
    record_at: Every | Sequence[float] = (),
    observe: Observe | None = None,
    stop: Sequence[Stop] = (),
    max_steps: int | None = None,
    interrupt: Callable[[], str | None] = lambda: None,
    listeners: Sequence[Listener] = (),
    history: History | None = None,
) -> tuple[Result, History]:
    """Advance a stepper to the flow time t1, or until something says stop.

    Records are made at the start, at the end and at `record_at`: every so many stretches, or at
    times that the stepper meets. `observe(t, state)` gives their values; `stop` functions judge the
    history after each; `interrupt` is asked after each stretch. At most `max_steps` steps are taken
    in all. `history` is that of a run being resumed. A state that is no longer finite ends the run
    as "diverged".
    """
    history = History() if history is None else history
    history.records = [record for record in history.records if record.scheduled]
    times = [] if isinstance(record_at, Every) else sorted(t for t in record_at if 0 < t < t1)
    tolerance = 1e-12 * (abs(t1) if math.isfinite(t1) else 1.0)

    def make_record(scheduled: bool = True) -> Result | None:
        if all(bool(torch.isfinite(part).all()) for part in stepper.state):
            try:
                values = dict(observe(stepper.t, stepper.state)) if observe else {}
            except torch.linalg.LinAlgError:  # an SVD of layers whose product is not finite
                values = {"observed": torch.tensor(math.nan)}
            observed = {name: value.detach().cpu() for name, value in values.items()}
            if all(bool(torch.isfinite(value).all()) for value in observed.values()):
                record = Record(stepper.step, stepper.t, stepper.dt, observed, scheduled)
                history.records.append(record)
                for listener in listeners:
                    listener.on_record(record)
                return next((r for r in (judge(history) for judge in stop) if r), None)
        return Result(
            Kind.DIVERGED,
            f"diverged before t = {stepper.t:.6g} (step {stepper.step}): the state is no longer "
            f"finite with dt = {stepper.dt:.3g}; take a smaller dt.",
        )

    def limit() -> Result | None:
        fault = stepper.fault()
        if fault is not None:
            return Result(Kind.FAULT, f"stopped at t = {stepper.t:.6g}: {fault}")
        if stepper.t >= t1 - tolerance:
            return Result(Kind.TIME, f"reached the end time t1 = {t1:.6g}.")
        if max_steps is not None and stepper.step >= max_steps:
            return Result(
                Kind.STEPS, f"took max_steps = {max_steps} steps, to t = {stepper.t:.6g}."
            )
        reason = interrupt()
        if reason is not None:
            return Result(Kind.INTERRUPTED, f"interrupted at t = {stepper.t:.6g} by {reason}.")
        return None

    result = None
    if not history.records:
        result = make_record()
    while result is None:
        result = limit()
        if result is not None:
            break
        target = next((t for t in times if t > stepper.t + tolerance), t1)
        before = stepper.stretches
        stepper.advance(target, max_steps)
        due = (
            stepper.stretches > before and record_at.includes(stepper.stretches)
            if isinstance(record_at, Every)
            else target < t1 and stepper.t >= target - tolerance
        )
        if due:
            result = make_record()
        if result is None or result.kind != Kind.DIVERGED:
            for listener in listeners:
                listener.on_step(stepper)
    if result.kind != Kind.DIVERGED:
        last = history.records[-1]
        if (last.t, last.step) != (stepper.t, stepper.step):
            final = make_record(scheduled=False)
            result = final if final is not None and final.kind == Kind.DIVERGED else result
    remark = stepper.remark()
    if remark is not None and result.kind != Kind.DIVERGED:
        result = replace(result, sentence=f"{result.sentence} {remark}")
    return result, history
