"""The loop: step, observe, stop, report. Every method of deeplin runs in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from deeplin.flows.contract import Flow, State, TangentFlow
from deeplin.integrators import RK4, ErrorControlled, Integrator, ProjectedRungeKutta
from deeplin.integrators.adaptive import AdaptiveStepper
from deeplin.integrators.steppers import IntegratorStepper, Stepper

__all__ = [
    "Every",
    "GradientNormBelow",
    "History",
    "Listener",
    "LossBelow",
    "Record",
    "Result",
    "SingularValueBelow",
    "Solution",
    "Stagnation",
    "drive",
    "solve",
]

Observe = Callable[[float, State], Mapping[str, Tensor]]
Stop = Callable[["History"], "Result | None"]


@dataclass(frozen=True)
class Result:
    """Why a run ended: a kind that programs test and a sentence that people read."""

    # "time", "steps", "converged", "near_lower_rank", "stagnated", "diverged", "fault",
    # "interrupted"
    kind: str
    sentence: str


@dataclass(frozen=True)
class Record:
    """What was seen at one moment."""

    step: int
    t: float
    dt: float
    observed: dict[str, Tensor]


@dataclass
class History:
    """The records of a run, in order."""

    records: list[Record] = field(default_factory=list)

    def column(self, name: str) -> Tensor:
        """The values of one observable, stacked along a first axis of records."""
        return torch.stack([record.observed[name] for record in self.records])

    @property
    def t(self) -> Tensor:
        return torch.tensor([record.t for record in self.records], dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """The records as columns."""
        names = self.records[0].observed if self.records else ()
        return {
            "moments": [(r.step, r.t, r.dt) for r in self.records],
            "observed": {name: self.column(name) for name in names},
        }

    @classmethod
    def from_state_dict(cls, saved: dict[str, Any]) -> History:
        columns = saved["observed"]
        return cls(
            [
                Record(step, t, dt, {name: column[i] for name, column in columns.items()})
                for i, (step, t, dt) in enumerate(saved["moments"])
            ]
        )


@dataclass(frozen=True)
class Every:
    """Record every `steps` steps, and more often at first: 16 times as the step count doubles."""

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Every(steps=...) must be >= 1; got {self.steps}.")

    def includes(self, step: int) -> bool:
        spacing = 1 << max(step.bit_length() - 5, 0)
        return step % self.steps == 0 or (spacing < self.steps and step % spacing == 0)


class Listener(Protocol):
    """Something that follows a run: a log, a progress bar, a writer of checkpoints."""

    def on_record(self, record: Record) -> None: ...

    def on_step(self, stepper: Stepper) -> None: ...


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
            "converged",
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
            "converged", f"converged at t = {record.t:.6g}: loss {loss:.6g} <= {self.tol:.6g}."
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
            "near_lower_rank",
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
            "stagnated",
            f"stagnated at t = {now:.6g}: loss and gradient norm at rest for a flow time of "
            f"{self.duration:.3g}, at gradient norm {float(norm[-1].max()):.2g}.",
        )


@dataclass(frozen=True)
class Solution:
    """Times saved, the states then (`y[-1]` is the last), what was observed, how it ended."""

    t: Tensor
    y: list[State]
    observed: dict[str, Tensor]
    result: Result


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

    Records are made at the start, at the end and at `record_at`: every so many steps, or at times
    that the stepper meets. `observe(t, state)` gives their values; `stop` functions judge the
    history after each; `interrupt` is asked after each step. `history` is that of a run being
    resumed. A state that is no longer finite ends the run as "diverged".
    """
    history = History() if history is None else history
    if isinstance(record_at, Every) and history.records:
        # The last record of an interrupted run is one that an uninterrupted run would not have.
        history.records = [r for r in history.records if record_at.includes(r.step)]
    times = [] if isinstance(record_at, Every) else sorted(t for t in record_at if 0 < t < t1)
    tolerance = 1e-12 * (abs(t1) if math.isfinite(t1) else 1.0)

    def make_record() -> Result | None:
        if all(bool(torch.isfinite(part).all()) for part in stepper.state):
            values = dict(observe(stepper.t, stepper.state)) if observe else {}
            observed = {name: value.detach().cpu() for name, value in values.items()}
            if all(bool(torch.isfinite(value).all()) for value in observed.values()):
                record = Record(stepper.step, stepper.t, stepper.dt, observed)
                history.records.append(record)
                for listener in listeners:
                    listener.on_record(record)
                return next((r for r in (judge(history) for judge in stop) if r), None)
        return Result(
            "diverged",
            f"diverged before t = {stepper.t:.6g} (step {stepper.step}): the state is no longer "
            f"finite with dt = {stepper.dt:.3g}; take a smaller dt.",
        )

    def limit() -> Result | None:
        fault = stepper.fault()
        if fault is not None:
            return Result("fault", f"stopped at t = {stepper.t:.6g}: {fault}")
        if stepper.t >= t1 - tolerance:
            return Result("time", f"reached the end time t1 = {t1:.6g}.")
        if max_steps is not None and stepper.step >= max_steps:
            return Result("steps", f"took max_steps = {max_steps} steps, to t = {stepper.t:.6g}.")
        reason = interrupt()
        if reason is not None:
            return Result("interrupted", f"interrupted at t = {stepper.t:.6g} by {reason}.")
        return None

    result = None
    if not history.records:
        result = make_record()
    while result is None:
        result = limit()
        if result is not None:
            break
        target = next((t for t in times if t > stepper.t + tolerance), t1)
        stepper.advance(target)
        due = (
            record_at.includes(stepper.step)
            if isinstance(record_at, Every)
            else target < t1 and stepper.t >= target - tolerance
        )
        if due:
            result = make_record()
        if result is None or result.kind != "diverged":
            for listener in listeners:
                listener.on_step(stepper)
    if result.kind != "diverged" and history.records[-1].step != stepper.step:
        final = make_record()
        result = final if final is not None and final.kind == "diverged" else result
    remark = stepper.remark()
    if remark is not None and result.kind != "diverged":
        result = replace(result, sentence=f"{result.sentence} {remark}")
    return result, history


def solve(
    flow: Flow,
    y0: State,
    t1: float,
    *,
    integrator: Integrator | ErrorControlled | None = None,
    dt: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    save_at: Sequence[float] | None = None,
    observe: Observe | None = None,
    stop: Stop | Sequence[Stop] | None = None,
) -> Solution:
    """Integrate a flow from y0 at t = 0 to t1.

    The integrator is RK4 unless given, for the DLRA flows ProjectedRungeKutta(2); dt, unless given,
    half of its stability limit divided by the flow's own `curvature(y0)`. With rtol or atol (by
    default 1e-3·rtol, and 0) the steps are chosen by the error, for each trajectory of a batch by
    its own (`adaptive.AdaptiveStepper`): those of DormandPrince() unless given, of
    `chebyshev.RKC()` or `rosenbrock.Rosenbrock()` where the flow is stiff. These two have no limit
    of stability; without dt their rtol is 1e-6. States and observables are saved
    at t = 0, at the times `save_at` and at the end: fixed steps meet them exactly, adaptive ones
    by dense output. `stop`, one function or several, is asked at each of those times.

    Raises: ValueError for t1 <= 0, dt <= 0, times outside [0, t1], tolerances with an integrator
    that has no error estimate.

    >>> import torch, deeplin
    >>> problem = deeplin.autoencoder(torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)))
    >>> net = deeplin.init.identity_(deeplin.DeepLinear([2, 1, 2], dtype=torch.float64), scale=0.1)
    >>> flow = deeplin.flows.LayerFlow(problem)
    >>> solution = deeplin.solve(flow, flow.init_state(net), 5.0)
    >>> bool((flow.end_to_end(solution.y[-1]) - problem.minimizer(1)).norm() < 1e-6)
    True
    """
    if not (t1 > 0 and math.isfinite(t1)):
        raise ValueError(f"t1 must be a positive, finite time; got {t1}.")
    times = [float(t) for t in save_at] if save_at is not None else []
    outside = [t for t in times if not 0 <= t <= t1]
    if outside:
        raise ValueError(f"save_at must hold times in [0, t1] = [0, {t1}]; got {outside[0]}.")
    stepper = _stepper(flow, y0, integrator, dt, rtol, atol)
    states: list[State] = []

    class Saver:
        def on_record(self, record: Record) -> None:
            states.append(stepper.state)

        def on_step(self, stepper: Stepper) -> None:
            pass

    stops = [] if stop is None else [stop] if callable(stop) else list(stop)
    result, history = drive(
        stepper, t1, record_at=times, observe=observe, stop=stops, listeners=[Saver()]
    )
    names = history.records[0].observed
    observed = {name: history.column(name) for name in names}
    return Solution(history.t, states, observed, result)


def _stepper(
    flow: Flow,
    y0: State,
    integrator: Integrator | ErrorControlled | None,
    dt: float | None,
    rtol: float | None,
    atol: float | None,
) -> Stepper:
    controlled = isinstance(integrator, ErrorControlled)
    unlimited = controlled and integrator.stability_limit == math.inf
    if rtol is None and atol is None and dt is None and unlimited:
        rtol = 1e-6
    if rtol is not None or atol is not None:
        if integrator is not None and not controlled:
            raise ValueError(
                "rtol and atol need an integrator with an error estimate, DormandPrince(), RKC() "
                f"or Rosenbrock(); got {type(integrator).__name__}: give dt instead."
            )
        if dt is not None:
            raise ValueError(f"give either dt or rtol and atol, not both; got dt={dt}.")
        rtol = 0.0 if rtol is None else rtol
        atol = 1e-3 * rtol if atol is None else atol
        return AdaptiveStepper(flow, y0, rtol=rtol, atol=atol, integrator=integrator)
    if integrator is None:
        integrator = ProjectedRungeKutta(2) if isinstance(flow, TangentFlow) else RK4()
    step = 0.5 * integrator.stability_limit / flow.curvature(y0) if dt is None else dt
    return IntegratorStepper(flow, y0, integrator, step)
