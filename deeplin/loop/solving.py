"""A flow, from a start to a time, in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from deeplin.flows.contract import Flow, State, TangentFlow
from deeplin.integrators.adaptive import AdaptiveStepper
from deeplin.integrators.batches import checked_start
from deeplin.integrators.contract import ErrorControlled, Integrator
from deeplin.integrators.explicit import RK4
from deeplin.integrators.projected import ProjectedRungeKutta
from deeplin.integrators.steppers import IntegratorStepper, Stepper
from deeplin.loop.driving import Observe, drive
from deeplin.loop.records import Record
from deeplin.loop.results import Result
from deeplin.loop.stops import Stop

__all__ = ["Solution", "solve"]


@dataclass(frozen=True)
class Solution:
    """Times saved, the states then (`y[-1]` is the last), what was observed, how it ended.

    Trajectories that `result.lost` numbers are shown from then on as they were when last saved.
    """

    t: Tensor
    y: list[State]
    observed: dict[str, Tensor]
    result: Result


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
    half of its stability limit divided by the flow's own `curvature(y0)`, and asked for where that
    is 0 or not finite. With rtol or atol (by
    default 1e-3·rtol, and 0) the steps are chosen by the error, for each trajectory of a batch by
    its own (`adaptive.AdaptiveStepper`): those of DormandPrince() unless given, of
    `chebyshev.RKC()` or `rosenbrock.Rosenbrock()` where the flow is stiff. These two have no limit
    of stability; without dt their rtol is 1e-6. States and observables are saved
    at t = 0, at the times `save_at` and at the end: fixed steps meet them exactly, adaptive ones
    by dense output. `stop`, one function or several, is asked at each of those times. A trajectory
    of a batch that diverges is left behind, and `result` says which (`loop.Result`).

    Raises: ValueError for t1 <= 0, dt <= 0, times outside [0, t1], tolerances with an integrator
    that has no error estimate, without dt where the curvature gives none, for a start that is
    not finite, or of another dtype than the flow's, for what is observed of it and not finite, and
    for a stop that needs what is not observed; TypeError for a stop that returns
    something else than a Result or None.

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
    y0 = checked_start(flow, y0)
    if 0 in flow.batch_shape(y0):  # nothing moves, whatever the steps
        integrator, dt, rtol, atol = RK4(), t1, None, None
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
    if dt is None:
        curvature = flow.curvature(y0)
        if not 0 < curvature < math.inf:
            raise ValueError(
                f"the step dt must be given here: the flow's curvature at y0 is {curvature}, from "
                "which none follows; give dt=..., or rtol=... with DormandPrince()."
            )
        dt = 0.5 * integrator.stability_limit / curvature
    return IntegratorStepper(flow, y0, integrator, dt)
