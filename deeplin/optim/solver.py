"""What the two solvers share: parameters, options, what is kept from step to step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deeplin.manifolds import FixedRankFactored
from deeplin.optim.blocks import BlockPreconditioner
from deeplin.optim.fixed_rank import TangentFixedRank
from deeplin.optim.objectives import Closure, ClosureObjective, Objective, ProblemObjective
from deeplin.optim.space import Space, Vector, manifold_of
from deeplin.problems import Problem

__all__ = ["Preconditioner", "Solver", "number"]

# (x, gradient) -> a tangent vector; for each parameter one tensor. Or one of ours, by its name.
Preconditioner = Callable[[Vector, Vector], Vector] | Literal["auto", "blocks"] | None


def number(owner: str, name: str, value: object, low: float, high: float) -> float:
    """An option as a number. Raises: ValueError unless low <= value <= high."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{owner}: {name} must lie in [{low:g}, {high:g}]; got {value!r}.")
    return float(value)


class Solver(torch.optim.Optimizer):
    """A Riemannian method that moves all parameters together, a matrix of a batch by itself.

    The parameters of all groups are one point of a product of manifolds. What is kept from step to
    step stands in `state`, tensors of floats alone; after `load_state_dict` the next step is, to
    the bit, the one that would have come. Parameters that somebody else has moved begin anew.
    """

    def __init__(
        self,
        params,
        defaults: dict[str, float],
        problem: Problem | None,
        preconditioner: Preconditioner,
    ):
        self._problem, self._preconditioner = problem, preconditioner
        self._blocks: BlockPreconditioner | None = None
        self._versions: list[int] | None = None
        self._objective: Objective | None = None
        self._evaluations = 0
        super().__init__(params, defaults)
        parameters = self._parameters
        if not callable(preconditioner) and preconditioner not in (None, "auto", "blocks"):
            raise ValueError(
                f"{type(self).__name__}: preconditioner must be a function of (x, gradient), "
                f'"blocks", "auto" or None; got {preconditioner!r}.'
            )
        if problem is None:
            if preconditioner == "blocks":
                raise ValueError(
                    f'{type(self).__name__}: preconditioner="blocks" needs problem=..., of which '
                    "the blocks of the Hessian are known; leave it out, or give a function."
                )
            return
        one = parameters[0] if len(parameters) == 1 else None
        manifold = manifold_of(one) if one is not None else None
        if not isinstance(problem, Problem) or not isinstance(manifold, FixedRankFactored):
            raise TypeError(
                f"{type(self).__name__}(params, problem=...) needs a Problem and one parameter on "
                f"FixedRankFactored; got {type(problem).__name__} and {len(parameters)} parameters,"
                f" the first on {type(manifold).__name__}: leave problem out and step with a "
                "closure."
            )
        if problem.shape != manifold.shape:
            raise ValueError(
                f"the problem and the parameter must have one shape; got {problem.shape} and "
                f"{manifold.shape}."
            )
        if problem.group is not manifold.group:
            raise ValueError(
                "the rows of the problem and of the parameter must be spread over the same "
                f"processes; got group = {problem.group} and {manifold.group}: take a "
                "ShardedCompletion and a point on ShardedFixedRank of one group, or neither."
            )

        embedded = TangentFixedRank(manifold).embedded
        if preconditioner == "blocks" and not embedded:
            raise ValueError(
                f'{type(self).__name__}: preconditioner="blocks" belongs to the embedded metric, '
                f"depth=1; got {manifold.metric!r}: take that, or leave it out."
            )
        if preconditioner in ("auto", "blocks") and embedded:
            self._blocks = BlockPreconditioner()

    @property
    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _option(self, name: str) -> float:
        """An option, the same in all groups, since they move together."""
        given = [group[name] for group in self.param_groups]
        if any(value != given[0] for value in given):
            raise ValueError(
                f"{type(self).__name__} moves all groups together: {name} must be the same in "
                f"each; got {', '.join(map(repr, given))}."
            )
        return given[0]

    def load_state_dict(self, state_dict) -> None:
        """As torch's; the parameters are trusted to be those that the state belongs to."""
        super().load_state_dict(state_dict)
        if self._blocks is not None:
            self._blocks.forget()
        self._versions = [p._version for p in self._parameters]

    def _start(self, closure: Closure | None) -> tuple[Objective, list[Tensor], bool]:
        """(objective, x, known): whether the state is that of this point."""
        parameters = self._parameters
        space = Space(parameters)
        if self._problem is not None and closure is None:
            objective: Objective = ProblemObjective(space, self._problem)
        elif closure is not None:
            objective = ClosureObjective(space, closure)
        else:
            raise TypeError(
                f"{type(self).__name__}.step needs a closure that returns the loss and has called "
                "backward(): step(closure), or give problem=... at the beginning."
            )
        x = space.point()
        known = self._versions == [p._version for p in parameters] and bool(self.state)
        if "loss" in self._numbers:
            space.set_batch(self._numbers["loss"].shape)
        return objective, x, known and "loss" in self._numbers

    def _end(self, objective: Objective) -> None:
        self._evaluations += objective.evaluations
        self._versions = [p._version for p in self._parameters]

    @property
    def _numbers(self) -> dict[str, Tensor]:
        """What is kept for each matrix of the batch, beside the first parameter."""
        return self.state[self._parameters[0]]

    def _vector(self, name: str) -> list[Tensor]:
        return [self.state[p][name] for p in self._parameters]

    def _keep(self, name: str, vector: Sequence[Tensor]) -> None:
        for p, part in zip(self._parameters, vector, strict=True):
            self.state[p][name] = part

    def _preconditioner_at(
        self, objective: Objective, x: Vector, loss: Tensor
    ) -> Callable[[Vector], Vector]:
        """u ↦ P(u) at x, where the loss is known."""
        given = self._preconditioner
        if callable(given):
            return partial(given, x)
        if not self._takes_blocks(objective):
            return _itself
        assert self._blocks is not None
        assert isinstance(objective, ProblemObjective)
        found = self._blocks.at(objective, x, loss, self._numbers)
        if self._blocks.missing and given == "blocks":
            raise ValueError(
                f'preconditioner="blocks" needs a problem whose rows meet in no term, as a '
                f"completion's; got {type(self._problem).__name__}: leave it out."
            )
        return found or _itself

    def _takes_blocks(self, objective: Objective) -> bool:
        """Whether the blocks of the Hessian precondition; by themselves those of one matrix.

        Of batches, whose matrices are small, they cost more than they save.
        """
        blocks, asked = self._blocks, self._preconditioner == "blocks"
        if blocks is None or blocks.missing or not isinstance(objective, ProblemObjective):
            return False
        return asked or not objective.space.batch

    # -- what a user asks ------------------------------------------------------------------------

    @property
    def loss(self) -> Float[Tensor, "*batch"]:
        """f at the point that the last step came to."""
        return self._kept("loss")

    @property
    def gradient_norm(self) -> Float[Tensor, "*batch"]:
        """‖grad f‖ at the point that the last step came to."""
        return self._kept("gradient_norm")

    @property
    def finished(self) -> Bool[Tensor, "*batch"]:
        """Which matrices have come to rest: ‖grad f‖ <= tol, or no step decreases the loss."""
        return (self.gradient_norm <= self._option("tol")) | (self._kept("stalled") > 1)

    @property
    def evaluations(self) -> int:
        """How often the loss and its gradient were computed."""
        return self._evaluations

    def _kept(self, name: str) -> Tensor:
        if name not in self._numbers:
            raise RuntimeError(f"{type(self).__name__} knows this after the first step alone.")
        return self._numbers[name]


def _itself(vector: Vector) -> Vector:
    return vector
