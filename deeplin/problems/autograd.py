"""Losses and their derivatives by autograd: one number for each matrix of a batch, checked here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["beside", "for_each", "half_square", "real", "summed", "zeros_between"]

T = TypeVar("T")


def half_square(errors: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """½Σ|e|² over `dim`, smooth at 0 too: the square of a norm has no second derivative there."""
    if errors.is_complex():
        return 0.5 * (errors.real.square() + errors.imag.square()).sum(dim)
    return 0.5 * errors.square().sum(dim)


def real(values: Tensor) -> Tensor:
    """What a loss gave. Raises: TypeError unless it is a tensor of real numbers."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        given = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(
            f"loss(W) must give real floating-point numbers as a tensor; got {given}: of complex "
            "matrices take .abs().square() or .real."
        )
    return values


def summed(values: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the losses, to be differentiated, and the losses."""
    return real(values).sum(), values


def for_each(call: Callable[..., tuple[T, Tensor]], *matrices: Tensor) -> T:
    """What call(*matrices) gives first, once the losses it gives second are one for each matrix.

    A problem whose data are a batch of their own has more losses than there are matrices; these
    are then repeated, so that each loss has its own.
    """
    batch = torch.broadcast_shapes(*(M.shape[:-2] for M in matrices))
    result, values = call(*matrices)
    if values.shape == batch:
        return result
    wide = values.shape
    fits = len(wide) >= len(batch) and all(
        b in (1, w) for b, w in zip(reversed(batch), reversed(wide), strict=False)
    )
    if fits:
        result, values = call(*(M.expand(*wide, *M.shape[-2:]) for M in matrices))
        if values.shape == wide:
            return result
    raise ValueError(
        f"loss(W) must give one number for each matrix, of shape {tuple(batch)} for a batch of "
        f"shape {tuple(batch)}; got shape {tuple(wide)}: reduce over the last two dimensions "
        "alone, as .sum((-2, -1)) does."
    )


def beside(*parts: Tensor) -> Tensor:
    """The columns of matrices beside each other, their batch dimensions broadcast."""
    batch = torch.broadcast_shapes(*(part.shape[:-2] for part in parts))
    return torch.cat([part.expand(*batch, *part.shape[-2:]) for part in parts], -1)


def zeros_between(A: Tensor, P: Tensor, *others: Tensor) -> Tensor:
    """Zeros of as many rows as A and columns as P, in the batch of all."""
    batch = torch.broadcast_shapes(*(part.shape[:-2] for part in (A, P, *others)))
    return A.new_zeros((*batch, A.shape[-2], P.shape[-1]))
