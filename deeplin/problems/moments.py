"""Samples of least squares: what they must be, and their second moments from a stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.linalg import agreed, check_backend
from deeplin.problems.autograd import half_square
from deeplin.problems.memory import ask_for_memory

__all__ = ["Stream", "check_matrix", "check_sizes", "moments_of_stream", "of_one_dtype"]

# Rows of x or of y; an array may be a memory map.
Samples = Tensor | np.ndarray
Stream = Iterable[Samples | Sequence[Samples]]


def moments_of_stream(
    batches: Stream, group: dist.ProcessGroup | None = None
) -> tuple[Inexact[Tensor, "d_x d_x"], Inexact[Tensor, "d_y d_x"], Float[Tensor, ""], int]:
    """(C, B, yy, m) = (XXᴴ, YXᴴ, ‖Y‖², number of samples) of all batches, B = C for Y = X.

    With a group, of the batches of all its processes, the same on each.

    Shapes: each batch is (x, y) with x (b, d_x), y (b, d_y), or x alone for an autoencoder.
    Cost: 2b(d_x + d_y)d_x operations a batch, for an autoencoder 2b·d_x²; a pass to convert what is
        not double. That all is finite is seen in the sums.
    Accuracy: summed in float64 or complex128; C and B are returned in the samples' own dtype.
    """
    C, B, yy, m, autoencoder, dtype = agreed(group, partial(_sums, batches))
    if group is not None:
        C, B, yy, m, autoencoder, dtype = _over_processes(C, B, yy, m, autoencoder, dtype, group)
    if C is None or B is None or yy is None:
        raise ValueError("from_batches needs at least one batch; the stream was empty.")
    C, B = C.to(dtype), (C if autoencoder else B).to(dtype)
    check_sizes(C, B, yy)
    return C, B, yy, m


def _sums(
    batches: Stream,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, int, bool, torch.dtype]:
    """(C, B, yy, m, whether Y = X in all, dtype) of this process's batches; None without any."""
    C, B, yy, m, autoencoder = None, None, None, 0, True
    dtype = None
    for batch in batches:
        x, y = given = _samples(batch)
        tied = autoencoder and (x is y or torch.equal(x, y))
        own = torch.promote_types(x.dtype, y.dtype)
        dtype = own if dtype is None else torch.promote_types(dtype, own)
        wide = torch.complex128 if dtype.is_complex else torch.float64
        x = x.to(wide)
        y = x if tied else y.to(wide)
        if C is None:
            d_x, d_y = x.shape[1], y.shape[1]
            ask_for_memory(f"XXᴴ of {d_x} columns of x", (2 * d_x + d_y) * d_x * wide.itemsize)
            C = x.new_zeros(d_x, d_x)
        if autoencoder and not tied:  # what was tied until here has B = C
            B = C.clone() if m else x.new_zeros(y.shape[1], x.shape[1])
            yy = C.diagonal().real.sum()
        d_y = len(C if B is None else B)
        if (x.shape[1], y.shape[1]) != (len(C), d_y):
            raise ValueError(
                "all batches must have the same numbers of columns; got (d_x, d_y) = "
                f"{(x.shape[1], y.shape[1])} after {(len(C), d_y)}."
            )
        C = C.to(wide).addmm_(x.mT, x.conj())
        if B is not None and yy is not None:
            B = B.to(wide).addmm_(y.mT, x.conj())
            yy = yy + 2 * half_square(y, (-2, -1))
        seen = C.diagonal().real.sum() + (0 if yy is None else yy)
        if not bool(torch.isfinite(seen)):
            for name, part in zip("xy", given, strict=True):
                _check_finite(f"{name} of a batch", part)
        autoencoder = tied
        m += x.shape[0]
    if C is not None and (B is None or yy is None):
        B, yy = C, C.diagonal().real.sum()
    return C, B, yy, m, autoencoder, torch.get_default_dtype() if dtype is None else dtype


def _samples(batch: Samples | Sequence[Samples]) -> tuple[Tensor, Tensor]:
    """(x, y) of a batch, x itself for y where it is alone."""
    parts = list(batch) if isinstance(batch, tuple | list) else [batch]
    if len(parts) not in (1, 2):
        raise ValueError(f"a batch must be (x, y), or x alone; got {len(parts)} parts.")
    # Of a memory map this is where the disk is read.
    parts = [torch.from_numpy(np.array(p)) if isinstance(p, np.ndarray) else p for p in parts]
    x = _check_kind("x of a batch", parts[0])
    y = _check_kind("y of a batch", parts[1]) if len(parts) > 1 else x
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"x and y of a batch must have equally many rows; got {x.shape[0]} and {y.shape[0]}."
        )
    return x, y


def _over_processes(
    C: Tensor | None,
    B: Tensor | None,
    yy: Tensor | None,
    m: int,
    autoencoder: bool,
    dtype: torch.dtype,
    group: dist.ProcessGroup,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, int, bool, torch.dtype]:
    """Their sums over a group's processes, one of which may have had no batch.

    Cost: one all-reduce of (d_x + d_y) d_x + 1 numbers, after one of their sizes.
    """
    sizes = None if B is None else (tuple(B.shape), autoencoder, dtype, B.device.type)
    gathered: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, (sizes, m), group=group)
    known = [own for own, _ in gathered if own is not None]
    if not known:
        return None, None, None, 0, autoencoder, dtype
    if len({shape for shape, *_ in known}) > 1:
        raise ValueError(
            "the samples of all processes must have the same numbers of columns; got (d_y, d_x) = "
            f"{', '.join(str(shape) for shape, *_ in known)}."
        )
    if len({kind for *_, kind in known}) > 1:
        raise ValueError(
            "the samples of all processes must be on devices of one kind; got "
            f"{', '.join(kind for *_, kind in known)}."
        )
    (d_y, d_x), _, dtype, kind = known[0]
    device = torch.device(kind) if C is None else C.device  # the current one of its kind
    check_backend("from_batches", device, group)
    for _, _, other, _ in known:
        dtype = torch.promote_types(dtype, other)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    sums = torch.zeros((d_x + d_y) * d_x + 1, dtype=wide, device=device)
    if C is not None and B is not None and yy is not None:
        sums = torch.cat([part.to(wide).flatten() for part in (C, B, yy)])
    # As pairs of real numbers: not every backend adds complex ones.
    dist.all_reduce(torch.view_as_real(sums) if wide.is_complex else sums, group=group)
    C, B, yy = sums[: d_x * d_x], sums[d_x * d_x : -1], sums[-1].real
    count = sum(number for _, number in gathered)
    tied = all(own for _, own, *_ in known)
    return C.reshape(d_x, d_x), B.reshape(d_y, d_x), yy, count, tied, dtype


def of_one_dtype(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the smallest dtype that holds both."""
    dtype = torch.promote_types(A.dtype, B.dtype)
    return A.to(dtype), B.to(dtype)


def check_matrix(name: str, A: object) -> None:
    """Raises: TypeError or ValueError unless A is a finite non-empty matrix of numbers."""
    _check_finite(name, _check_kind(name, A))


def _check_kind(name: str, A: object) -> Tensor:
    if not isinstance(A, Tensor) or not (A.is_floating_point() or A.is_complex()):
        given = f"dtype {A.dtype}" if isinstance(A, Tensor) else type(A).__name__
        raise TypeError(
            f"{name} must be a floating-point or complex tensor; got {given}: convert it with "
            "torch.as_tensor(..., dtype=torch.float64)."
        )
    if A.ndim != 2 or 0 in A.shape:
        raise ValueError(f"{name} must be a non-empty matrix; got shape {tuple(A.shape)}.")
    return A


def _check_finite(name: str, A: Tensor) -> None:
    bad = int((~torch.isfinite(A)).sum())
    if bad:
        raise ValueError(f"{name} must be finite; {bad} of {A.numel()} entries are NaN or ±inf.")


def check_sizes(
    C: Inexact[Tensor, "d_x d_x"], B: Inexact[Tensor, "d_y d_x"], yy: Float[Tensor, ""]
) -> None:
    """Raises: ValueError where the squares of tr XXᴴ or ‖Y‖² leave the number format.

    Norms of gradients and of curvatures are sums of such squares. Y = 0 may be.
    """
    info = torch.finfo(C.dtype)
    no_labels = float(yy) == 0 and not bool(B.any())
    for name, square, size in (("x", "tr XXᴴ", C.diagonal().real.sum()), ("y", "‖Y‖²", yy)):
        fits = info.tiny**0.5 <= abs(float(size)) <= info.max**0.5
        if not fits and not (name == "y" and no_labels):
            raise ValueError(
                f"{square} must be between {info.tiny**0.5:.2g} and {info.max**0.5:.2g}, so that "
                f"its square is a number of {str(C.dtype).removeprefix('torch.')}; it is "
                f"{float(size):.3g}: divide {name} by the size of its largest entry."
            )
