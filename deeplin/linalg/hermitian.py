"""The Hermitian part of a matrix, and whether a matrix is positive semidefinite."""

from __future__ import annotations

import torch
from jaxtyping import Inexact
from torch import Tensor

__all__ = ["hermitian_part", "is_semidefinite"]


def hermitian_part(A: Inexact[Tensor, "*batch n n"]) -> Inexact[Tensor, "*batch n n"]:
    """The Hermitian part ½(A + Aᴴ); the symmetric part of a real matrix. No size overflows."""
    return torch.add(A / 2, A.mH, alpha=0.5)


def is_semidefinite(A: Inexact[Tensor, "*batch m n"]) -> bool:
    """Whether matrices are square, Hermitian and positive semidefinite, all, up to round-off.

    Cost: an eigendecomposition. Accuracy: to 100 eps·‖A‖_F, for eigenvalues n times that.
    """
    n = A.shape[-1]
    if A.shape[-2] != n:
        return False
    noise = 100 * torch.finfo(A.dtype).eps * torch.linalg.matrix_norm(A)
    if bool((torch.linalg.matrix_norm(A - A.mH) > noise).any()):
        return False
    return bool((torch.linalg.eigvalsh(A)[..., 0] >= -n * noise).all())
