"""The Hermitian part of a matrix, and whether a matrix is positive semidefinite."""

from __future__ import annotations

import torch
from jaxtyping import Inexact
from torch import Tensor

__all__ = ["hermitian_part", "is_semidefinite"]


def hermitian_part(A: Inexact[Tensor, "*batch n n"]) -> Inexact[Tensor, "*batch n n"]:
    """The Hermitian part ½(A + Aᴴ); the symmetric part of a real matrix. No size overflows."""
    return torch.add(A / 2, A.mH, alpha=0.5)


def is_semidefinite(A: Inexact[Tensor, "m n"]) -> bool:
    """Whether a matrix is square, Hermitian and positive semidefinite, up to round-off.

    Cost: an eigendecomposition. Accuracy: to 100 eps·‖A‖_F, for eigenvalues n times that.
    """
    if A.shape[0] != A.shape[1]:
        return False
    noise = 100 * torch.finfo(A.dtype).eps * float(torch.linalg.matrix_norm(A))
    if float(torch.linalg.matrix_norm(A - A.mH)) > noise:
        return False
    return float(torch.linalg.eigvalsh(A)[0]) >= -len(A) * noise
