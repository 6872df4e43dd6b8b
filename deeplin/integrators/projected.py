"""Runge–Kutta methods on matrices of rank r, by tangent steps and truncation."""

from __future__ import annotations

from typing import ClassVar

from deeplin.flows.contract import Flow, State, TangentFlow
from deeplin.integrators.contract import Integrator

__all__ = ["ProjectedRungeKutta"]


class ProjectedRungeKutta(Integrator):
    """Runge–Kutta methods on M_r that return to rank r by truncation: no inverse of S anywhere.

    Stages Y_i = R(Y_0 + h Σ_j a_ij P_{T(Y_j)}F(Y_j)), R the nearest matrix of rank r; on the
    positive semidefinite cone the nearest one there. Order 1 is Riemannian gradient descent,
    Z ← R(Z − α P_T∇f); on a `rescaled` flow its step is α σ_r(Z). Order 2 is the midpoint rule,
    order 4 the classical one.

    Source: [KV19]; order 1: HLZ Lemma 2.4, HLZ (2).
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

    def step(self, flow: Flow, t: float, y: State, dt: float) -> State:
        """The state at t + dt of a flow that offers tangent_step and truncated."""
        if not isinstance(flow, TangentFlow):
            raise TypeError(
                "ProjectedRungeKutta needs a flow of tangent steps, DLRAFlow or PSDDLRAFlow; got "
                f"{type(flow).__name__}: choose another integrator."
            )
        if self.order == 1:
            return flow.gradient_step(y, dt)
        tangents, end = [flow.tangent_step(y, y)], y
        for row in (*self._A[self.order], self._B[self.order]):
            used = [(dt * a, T) for a, T in zip(row, tangents, strict=False) if a]
            end = flow.truncated(y, used)
            if len(tangents) < len(self._B[self.order]):
                tangents.append(flow.tangent_step(y, end))
        return end
