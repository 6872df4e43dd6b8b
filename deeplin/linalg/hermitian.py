"""The Hermitian part of a matrix."""

from __future__ import annotations

from jaxtyping import Inexact
from torch import Tensor

__all__ = ["hermitian_part"]


def hermitian_part(A: Inexact[Tensor, "*batch n n"]) -> Inexact[Tensor, "*batch n n"]:
    """The Hermitian part ½(A + Aᴴ); the symmetric part of a real matrix."""
    return (A + A.mH) / 2
