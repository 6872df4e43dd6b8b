"""The loop: step, observe, stop, report. Every method of deeplin runs in it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from deeplin.integrators.steppers import Stepper
from deeplin.loop.records import Every, History, Record
from deeplin.loop.results import Kind, Result
from deeplin.loop.stops import Stop, first_of
from deeplin.loop.watching import Observe, RisenLoss, Watch

__all__ = ["Listener", "Observe", "drive"]

# Seconds after which a stretch of many steps is broken off to look around.
_PATIENCE = 0.25
# Of a run whose last trajectory was lost; `Watch.ended` says which, when and why.
_GONE = Result(Kind.DIVERGED, "")


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
    risen: RisenLoss | None = None,
    max_steps: int | None = None,
    interrupt: Callable[[], str | None] = lambda: None,
    listeners: Sequence[Listener] = (),
    history: History | None = None,
) -> tuple[Result, History]:
    """Advance a stepper to the flow time t1, or until something says stop.

    Records are made at the start, at the end and at `record_at`: every so many stretches, or at
    times that the stepper meets. `observe(t, state)` gives their values; `stop` functions judge the
    history after each. `interrupt` is asked after steps, a few times a second where they are
    shorter. At most `max_steps` steps are taken in all. `history` is that of a run being resumed;
    what the stops and limits given say of it holds. A trajectory that is no longer finite, or of
    which `risen` says so, has diverged: in a batch the others go on, and the result says which.

    Raises: ValueError where what is observed of the start is not finite, or a stop needs what is
    not observed; TypeError for a stop that returns something else than a Result or None.
    """
    history = History() if history is None else history
    history.records = [record for record in history.records if record.scheduled]
    watch = Watch(stepper, history, observe, risen)
    times = [] if isinstance(record_at, Every) else sorted(t for t in record_at if 0 < t < t1)
    tolerance = 1e-12 * (abs(t1) if math.isfinite(t1) else 1.0)
    last_look = time.monotonic()

    def pause() -> bool:
        nonlocal last_look
        now = time.monotonic()
        if now - last_look < _PATIENCE:
            return False
        last_look = now
        return True

    def judged() -> Result | None:
        return first_of([judge(history) for judge in stop])

    def make_record() -> Result | None:
        record = watch.record()
        if record is None:
            return _GONE
        for listener in listeners:
            listener.on_record(record)
        return judged()

    def limit() -> Result | None:
        if faults := stepper.faults():
            living = set(range(watch.count)) - set(history.lost)
            stuck = {i: why for i, why in faults.items() if i in living}
            if stuck and stuck.keys() == living:
                why = stuck[min(stuck)]
                return Result(Kind.FAULT, f"stopped at t = {stepper.t:.6g}: {why}")
            if stuck:
                watch.lose(stuck, Kind.FAULT)
        if stepper.t >= t1 - tolerance:
            if stepper.t - stepper.dt > t1 + tolerance:
                past = f"is at t = {stepper.t:.6g}, past the end time t1 = {t1:.6g}."
                return Result(Kind.TIME, past)
            return Result(Kind.TIME, f"reached the end time t1 = {t1:.6g}.")
        if max_steps is not None and stepper.step >= max_steps:
            took = f"{stepper.step} of " if stepper.step > max_steps else ""
            return Result(
                Kind.STEPS, f"took {took}max_steps = {max_steps} steps, to t = {stepper.t:.6g}."
            )
        reason = interrupt()
        if reason is not None:
            return Result(Kind.INTERRUPTED, f"interrupted at t = {stepper.t:.6g} by {reason}.")
        return None

    result = judged() if history.records else make_record()
    while result is None:
        result = limit()
        if result is not None:
            break
        target = next((t for t in times if t > stepper.t + tolerance), t1) if times else t1
        before = stepper.stretches
        try:
            stepper.advance(target, max_steps, pause)
        except torch.linalg.LinAlgError:  # a factorisation of what is not finite
            watch.lose_failing(target)
            result = _GONE if watch.all_lost else None
            continue
        due = (
            stepper.stretches > before and record_at.includes(stepper.stretches)
            if isinstance(record_at, Every)
            else target < t1 and stepper.t >= target - tolerance
        )
        if due:
            result = make_record()
        if result is not _GONE:
            for listener in listeners:
                listener.on_step(stepper)
    if result is not _GONE:
        last = history.records[-1]
        if (last.t, last.step) != (stepper.t, stepper.step):
            # What a signal cut short is not judged: the run that goes on is, when it is due.
            closing = watch.record(scheduled=False, losing=result.kind is not Kind.INTERRUPTED)
            if closing is not None:
                for listener in listeners:
                    listener.on_record(closing)
    result = watch.ended(result)
    remark = stepper.remark()
    if remark is not None and not watch.all_lost:
        result = replace(result, sentence=f"{result.sentence} {remark}")
    return result, history
