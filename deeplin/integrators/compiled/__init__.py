"""Steps in C, built by the system's compiler for the sizes at hand."""

from __future__ import annotations

from deeplin.flows import LayerFlow
from deeplin.flows.contract import Flow, State
from deeplin.integrators.compiled.layer_steps import runge_kutta_step
from deeplin.integrators.contract import Integrator
from deeplin.integrators.explicit import OneLine
from deeplin.problems import LeastSquares

__all__ = ["Compiled", "runge_kutta_step"]


class Compiled(Integrator):
    """Euler's method or RK4 with its steps in compiled code, for the layer flow of tiny networks.

    The same numbers to round-off, several times faster for large batches of layers with
    max d_j <= 8; what it takes is said in `compiled.runge_kutta_step`, which raises.
    """

    def __init__(self, integrator: OneLine):
        self.order, self.stability_limit = integrator.order, integrator.stability_limit
        self.nodes, self.weights = integrator.nodes, integrator.weights

    def step(self, flow: Flow, t: float, y: State, dt: float) -> State:
        """The state at t + dt of a layer flow of least squares."""
        if not isinstance(flow, LayerFlow):
            raise TypeError(
                f"Compiled needs the flow of layers, LayerFlow; got {type(flow).__name__}: use the "
                "integrator itself."
            )
        if not isinstance(flow.problem, LeastSquares):
            raise TypeError(
                f"Compiled needs the layer flow of LeastSquares; got {type(flow.problem).__name__}:"
                " use the integrator itself."
            )
        problem = flow.problem
        return runge_kutta_step(y, problem.C, problem.B, dt, self.nodes, self.weights)
