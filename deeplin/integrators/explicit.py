"""Explicit Runge–Kutta methods: Euler, the classical one of order 4, Dormand–Prince 5(4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from deeplin.flows.contract import Flow, State
from deeplin.integrators.contract import ErrorControlled, Integrator
from deeplin.integrators.states import by_trajectory, combined, shifted, stage_times

__all__ = ["RK4", "DormandPrince", "Euler", "OneLine"]


class OneLine(Integrator):
    """Explicit Runge–Kutta methods whose stage s needs the one before it alone.

    y + h Σ_s weights_s K_s with K_s at y + h nodes_{s−1} K_{s−1}.
    """

    nodes: ClassVar[tuple[float, ...]]
    weights: ClassVar[tuple[float, ...]]

    def step(self, flow: Flow, t: float, y: State, dt: float) -> State:
        velocity = flow.velocity
        # The sum is built as the stages come, so that few of them are in memory, and in cache.
        k = velocity(t, y)
        end = shifted(y, dt * self.weights[0], k)
        for node, weight in zip(self.nodes, self.weights[1:], strict=True):
            k = velocity(t + node * dt, shifted(y, node * dt, k))
            for end_i, k_i in zip(end, k, strict=True):
                end_i.add_(k_i, alpha=weight * dt)
        return end


class Euler(OneLine):
    """y ← y + h f(t, y); on the layer flow this is gradient descent with learning rate h."""

    order = 1
    stability_limit = 2.0
    nodes, weights = (), (1.0,)


class RK4(OneLine):
    """The classical Runge–Kutta method of order 4.

    Source: BRTW §7.1. (torchdiffeq's method of that name is the 3/8 rule.)
    """

    order = 4
    stability_limit = 2.785
    nodes, weights = (1 / 2, 1 / 2, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)


class DormandPrince(ErrorControlled):
    """The Runge–Kutta pair of orders 5(4) of Dormand and Prince, with its dense output of order 4.

    Alone it takes the steps that it is given; `adaptive.AdaptiveStepper` chooses them.

    Source: [DP80]; dense output: [Sha86].
    """

    order = error_order = 5
    stability_limit = 3.3
    reuses_last_stage = True

    _A = (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    )
    _C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
    _E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
    # Row i holds the coefficients of θ, θ², θ³, θ⁴ with which k_i enters y(t + θh).
    _P = (
        (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
        (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    )

    def step(self, flow: Flow, t: float, y: State, dt: float) -> State:
        k = [flow.velocity(t, y)]
        for row, c in zip(self._A[:-1], self._C, strict=False):
            k.append(flow.velocity(t + c * dt, combined(y, dt, row, k)))
        return combined(y, dt, self._A[-1], k)

    def stages(
        self, flow: Flow, t: float | Tensor, y: State, dt: Tensor, k1: State | None = None
    ) -> tuple[State, State, list[State]]:
        """(y(t + dt), the estimate of its error, the seven stages); dt broadcasts by trajectory."""
        at = stage_times(flow, t, dt)
        k = [flow.velocity(t, y) if k1 is None else k1]
        end = y
        for row, c in zip(self._A, self._C, strict=True):
            end = combined(y, dt, row, k)
            k.append(flow.velocity(at(c), end))
        zero = tuple(torch.zeros_like(part) for part in y)
        return end, combined(zero, dt, self._E, k), k

    def dense(self, y: State, dt: Tensor, k: Sequence[State], theta: Tensor) -> State:
        """y(t + θ·dt) from the stages of a step, 0 <= θ <= 1; θ broadcasts by trajectory."""
        powers = torch.stack([theta, theta**2, theta**3, theta**4], -1)
        weights = powers @ torch.tensor(self._P, dtype=theta.dtype, device=theta.device).mT
        return tuple(
            y_i
            + by_trajectory(dt, y_i)
            * sum(by_trajectory(weights[..., j], y_i) * k_j[i] for j, k_j in enumerate(k))
            for i, y_i in enumerate(y)
        )
