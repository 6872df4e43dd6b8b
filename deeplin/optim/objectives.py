"""What solvers know of a loss: values and gradients, second derivatives, and exact steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from deeplin.geometry.connection import MetricDerivative
from deeplin.geometry.coordinates import Point, Tangent, project_products
from deeplin.geometry.hessian import embedded_hessian, hessian_of_products
from deeplin.linalg import plus_tall_times
from deeplin.optim.fixed_rank import TangentFixedRank
from deeplin.optim.space import Space, Vector
from deeplin.problems import Problem

__all__ = ["Closure", "ClosureObjective", "Objective", "ProblemObjective"]

Closure = Callable[[], Tensor]
# Of the difference quotient of gradients: as Manopt has it, 2^-14 of a unit vector.
_DIFFERENCE = 2.0**-14


class Objective(ABC):
    """A loss on a `Space`."""

    def __init__(self, space: Space):
        self.space = space
        self.evaluations = 0

    @abstractmethod
    def evaluate(self, x: Vector) -> tuple[Tensor, list[Tensor]]:
        """(f, grad f) at x. Shapes: f (*batch)."""

    def narrowed(self, which: Bool[Tensor, "*batch"]) -> Objective | None:
        """The loss of these matrices of a batch alone; None where that cannot be had."""
        return None

    def quadratic(self, x: Vector, u: Vector) -> Tensor | None:
        """⟨u, D∇f[u]⟩ of the Euclidean derivative, where the loss is quadratic in the matrix."""
        return None

    def bend(self, x: Vector, u: Vector) -> Tensor | None:
        """What d²f(R_x(tu))/dt² at t = 0 has beside `quadratic`; None where nothing is known."""
        return None

    def hessian(self, x: Vector, gradient: Vector) -> Callable[[Vector], list[Tensor]]:
        """u ↦ Hess f(x)[u], here by a difference of gradients.

        (T(grad f(R_x(hu))) − grad f(x))/h with h‖u‖ = 2^-14. An error of about that where the
        transport belongs to the metric, as the embedded one's does; else one more, of the size of
        the gradient, that vanishes at critical points.

        Source: [ABG07], §4, as Manopt's approxhessianFD. One evaluation for each product.
        """
        space = self.space

        def product(u: Vector) -> list[Tensor]:
            size = space.norm(x, u)
            h = _DIFFERENCE / torch.where(size > 0, size, 1.0)
            y = space.retract(x, space.scaled(h, u))
            there = space.transport(y, x, self.evaluate(y)[1])
            return space.scaled(1 / h, space.plus(there, -torch.ones_like(h), gradient))

        return product


class ClosureObjective(Objective):
    """A loss that a closure computes and differentiates, as `torch.optim` has it."""

    def __init__(self, space: Space, closure: Closure):
        super().__init__(space)
        self.closure = closure

    def evaluate(self, x: Vector) -> tuple[Tensor, list[Tensor]]:
        """By one call of the closure, to whose x the parameters are moved."""
        self.space.move(x)
        with torch.enable_grad():
            loss = self.closure()
        if not isinstance(loss, Tensor) or not loss.is_floating_point():
            given = loss.dtype if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(
                "step(closure): the closure must return the loss as a real tensor, after "
                f"loss.backward() (loss.sum().backward() for a batch); got {given}."
            )
        self.evaluations += 1
        self.space.set_batch(loss.shape)
        egrads = [
            torch.zeros_like(part) if p.grad is None else p.grad.detach()
            for p, part in zip(self.space.parameters, x, strict=True)
        ]
        with torch.no_grad():
            return loss.detach().clone(), self.space.gradient(x, egrads)


class ProblemObjective(Objective):
    """The loss of a `Problem` at one parameter on `FixedRankFactored`: no tape, exact Hessians."""

    def __init__(self, space: Space, problem: Problem):
        super().__init__(space)
        (self.manifold,) = (m for m in space.manifolds if isinstance(m, TangentFixedRank))
        self.problem = problem

    def evaluate(self, x: Vector) -> tuple[Tensor, list[Tensor]]:
        """By `Problem.loss_and_products`."""
        point = self.manifold.point(x[0])
        loss, GV, GhU = self.problem.loss_and_products(point.U, point.S, point.V)
        self.evaluations += 1
        self.space.set_batch(loss.shape)
        return loss, [self.manifold.gradient(point, GV, GhU)]

    def narrowed(self, which: Bool[Tensor, "*batch"]) -> ProblemObjective | None:
        """By `Problem.narrowed`."""
        problem = self.problem.narrowed(which)
        return None if problem is None else ProblemObjective(self.space.narrowed(which), problem)

    def _sides(self, point: Point, tangent: Tangent) -> tuple[Tensor, Tensor]:
        """ξ = left·rightᴴ."""
        left = torch.cat([plus_tall_times(tangent.Up, point.U, tangent.M), point.U], -1)
        return left, torch.cat([point.V, tangent.Vp], -1)

    def quadratic(self, x: Vector, u: Vector) -> Tensor | None:
        """By `Problem.quadratic_along`."""
        point, tangent = self.manifold.point(x[0]), self.manifold.tangent(u[0])
        return self.problem.quadratic_along(*self._sides(point, tangent))

    def bend(self, x: Vector, u: Vector) -> Tensor | None:
        """2⟨∇f(W), U_pS⁻¹V_pᴴ⟩: retractions that tangent vectors alone define are of second order
        in the embedded metric, and so bend as the manifold does. Not that of the layers.

        Source: the second fundamental form, as in [Van13], §2.3.
        """
        if not self.manifold.bends_least:
            return None
        point, tangent = self.manifold.point(x[0]), self.manifold.tangent(u[0])
        left = tangent.Up @ torch.linalg.inv_ex(point.S).inverse
        slope = self.problem.slope_along(point.U @ point.S, point.V, left, tangent.Vp)
        return 2 * slope

    def hessian(
        self, x: Vector, gradient: Vector, *, curved: bool = True
    ) -> Callable[[Vector], list[Tensor]]:
        """Exact, of any metric, from `Problem.hessian_at`.

        Unless `curved` 𝒜_W P_W(D∇f[ξ]) alone, Gauss and Newton's: without what the curvature of the
        manifold adds, and so positive semidefinite where f is convex.
        """
        point, problem, metric = self.manifold.point(x[0]), self.problem, self.manifold.metric
        products = problem.hessian_at(point.U, point.S, point.V)
        inverse = torch.linalg.inv_ex(point.S).inverse
        # Only other metrics than the embedded one ask for the gradient.
        G, derivative = self.manifold.tangent(gradient[0]), None
        if curved and not self.manifold.embedded:
            G = project_products(point, *problem.egrad_products(point.U, point.S, point.V))
            derivative = MetricDerivative.of(metric, point.spectrum[1])

        def product(u: Vector) -> list[Tensor]:
            tangent = self.manifold.tangent(u[0])
            of_tangent = products(tangent.M, tangent.Up, tangent.Vp)
            if not curved:
                return [self.manifold.gradient(point, *of_tangent[:2])]
            if self.manifold.embedded:
                result = embedded_hessian(point, *of_tangent, inverse)
            else:
                numbers = metric, inverse, derivative
                result = hessian_of_products(point, tangent, G, *of_tangent, *numbers)
            return [self.manifold.stored(result)]

        return product
