"""One step of a one-step method for ẏ = f(t, y), on states that are tuples of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

__all__ = [
    "RK4",
    "Compiled",
    "DormandPrince",
    "ErrorControlled",
    "Euler",
    "Integrator",
    "Packing",
    "ProjectedRungeKutta",
    "State",
    "batch_shape",
    "bound",
    "hermite",
]

State = tuple[Tensor, ...]
Velocity = Callable[[float, State], State]
Step = Callable[[float, State, float], State]


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


def bound(integrator: Any, flow: Any) -> Step:
    """(t, y, dt) -> the state at t + dt of a flow, in the coordinates that the flow normalises.

    A flow with a method `normalised(y, before)` has it called after each step; an integrator with
    a method `step_of` gets the flow, not only its velocity.
    """
    whole = hasattr(integrator, "step_of")
    normalised = getattr(flow, "normalised", None)

    def step(t: float, y: State, dt: float) -> State:
        if whole:
            end = integrator.step_of(flow, t, y, dt)
        else:
            end = integrator.step(flow.velocity, t, y, dt)
        return end if normalised is None else normalised(end, y)

    return step


def batch_shape(flow: Any, y: State) -> torch.Size:
    """The dimensions of the trajectories: those of the end-to-end matrix before its last two.

    A flow without that method has one trajectory.
    """
    return flow.end_to_end(y).shape[:-2] if hasattr(flow, "end_to_end") else torch.Size()


class ErrorControlled:
    """A one-step method that estimates its error: what `adaptive.AdaptiveStepper` needs to know.

    `error_order` is q where the estimate of a step's error is O(h^q). Where
    `reuses_last_stage`, the last of the stages is the field at the end of the step, and the first
    of the next. With a `motion_tol` the error is held below what `tolerated` says, too. `memory`
    is what the method carries from step to step, for checkpoints.
    """

    order: int
    error_order: int
    stability_limit = math.inf
    reuses_last_stage = False
    motion_tol = 0.0
    memory: dict[str, Any] | None = None

    def stages(
        self, flow: Any, t: float, y: State, dt: Tensor, k1: State | None = None
    ) -> tuple[State, State, list[State]]:
        """(y(t + dt), the estimate of its error, what `dense` needs); dt is by trajectory."""
        raise NotImplementedError

    def dense(self, y: State, dt: Tensor, k: Sequence[State], theta: Tensor) -> State:
        """y(t + θ·dt) from the stages of a step, 0 <= θ <= 1; θ broadcasts by trajectory."""
        raise NotImplementedError

    def limited(self, dt: Tensor) -> Tensor:
        """The steps dt, cut to what the method can take."""
        return dt

    def tolerated(self, allowed: Tensor, size: Tensor, motion: Tensor, dt: Tensor) -> Tensor:
        """The error allowed to a part of norm `size` when the state moves by `motion` in dt."""
        return allowed

    def judged(self, accepted: Tensor, active: Tensor) -> None:
        """Told after every attempt whose step was accepted."""

    def step(self, velocity: Velocity, t: float, y: State, dt: float) -> State:
        """The state at t + dt, the whole of y taken as one trajectory."""
        length = y[0].new_full((), dt)
        return self.stages(SimpleNamespace(velocity=velocity), t, y, length)[0]

    def step_of(self, flow: Any, t: float, y: State, dt: float) -> State:
        """The state at t + dt of every trajectory of a flow."""
        return self.stages(flow, t, y, y[0].new_full(batch_shape(flow, y), dt))[0]


class _OneLine:
    """Explicit Runge–Kutta methods whose stage s needs the one before it alone.

    y + h Σ_s weights_s K_s with K_s at y + h nodes_{s−1} K_{s−1}.
    """

    nodes: ClassVar[tuple[float, ...]]
    weights: ClassVar[tuple[float, ...]]

    def step(self, velocity: Velocity, t: float, y: State, dt: float) -> State:
        # The sum is built as the stages come, so that few of them are in memory, and in cache.
        k = velocity(t, y)
        end = _shifted(y, dt * self.weights[0], k)
        for node, weight in zip(self.nodes, self.weights[1:], strict=True):
            k = velocity(t + node * dt, _shifted(y, node * dt, k))
            for end_i, k_i in zip(end, k, strict=True):
                end_i.add_(k_i, alpha=weight * dt)
        return end


class Euler(_OneLine):
    """y ← y + h f(t, y); on the layer flow this is gradient descent with learning rate h."""

    order = 1
    stability_limit = 2.0
    nodes, weights = (), (1.0,)


class RK4(_OneLine):
    """The classical Runge–Kutta method of order 4.

    Source: BRTW §7.1. (torchdiffeq's method of that name is the 3/8 rule.)
    """

    order = 4
    stability_limit = 2.785
    nodes, weights = (1 / 2, 1 / 2, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)


class Compiled:
    """Euler's method or RK4 with its steps in compiled code, for the layer flow of tiny networks.

    The same numbers to round-off, several times faster for large batches of layers with
    max d_j <= 8; what it takes is said in `compiled.runge_kutta_step`, which raises.
    """

    def __init__(self, integrator: Euler | RK4):
        self.order, self.stability_limit = integrator.order, integrator.stability_limit
        self.nodes, self.weights = integrator.nodes, integrator.weights

    def step(self, velocity: Velocity, t: float, y: State, dt: float) -> State:
        raise TypeError("Compiled needs a LayerFlow, not its velocity: use it in deeplin.solve.")

    def step_of(self, flow: Any, t: float, y: State, dt: float) -> State:
        """The state at t + dt of a flow that offers compiled_step."""
        if not hasattr(flow, "compiled_step"):
            raise TypeError(
                f"Compiled needs the flow of layers, LayerFlow; got {type(flow).__name__}: use the "
                "integrator itself."
            )
        return flow.compiled_step(y, dt, self.nodes, self.weights)


class DormandPrince(ErrorControlled):
    """The Runge–Kutta pair of orders 5(4) of Dormand and Prince, with its dense output of order 4.

    Alone it takes the steps that it is given; `adaptive.AdaptiveStepper` chooses them.

    Source: Dormand, Prince 1980; dense output: Shampine 1986.
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

    def step(self, velocity: Velocity, t: float, y: State, dt: float) -> State:
        k = [velocity(t, y)]
        for row, c in zip(self._A[:-1], self._C, strict=False):
            k.append(velocity(t + c * dt, combined(y, dt, row, k)))
        return combined(y, dt, self._A[-1], k)

    def step_of(self, flow: Any, t: float, y: State, dt: float) -> State:
        return self.step(flow.velocity, t, y, dt)

    def stages(
        self, flow: Any, t: float, y: State, dt: Tensor, k1: State | None = None
    ) -> tuple[State, State, list[State]]:
        """(y(t + dt), the estimate of its error, the seven stages); dt broadcasts by trajectory."""
        k = [flow.velocity(t, y) if k1 is None else k1]
        end = y
        for row in self._A:
            end = combined(y, dt, row, k)
            k.append(flow.velocity(t, end))
        zero = tuple(torch.zeros_like(part) for part in y)
        return end, combined(zero, dt, self._E, k), k

    def dense(self, y: State, dt: Tensor, k: Sequence[State], theta: Tensor) -> State:
        """y(t + θ·dt) from the stages of a step, 0 <= θ <= 1; θ broadcasts by trajectory."""
        powers = torch.stack([theta, theta**2, theta**3, theta**4], -1)
        weights = powers @ torch.tensor(self._P, dtype=theta.dtype, device=theta.device).mT
        return tuple(
            y_i
            + _by_trajectory(dt, y_i)
            * sum(_by_trajectory(weights[..., j], y_i) * k_j[i] for j, k_j in enumerate(k))
            for i, y_i in enumerate(y)
        )


class ProjectedRungeKutta:
    """Runge–Kutta methods on M_r that return to rank r by truncation: no inverse of S anywhere.

    Stages Y_i = R(Y_0 + h Σ_j a_ij P_{T(Y_j)}F(Y_j)), R the nearest matrix of rank r; on the
    positive semidefinite cone the nearest one there. Order 1 is Riemannian gradient descent,
    Z ← R(Z − α P_T∇f); on a `rescaled` flow its step is α σ_r(Z). Order 2 is the midpoint rule,
    order 4 the classical one.

    Source: Kieri, Vandereycken 2019; order 1: HLZ Lemma 2.4, (2).
    Cost: for each stage the gradient's products with r columns and a truncation of rank 3r to 9r.
    Accuracy: of the stated order for h·‖P^⊥F‖ ≪ σ_r; towards σ_r = 0 the constant grows where F
    has a component normal to M_r, and the order degrades to 1. It never divides by σ_r.
    Raises: ValueError for another order.
    """

    _A: ClassVar = {1: (), 2: ((1 / 2,),), 4: ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0))}
    _B: ClassVar = {1: (1.0,), 2: (0.0, 1.0), 4: (1 / 6, 1 / 3, 1 / 3, 1 / 6)}

    def __init__(self, order: int = 2):
        if order not in self._B:
            raise ValueError(f"ProjectedRungeKutta(order=...) must be 1, 2 or 4; got {order}.")
        self.order = order
        self.stability_limit = 2.785 if order == 4 else 2.0

    def step(self, velocity: Velocity, t: float, y: State, dt: float) -> State:
        raise TypeError(
            "ProjectedRungeKutta needs a flow with tangent_step and truncated: use it with "
            "DLRAFlow or PSDDLRAFlow in deeplin.solve."
        )

    def step_of(self, flow: Any, t: float, y: State, dt: float) -> State:
        """The state at t + dt of a flow that offers tangent_step and truncated."""
        if not hasattr(flow, "truncated"):
            raise TypeError(
                "ProjectedRungeKutta needs a flow of tangent steps, DLRAFlow or PSDDLRAFlow; got "
                f"{type(flow).__name__}: choose another integrator."
            )
        if self.order == 1:
            return flow.gradient_step(y, dt)
        tangents = [flow.tangent_step(y, y)]
        for row in (*self._A[self.order], self._B[self.order]):
            used = [(dt * a, T) for a, T in zip(row, tangents, strict=False) if a]
            end = flow.truncated(y, used)
            if len(tangents) < len(self._B[self.order]):
                tangents.append(flow.tangent_step(y, end))
        return end


class Packing:
    """States as vectors (*batch, D), D the number of entries of a trajectory, and back."""

    def __init__(self, y: State, dims: int):
        self.shapes = [part.shape[dims:] for part in y]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.dims = dims

    def packed(self, y: State) -> Tensor:
        return torch.cat(
            [
                part.reshape(*part.shape[: part.ndim - len(shape)], -1)
                for part, shape in zip(y, self.shapes, strict=True)
            ],
            -1,
        )

    def unpacked(self, vector: Tensor) -> State:
        """Views of the vector; dimensions before the last are all batch."""
        pieces = vector.split(self.sizes, -1)
        return tuple(
            piece if len(shape) == 1 else piece.unflatten(-1, shape)
            for piece, shape in zip(pieces, self.shapes, strict=True)
        )


def hermite(y: State, end: State, dt: Tensor, f0: State, f1: State, theta: Tensor) -> State:
    """The cubic in θ with the values y, end and the slopes dt·f0, dt·f1 at 0 and 1."""
    b = theta * theta * (3 - 2 * theta)
    c, d = dt * theta * (1 - theta) ** 2, dt * theta**2 * (theta - 1)
    return tuple(
        y_i
        + _by_trajectory(b, y_i) * (e_i - y_i)
        + _by_trajectory(c, y_i) * u
        + _by_trajectory(d, y_i) * v
        for y_i, e_i, u, v in zip(y, end, f0, f1, strict=True)
    )


def combined(y: State, dt: Any, weights: Sequence[float], k: Sequence[State]) -> State:
    """y + dt Σ_j w_j k_j, dt a number or one for each trajectory."""
    used = [(w, k_j) for w, k_j in zip(weights, k, strict=False) if w]
    result = []
    for i, y_i in enumerate(y):
        w, first = used[0]
        total = w * first[i]
        for w, k_j in used[1:]:
            total = total.add(k_j[i], alpha=w)
        if isinstance(dt, Tensor):
            result.append(y_i + _by_trajectory(dt, y_i) * total)
        else:
            result.append(y_i.add(total, alpha=dt))
    return tuple(result)


def _by_trajectory(value: Tensor, part: Tensor) -> Tensor:
    return value.reshape(value.shape + (1,) * (part.ndim - value.ndim))


def _shifted(y: State, h: float, k: Sequence[Tensor]) -> State:
    return tuple(y_i.add(k_i, alpha=h) for y_i, k_i in zip(y, k, strict=True))
