"""What a flow is: a vector field on states, and what the loop, the log, the verdict ask of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor

from deeplin.network import DeepLinear
from deeplin.problems.contract import Problem

__all__ = ["Flow", "Start", "State", "TangentFlow"]

State = tuple[Tensor, ...]
Start = Tensor | DeepLinear | Sequence[Tensor]

_ITERATIONS = 40


class Flow(ABC):
    """A flow ẏ = f(t, y) whose states stand for a matrix W.

    A state is a tuple of tensors with the batch dimensions, one trajectory each, first.
    `velocity`, `init_state` and `end_to_end` are required; the rest has defaults that are correct
    for every flow, only slower or silent.

    - `logarithmic_parts`: the indices of those tensors of a state that hold logarithms, whose
      errors are relative already.
    - `autonomous`: whether the field is the same at all times, so that methods need not ask how it
      depends on t.
    - `normalises`: whether `normalised` does anything; methods then cannot reuse the field at the
      end of a step as that at the start of the next.
    """

    logarithmic_parts: tuple[int, ...] = ()
    autonomous: bool = False
    normalises: bool = False

    @property
    def dtype(self) -> torch.dtype | None:
        """The real dtype of what the flow and its problem hold; None where it is none, or many."""
        held = list(vars(self).values())
        held += [v for own in held if isinstance(own, Problem) for v in vars(own).values()]
        tensors = [v for v in held if isinstance(v, Tensor)]
        found = {v.real.dtype for v in tensors if v.is_floating_point() or v.is_complex()}
        return found.pop() if len(found) == 1 else None

    @abstractmethod
    def velocity(self, t: float | Tensor, y: State) -> State:
        """f(t, y), in the shapes of y; t is a number, or one for each trajectory, (*batch)."""

    @abstractmethod
    def init_state(self, start: Start, rank: int | None = None) -> State:
        """The state of a start: a network, its layers from the first to the last, or W; copied."""

    @abstractmethod
    def end_to_end(self, y: State) -> Inexact[Tensor, "*batch m n"]:
        """W."""

    def batch_shape(self, y: State) -> torch.Size:
        """The dimensions of the trajectories: those that W has before its last two."""
        return self.end_to_end(y).shape[:-2]

    def normalised(self, y: State, before: State | None = None) -> State:
        """The same point in coordinates fit for the next step, which began at `before`."""
        return y

    def conserved(self, y: State) -> dict[str, Tensor]:
        """Quantities that the exact flow keeps, by name; batch dimensions first."""
        return {}

    def gradient_norm(self, y: State) -> Float[Tensor, "*batch"]:
        """The norm of the gradient in the flow's own metric; by default that of the velocity."""
        dims = len(self.batch_shape(y))
        parts = [part.flatten(dims) for part in self.velocity(0.0, y)]
        return torch.linalg.vector_norm(torch.cat(parts, -1), dim=-1)

    def singular_values(self, y: State) -> Float[Tensor, "*batch k"]:
        """The singular values of W, in descending order."""
        return torch.linalg.svdvals(self.end_to_end(y))

    def rank(self, y: State) -> Int[Tensor, "*batch"]:
        """The rank of W: by default that of its singular values above max(m, n)·eps·σ_1."""
        s = self.singular_values(y)
        size = max(self.end_to_end(y).shape[-2:])
        return (s > size * torch.finfo(s.dtype).eps * s[..., :1]).sum(-1)

    def remark(self, y: State) -> str | None:
        """A sentence on what the numbers of the state cannot show, if there is any."""
        return None

    def curvature(self, y: State) -> float:
        """What limits explicit steps: the largest ‖Df(y)‖ over the trajectories.

        By power iteration on differences of the field, so that it holds for any flow.

        Cost: at most 40 fields. Accuracy: a few per cent, from below.
        """
        dims = len(self.batch_shape(y))

        def norm(parts: Sequence[Tensor]) -> Tensor:
            squares = [part.flatten(dims).abs().square().sum(-1) for part in parts]
            return torch.stack(squares).sum(0).sqrt()

        def scaled(factor: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
            return [factor.reshape(factor.shape + (1,) * (p.ndim - dims)) * p for p in parts]

        generator = torch.Generator().manual_seed(0)
        vector = [torch.randn(p.shape, dtype=p.dtype, generator=generator).to(p.device) for p in y]
        at_y, size = self.velocity(0.0, y), norm(y)
        step = torch.finfo(size.dtype).eps ** 0.5 * torch.where(size > 0, size, 1.0)
        growth = torch.zeros_like(size)
        for _ in range(_ITERATIONS):
            length = norm(vector)
            vector = scaled(step / torch.where(length > 0, length, 1.0), vector)
            moved = self.velocity(0.0, tuple(p + v for p, v in zip(y, vector, strict=True)))
            vector = [a - b for a, b in zip(moved, at_y, strict=True)]
            previous, growth = growth, norm(vector) / step
            if bool(((growth - previous).abs() <= 0.01 * growth).all()):
                break
        return float(growth.max())


class TangentFlow(Flow):
    """A gradient flow on matrices of rank r that can step along tangent vectors and truncate.

    The method that needs that is `integrators.ProjectedRungeKutta`.
    """

    @abstractmethod
    def tangent_step(self, y: State, at: State) -> tuple[Tensor, Tensor]:
        """Two thin factors of the velocity of W at the point `at`; y sets the shapes."""

    @abstractmethod
    def truncated(self, y: State, steps: Sequence[tuple[float, tuple[Tensor, Tensor]]]) -> State:
        """The nearest point of rank r to W + Σ_i h_i ξ_i, ξ_i given as by `tangent_step`."""

    @abstractmethod
    def gradient_step(self, y: State, h: float) -> State:
        """One step of Riemannian gradient descent of length h: to the nearest point of rank r."""
