"""What solvers know of a loss: values and gradients, second derivatives, and exact steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from deeplin.geometry.coordinates import Point, Tangent, project_products
from deeplin.geometry.hessian import hessian_of_products
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
        """(f, grad f) at x, where the parameters then are. Shapes: f (*batch)."""

    def quadratic(self, x: Vector, u: Vector) -> Tensor | None:
        """⟨u, D∇f[u]⟩ of the Euclidean derivative, where the loss is quadratic in the matrix."""
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
        """By one call of the closure."""
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
        self.space.move(x)
        point = self.manifold.point(x[0])
        loss, GV, GhU = self.problem.loss_and_products(point.U, point.S, point.V)
        self.evaluations += 1
        self.space.set_batch(loss.shape)
        return loss, [self.manifold.gradient(point, GV, GhU)]

    def _sides(self, point: Point, tangent: Tangent) -> tuple[Tensor, Tensor]:
        """ξ = left·rightᴴ."""
        left = torch.cat([point.U @ tangent.M + tangent.Up, point.U], -1)
        return left, torch.cat([point.V, tangent.Vp], -1)

    def quadratic(self, x: Vector, u: Vector) -> Tensor | None:
        """By `Problem.quadratic_along`."""
        point, tangent = self.manifold.point(x[0]), self.manifold.tangent(u[0])
        return self.problem.quadratic_along(*self._sides(point, tangent))

    def hessian(self, x: Vector, gradient: Vector) -> Callable[[Vector], list[Tensor]]:
        """Exact, of any metric, from `Problem.egrad_at` and `Problem.hessian_products`."""
        point, problem, metric = self.manifold.point(x[0]), self.problem, self.manifold.metric
        times = problem.egrad_at(point.U @ point.S, point.V)
        G = project_products(point, *times(point.V, point.U))

        def product(u: Vector) -> list[Tensor]:
            tangent = self.manifold.tangent(u[0])
            sides = self._sides(point, tangent)
            H = problem.hessian_products(point.U, point.S, point.V, *sides)
            across = times(tangent.Vp, tangent.Up)
            H = project_products(point, *H)
            result = hessian_of_products(point, tangent, G, H, *across, metric)
            return [self.manifold.stored(result)]

        return product
