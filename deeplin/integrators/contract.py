"""What an integrator is: a one-step method for the field of a flow."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from torch import Tensor

from deeplin.flows.contract import Flow, State

__all__ = ["ErrorControlled", "Integrator", "Memory", "Step", "bound"]

Step = Callable[[float, State, float], State]
Memory = Mapping[str, Tensor | int]


class Integrator(ABC):
    """A one-step method.

    `order` is its order of convergence; `stability_limit` the largest h·L for which it is stable
    on ẏ = −Ly; `memory` what the method carries from step to step, for checkpoints.
    """

    order: int
    stability_limit: float
    memory: Memory | None = None

    def fresh(self) -> Self:
        """A copy that remembers nothing: each run has its own."""
        own = copy.copy(self)
        own.memory = None
        return own

    @abstractmethod
    def step(self, flow: Flow, t: float, y: State, dt: float) -> State:
        """The state of every trajectory of a flow at t + dt, from y at t; not normalised.

        Raises: TypeError for a flow that does not offer what the method needs.
        """


class ErrorControlled(Integrator):
    """A one-step method that estimates its error: what `adaptive.AdaptiveStepper` needs to know.

    `error_order` is q where the estimate of a step's error is O(h^q). Where
    `reuses_last_stage`, the last of the stages is the field at the end of the step, and the first
    of the next. With a `motion_tol` the error is held below what `tolerated` says, too.
    """

    error_order: int
    stability_limit = math.inf
    reuses_last_stage = False
    motion_tol = 0.0

    @abstractmethod
    def stages(
        self, flow: Flow, t: float | Tensor, y: State, dt: Tensor, k1: State | None = None
    ) -> tuple[State, State, Sequence[State]]:
        """(y(t + dt), the estimate of its error, what `dense` needs); t and dt by trajectory."""

    @abstractmethod
    def dense(self, y: State, dt: Tensor, k: Sequence[State], theta: Tensor) -> State:
        """y(t + θ·dt) from the stages of a step, 0 <= θ <= 1; θ broadcasts by trajectory."""

    def limited(self, dt: Tensor) -> Tensor:
        """The steps dt, cut to what the method can take."""
        return dt

    def tolerated(self, allowed: Tensor, size: Tensor, motion: Tensor, dt: Tensor) -> Tensor:
        """The error allowed to a part of norm `size` when the state moves by `motion` in dt."""
        return allowed

    def judged(self, accepted: Tensor, active: Tensor) -> None:
        """Told after every attempt whose step was accepted."""

    def step(self, flow: Flow, t: float, y: State, dt: float) -> State:
        return self.stages(flow, t, y, y[0].real.new_full(flow.batch_shape(y), dt))[0]


def bound(integrator: Integrator, flow: Flow) -> Step:
    """(t, y, dt) -> the state at t + dt of a flow, in the coordinates that the flow normalises."""

    def step(t: float, y: State, dt: float) -> State:
        return flow.normalised(integrator.step(flow, t, y, dt), y)

    return step
