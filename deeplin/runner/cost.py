"""What a method will cost: steps counted from the stiffness, times measured before the run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch.utils.flop_counter import FlopCounterMode

from deeplin.flows.contract import Flow, State
from deeplin.flows.layers import curvature
from deeplin.integrators import (
    RKC,
    AdaptiveStepper,
    DormandPrince,
    ErrorControlled,
    IntegratorStepper,
    Rosenbrock,
    Stepper,
)
from deeplin.integrators.states import Packing
from deeplin.loop import Every, drive
from deeplin.network import DeepLinear
from deeplin.network.init import balanced_
from deeplin.prediction import Prediction
from deeplin.problems.contract import Problem

__all__ = [
    "LARGEST_STEP",
    "Cost",
    "Stiffness",
    "adaptive_cost",
    "check_size",
    "cost_of",
    "multiplications",
    "rosenbrock_step",
    "seconds_of",
    "size_of",
    "time_of",
    "tolerance_of",
]

# What one step of Rosenbrock may multiply: one core takes about a second for it. A run takes some
# hundreds of them, and between two of them nothing is recorded, saved or interrupted.
LARGEST_STEP = 1e9
_TIMED_AT_MOST = 2**16  # steps
_TIMED = 0.05  # seconds that the time of a step is measured in


@dataclass(frozen=True)
class Stiffness:
    """The time scales of a run, by which its steps are counted.

    - `fastest`: λ_1, the largest curvature that the flow has at its limit, in the time of the flow
    - `slowest`: ρ, the rate at which W arrives; None where it is not predicted
    - `end`: the flow time at which the run will end: t1, or before, where the gradient falls to
      what `stop.grad_norm` asks for
    """

    fastest: float
    slowest: float | None
    end: float

    @classmethod
    def of(
        cls,
        problem: Problem,
        network: DeepLinear,
        flow: Flow,
        state: State,
        prediction: Prediction,
        t1: float,
        grad_norm: float | None,
    ) -> Stiffness:
        """Those of a run.

        λ_1 is that of balanced layers of the predicted limit; where no limit is predicted, or the
        flow has a clock of its own, the larger of those at the start and at the end of a descent.
        Near the limit the gradient is ρ·‖W − limit‖ to a factor that the logarithm hides, and
        ‖W − limit‖ begins at about ‖limit‖.

        Cost: 40 Hessian products, or the flow's `curvature`.
        """
        fastest = _at_limit(problem, network, prediction)
        if fastest is None:
            fastest = flow.curvature(state)
        end, rho = t1, prediction.pace
        if rho and grad_norm and prediction.limit is not None:
            arrival = math.log(max(math.e, rho * max(prediction.size, 1e-300) / grad_norm)) / rho
            end = min(end, arrival)
        return cls(fastest, rho, end)

    @property
    def ratio(self) -> float:
        """λ_1/ρ; λ_1 times the length of the run where ρ is not known."""
        return self.fastest * (self.end if self.slowest is None else 1 / self.slowest)

    def __str__(self) -> str:
        name = "λ_1·t1" if self.slowest is None else "λ_1/ρ"
        return f"{name} = {self.ratio:.2g}"


def _at_limit(problem: Problem, network: DeepLinear, prediction: Prediction) -> float | None:
    limit = prediction.limit
    if limit is None or not prediction.rank or network.depth < 2:
        return None
    like = network.weights[0]
    net = DeepLinear(network.widths, dtype=like.dtype, device=like.device)
    try:
        balanced_(net, limit)
    except ValueError:
        return None
    return float(curvature(problem, [W_j.detach() for W_j in net.weights]))


class _Law(NamedTuple):
    """Steps of a method whose errors are held: h grows with t, until the slowest mode holds it.

    `per_fold` in each time that is e times as long as the last, from 1/λ_1 to 1/ρ, `per_rate` in
    each time 1/ρ beyond, at rtol; at others in proportion to rtol^{−1/q}. Measured: they are what
    runs took, on data whose λ_1/ρ goes from 30 to 10⁵.
    """

    per_fold: float
    per_rate: float
    rtol: float


_LAWS: dict[type[ErrorControlled], _Law] = {
    RKC: _Law(60, 14, 1e-6),
    Rosenbrock: _Law(40, 2, 1e-8),
    DormandPrince: _Law(25, 2, 1e-8),
}


def tolerance_of(integrator: ErrorControlled) -> float:
    """rtol in the file of a method, conf/method, which its law was measured at."""
    return _LAWS[type(integrator)].rtol


class Cost(NamedTuple):
    """Steps of a run, and the fields that they evaluate."""

    steps: float
    fields: float


def adaptive_cost(integrator: ErrorControlled, rtol: float, stiffness: Stiffness) -> Cost | None:
    """The steps and fields that steps by the error will take; None for a method without a law.

    With A and B of the law, T = ρ·end: n = A·log(λ_1/ρ) + B·T. Dormand–Prince takes λ_1·end/3.3 at
    least, its stability limit; RKC (1 + 1.54 λ_1h)^{1/2} + 1 fields a step, h = t/A before 1/ρ and
    1/(Bρ) after.

    Accuracy: a factor of 3; what a small start spends on plateaus is not in it.
    """
    law = _LAWS.get(type(integrator))
    if law is None:
        return None
    scale = (law.rtol / max(rtol, 1e-14)) ** (1 / integrator.error_order)
    rho = 1 / stiffness.end if stiffness.slowest is None else stiffness.slowest
    turns = rho * stiffness.end
    # One that ends before 1/ρ has fewer foldings.
    per_fold, folds = law.per_fold * scale, math.log1p(stiffness.fastest / rho * min(1, turns))
    # RKC holds its error below its own motion, whatever rtol.
    per_rate = law.per_rate * (max(1.0, scale) if isinstance(integrator, RKC) else scale)
    steps = per_fold * folds + per_rate * turns
    if isinstance(integrator, RKC):
        ratio = stiffness.fastest / rho
        early = steps - per_rate * turns + 2 * math.sqrt(1.54 * ratio * per_fold)
        late = turns * per_rate * (1 + math.sqrt(1 + 1.54 * ratio / per_rate))
        return Cost(steps, early + late)
    if isinstance(integrator, DormandPrince):
        steps = max(steps, stiffness.fastest * stiffness.end / integrator.stability_limit)
        return Cost(steps, 6 * steps)
    return Cost(steps, 8 * steps)


def cost_of(stepper: Stepper, stiffness: Stiffness, max_steps: int | None) -> Cost | None:
    """What a stepper will cost to the end of a run; None where nothing is known of its steps."""
    if isinstance(stepper, AdaptiveStepper):
        cost = adaptive_cost(stepper.integrator, stepper.rtol, stiffness)
    else:
        steps = stiffness.end / stepper.stretch
        each = stepper.integrator.order if isinstance(stepper, IntegratorStepper) else 1
        cost = Cost(steps, each * steps)
    if cost is None or max_steps is None or cost.steps <= max_steps:
        return cost
    return Cost(max_steps, cost.fields * max_steps / cost.steps)


# -- what a step multiplies ------------------------------------------------------------------------


def multiplications(flow: Flow, state: State) -> float:
    """The multiplications of one field's products of matrices."""
    with FlopCounterMode(display=False) as counter:
        flow.velocity(0.0, state)
    return counter.get_total_flops() / 2


def size_of(flow: Flow, state: State) -> int:
    """D, the number of real entries of a trajectory's state."""
    return sum(Packing(state, len(flow.batch_shape(state))).sizes)


def rosenbrock_step(flow: Flow, state: State) -> float:
    """The multiplications of a Rosenbrock step: D + 9 fields, ⅓D³ of the LU, eight solves of D²."""
    D, batch = size_of(flow, state), flow.batch_shape(state).numel()
    return (D + 9) * multiplications(flow, state) + batch * (D**3 / 3 + 8 * D**2)


def check_size(flow: Flow, state: State, stepper: Stepper) -> None:
    """Raise ValueError where one step of Rosenbrock multiplies more than a run can wait for."""
    if not isinstance(stepper, AdaptiveStepper) or not isinstance(stepper.integrator, Rosenbrock):
        return
    D = size_of(flow, state)
    if stepper.integrator.max_size >= D and rosenbrock_step(flow, state) <= LARGEST_STEP:
        return
    raise ValueError(
        f"method=rosenbrock takes the derivative of all {D} numbers of its state and factorises "
        f"it, {rosenbrock_step(flow, state):.1g} multiplications a step, which must be at most "
        f"{LARGEST_STEP:.0e}: take method=rkc, or a smaller network.rank."
    )


# -- times -----------------------------------------------------------------------------------------


def seconds_of(cost: Cost, stepper: Stepper, t1: float) -> float:
    """How long the steps of a run will take, by the time of some steps of a stepper, which moves.

    RKC's first steps have few stages: those beyond are counted as fields.
    """
    state = stepper.state

    def advance(steps: int) -> None:
        drive(stepper, t1, record_at=Every(10**9), max_steps=stepper.step + steps)

    seconds = cost.steps * time_of(advance)
    if isinstance(stepper, AdaptiveStepper) and isinstance(stepper.integrator, RKC):

        def fields(count: int) -> None:
            for _ in range(count):
                stepper.flow.velocity(0.0, state)

        seconds += max(0.0, cost.fields - 3 * cost.steps) * time_of(fields)
    return seconds


def time_of(repeated: Callable[[int], object]) -> float:
    """The time of one of the calls that are `repeated` so many times: 1, 2, 4, … of them.

    It is the last that counts, which is half of all; what the very first sets up never does.
    """
    repeated(1)
    begun, count = time.perf_counter(), 1
    while True:
        now = time.perf_counter()
        repeated(count)
        after = time.perf_counter()
        # Calls that do nothing, as after the end of a short run, need no more of them.
        if after - begun > _TIMED or count >= _TIMED_AT_MOST:
            return (after - now) / count
        count *= 2
