"""States as vectors, and their linear combinations by trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deeplin.flows.contract import Flow, State

__all__ = ["Packing", "by_trajectory", "combined", "hermite", "shifted", "stage_times"]


class Packing:
    """States as real vectors (*batch, D), D the number of real entries of a trajectory, and back.

    A complex entry is two real ones: what is done to the vectors, derivatives and norms among it,
    needs no field that is differentiable in the complex sense.
    """

    def __init__(self, y: State, dims: int):
        self.is_complex = [part.is_complex() for part in y]
        self.shapes = [part.shape[dims:] for part in self._real(y)]
        self.sizes = [shape.numel() for shape in self.shapes]

    def packed(self, y: State) -> Tensor:
        return torch.cat(
            [
                part.reshape(*part.shape[: part.ndim - len(shape)], -1)
                for part, shape in zip(self._real(y), self.shapes, strict=True)
            ],
            -1,
        )

    def unpacked(self, vector: Tensor) -> State:
        """Views of the vector; dimensions before the last are all batch."""
        pieces = vector.split(self.sizes, -1)
        real = [
            piece if len(shape) == 1 else piece.unflatten(-1, shape)
            for piece, shape in zip(pieces, self.shapes, strict=True)
        ]
        return tuple(
            # view_as_complex asks for even strides.
            torch.view_as_complex(part.contiguous()) if paired else part
            for part, paired in zip(real, self.is_complex, strict=True)
        )

    def _real(self, y: State) -> list[Tensor]:
        pairs = zip(y, self.is_complex, strict=True)
        return [torch.view_as_real(part.resolve_conj()) if c else part for part, c in pairs]


def stage_times(
    flow: Flow, t: float | Tensor, dt: float | Tensor
) -> Callable[[float], float | Tensor]:
    """c ↦ t + c·dt, the time of a stage; t itself where the field does not depend on it."""
    if flow.autonomous:
        return lambda c: t
    return lambda c: t + c * dt


def hermite(y: State, end: State, dt: Tensor, f0: State, f1: State, theta: Tensor) -> State:
    """The cubic in θ with the values y, end and the slopes dt·f0, dt·f1 at 0 and 1."""
    b = theta * theta * (3 - 2 * theta)
    c, d = dt * theta * (1 - theta) ** 2, dt * theta**2 * (theta - 1)
    return tuple(
        y_i
        + by_trajectory(b, y_i) * (e_i - y_i)
        + by_trajectory(c, y_i) * u
        + by_trajectory(d, y_i) * v
        for y_i, e_i, u, v in zip(y, end, f0, f1, strict=True)
    )


def combined(y: State, dt: float | Tensor, weights: Sequence[float], k: Sequence[State]) -> State:
    """y + dt Σ_j w_j k_j, dt a number or one for each trajectory."""
    used = [(w, k_j) for w, k_j in zip(weights, k, strict=False) if w]
    result = []
    for i, y_i in enumerate(y):
        w, first = used[0]
        total = w * first[i]
        for w, k_j in used[1:]:
            total = total.add(k_j[i], alpha=w)
        if isinstance(dt, Tensor):
            result.append(y_i + by_trajectory(dt, y_i) * total)
        else:
            result.append(y_i.add(total, alpha=dt))
    return tuple(result)


def by_trajectory(value: Tensor, part: Tensor) -> Tensor:
    """One number for each trajectory, shaped to multiply a tensor of a state."""
    return value.reshape(value.shape + (1,) * (part.ndim - value.ndim))


def shifted(y: State, h: float, k: Sequence[Tensor]) -> State:
    """y + hk."""
    return tuple(y_i.add(k_i, alpha=h) for y_i, k_i in zip(y, k, strict=True))
