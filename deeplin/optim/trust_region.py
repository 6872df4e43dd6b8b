"""Riemannian trust regions for geoopt's manifolds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.optim.objectives import Closure, Objective
from deeplin.optim.solver import Preconditioner, Solver, number
from deeplin.optim.space import Vector
from deeplin.optim.truncated_cg import truncated_cg
from deeplin.problems import Problem

__all__ = ["Hessian", "TrustRegion"]

# More than 1/_REFUSED steps in a row not taken: the radius is 4^-32 of what it was, a rest.
_REFUSED = 1 / 32
# (x, u) -> Hess f(x)[u], the Riemannian one; for each parameter one tensor.
Hessian = Callable[[Vector, Vector], list[Tensor]]


class TrustRegion(Solver):
    """Riemannian trust regions: x⁺ = R_x(η), η the truncated-CG minimiser of a quadratic model.

    A step is taken where ρ = (f(x) − f(x⁺))/(m(0) − m(η)) > `accept`; below ¼ the radius is
    divided by 4, above ¾ at the border it is doubled. Near a nondegenerate minimum convergence is
    quadratic with an exact Hessian (θ = 1). Parameters, groups, closures, batches and `problem` are
    those of `ConjugateGradient`; each matrix of a batch has a radius and a ρ of its own.

    The Hessian is, in this order: `hessian`, a function of (x, u), lists of a tensor for each
    parameter; the exact one of `problem`, for every metric; else a difference of two gradients,
    one evaluation of the closure for each product. On the manifolds of deeplin
    ``lambda x, u: [manifold.hessian_vector_product(x[0], pair_loss, u[0])]`` is exact, too.

    Round-off: numerator and denominator of ρ have 10³ε|f| added, so that ρ tends to 1 where f
    changes by less. A matrix for which 33 steps in a row were refused is `finished`.

    Source: [ABG07], [AMS08], Algorithm 10; the regularisation: as Manopt's, without its floor at
        |f| = 1, below which a loss of residuals is still known.
    Cost: one evaluation of loss and gradient, and a product with the Hessian for each step of CG.
    Raises: as `ConjugateGradient`.

    Args:
        tol: a matrix whose gradient has at most this norm stays where it is.
        radius: the first radius; 0: the length of the step to the minimum of the model along the
            gradient, or the gradient's own where the model has none.
        max_radius: the largest radius.
        accept: the least ρ of a step that is taken.
        theta, kappa: `truncated_cg` stops at ‖g‖ min(‖g‖^θ, κ).
        most: products with the Hessian in a step.
        preconditioner: (x, u) ↦ an approximate inverse of the Hessian times u, symmetric positive
            definite.

    >>> import geoopt
    >>> A = torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64))
    >>> start = torch.ones(5, dtype=torch.float64) / 5**0.5
    >>> x = geoopt.ManifoldParameter(start, manifold=geoopt.Sphere())
    >>> optimizer = TrustRegion([x], tol=1e-10)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = x @ A @ x
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(15):
    ...     loss = optimizer.step(closure)
    >>> round(float(loss), 10)  # the smallest eigenvalue
    1.0
    """

    def __init__(
        self,
        params,
        *,
        problem: Problem | None = None,
        hessian: Hessian | None = None,
        tol: float = 0.0,
        radius: float = 0.0,
        max_radius: float = torch.inf,
        accept: float = 0.1,
        theta: float = 1.0,
        kappa: float = 0.1,
        most: int = 500,
        preconditioner: Preconditioner | None = None,
    ):
        name = type(self).__name__
        defaults = {
            "tol": number(name, "tol", tol, 0, torch.inf),
            "radius": number(name, "radius", radius, 0, torch.inf),
            "max_radius": number(name, "max_radius", max_radius, radius, torch.inf),
            "accept": number(name, "accept", accept, 0, 0.25),
            "theta": number(name, "theta", theta, 0, 10),
            "kappa": number(name, "kappa", kappa, 0, 1),
            "most": number(name, "most", most, 1, 1e9),
        }
        self._hessian = hessian
        super().__init__(params, defaults, problem, preconditioner)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Float[Tensor, "*batch"]:  # pyright: ignore
        """One step, taken or not; the loss where it has come to. `finished` matrices stay."""
        objective, x, known = self._start(closure)
        if not known:
            self._begin(objective, x)
        space, numbers = objective.space, self._numbers
        gradient, loss, radius = self._vector("gradient"), numbers["loss"], numbers["radius"]
        active = ~self.finished
        if not bool(active.any()):
            self._end(objective)
            return loss
        found = truncated_cg(
            space,
            x,
            gradient,
            self._second(objective, x, gradient),
            lambda u: self._preconditioned(x, u),
            radius,
            active,
            theta=self._option("theta"),
            kappa=self._option("kappa"),
            most=int(self._option("most")),
        )
        y = space.where(active, space.retract(x, found.step), x)
        there, new = objective.evaluate(y)
        noise = 1e3 * torch.finfo(loss.dtype).eps * loss.abs()
        rho = (loss - there + noise) / (noise - found.change)
        taken = active & (found.change <= 0) & (rho > self._option("accept"))
        taken = taken & torch.isfinite(there)
        smaller = ~(rho >= 0.25) | (found.change > 0)
        larger = (rho > 0.75) & found.at_border
        new_radius = torch.where(
            smaller, radius / 4, torch.where(larger, 2 * radius, radius)
        ).clamp(max=self._option("max_radius"))
        end = space.where(taken, y, x)
        gradient = space.where(taken, new, gradient)
        kept = {
            "loss": torch.where(taken, there, loss),
            "radius": new_radius,
            "rho": rho,
            "gradient_norm": space.norm(end, gradient),
            "stalled": torch.where(taken, 0.0, numbers["stalled"] + _REFUSED),
        }
        if space.batch:
            kept = {key: torch.where(active, kept[key], numbers[key]) for key in kept}
        numbers.update(kept)
        self._keep("gradient", gradient)
        space.move(end)
        self._end(objective)
        return kept["loss"]

    def _second(
        self, objective: Objective, x: Vector, gradient: Vector
    ) -> Callable[[Vector], list[Tensor]]:
        hessian = self._hessian
        if hessian is None:
            return objective.hessian(x, gradient)
        return lambda u: list(hessian(x, u))

    def _begin(self, objective: Objective, x: Vector) -> None:
        """The first radius, from the model along the gradient where none is given."""
        loss, gradient = objective.evaluate(x)
        space = objective.space
        radius = torch.full_like(loss, self._option("radius"))
        if not self._option("radius"):
            P = self._preconditioned(x, gradient)
            square = space.inner(x, gradient, P)
            length = square / space.inner(x, P, self._second(objective, x, gradient)(P))
            radius = torch.where(length > 0, length, 1.0) * square.clamp(min=0).sqrt()
            radius = torch.where(torch.isfinite(radius) & (radius > 0), radius, 1.0)
        self._numbers.update(
            {
                "loss": loss,
                "radius": radius.clamp(max=self._option("max_radius")),
                "rho": torch.ones_like(loss),
                "gradient_norm": space.norm(x, gradient),
                "stalled": torch.zeros_like(loss),
            }
        )
        self._keep("gradient", gradient)

    @property
    def radius(self) -> Float[Tensor, "*batch"]:
        """Δ, of the next step."""
        return self._kept("radius")

    @property
    def rho(self) -> Float[Tensor, "*batch"]:
        """ρ of the last step: how much of what the model promised came."""
        return self._kept("rho")
