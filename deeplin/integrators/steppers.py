"""Methods as the loop sees them: something that owns time, step and state, and advances them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, TypedDict, cast

import torch
from torch import Tensor

from deeplin.flows.contract import Flow, State
from deeplin.integrators.contract import Integrator, Memory, bound

__all__ = ["IntegratorStepper", "OptimizerStepper", "Stepper", "minibatch_indices"]


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

    def advance(self, target: float, max_steps: int | None = None) -> None:
        """One stretch towards the time `target`, broken off once `step` is `max_steps`.

        A stretch is one step, of length at most `stretch`, where steps are fixed.
        """
        ...

    def state_dict(self) -> dict[str, object]:
        """Everything that the next steps depend on, as tensors and plain Python values."""
        ...

    def load_state_dict(self, saved: Mapping[str, object]) -> None:
        """Continue from what `state_dict` returned."""
        ...

    def fault(self) -> str | None:
        """A sentence if the next step cannot be taken."""
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


class _Optimized(TypedDict):
    step: int
    state: list[Tensor]
    optimizer: dict[str, object]


class IntegratorStepper:
    """An integrator on a flow. What remains to a target is divided into equal steps of at most dt.

    So every target is met exactly, and asking for more of them changes the result only within the
    order of the integrator. `stretch` is the dt asked for, `dt` the step taken last.
    """

    def __init__(self, flow: Flow, y0: State, integrator: Integrator, dt: float):
        self.flow, self.integrator = flow, integrator.fresh()
        self.stretch = self.dt = _check_dt(dt)
        self.t, self.step, self.state = 0.0, 0, tuple(y0)
        self._step = bound(self.integrator, flow)

    @property
    def stretches(self) -> int:
        return self.step

    def advance(self, target: float, max_steps: int | None = None) -> None:
        steps = max(1, math.ceil((target - self.t) / self.stretch - 1e-9))
        h = (target - self.t) / steps
        self.state = self._step(self.t, self.state, h)
        self.t = target if steps == 1 else self.t + h
        self.dt = h
        self.step += 1

    def fault(self) -> str | None:
        return None

    def remark(self) -> str | None:
        return self.flow.remark(self.state)

    def state_dict(self) -> dict[str, object]:
        return {
            "t": self.t,
            "dt": self.dt,
            "step": self.step,
            "state": list(self.state),
            "memory": self.integrator.memory,
        }

    def load_state_dict(self, saved: Mapping[str, object]) -> None:
        moment = cast(_Moment, saved)
        self.t, self.dt, self.step = moment["t"], moment["dt"], moment["step"]
        pairs = zip(moment["state"], self.state, strict=True)
        self.state = tuple(new.to(old) for new, old in pairs)
        self.integrator.memory = moment["memory"]


class OptimizerStepper:
    """A torch optimizer on parameters, with the flow time t = k·dt of its k steps of length dt.

    `loss(k)` is the scalar whose gradient step k follows; with torch.optim.SGD and a learning rate
    dt this is Euler's method for the gradient flow of the loss. Steps are all of length dt, so a
    target is met within less than one step.
    """

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        loss: Callable[[int], Tensor],
        dt: float,
    ):
        self.parameters, self.optimizer, self.loss = parameters, optimizer, loss
        self.stretch = self.dt = _check_dt(dt)
        self.step = 0

    @property
    def stretches(self) -> int:
        return self.step

    @property
    def t(self) -> float:
        return self.step * self.dt

    @property
    def state(self) -> State:
        return tuple(p.detach() for p in self.parameters)

    def advance(self, target: float, max_steps: int | None = None) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.step).backward()
        self.optimizer.step()
        self.step += 1

    def fault(self) -> str | None:
        return None

    def remark(self) -> str | None:
        return None

    def state_dict(self) -> dict[str, object]:
        return {
            "step": self.step,
            "state": [p.detach().clone() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, object]) -> None:
        moment = cast(_Optimized, saved)
        self.step = moment["step"]
        self.optimizer.load_state_dict(moment["optimizer"])
        with torch.no_grad():
            for p, value in zip(self.parameters, moment["state"], strict=True):
                p.copy_(value)


def minibatch_indices(m: int, batch_size: int, seed: int) -> Callable[[int], Tensor]:
    """step ↦ indices of the samples of that step: each epoch visits all m once, in random order.

    A function of the step alone, so that a resumed run sees the batches of an uninterrupted one.
    The last, smaller batch of an epoch is left out.

    Raises: ValueError unless 1 <= batch_size <= m.
    """
    if not 1 <= batch_size <= m:
        raise ValueError(
            f"batch_size must satisfy 1 <= batch_size <= m = {m} samples; got {batch_size}."
        )
    per_epoch = m // batch_size
    cached: tuple[int, Tensor] = (-1, torch.empty(0))

    def indices(step: int) -> Tensor:
        nonlocal cached
        epoch, position = divmod(step, per_epoch)
        if cached[0] != epoch:
            generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
            cached = (epoch, torch.randperm(m, generator=generator))
        return cached[1][position * batch_size : (position + 1) * batch_size]

    return indices


def _check_dt(dt: float) -> float:
    if not (dt > 0 and math.isfinite(dt)):
        raise ValueError(f"dt must be a positive, finite number; got {dt}.")
    return float(dt)
