"""How much of the last direction of conjugate gradients is kept: β from five numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Beta", "Products", "fletcher_reeves", "hestenes_stiefel", "polak_ribiere_plus"]


@dataclass(frozen=True)
class Products:
    """Inner products at the new point; g the gradient, d the direction, P the preconditioner.

    Shapes: each (*batch).
    """

    new: Float[Tensor, "*batch"]
    """⟨g⁺, Pg⁺⟩"""
    old: Float[Tensor, "*batch"]
    """⟨g, Pg⟩ at the old point"""
    across: Float[Tensor, "*batch"]
    """⟨T(g), Pg⁺⟩, T the transport to the new point"""
    slope: Float[Tensor, "*batch"]
    """⟨g, d⟩ at the old point"""
    new_slope: Float[Tensor, "*batch"]
    """⟨g⁺, T(d)⟩"""


Beta = Callable[[Products], Float[Tensor, "*batch"]]


def polak_ribiere_plus(p: Products) -> Float[Tensor, "*batch"]:
    """β = max(0, (⟨g⁺, Pg⁺⟩ − ⟨T(g), Pg⁺⟩)/⟨g, Pg⟩).

    Source: [AMS08], §8.3; the + is [NW06], (5.45).
    """
    return ((p.new - p.across) / p.old).clamp(min=0)


def hestenes_stiefel(p: Products) -> Float[Tensor, "*batch"]:
    """β = max(0, (⟨g⁺, Pg⁺⟩ − ⟨T(g), Pg⁺⟩)/(⟨g⁺, T(d)⟩ − ⟨g, d⟩)).

    Source: [NW06], (5.46), cut off at 0 as above.
    """
    rise = p.new_slope - p.slope
    return torch.where(rise > 0, (p.new - p.across) / rise, 0.0).clamp(min=0)


def fletcher_reeves(p: Products) -> Float[Tensor, "*batch"]:
    """β = ⟨g⁺, Pg⁺⟩/⟨g, Pg⟩.

    Source: [AMS08], §8.3.
    """
    return p.new / p.old
