"""Samples of least squares: what they must be, and their second moments from a stream."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.problems.autograd import half_square

__all__ = ["check_matrix", "moments_of_stream", "of_one_dtype"]


def moments_of_stream(
    batches: Iterable[Tensor | tuple[Tensor, Tensor]],
) -> tuple[Inexact[Tensor, "d_x d_x"], Inexact[Tensor, "d_y d_x"], Float[Tensor, ""], int]:
    """(C, B, yy, m) = (XXᴴ, YXᴴ, ‖Y‖², number of samples) of all batches, B = C for Y = X.

    Shapes: each batch is (x, y) with x (b, d_x), y (b, d_y), or x alone for an autoencoder.
    Accuracy: summed in float64 or complex128; C and B are returned in the samples' own dtype.
    """
    C, B, yy, m, autoencoder = None, None, None, 0, True
    dtype = torch.get_default_dtype()
    for batch in batches:
        x, y = batch if isinstance(batch, (tuple, list)) else (batch, batch)
        autoencoder = autoencoder and torch.equal(x, y)
        check_matrix("x of a batch", x)
        check_matrix("y of a batch", y)
        if x.shape[0] != y.shape[0]:
            raise ValueError(
                "x and y of a batch must have equally many rows; got "
                f"{x.shape[0]} and {y.shape[0]}."
            )
        dtype = torch.promote_types(x.dtype, y.dtype)
        wide = torch.complex128 if dtype.is_complex else torch.float64
        x, y = x.to(wide), y.to(wide)
        if C is None or B is None or yy is None:
            C = x.new_zeros(x.shape[1], x.shape[1])
            B = x.new_zeros(y.shape[1], x.shape[1])
            yy = torch.zeros((), dtype=torch.float64, device=x.device)
        C.addmm_(x.mT, x.conj())
        B.addmm_(y.mT, x.conj())
        yy += 2 * half_square(y, (-2, -1))
        m += x.shape[0]
    if C is None or B is None or yy is None:
        raise ValueError("from_batches needs at least one batch; the stream was empty.")
    return C.to(dtype), (C if autoencoder else B).to(dtype), yy, m


def of_one_dtype(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the smallest dtype that holds both."""
    dtype = torch.promote_types(A.dtype, B.dtype)
    return A.to(dtype), B.to(dtype)


def check_matrix(name: str, A: object) -> None:
    """Raises: TypeError or ValueError unless A is a finite non-empty matrix of numbers."""
    if not isinstance(A, Tensor) or not (A.is_floating_point() or A.is_complex()):
        given = f"dtype {A.dtype}" if isinstance(A, Tensor) else type(A).__name__
        raise TypeError(
            f"{name} must be a floating-point or complex tensor; got {given}: convert it with "
            "torch.as_tensor(..., dtype=torch.float64)."
        )
    if A.ndim != 2 or 0 in A.shape:
        raise ValueError(f"{name} must be a non-empty matrix; got shape {tuple(A.shape)}.")
    bad = int((~torch.isfinite(A)).sum())
    if bad:
        raise ValueError(f"{name} must be finite; {bad} of {A.numel()} entries are NaN or ±inf.")
