"""Riemannian conjugate gradients for geoopt's manifolds."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.optim.directions import Beta, Products, polak_ribiere_plus
from deeplin.optim.line_search import search
from deeplin.optim.objectives import Closure, Objective
from deeplin.optim.solver import Preconditioner, Solver, number
from deeplin.optim.space import Vector
from deeplin.problems import Problem

__all__ = ["ConjugateGradient"]

# The share of the second derivative along a step that is left out, and for how many steps.
_BENT, _ASKED = 0.01, 10


class ConjugateGradient(Solver):
    """Nonlinear conjugate gradients: x⁺ = R_x(td), d⁺ = −P grad f(x⁺) + β T(d).

    For any geoopt ManifoldParameter, several at once, and plain parameters; all groups move
    together, by the step that a line search finds. `step(closure)` takes a closure that computes
    the loss, calls ``backward()`` and returns it, as LBFGS of torch.optim does. A closure that
    returns one loss for each matrix of a batch (and calls ``loss.sum().backward()``) gives each
    its own step, β and stop: leading dimensions of the parameters are then the batch.

    Without a closure, `problem` is minimised over one parameter on `FixedRankFactored`: nothing is
    taped, and where the problem is quadratic in W (`Problem.quadratic_along`) the step is
    t = −⟨∇f, d⟩/φ''(0), φ(t) = f(R_W(td)): with φ'' = ⟨d, D∇f[d]⟩ the exact one along W + td
    [Van13], and where the residual is not small with what the manifold bends, 2⟨∇f, d_US⁻¹d_Vᴴ⟩.
    Otherwise the strong Wolfe conditions hold (`line_search.search`). d is −P grad f where it would
    not descend.

    A schedule has nothing to do here: there is no learning rate.

    Source: [AMS08], §8.3; completion: [Van13], Algorithm 1.
    Cost: as a rule one evaluation of loss and gradient a step with a problem that is quadratic,
        two to three otherwise.
    Raises: ValueError for options out of range; TypeError for a step without closure or problem.

    Args:
        beta: a function of `Products`: `polak_ribiere_plus`, `hestenes_stiefel`,
            `fletcher_reeves`, or yours.
        tol: a matrix whose gradient has at most this norm stays where it is.
        decrease, curvature: c_1 and c_2 of the Wolfe conditions.
        most: evaluations in a line search.
        preconditioner: (x, gradient) ↦ a tangent vector, lists of a tensor for each parameter;
            symmetric positive definite. ``"blocks"``: the `BlockPreconditioner` of `problem`, in
            the embedded metric; ``"auto"``: that where there is one, and no batch; None: none.

    >>> import geoopt
    >>> A = torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64))
    >>> start = torch.ones(5, dtype=torch.float64) / 5**0.5
    >>> x = geoopt.ManifoldParameter(start, manifold=geoopt.Sphere())
    >>> optimizer = ConjugateGradient([x], tol=1e-10)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = x @ A @ x
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(30):
    ...     loss = optimizer.step(closure)
    >>> round(float(loss), 10)  # the smallest eigenvalue
    1.0
    """

    def __init__(
        self,
        params,
        *,
        problem: Problem | None = None,
        beta: Beta = polak_ribiere_plus,
        tol: float = 0.0,
        decrease: float = 1e-4,
        curvature: float = 0.1,
        most: int = 25,
        preconditioner: Preconditioner = "auto",
    ):
        name = type(self).__name__
        defaults = {
            "tol": number(name, "tol", tol, 0, torch.inf),
            "decrease": number(name, "decrease", decrease, 0, 0.5),
            "curvature": number(name, "curvature", curvature, decrease, 1),
            "most": number(name, "most", most, 1, 1000),
        }
        if not callable(beta):
            raise TypeError(f"{name}: beta must be a function of Products; got {beta!r}.")
        self._beta = beta
        super().__init__(params, defaults, problem, preconditioner)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Float[Tensor, "*batch"]:  # pyright: ignore
        """One step; the loss where it has come to. Matrices that are `finished` stay."""
        objective, x, known = self._start(closure)
        if not known:
            self._begin(objective, x)
        space, numbers = objective.space, self._numbers
        gradient, direction = self._vector("gradient"), self._vector("direction")
        loss, slope = numbers["loss"], numbers["slope"]
        active = ~self.finished & (slope < 0)
        if not bool(active.any()):
            self._end(objective)
            return loss
        quadratic = objective.quadratic(x, direction)
        exact = quadratic is not None
        if quadratic is None:
            first = numbers["length"] * numbers["old_slope"] / slope
        else:
            first = -slope / self._second(objective, x, loss, quadratic)
        # Where the last steps say nothing: a step of the length that the gradient has.
        first = torch.where(torch.isfinite(first) & (first > 0), first, 1.0)
        found = search(
            objective,
            x,
            loss,
            gradient,
            direction,
            slope,
            first,
            active,
            decrease=self._option("decrease"),
            curvature=self._option("curvature"),
            most=int(self._option("most")),
            exact=exact,
        )
        y, new = found.x, found.gradient
        used = numbers.get("blocks_used")
        P_new = self._preconditioner_at(objective, y, found.loss)(new)
        moved = space.transport(x, y, direction)
        products = Products(
            new=space.inner(y, new, P_new),
            old=numbers["square"],
            across=space.across(x, gradient, y, P_new),
            slope=slope,
            new_slope=space.inner(y, new, moved),
        )
        beta = self._beta(products).nan_to_num(nan=0.0)
        new_slope = -products.new + beta * products.new_slope
        # A direction that does not descend, or along which nothing was gained, is given up; so is
        # one of another preconditioner.
        keeps = (new_slope < 0) & found.decreased
        if used is not None:
            keeps = keeps & (used == numbers["blocks_used"])
        beta = torch.where(keeps, beta, 0.0)
        ahead = space.plus([-part for part in P_new], beta, moved)
        kept = {
            "loss": found.loss,
            "slope": -products.new + beta * products.new_slope,
            "old_slope": slope,
            "length": torch.where(found.decreased, found.length, numbers["length"]),
            "square": products.new,
            "gradient_norm": products.new.clamp(min=0).sqrt()
            if P_new is new
            else space.norm(y, new),
            "stalled": torch.where(found.decreased, 0.0, numbers["stalled"] + 1),
        }
        if space.batch:
            kept = {key: torch.where(active, kept[key], numbers[key]) for key in kept}
        numbers.update(kept)
        self._keep("direction", space.where(active, ahead, direction))
        self._keep("gradient", new)
        self._end(objective)
        return found.loss

    def _second(self, objective: Objective, x: Vector, loss: Tensor, quadratic: Tensor) -> Tensor:
        """φ''(0), φ(t) = f(R_x(td)): `quadratic` and what the manifold bends, where that matters.

        Of a quadratic loss that shrinks with √f, and is asked anew where by that measure it may be
        a hundredth; in any case after so many steps, since it differs from direction to direction.
        """
        numbers, root = self._numbers, loss.clamp(min=0).sqrt()
        bent = numbers.get("bent", torch.full_like(loss, torch.inf))
        ago = numbers.get("bent_ago", torch.zeros_like(loss))
        due = (bent * root > _BENT) | torch.isinf(bent) | (ago >= _ASKED)
        numbers["bent"], numbers["bent_ago"] = bent, ago + 1
        if not bool((due & ~self.finished).any()):
            return quadratic
        bend = objective.bend(x, self._vector("direction"))
        if bend is None:
            return quadratic
        found = (bend.abs() / (quadratic * root)).nan_to_num(nan=0.0)
        numbers["bent"] = torch.where(due, found, bent)
        # A first direction of a start that is special says little of those to come.
        new = torch.where(torch.isinf(bent), _ASKED, 0.0)
        numbers["bent_ago"] = torch.where(due, new, ago + 1)
        whole = quadratic + bend
        return torch.where(due & (whole > 0), whole, quadratic)

    def _begin(self, objective: Objective, x: Vector) -> None:
        """The first direction, −P grad f, and a first step that moves x by its own unit."""
        loss, gradient = objective.evaluate(x)
        space = objective.space
        P = self._preconditioner_at(objective, x, loss)(gradient)
        square = space.inner(x, gradient, P)
        zeros = torch.zeros_like(loss)
        length = 1 / space.norm(x, P)
        for name in ("bent", "bent_ago"):
            self._numbers.pop(name, None)
        self._numbers.update(
            {
                "loss": loss,
                "slope": -square,
                "old_slope": -square,
                "length": torch.where(torch.isfinite(length), length, 1.0),
                "square": square,
                "gradient_norm": space.norm(x, gradient),
                "stalled": zeros,
            }
        )
        self._keep("gradient", gradient)
        self._keep("direction", [-part for part in P])

    @property
    def length(self) -> Float[Tensor, "*batch"]:
        """t of the last step."""
        return self._kept("length")
