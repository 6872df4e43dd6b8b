"""Pure functions on matrices: powers and divided differences of spectra, low-rank products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

__all__ = [
    "batch_last",
    "chain",
    "expm1_ratio",
    "hermitian_part",
    "matmul",
    "orthonormal_factor",
    "plus_tall_times",
    "power_divided_difference",
    "product_svdvals",
    "psd_power",
    "random_orthogonal",
    "tall_times",
]

# Below this |z| a series replaces the quotient (eᶻ−1)/z: at 0 the quotient is 0/0, and near 0 its
# derivative by autograd loses digits to cancellation.
_SERIES_RADIUS = 0.25
_SERIES_TERMS = 13

# Matrices up to this size, in batches from this length on, are multiplied faster entry by entry.
_TINY, _MANY = 8, 256


def expm1_ratio(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The entire function E(z) = (eᶻ − 1)/z with E(0) = 1, smooth under autograd.

    Shapes: any; elementwise.
    Accuracy: a few units in the last place, in value and first derivative, for z < 700.
    """
    small = z.abs() < _SERIES_RADIUS
    near = torch.where(small, z, torch.zeros_like(z))
    series = torch.zeros_like(z)
    for n in range(_SERIES_TERMS, 0, -1):
        series = series * near + 1.0 / math.factorial(n)
    far = torch.where(small, torch.ones_like(z), z)
    return torch.where(small, series, torch.expm1(far) / far)


def power_divided_difference(
    a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], depth: float
) -> Float[Tensor, "*shape"]:
    """c(a, b) = (a² − b²)/(a^{2/N} − b^{2/N}), the eigenvalues of 𝒜_W on the core of W.

    For integer N this is Σ_{l=1}^N a^{2(N−l)/N} b^{2(l−1)/N}. It is computed, for every real
    N ≥ 1, as N·h^{2−2/N}·E(2x)/E(2x/N) with h = max(a, b), x = log(min(a, b)/h) and
    E(z) = (eᶻ−1)/z: no cancellation at a = b, no sum over N. N = ∞ gives the limit of c/N, the
    logarithmic mean h²·E(2x) of a² and b².

    Source: BRTW (8) in the singular basis of W; N = ∞: BRTW Remark 19.
    Shapes: a and b, non-negative, broadcast against each other.
    Accuracy: round-off, uniformly in a/b and N; differentiable for a, b > 0, a = b included.
    """
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    h = torch.where(high > 0, high, torch.ones_like(high))
    # Where low = 0 the ratio of the E's has the limit 1/N, set below; x is any finite number there.
    ratio = torch.where(low > 0, low, h) / h
    gap = (torch.where(low > 0, low, h) - h) / h  # exact numerator for ratio > 1/2 (Sterbenz)
    x = torch.where(ratio > 0.5, torch.log1p(gap.clamp(min=-0.75)), torch.log(ratio))
    if math.isinf(depth):
        return high**2 * torch.where(low > 0, expm1_ratio(2 * x), torch.zeros_like(x))
    quotient = torch.where(
        low > 0,
        expm1_ratio(2 * x) / expm1_ratio(2 * x / depth),
        torch.full_like(x, 1 / depth),
    )
    return depth * high ** (2 - 2 / depth) * quotient


def psd_power(
    A: Float[Tensor, "*batch n n"], power: float, *, rtol: float | None = None
) -> Float[Tensor, "*batch n n"]:
    """The principal power A^p of a symmetric positive semidefinite matrix, on its range.

    Eigenvalues below rtol·λ_1 are round-off: they and their eigenvectors are dropped, so that a
    negative power is the power of the pseudo-inverse and no fractional power of noise is taken.

    Shapes: A (*batch, n, n) symmetric; rtol defaults to n·eps.
    Cost: one eigendecomposition, O(n³).
    """
    eigenvalues, vectors = torch.linalg.eigh(A)
    rtol = A.shape[-1] * torch.finfo(A.dtype).eps if rtol is None else rtol
    kept = eigenvalues > rtol * eigenvalues[..., -1:].clamp(min=0)
    powers = torch.where(kept, torch.where(kept, eigenvalues, 1.0) ** power, 0.0)
    return (vectors * powers[..., None, :]) @ vectors.mT


def batch_last(A: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch m n"]:
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
    A: Inexact[Tensor, "*batch m k"], B: Inexact[Tensor, "*batch k n"]
) -> Inexact[Tensor, "*batch m n"]:
    """AB for a tall A, column by column in memory; one that is row by row stays so if it is alone.

    In that layout a batch of tall matrices times small ones is a product of long rows, more than
    twice as fast; elementwise operations keep it.
    """
    if A.ndim == 2 and A.is_contiguous():
        return A @ B
    return (B.mT @ A.mT).mT


def plus_tall_times(
    C: Inexact[Tensor, "*batch m n"],
    A: Inexact[Tensor, "*batch m k"],
    B: Inexact[Tensor, "*batch k n"],
    *,
    beta: float = 1.0,
    alpha: float = 1.0,
) -> Inexact[Tensor, "*batch m n"]:
    """βC + αAB in the layout of `tall_times`, in one pass over C unless the batch has many dims."""
    if C.ndim == A.ndim == B.ndim == 3:
        return torch.baddbmm(C.mT, B.mT, A.mT, beta=beta, alpha=alpha).mT
    if C.ndim == A.ndim == B.ndim == 2 and A.is_contiguous():
        return torch.addmm(C, A, B, beta=beta, alpha=alpha)
    return tall_times(A, B).mul_(alpha).add_(C, alpha=beta)


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
    A: Float[Tensor, "*batch m k"], B: Float[Tensor, "*batch k n"]
) -> Float[Tensor, "*batch m n"]:
    """AB, as torch.matmul; faster for one matrix with a batch, and for batches of tiny matrices.

    Those, laid out by `batch_last`, are multiplied entry by entry: k multiply-adds of m·n vectors
    along the batch, which the CPU vectorises, where torch.bmm spends most of its time between the
    matrices. The product has the layout again.

    Shapes: as torch.matmul.
    """
    if B.ndim == 2 and A.ndim > 2 and _is_batch_last(A):
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


def product_svdvals(matrices: Sequence[Tensor]) -> Float[Tensor, "*batch k"]:
    """The largest k = min_j d_j singular values of M_n···M_1, without forming the product.

    The product is split at its narrowest dimension k into A·B, and A, B are replaced by the
    triangular factors of their QR decompositions.

    Shapes: M_j (*batch, d_j, d_{j−1}) -> (*batch, k), in descending order.
    Cost: O((d_n + d_0) k² + k³) after the partial products.
    """
    widths = [matrices[0].shape[-1], *(M.shape[-2] for M in matrices)]
    narrowest = min(range(len(widths)), key=widths.__getitem__)
    if narrowest in (0, len(matrices)):
        return torch.linalg.svdvals(chain(matrices))
    R_left = torch.linalg.qr(chain(matrices[narrowest:]), mode="r").R
    R_right = torch.linalg.qr(chain(matrices[:narrowest]).mT, mode="r").R
    return torch.linalg.svdvals(R_left @ R_right.mT)


def random_orthogonal(
    rows: int,
    columns: int,
    *,
    batch_shape: Sequence[int] = (),
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch rows columns"]:
    """A matrix with orthonormal columns, drawn from the Haar measure on the Stiefel manifold.

    Shapes: (*batch_shape, rows, columns) with columns <= rows; complex for a complex dtype.
    Cost: one QR decomposition, O(rows·columns²).
    """
    G = torch.randn((*batch_shape, rows, columns), dtype=dtype, device=device, generator=generator)
    # QR is unique, and Q exactly Haar, once diag R > 0 (Mezzadri 2007).
    return _positive_qr(G)[0]


def hermitian_part(A: Inexact[Tensor, "*batch n n"]) -> Inexact[Tensor, "*batch n n"]:
    """The Hermitian part ½(A + Aᴴ); the symmetric part of a real matrix."""
    return (A + A.mH) / 2


def _positive_qr(A: Tensor) -> tuple[Tensor, Tensor]:
    """Householder's thin QR with the signs (phases) moved so that diag R ≥ 0."""
    Q, R = torch.linalg.qr(A)
    diagonal = R.diagonal(dim1=-2, dim2=-1)
    phase = torch.where(diagonal == 0, torch.ones_like(diagonal), torch.sgn(diagonal))
    return Q * phase[..., None, :], R * phase.conj()[..., :, None]


def _cholesky_qr(A: Tensor) -> tuple[Tensor, Tensor, bool]:
    """One pass A = QR with R from the Cholesky factor of AᴴA, and whether it is safe to use."""
    L, info = torch.linalg.cholesky_ex(A.mH @ A)
    pivots = L.diagonal(dim1=-2, dim2=-1).real
    limit = 30 * torch.finfo(A.dtype).eps ** 0.5
    safe = (info == 0) & (pivots.amin(-1) > limit * pivots.amax(-1))
    if not bool(safe.all()):
        return A, L, False
    return torch.linalg.solve_triangular(L.mH, A, upper=True, left=False), L.mH, True


def orthonormal_factor(
    A: Inexact[Tensor, "*batch m r"], *, cholesky: bool | None = None
) -> tuple[Inexact[Tensor, "*batch m r"], Inexact[Tensor, "*batch r r"]]:
    """The thin QR decomposition A = QR of a tall matrix with diag R > 0, hence unique.

    A that is nearly orthonormal gives Q near A and R near I, so that what was written in the old
    basis keeps its meaning in the new one. Computed by Householder's QR, or by Cholesky QR, twice,
    which needs products and triangular solves only: slower on a CPU, faster on CUDA for batches of
    small matrices. ``cholesky=None`` chooses by the device; Householder's QR takes over for the
    whole batch when a matrix of it is too ill-conditioned for the other, or rank-deficient.

    Source: CholeskyQR2: Yamamoto, Nakatsukasa, Yanagisawa, Fukaya 2015.
    Shapes: A (*batch, m, r) with m >= r, real or complex.
    Cost: O(m r²).
    Accuracy: ‖QᴴQ − I‖ and ‖A − QR‖/‖A‖ at round-off, on either path.
    """
    wanted = A.device.type != "cpu" if cholesky is None else cholesky
    if not wanted:
        return _positive_qr(A)
    Q, R_first, safe = _cholesky_qr(A)
    if safe:
        Q, R_second, safe = _cholesky_qr(Q)
        if safe:
            return Q, R_second @ R_first
    return _positive_qr(A)
