"""One step of a one-step method for ẏ = f(t, y), on states that are tuples of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["RK4", "Euler", "Integrator", "State"]

State = tuple[Tensor, ...]
Velocity = Callable[[float, State], State]


class Integrator(Protocol):
    """A one-step method.

    `order` is its order of convergence; `stability_limit` the largest h·L for which it is stable
    on ẏ = −Ly.
    """

    order: int
    stability_limit: float

    def step(self, velocity: Velocity, t: float, y: State, dt: float) -> State:
        """The state at t + dt, from y at t."""
        ...


class Euler:
    """y ← y + h f(t, y); on the layer flow this is gradient descent with learning rate h."""

    order = 1
    stability_limit = 2.0

    def step(self, velocity: Velocity, t: float, y: State, dt: float) -> State:
        return _shifted(y, dt, velocity(t, y))


class RK4:
    """The classical Runge–Kutta method of order 4.

    Source: BRTW §7.1. (torchdiffeq's method of that name is the 3/8 rule.)
    """

    order = 4
    stability_limit = 2.785

    def step(self, velocity: Velocity, t: float, y: State, dt: float) -> State:
        k1 = velocity(t, y)
        k2 = velocity(t + dt / 2, _shifted(y, dt / 2, k1))
        k3 = velocity(t + dt / 2, _shifted(y, dt / 2, k2))
        k4 = velocity(t + dt, _shifted(y, dt, k3))
        return tuple(
            y_i + (dt / 6) * (a + 2 * (b + c) + d)
            for y_i, a, b, c, d in zip(y, k1, k2, k3, k4, strict=True)
        )


def _shifted(y: State, h: float, k: Sequence[Tensor]) -> State:
    return tuple(y_i.add(k_i, alpha=h) for y_i, k_i in zip(y, k, strict=True))
