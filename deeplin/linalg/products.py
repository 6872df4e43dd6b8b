"""Products of matrices: tall ones, tiny ones in large batches, chains of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.linalg.tall import sum_of_times

__all__ = [
    "batch_last",
    "chain",
    "halves",
    "matmul",
    "plus_tall_times",
    "product_svd",
    "product_svdvals",
    "sum_of_tall",
    "tall_times",
]

# Matrices up to this size, in batches from this length on, are multiplied faster entry by entry.
_TINY, _MANY = 8, 256


def batch_last(A: Inexact[Tensor, "*batch m n"]) -> Inexact[Tensor, "*batch m n"]:
    """A, a large batch of tiny matrices laid out in memory with the batch innermost; else as it is.

    Shape and values are the same, the strides are not: entry (i, j) of all matrices is contiguous.
    Elementwise operations keep the layout, and `matmul` makes use of it.

    Shapes: laid out anew on a CPU if m, n <= 8 and the batch has 256 matrices or more.
    """
    count = math.prod(A.shape[:-2])
    if A.device.type != "cpu" or max(A.shape[-2:]) > _TINY or count < _MANY:
        return A
    return A.movedim((-2, -1), (0, 1)).contiguous().movedim((0, 1), (-2, -1))


def tall_times(
    A: Inexact[Tensor, "*#batch m k"], B: Inexact[Tensor, "*#batch k n"]
) -> Inexact[Tensor, "*batch m n"]:
    """AB for a tall A, column by column in memory; one that is row by row stays so if it is alone.

    In that layout a batch of tall matrices times small ones is a product of long rows, more than
    twice as fast; elementwise operations keep it.
    """
    if A.ndim == 2 and A.is_contiguous():
        return sum_of_tall((A, B))
    return (B.mT @ A.mT).mT


def plus_tall_times(
    C: Inexact[Tensor, "*#batch m n"],
    A: Inexact[Tensor, "*#batch m k"],
    B: Inexact[Tensor, "*#batch k n"],
    *,
    beta: float = 1.0,
    alpha: float = 1.0,
) -> Inexact[Tensor, "*batch m n"]:
    """βC + αAB in the layout of `tall_times`, in one pass over C unless the batch has many dims."""
    done = sum_of_times([(A, B)], C, beta, alpha)
    if done is not None:
        return done
    if C.ndim == A.ndim == B.ndim == 3 and C.shape[0] == A.shape[0] == B.shape[0]:
        return torch.baddbmm(C.mT, B.mT, A.mT, beta=beta, alpha=alpha).mT
    if C.ndim == A.ndim == B.ndim == 2 and (A.stride(-1) == 1 or C.stride(-1) == 1):
        return torch.addmm(C, A, B, beta=beta, alpha=alpha)
    product = tall_times(A, B)
    return (product if alpha == 1 else alpha * product) + (C if beta == 1 else beta * C)


def sum_of_tall(
    *terms: tuple[Inexact[Tensor, "..."], Inexact[Tensor, "..."]],
    plus: Inexact[Tensor, "*#batch m n"] | None = None,
) -> Inexact[Tensor, "*batch m n"]:
    """Σ_t A_t B_t, and `plus`, for tall A_t; where compiled code serves, in one pass.

    Shapes: A_t (*#batch, m, k_t), B_t (*#batch, k_t, n).
    """
    done = sum_of_times(terms, plus)
    if done is not None:
        return done
    for A, B in terms:
        plus = A @ B if plus is None else plus_tall_times(plus, A, B)
    assert plus is not None
    return plus


def _is_batch_last(A: Tensor) -> bool:
    """Whether the batch dimensions, of at least _MANY tiny matrices, are contiguous in memory."""
    if A.ndim < 3 or not A.is_cpu:
        return False
    *batch, m, n = A.shape
    if m > _TINY or n > _TINY:
        return False
    count = 1
    for size, stride in zip(reversed(batch), A.stride()[-3::-1], strict=True):
        if stride != count:
            return False
        count *= size
    return count >= _MANY


def matmul(
    A: Inexact[Tensor, "*#batch m k"], B: Inexact[Tensor, "*#batch k n"]
) -> Inexact[Tensor, "*batch m n"]:
    """AB, as torch.matmul; faster for one matrix with a batch, and for batches of tiny matrices.

    Those, laid out by `batch_last`, are multiplied entry by entry: k multiply-adds of m·n vectors
    along the batch, which the CPU vectorises, where torch.bmm spends most of its time between the
    matrices. The product has the layout again.

    Shapes: as torch.matmul.
    """
    if A.ndim == B.ndim == 2:
        return A @ B
    if B.ndim == 2 and _is_batch_last(A):
        product = (B.mT @ A.movedim((-2, -1), (0, 1)).flatten(2)).unflatten(-1, A.shape[:-2])
        return product.movedim((0, 1), (-2, -1))
    if A.ndim == 2 and B.ndim > 2:
        # One product with all columns side by side; torch.matmul would copy A for each matrix.
        return (B.mT.flatten(0, -2) @ A.mT).unflatten(0, (*B.shape[:-2], B.shape[-1])).mT
    if A.shape[:-2] != B.shape[:-2] or not (_is_batch_last(A) and _is_batch_last(B)):
        return A @ B
    columns, rows = A.unsqueeze(-1).unbind(-2), B.unsqueeze(-3).unbind(-2)
    product = columns[0] * rows[0]
    for column, row in zip(columns[1:], rows[1:], strict=True):
        product.addcmul_(column, row)
    return product


def chain(matrices: Sequence[Tensor]) -> Tensor:
    """The product M_n···M_2 M_1 of matrices listed in the order in which they act.

    Shapes: M_j (*batch, d_j, d_{j−1}) -> (*batch, d_n, d_0). Multiplied outwards from the narrowest
    inner dimension, so that no intermediate is larger than it must be.
    """
    narrowest = min(range(1, len(matrices) + 1), key=lambda j: matrices[j - 1].shape[-2])
    right = matrices[0]
    for M in matrices[1:narrowest]:
        right = matmul(M, right)
    if narrowest == len(matrices):
        return right
    left = matrices[-1]
    for M in reversed(matrices[narrowest:-1]):
        left = matmul(left, M)
    return matmul(left, right)


def halves(matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """(A, B) with AB = M_n···M_1, split at its narrowest dimension; None where that is an end.

    Shapes: M_j (*batch, d_j, d_{j−1}) -> A (*batch, d_n, k), B (*batch, k, d_0), k = min_j d_j.
    """
    widths = [matrices[0].shape[-1], *(M.shape[-2] for M in matrices)]
    narrowest = min(range(len(widths)), key=widths.__getitem__)
    if narrowest in (0, len(matrices)):
        return None
    return chain(matrices[narrowest:]), chain(matrices[:narrowest])


def product_svdvals(matrices: Sequence[Tensor]) -> Float[Tensor, "*batch k"]:
    """The largest k = min_j d_j singular values of M_n···M_1, without forming the product.

    The product is split at its narrowest dimension k into A·B, and A, B are replaced by the
    triangular factors of their QR decompositions.

    Shapes: M_j (*batch, d_j, d_{j−1}) -> (*batch, k), in descending order.
    Cost: O((d_n + d_0) k² + k³) after the partial products.
    """
    parts = halves(matrices)
    if parts is None:
        return torch.linalg.svdvals(chain(matrices))
    R_left = torch.linalg.qr(parts[0], mode="r").R
    R_right = torch.linalg.qr(parts[1].mH, mode="r").R
    return torch.linalg.svdvals(R_left @ R_right.mH)


def product_svd(
    matrices: Sequence[Tensor],
) -> tuple[
    Inexact[Tensor, "*batch d_n k"], Float[Tensor, "*batch k"], Inexact[Tensor, "*batch k d_0"]
]:
    """(U, s, Vh) of M_n···M_1, k = min_j d_j, without forming the product.

    Shapes, cost: as `product_svdvals`. Accuracy: that of an SVD of the product.
    """
    parts = halves(matrices)
    if parts is None:
        return torch.linalg.svd(chain(matrices), full_matrices=False)
    (Q_left, R_left), (Q_right, R_right) = (torch.linalg.qr(A) for A in (parts[0], parts[1].mH))
    P, s, Qh = torch.linalg.svd(R_left @ R_right.mH, full_matrices=False)
    return Q_left @ P, s, Qh @ Q_right.mH
