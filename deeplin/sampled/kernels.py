"""Calls of the compiled loops, and whether there are any on this machine."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deeplin.compiled import REALS, VECTOR_BYTES, in_parts, library, macros, vectors_of, width_of
from deeplin.sampled.places import Places

__all__ = [
    "WIDEST",
    "alone",
    "available",
    "block_times",
    "both_times",
    "fits",
    "half_width",
    "order_by",
    "pairings",
    "products",
    "require",
]

# Vectors in a row of a thin matrix; what is wider is taken in parts.
WIDEST = 8


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("rows", "columns", "entries", "blocks", "chunks")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("bounds", "starts", "index", "place", "A", "B", "Q"),
                *("value", "weight", "second", "entry", "out", "back", "sums"),
            )
        ),
        ("value_stride", ctypes.c_long),
    ]


class _GramsJob(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_long)
            for name in ("rows", "columns", "blocks", "rank", "first", "count")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in ("bounds", "starts", "index", "place", "B", "weight", "out")
        ),
        ("weight_stride", ctypes.c_long),
    ]


def _loops(columns: int, dtype: torch.dtype, name: str = "products.c") -> ctypes.CDLL:
    return _loops_of(vectors_of(columns, dtype), dtype, name)


@cache
def _loops_of(vectors: int, dtype: torch.dtype, name: str) -> ctypes.CDLL:
    return _library(name, macros(vectors, dtype))


def _library(name: str, told: list[str]) -> ctypes.CDLL:
    return library(
        Path(__file__).with_name(name),
        told,
        what="compiled products",
        instead='use products="torch"',
    )


@cache
def _refusal(compiler: str) -> str | None:
    """Why a compiler, as CC names it, makes no products; None: it does. Asked once."""
    try:
        _library("places.c", [])
    except ValueError as error:
        return str(error)
    return None


def require() -> None:
    """Raises: ValueError unless there is a compiler, or what it made is kept."""
    reason = _refusal(os.environ.get("CC", "cc"))
    if reason:
        raise ValueError(reason)


def available() -> bool:
    """Whether there is a compiler, or what it made is kept."""
    return os.name == "posix" and _refusal(os.environ.get("CC", "cc")) is None


def fits(*tensors: Tensor) -> bool:
    """Whether the compiled loops take these: float64 or float32, all of one, on a CPU."""
    first = tensors[0]
    return first.dtype in REALS and all(
        t.dtype == first.dtype and t.device.type == "cpu" for t in tensors
    )


def order_by(
    key: Int[Tensor, " p"], bound: int, before: Int[Tensor, " p"] | None = None
) -> tuple[Int[Tensor, " p"], Int[Tensor, " s"]]:
    """The stable order of numbers 0 <= key < bound, after an order `before`, and where each begins.

    Cost: O(p + bound) in compiled code; a sort by comparing otherwise.
    """
    if key.device.type != "cpu" or not available():
        kept = key if before is None else key[before]
        found = torch.argsort(kept, stable=True)
        starts = torch.searchsorted(kept[found], torch.arange(bound + 1, device=key.device))
        return (found if before is None else before[found]), starts
    key = key.contiguous()
    starts, after = key.new_zeros(bound + 1), torch.empty_like(key)
    _library_of_places().order_by(
        *(ctypes.c_long(number) for number in (len(key), bound)),
        *(ctypes.c_void_p(_pointer(t)) for t in (key, before, starts, after)),
    )
    return after, starts


@cache
def _library_of_places() -> ctypes.CDLL:
    return _library("places.c", [])


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _padded(A: Tensor) -> Tensor:
    """The rows of a thin matrix filled up with zeros to whole vectors."""
    width = width_of(A.shape[-1], A.dtype)
    if A.shape[-1] == width and A.is_contiguous() and A.data_ptr() % VECTOR_BYTES == 0:
        return A
    wide = A.new_empty((*A.shape[:-1], width))
    wide[..., : A.shape[-1]] = A
    wide[..., A.shape[-1] :] = 0
    return wide


def alone(batch: int) -> bool:
    """Whether each of so many matrices is one thread's, which then may add to rows of its result.

    What it adds row by row is, to the bit, what a pass over the transpose gives: threads change
    nothing.
    """
    return batch >= torch.get_num_threads()


def products(
    places: Places,
    B: Float[Tensor, "batch n k"] | None,
    *,
    A: Float[Tensor, "batch m k"] | None = None,
    Q: Float[Tensor, "batch m k"] | None = None,
    entries: Float[Tensor, "batch p"] | None = None,
    values: Float[Tensor, "#batch p"] | None = None,
    weights: Float[Tensor, " p"] | None = None,
    keep: bool = True,
    times: bool = False,
    sums: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(E, EB, EᵀQ, sums): one pass over the places.

    E has the numbers `entries`, or weights·d where A is given, d = ⟨A_i, B_j⟩ − values, and then
    the sums are Σ weights·d². What is not asked for is None; EᵀQ may be where `alone` says so, of
    places that have none of their own. Threads change no bit.

    Shapes: E (batch, p), EB (batch, m, k), EᵀQ (batch, n, k), sums (batch,) in float64; all
        contiguous, k at most `WIDEST` vectors.
    """
    like = B if B is not None else Q
    assert like is not None
    batch, _, k = like.shape
    left, right, beside = (None if part is None else _padded(part) for part in (A, B, Q))
    width = width_of(k, like.dtype)
    if A is not None and keep:
        entries = like.new_empty((batch, len(places.index)))
    out = like.new_empty((batch, places.rows, width)) if times else None
    back = None if Q is None else like.new_zeros((batch, places.columns, width))
    chunks = len(places.bounds) - 1
    totals = torch.zeros((batch, chunks), dtype=torch.float64) if sums else None
    _prepared(places, left, right, beside, values, weights, None, entries, totals)(out, back)
    EB, EtQ = (None if part is None else part[..., :k].contiguous() for part in (out, back))
    return entries if keep else None, EB, EtQ, None if totals is None else totals.sum(1)


def pairings(
    places: Places,
    A: Float[Tensor, "batch m w"],
    B: Float[Tensor, "batch n w"],
    values: Float[Tensor, "#batch p"],
    weights: Float[Tensor, " p"] | None,
) -> Float[Tensor, " batch"]:
    """Σ weights·(⟨a, b⟩ − values)·⟨a', b'⟩ over the places, A = [a, a'] and B = [b, b'].

    Shapes: halves of `half_width` columns; w at most `WIDEST` vectors; all contiguous.
    """
    sums = torch.zeros((len(A), len(places.bounds) - 1), dtype=torch.float64)
    _prepared(places, A, B, None, values, weights, None, None, sums, paired=True)(None, None)
    return sums.sum(1)


def half_width(rank: int, like: Tensor) -> int:
    """The columns of whole vectors that hold so many numbers."""
    return width_of(rank, like.dtype)


def both_times(
    places: Places,
    A: Float[Tensor, "batch m w"],
    B: Float[Tensor, "batch n w"],
    second: Float[Tensor, "batch p"],
    weights: Float[Tensor, " p"] | None,
    Q: Float[Tensor, "batch m w"] | None = None,
) -> Callable[[], tuple[Float[Tensor, "batch m w"], Float[Tensor, "batch n w"] | None]]:
    """A function of nothing that gives ([EP, FP'], [EᵀR, FᵀR']) of what stands in A, B, Q then.

    E has weights·⟨A_i, B_j⟩ at the places, F the numbers `second`; B = [P, P'], Q = [R, R'].

    Shapes: halves of `half_width` columns; w at most `WIDEST` vectors; all contiguous. Q where
        `products` takes one.
    """
    go = _prepared(places, A, B, Q, None, weights, second, None, None)

    def times() -> tuple[Tensor, Tensor | None]:
        out, back = torch.empty_like(A), None if Q is None else torch.zeros_like(B)
        go(out, back)
        return out, back

    return times


def _prepared(
    places: Places,
    A: Tensor | None,
    B: Tensor | None,
    Q: Tensor | None,
    values: Tensor | None,
    weights: Tensor | None,
    second: Tensor | None,
    entries: Tensor | None,
    sums: Tensor | None,
    *,
    paired: bool = False,
) -> Callable[[Tensor | None, Tensor | None], None]:
    """A pass of the compiled loops, which writes `out`, adds to `back`; rows are whole vectors."""
    like = B if B is not None else Q
    assert like is not None
    batch, chunks, each = len(like), len(places.bounds) - 1, alone(len(like))
    assert Q is None or (each and places.place is None), "threads add to the same rows"
    tensors = (places.bounds, places.starts, places.index, places.place, A, B, Q)
    job = _Job(
        *(places.rows, places.columns, len(places.index), places.blocks, chunks),
        *map(_pointer, (*tensors, values, weights, second, entries, None, None, sums)),
        0 if values is None or len(values) == 1 else len(places.index),
    )
    job.tensors = (tensors, values, weights, second, entries, sums)  # which live as long as it does
    compiled = _loops(like.shape[-1], like.dtype)
    loops = compiled.pairings if paired else compiled.products

    def part(begin: int, stop: int) -> None:
        ranges = (begin, stop, 0, chunks) if each else (0, batch, begin, stop)
        loops(ctypes.byref(job), *map(ctypes.c_long, ranges))

    def go(out: Tensor | None, back: Tensor | None) -> None:
        job.out, job.back = _pointer(out), _pointer(back)
        in_parts(part, batch if each else chunks)

    return go


def grams(
    places: Places,
    B: Float[Tensor, "batch n r"],
    weights: Float[Tensor, "#batch p"] | None,
    rows: range,
) -> Float[Tensor, "batch m r w"]:
    """Σ w_ij B_jᵀB_j for each of some rows i, on and above the diagonal.

    Shapes: w whole vectors, zeros beyond r; r at most `WIDEST` of them.
    """
    batch, _, r = B.shape
    wide = _padded(B)
    out = B.new_empty((batch, len(rows), r, wide.shape[-1]))
    of_all = places.bounds.clamp(rows.start, rows.stop)
    inside = of_all[of_all.diff(append=of_all.new_full((1,), rows.stop)) > 0]
    bounds = torch.cat([inside, inside.new_full((1,), rows.stop)])
    stride = 0 if weights is None or len(weights) == 1 else len(places.index)
    job = _GramsJob(
        *(places.rows, places.columns, places.blocks, r, rows.start, len(rows)),
        *map(_pointer, (bounds, places.starts, places.index, places.place, wide, weights, out)),
        stride,
    )

    def part(begin: int, stop: int) -> None:
        _blocks(out).grams(ctypes.byref(job), *map(ctypes.c_long, (0, batch, begin, stop)))

    in_parts(part, len(bounds) - 1)
    return out


def invert(blocks: Float[Tensor, "batch m r w"], shift: Float[Tensor, " batch"]) -> None:
    """(G_i + shift·1)⁻¹, in the place of what `grams` gives."""
    loops, rank = _blocks(blocks), ctypes.c_long(blocks.shape[-2])
    real = ctypes.c_double if blocks.dtype == torch.float64 else ctypes.c_float

    def part(start: int | None, by: float, begin: int, stop: int) -> None:
        where = map(ctypes.c_long, (begin, stop))
        loops.invert(ctypes.c_void_p(start), rank, real(by), *where)

    for one, by in zip(blocks, shift.tolist(), strict=True):
        in_parts(partial(part, _pointer(one), by), len(one))


def block_times(
    X: Float[Tensor, "batch m r"],
    blocks: Float[Tensor, "batch m r w"],
    Q: Float[Tensor, "batch r r"],
) -> Float[Tensor, "batch m r"]:
    """The rows X_iQ times the matrices of `invert`, times Qᵀ."""
    batch, m, r = X.shape
    X, Q, out = X.contiguous(), Q.contiguous(), X.new_empty(X.shape)
    loops, pointers = (
        _blocks(blocks).times,
        [ctypes.c_void_p(t.data_ptr()) for t in (X, blocks, Q, out)],
    )
    each = alone(batch)

    def part(begin: int, stop: int) -> None:
        ranges = (begin, stop, 0, m) if each else (0, batch, begin, stop)
        loops(*pointers, *map(ctypes.c_long, (r, m, *ranges)))

    in_parts(part, batch if each else m)
    return out


def _blocks(like: Tensor) -> ctypes.CDLL:
    return _loops(like.shape[-1], like.dtype, "blocks.c")
