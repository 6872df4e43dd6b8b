"""Products with tall matrices in compiled code, where BLAS has none that fits."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from deeplin.compiled import TALL, in_parts, loops_for
from deeplin.linalg.values import numbers_alone, values_known

__all__ = ["adjoint_times", "sum_of_times"]

_SOURCE = Path(__file__).with_suffix(".c")
# Up to so many columns the loops are faster than BLAS, from so many entries on.
_WIDEST = {torch.float64: 32, torch.float32: 12}
_LEAST = 20_000
# Rows whose sums are one number, whatever the threads.
_CHUNK = 2**14

_long, _pointer, _double = ctypes.c_long, ctypes.c_void_p, ctypes.c_double
_CROSSES = [_pointer, *[_long] * 6]
_SUMS = [_pointer, _double, _double, _pointer, _long, _long, _pointer, *[_long] * 4]


def _loops_for(columns: int, tall: Sequence[Tensor]) -> ctypes.CDLL | None:
    """The loops for such a number of columns, where these tall matrices, alike, are taken."""
    first = tall[0]
    rows, dtype, widest = len(first), first.dtype, _WIDEST.get(first.dtype, 0)
    if columns > widest or first.device.type != "cpu":
        return None
    for A in tall:
        if _is_small(A) or len(A) != rows or A.dtype != dtype or A.shape[1] > widest:
            return None
    if not numbers_alone(*tall):
        return None
    loops = loops_for(_SOURCE, columns, dtype, [TALL])
    if loops is not None:
        loops.crosses.argtypes, loops.sums.argtypes = _CROSSES, _SUMS
    return loops


def _is_small(A: Tensor) -> bool:
    return A.ndim != 2 or A.numel() < _LEAST


def _by_rows(A: Tensor) -> Tensor:
    """A as its memory has it: row by row, and no lazy minus, which the imaginary part may be."""
    A = A.resolve_neg()
    return A if A.stride(1) == 1 else A.contiguous()


def _told(A: Tensor) -> tuple[int, int, int]:
    return A.data_ptr(), A.stride(0), A.shape[1]


def adjoint_times(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """AᴴB of each pair, those of tall matrices with as many rows in one pass over these.

    Shapes: A (*batch, m, k), B (*batch, m, l).
    """
    if all(_is_small(A) for A, _ in pairs) or not values_known():
        return [A.mH @ B for A, B in pairs]
    found: dict[int, Tensor] = {}
    for rows in {A.shape[-2] for A, _ in pairs}:
        some = {i: pair for i, pair in enumerate(pairs) if pair[0].shape[-2] == rows}
        found.update(zip(some, _adjoint_times(list(some.values())), strict=True))
    return [found[i] for i in range(len(pairs))]


def _adjoint_times(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    first, tall = pairs[0][0], [part for pair in pairs for part in pair]
    loops = _loops_for(max(B.shape[-1] for _, B in pairs), tall)
    if loops is None:
        return [A.mH @ B for A, B in pairs]
    pairs = [(_by_rows(A), _by_rows(B)) for A, B in pairs]
    rows = len(first)
    length = -(-rows // -(-rows // _CHUNK))
    chunks = -(-rows // length)
    out = [first.new_empty((chunks, A.shape[1], B.shape[1])) for A, B in pairs]
    told = [
        number
        for (A, B), to in zip(pairs, out, strict=True)
        for number in (*_told(A), *_told(B), to.data_ptr())
    ]
    job, columns = (_long * len(told))(*told), sum(A.shape[1] for A, _ in pairs)

    def part(begin: int, stop: int) -> None:
        loops.crosses(job, len(pairs), columns, rows, length, begin, stop)

    in_parts(part, chunks)
    return [to[0] if chunks == 1 else to.sum(0) for to in out]


def sum_of_times(
    terms: Sequence[tuple[Tensor, Tensor]],
    C: Tensor | None = None,
    beta: float = 1.0,
    alpha: float = 1.0,
) -> Tensor | None:
    """βC + α Σ_t A_t T_t in one pass over the rows; None where BLAS serves.

    Shapes: A_t (m, k_t), T_t (k_t, n), C (m, n).
    """
    first, small = terms[0]
    if _is_small(first):  # asked first: it costs least
        return None
    columns = small.shape[-1]
    loops = _loops_for(columns, [A for A, _ in terms] + ([] if C is None else [C]))
    if loops is None or (C is not None and C.shape[1] != columns):
        return None
    if any(T.shape != (A.shape[1], columns) for A, T in terms):
        return None
    if any(T.dtype != A.dtype or T.device != A.device for A, T in terms):
        return None
    if not numbers_alone(*(T for _, T in terms)):
        return None
    terms = [(_by_rows(A), T.resolve_neg()) for A, T in terms]
    C = None if C is None else _by_rows(C)
    rows, inner = len(first), sum(A.shape[1] for A, _ in terms)
    out = first.new_empty((rows, columns))
    told = [
        *((0, 0, 0) if C is None else _told(C)),
        *(number for A, T in terms for number in (*_told(A), T.data_ptr(), *T.stride())),
    ]
    job = (_long * len(told))(*told)
    at, to = ctypes.addressof(job), out.data_ptr()
    after_C = at + 3 * ctypes.sizeof(_long)

    def part(begin: int, stop: int) -> None:
        loops.sums(at, beta, alpha, after_C, len(terms), inner, to, columns, rows, begin, stop)

    in_parts(part, rows, _CHUNK)
    return out
