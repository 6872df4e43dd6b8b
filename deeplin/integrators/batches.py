"""Batches of which some trajectories have been taken out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, cast

import torch
from torch import Tensor

from deeplin.flows.contract import Flow, State
from deeplin.integrators.contract import Memory

__all__ = ["Frozen", "checked_start", "finite_trajectories", "replaced"]


class _Saved(TypedDict):
    mask: Tensor
    at: list[Tensor]


class Frozen:
    """The trajectories of a batch that are out, and the states at which they are shown.

    In their place copies of one that goes on are advanced, so that steps stay finite and no step
    of the others is another: nothing is asked of the flow, and nothing is paid for in a step.
    """

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self._at: State = ()
        self._donor: tuple[int, ...] = ()

    def add(self, mask: Tensor, at: State) -> None:
        """Take out the trajectories of a mask (*batch); at least one must be left."""
        self.mask = mask if self.mask is None else self.mask | mask
        self._at = tuple(part.clone() for part in at)
        self._donor = tuple((~self.mask).nonzero()[0].tolist())

    def shown(self, y: State) -> State:
        """A state with the frozen trajectories where they are shown."""
        if self.mask is None:
            return y
        return replaced(y, self.mask, self._at)

    def filled(self, part: Tensor) -> Tensor:
        """A tensor (*batch, …) with copies of one that goes on in place of what is frozen."""
        assert self.mask is not None
        part = part.clone()
        part[self.mask] = part[self._donor].clone()
        return part

    def filled_memory(self, memory: Memory | None) -> Memory | None:
        """What a method remembers, with that of one that goes on in place of what is frozen."""
        if memory is None or self.mask is None:
            return memory
        batch = self.mask.shape
        return {
            name: self.filled(part)
            if isinstance(part, Tensor) and part.shape[: len(batch)] == batch
            else part
            for name, part in memory.items()
        }

    def state_dict(self) -> dict[str, object] | None:
        return None if self.mask is None else {"mask": self.mask, "at": list(self._at)}

    def load_state_dict(self, saved: object) -> None:
        if saved is not None:
            moment = cast(_Saved, saved)
            self.add(moment["mask"], tuple(moment["at"]))


def replaced(y: State, mask: Tensor, at: State) -> State:
    """A state with the trajectories of a mask (*batch) at other states."""
    parts = []
    for part, other in zip(y, at, strict=True):
        new = part.clone()
        new[mask] = other[mask]
        parts.append(new)
    return tuple(parts)


def finite_trajectories(y: Sequence[Tensor], dims: int) -> Tensor:
    """Which trajectories of a state are finite, (*batch), `dims` the number of its dimensions."""
    finite = [torch.isfinite(part) for part in y]
    return torch.stack([f.flatten(dims).all(-1) if f.ndim > dims else f for f in finite]).all(0)


def checked_start(flow: Flow, y0: State) -> State:
    """A start as a tuple.

    Raises: ValueError for entries that are not finite, and for a dtype that the flow cannot take.
    """
    y0 = tuple(y0)
    batch = flow.batch_shape(y0)
    finite = finite_trajectories(y0, len(batch))
    if not bool(finite.all()):
        wrong = (~finite).flatten().nonzero().flatten().tolist()
        which = f"trajectory {wrong[0] + 1} of {finite.numel()}" if batch else "it"
        raise ValueError(f"the start must be finite; {which} is not: take another start.")
    given = y0[0].real.dtype
    if flow.dtype not in (None, given):
        try:
            flow.velocity(0.0, y0)
        except RuntimeError as error:
            raise ValueError(
                f"the start must have the dtype of the flow's problem, {_name(flow.dtype)}; got "
                f"{_name(given)}: convert one of them with .to(...)."
            ) from error
    return y0


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
