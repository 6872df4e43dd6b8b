"""Hermitian matrices: the Hermitian part of one, and its powers."""

from __future__ import annotations

import torch
from jaxtyping import Inexact
from torch import Tensor

__all__ = ["hermitian_part", "psd_power"]


def hermitian_part(A: Inexact[Tensor, "*batch n n"]) -> Inexact[Tensor, "*batch n n"]:
    """The Hermitian part ½(A + Aᴴ); the symmetric part of a real matrix."""
    return (A + A.mH) / 2


def psd_power(
    A: Inexact[Tensor, "*batch n n"], power: float, *, rtol: float | None = None
) -> Inexact[Tensor, "*batch n n"]:
    """The principal power A^p of a Hermitian positive semidefinite matrix, on its range.

    Eigenvalues below rtol·λ_1 are round-off: they and their eigenvectors are dropped, so that a
    negative power is the power of the pseudo-inverse and no fractional power of noise is taken.

    Shapes: A (*batch, n, n) Hermitian; rtol defaults to n·eps.
    Cost: one eigendecomposition, O(n³).
    """
    eigenvalues, vectors = torch.linalg.eigh(A)
    rtol = A.shape[-1] * torch.finfo(A.dtype).eps if rtol is None else rtol
    kept = eigenvalues > rtol * eigenvalues[..., -1:].clamp(min=0)
    powers = torch.where(kept, torch.where(kept, eigenvalues, 1.0) ** power, 0.0)
    return (vectors * powers[..., None, :]) @ vectors.mH
