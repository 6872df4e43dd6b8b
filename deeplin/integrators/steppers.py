"""Methods as the loop sees them: something that owns time, step and state, and advances them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, TypedDict, cast

import torch
from torch import Tensor

from deeplin.flows.contract import Flow, State
from deeplin.integrators.batches import Frozen, checked_start, finite_trajectories
from deeplin.integrators.contract import Integrator, Memory, bound

__all__ = ["IntegratorStepper", "Stepper", "check_dt"]


class Stepper(Protocol):
    """What `deeplin.loop.drive` advances."""

    @property
    def t(self) -> float:
        """The flow time reached."""
        ...

    @property
    def state(self) -> State:
        """The current state; not to be changed by the caller."""
        ...

    @property
    def batch(self) -> torch.Size:
        """The dimensions of the trajectories of the state."""
        ...

    @property
    def step(self) -> int:
        """The number of steps taken; in a batch that of the trajectory that took most."""
        ...

    @property
    def dt(self) -> float:
        """The length of the step taken last, in a batch the smallest; at first of that to come."""
        ...

    @property
    def stretch(self) -> float:
        """How far `advance` goes at most."""
        ...

    @property
    def stretches(self) -> int:
        """The number of stretches that `advance` has completed: what `Every` counts."""
        ...

    def advance(
        self,
        target: float,
        max_steps: int | None = None,
        pause: Callable[[], bool] = lambda: False,
    ) -> None:
        """One stretch towards the time `target`, broken off once `step` is `max_steps`.

        A stretch is one step, of length at most `stretch`, where steps are fixed. One of many steps
        is broken off, too, where `pause`, asked after each, says so; the next call goes on with it.
        """
        ...

    def freeze(self, lost: Tensor, at: State) -> None:
        """Take the trajectories of a mask (*batch) out; they are shown at `at` from now on."""
        ...

    def failing(self, target: float) -> Tensor:
        """Of which trajectories, (*batch), the step cannot be taken that has just raised."""
        ...

    def end_to_end(self) -> Tensor | None:
        """W, (*batch, m, n); None where the stepper does not know it."""
        ...

    def state_dict(self) -> dict[str, object]:
        """Everything that the next steps depend on, as tensors and plain Python values."""
        ...

    def load_state_dict(self, saved: Mapping[str, object]) -> None:
        """Continue from what `state_dict` returned."""
        ...

    def faults(self) -> Mapping[int, str]:
        """A sentence for each trajectory, by its number, whose next step cannot be taken."""
        ...

    def remark(self) -> str | None:
        """A sentence on what the numbers of the state cannot show."""
        ...


class _Moment(TypedDict):
    t: float
    dt: float
    step: int
    state: list[Tensor]
    memory: Memory | None
    frozen: object
    working: list[Tensor] | None


class IntegratorStepper:
    """An integrator on a flow. What remains to a target is divided into equal steps of at most dt.

    So every target is met exactly, and asking for more of them changes the result only within the
    order of the integrator. `stretch` is the dt asked for, `dt` the step taken last.

    Raises: ValueError for dt <= 0 and for a start that `batches.checked_start` refuses.
    """

    def __init__(self, flow: Flow, y0: State, integrator: Integrator, dt: float):
        self.flow, self.integrator = flow, integrator.fresh()
        self.stretch = self.dt = check_dt(dt)
        self.t, self.step, self._y = 0.0, 0, checked_start(flow, y0)
        self.batch = flow.batch_shape(self._y)
        self._step, self._frozen = bound(self.integrator, flow), Frozen()

    @property
    def stretches(self) -> int:
        return self.step

    @property
    def state(self) -> State:
        return self._frozen.shown(self._y)

    def advance(
        self,
        target: float,
        max_steps: int | None = None,
        pause: Callable[[], bool] = lambda: False,
    ) -> None:
        steps = max(1, math.ceil((target - self.t) / self.stretch - 1e-9))
        h = (target - self.t) / steps
        self._y = self._step(self.t, self._y, h)
        self.t = target if steps == 1 else self.t + h
        self.dt = h
        self.step += 1

    def freeze(self, lost: Tensor, at: State) -> None:
        self._frozen.add(lost, at)
        self._y = tuple(map(self._frozen.filled, self._y))
        self.integrator.memory = self._frozen.filled_memory(self.integrator.memory)

    def failing(self, target: float) -> Tensor:
        """By steps of batches that are all copies of one."""
        failing = ~finite_trajectories(self._y, len(self.batch))
        if bool(failing.any()):
            return failing
        step = bound(self.integrator.fresh(), self.flow)
        for index in torch.ones(self.batch).nonzero().tolist():
            copies = tuple(part[tuple(index)].expand_as(part).clone() for part in self._y)
            try:
                step(self.t, copies, min(self.stretch, target - self.t))
            except torch.linalg.LinAlgError:
                failing[tuple(index)] = True
        return failing

    def end_to_end(self) -> Tensor:
        return self.flow.end_to_end(self._y)

    def faults(self) -> Mapping[int, str]:
        return {}

    def remark(self) -> str | None:
        return self.flow.remark(self.state)

    def state_dict(self) -> dict[str, object]:
        frozen = self._frozen.state_dict()
        return {
            "t": self.t,
            "dt": self.dt,
            "step": self.step,
            "state": list(self.state),
            "memory": self.integrator.memory,
            "frozen": frozen,
            "working": None if frozen is None else list(self._y),
        }

    def load_state_dict(self, saved: Mapping[str, object]) -> None:
        moment = cast(_Moment, saved)
        self.t, self.dt, self.step = moment["t"], moment["dt"], moment["step"]
        self._frozen.load_state_dict(moment["frozen"])
        pairs = zip(moment["working"] or moment["state"], self._y, strict=True)
        self._y = tuple(new.to(old) for new, old in pairs)
        self.integrator.memory = moment["memory"]


def check_dt(dt: float) -> float:
    """A step's length. Raises: ValueError unless it is positive and finite."""
    if not (dt > 0 and math.isfinite(dt)):
        raise ValueError(f"dt must be a positive, finite number; got {dt}.")
    return float(dt)
