"""Orthonormal columns: drawn at random, or of a given matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Inexact
from torch import Tensor

from deeplin.linalg.shards import adjoint_products, tall_qr
from deeplin.linalg.values import values_known

__all__ = ["orthonormal_factor", "random_orthogonal"]


def random_orthogonal(
    rows: int,
    columns: int,
    *,
    batch_shape: Sequence[int] = (),
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Inexact[Tensor, "*batch {rows} {columns}"]:
    """A matrix with orthonormal columns, drawn from the Haar measure on the Stiefel manifold.

    Shapes: (*batch_shape, rows, columns) with columns <= rows; complex for a complex dtype.
    Cost: one QR decomposition, O(rows·columns²).
    """
    G = torch.randn((*batch_shape, rows, columns), dtype=dtype, device=device, generator=generator)
    # QR is unique, and Q exactly Haar, once diag R > 0 ([Mez07]).
    return _positive_qr(G)[0]


def orthonormal_factor(
    A: Inexact[Tensor, "*batch m r"],
    *,
    cholesky: bool | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Inexact[Tensor, "*batch m r"], Inexact[Tensor, "*batch r r"]]:
    """The thin QR decomposition A = QR of a tall matrix with diag R > 0, hence unique.

    A that is nearly orthonormal gives Q near A and R near I, so that what was written in the old
    basis keeps its meaning in the new one. Computed by Householder's QR, or by Cholesky QR, twice,
    which needs products and triangular solves only: slower on a CPU, faster on CUDA for batches of
    small matrices. ``cholesky=None`` chooses by the device; Householder's QR takes over for the
    whole batch when a matrix of it is too ill-conditioned for the other, or rank-deficient; it is
    used always where that cannot be looked at, under torch.func and torch.compile. With a `group`
    each process has some rows of A and gets those of Q: by Cholesky QR from the sum of AᴴA.

    Source: CholeskyQR2: [YNYF15].
    Shapes: A (*batch, m, r) with m >= r, real or complex.
    Cost: O(m r²).
    Accuracy: ‖QᴴQ − I‖ and ‖A − QR‖/‖A‖ at round-off, on either path.
    """
    wanted = A.device.type != "cpu" or group is not None if cholesky is None else cholesky
    if not (wanted and values_known()):
        return _positive_qr(A, group)
    Q, R_first, safe = _cholesky_qr(A, group)
    if safe:
        Q, R_second, safe = _cholesky_qr(Q, group)
        if safe:
            return Q, R_second @ R_first
    return _positive_qr(A, group)


def _positive_qr(A: Tensor, group: dist.ProcessGroup | None = None) -> tuple[Tensor, Tensor]:
    """Householder's thin QR with the signs (phases) moved so that diag R ≥ 0."""
    Q, R = tall_qr(A, group)
    diagonal = R.diagonal(dim1=-2, dim2=-1)
    phase = torch.where(diagonal == 0, torch.ones_like(diagonal), torch.sgn(diagonal))
    return Q * phase[..., None, :], R * phase.conj()[..., :, None]


def _cholesky_qr(A: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, bool]:
    """One pass A = QR with R from the Cholesky factor of AᴴA, and whether it is safe to use."""
    (gram,) = adjoint_products((A, A), group=group)
    L, info = torch.linalg.cholesky_ex(gram)
    pivots = L.diagonal(dim1=-2, dim2=-1).real
    limit = 30 * torch.finfo(A.dtype).eps ** 0.5
    safe = (info == 0) & (pivots.amin(-1) > limit * pivots.amax(-1))
    if not bool(safe.all()):
        return A, L, False
    return torch.linalg.solve_triangular(L.mH, A, upper=True, left=False), L.mH, True
