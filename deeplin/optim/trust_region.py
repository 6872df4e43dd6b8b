"""Riemannian trust regions for geoopt's manifolds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deeplin.optim.objectives import Closure, Objective, ProblemObjective
from deeplin.optim.solver import Preconditioner, Solver, number
from deeplin.optim.space import Vector
from deeplin.optim.truncated_cg import Model, truncated_cg
from deeplin.problems import Problem

__all__ = ["Hessian", "TrustRegion"]

# More than 1/_REFUSED steps in a row not taken: the radius is 4^-32 of what it was, a rest.
_REFUSED = 1 / 32
_NUMBERS = ("loss", "radius", "rho", "gradient_norm", "stalled", "first_norm")
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
    ``"gauss_newton"`` is that of `problem` without the curvature of the manifold: positive
    semidefinite where f is convex, with linear convergence unless the residual vanishes.

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
        theta, kappa: `truncated_cg` stops at ‖g‖ min((‖g‖/‖g_0‖)^θ, κ), g_0 the first gradient, or
            at κ·tol.
        most: products with the Hessian in a step.
        preconditioner: (x, u) ↦ an approximate inverse of the Hessian times u, symmetric positive
            definite; or as in `ConjugateGradient`.

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
        hessian: Hessian | Literal["gauss_newton"] | None = None,
        tol: float = 0.0,
        radius: float = 0.0,
        max_radius: float = torch.inf,
        accept: float = 0.1,
        theta: float = 1.0,
        kappa: float = 0.1,
        most: int = 500,
        preconditioner: Preconditioner = "auto",
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
        if not (callable(hessian) or hessian is None or hessian == "gauss_newton"):
            raise ValueError(
                f"{name}: hessian must be a function of (x, u), None: the exact one where there is "
                f'a problem, or "gauss_newton"; got {hessian!r}.'
            )
        if hessian == "gauss_newton" and problem is None:
            raise ValueError(
                f'{name}: hessian="gauss_newton" needs problem=..., of which the parts of the '
                "Hessian are known; leave it out."
            )
        self._hessian = hessian
        super().__init__(params, defaults, problem, preconditioner)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Float[Tensor, "*batch"]:  # pyright: ignore
        """One step, taken or not; the loss where it has come to. `finished` matrices stay."""
        objective, x, known = self._start(closure)
        if not known:
            self._begin(objective, x)
        numbers, gradient = self._numbers, self._vector("gradient")
        active = ~self.finished
        if bool(active.any()):
            part = None if bool(active.all()) else self._narrowed(objective, active)
            if part is None:
                kept, end, new = self._advanced(objective, x, gradient, dict(numbers), active)
            else:
                few = {key: value[active] for key, value in numbers.items() if key in _NUMBERS}
                few_x, few_gradient = ([v[active] for v in vector] for vector in (x, gradient))
                found = self._advanced(
                    part, few_x, few_gradient, few, torch.ones_like(active[active])
                )
                kept = {
                    key: numbers[key].masked_scatter(active, few) for key, few in found[0].items()
                }
                end, new = (
                    [_with(v, active, w) for v, w in zip(vector, few, strict=True)]
                    for vector, few in ((x, found[1]), (gradient, found[2]))
                )
                objective.evaluations += part.evaluations
            numbers.update(kept)
            self._keep("gradient", new)
            objective.space.move(end)
        self._end(objective)
        return numbers["loss"]

    def _narrowed(self, objective: Objective, which: Bool[Tensor, "*batch"]) -> Objective | None:
        """The loss of some matrices, where all that is asked of it can be had of them alone."""
        asked = callable(self._hessian) or callable(self._preconditioner)
        if asked or self._takes_blocks(objective) or which.ndim != 1:
            return None
        return objective.narrowed(which)

    def _advanced(
        self,
        objective: Objective,
        x: Vector,
        gradient: Vector,
        numbers: dict[str, Tensor],
        active: Bool[Tensor, "*batch"],
    ) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
        """(numbers, x, gradient) after a step of the active matrices."""
        space, loss, radius = objective.space, numbers["loss"], numbers["radius"]
        found = truncated_cg(
            self._model(objective, x, gradient, loss),
            radius,
            self._goal(numbers),
            active,
            int(self._option("most")),
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
        return kept, end, gradient

    def _goal(self, numbers: dict[str, Tensor]) -> Float[Tensor, "*batch"]:
        """How small ‖g + Hη‖ is to become; of what is below κ·tol nobody asks."""
        norm, kappa = numbers["gradient_norm"], self._option("kappa")
        share = (norm / numbers["first_norm"]) ** self._option("theta")
        return (norm * share.clamp(max=kappa)).clamp(min=kappa * self._option("tol"))

    def _model(self, objective: Objective, x: Vector, gradient: Vector, loss: Tensor) -> Model:
        def narrowed(which: Bool[Tensor, "*batch"]) -> Model:
            part = objective.narrowed(which)
            assert part is not None
            few_x, few_gradient = ([v[which] for v in vector] for vector in (x, gradient))
            return self._model(part, few_x, few_gradient, loss[which])

        none = torch.zeros(objective.space.batch, dtype=torch.bool)
        can = objective.space.batch and self._narrowed(objective, none) is not None
        return Model(
            objective.space,
            x,
            gradient,
            self._second(objective, x, gradient),
            self._preconditioner_at(objective, x, loss),
            narrowed if can else None,
        )

    def _second(
        self, objective: Objective, x: Vector, gradient: Vector
    ) -> Callable[[Vector], list[Tensor]]:
        hessian = self._hessian
        if isinstance(objective, ProblemObjective) and not callable(hessian):
            return objective.hessian(x, gradient, curved=hessian is None)
        if not callable(hessian):
            return objective.hessian(x, gradient)
        return lambda u: list(hessian(x, u))

    def _begin(self, objective: Objective, x: Vector) -> None:
        """The first radius, from the model along the gradient where none is given."""
        loss, gradient = objective.evaluate(x)
        space = objective.space
        norm = space.norm(x, gradient)
        radius = torch.full_like(loss, self._option("radius"))
        if not self._option("radius"):
            P = self._preconditioner_at(objective, x, loss)(gradient)
            square = space.inner(x, gradient, P)
            length = square / space.inner(x, P, self._second(objective, x, gradient)(P))
            radius = torch.where(length > 0, length, 1.0) * square.clamp(min=0).sqrt()
            radius = torch.where(torch.isfinite(radius) & (radius > 0), radius, 1.0)
        self._numbers.update(
            {
                "loss": loss,
                "radius": radius.clamp(max=self._option("max_radius")),
                "rho": torch.ones_like(loss),
                "gradient_norm": norm,
                "stalled": torch.zeros_like(loss),
                "first_norm": norm,
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


def _with(vector: Tensor, which: Bool[Tensor, "*batch"], few: Tensor) -> Tensor:
    """The vector with those of some matrices in place of its own."""
    changed = vector.clone()
    changed[which] = few
    return changed
