"""Samples of ABᴴ, and products of the sparse matrix that has numbers at these places; derivatives.

The three are linear in each argument, and each one's derivative is made of the other two. All
numbers stand in the order of the pattern.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.linalg import numbers_alone
from deeplin.sampled import kernels
from deeplin.sampled.pattern import Pattern
from deeplin.sampled.places import Places

__all__ = [
    "adjoint_times",
    "one_pass",
    "residual_times",
    "sample",
    "sparse_times",
    "square_sum",
]

_REALS = (torch.float64, torch.float32)


def sample(
    pattern: Pattern,
    A: Inexact[Tensor, "*#batch m k"],
    B: Inexact[Tensor, "*#batch n k"],
) -> Inexact[Tensor, "*#batch p"]:
    """The entries ⟨A_i, B_j⟩ of ABᴴ at the places (i, j) of the pattern.

    In compiled loops for float32 and float64 on a CPU, by `torch.sparse` where there is no compiler
    and on CUDA, by gathering rows for batches there, other numbers and under torch.compile.
    Differentiable as often as one likes, and under torch.func.

    Cost: O(p k).
    """
    if _gathered(A, B):
        return (A[..., pattern.rows, :] * B[..., pattern.cols, :].conj()).sum(-1)
    A, B, batch = _beside(A, B)
    return _applied(_Sample, A, B, pattern).reshape(*batch, pattern.size)


def sparse_times(
    pattern: Pattern,
    entries: Inexact[Tensor, "*#batch p"],
    P: Inexact[Tensor, "*#batch n k"],
) -> Inexact[Tensor, "*#batch m k"]:
    """EP of the matrix E that has these entries at the places of the pattern, else zeros.

    Cost, derivatives: as `sample`.
    """
    if _gathered(entries, P):
        found = entries[..., None] * P[..., pattern.cols, :]
        return _sums_by(pattern.rows, found, pattern.shape[0])
    e, P, batch = _beside(entries[..., None], P)
    EP = _applied(_Times, e[..., 0], P, pattern, False)
    return EP.reshape(*batch, *EP.shape[1:])


def adjoint_times(
    pattern: Pattern,
    entries: Inexact[Tensor, "*#batch p"],
    Q: Inexact[Tensor, "*#batch m k"],
) -> Inexact[Tensor, "*#batch n k"]:
    """EᴴQ of the matrix E that has these entries at the places of the pattern, else zeros.

    Cost, derivatives: as `sample`.
    """
    if _gathered(entries, Q):
        found = entries.conj()[..., None] * Q[..., pattern.rows, :]
        return _sums_by(pattern.cols, found, pattern.shape[1])
    e, Q, batch = _beside(entries[..., None], Q)
    EhQ = _applied(_Times, e[..., 0], Q, pattern, True)
    return EhQ.reshape(*batch, *EhQ.shape[1:])


def residual_times(
    pattern: Pattern,
    A: Float[Tensor, "m k"],
    B: Float[Tensor, "n k"],
    Q: Float[Tensor, "m k"],
    values: Float[Tensor, " p"],
    weights: Float[Tensor, " p"] | None,
) -> tuple[Float[Tensor, "m k"], Float[Tensor, "n k"], Float[Tensor, ""]]:
    """(EB, EᴴQ, ½Σ e·d), e = weights·d and d = (ABᴴ − values at the places), in one pass, or two.

    In two where several threads share the places, or Q is of another width.

    No derivatives; where `one_pass` holds.
    """
    if len(_parts(A, B)) > 1:
        e = sample(pattern, A, B) - values
        square = (e if weights is None else weights * e) @ e
        e = e if weights is None else weights * e
        return sparse_times(pattern, e, B), adjoint_times(pattern, e, Q), 0.5 * square
    once = kernels.alone(1) and Q.shape == A.shape
    e, EB, EhQ, sums = kernels.products(
        pattern.first,
        B[None],
        A=A[None],
        Q=Q[None] if once else None,
        values=values[None],
        weights=weights,
        keep=not once,
        times=True,
        sums=True,
    )
    assert EB is not None
    assert sums is not None
    if EhQ is None:
        assert e is not None
        EhQ = adjoint_times(pattern, e, Q[None])
    return EB[0], EhQ[0], 0.5 * sums[0].to(A.dtype)


def square_sum(
    pattern: Pattern,
    A: Float[Tensor, "m k"],
    B: Float[Tensor, "n k"],
    weights: Float[Tensor, " p"] | None,
    values: Float[Tensor, " p"] | None = None,
) -> Float[Tensor, ""]:
    """Σ weights·x² of the samples x of ABᴴ, less the values, none of which is kept.

    No derivatives; where `one_pass` holds.
    """
    if not A.shape[-1] or len(_parts(A, B)) > 1:
        x = sample(pattern, A, B)
        x = x if values is None else x - values
        return (x if weights is None else weights * x) @ x
    v = None if values is None else values[None]
    sums = kernels.products(
        pattern.first, B[None], A=A[None], values=v, weights=weights, keep=False, sums=True
    )[3]
    assert sums is not None
    return sums[0].to(A.dtype)


def slope_sum(
    pattern: Pattern,
    A: Float[Tensor, "m k"],
    B: Float[Tensor, "n k"],
    left: Float[Tensor, "m l"],
    right: Float[Tensor, "n l"],
    values: Float[Tensor, " p"],
    weights: Float[Tensor, " p"] | None,
) -> Float[Tensor, ""]:
    """Σ weights·(x − values)·y of the samples x of ABᴴ and y of left·rightᴴ, none of them kept.

    No derivatives; where `one_pass` holds.
    """
    half = kernels.half_width(max(A.shape[-1], left.shape[-1], 1), A)
    if 2 * half * A.element_size() > 32 * kernels.WIDEST:
        errors = sample(pattern, A, B) - values
        return (errors if weights is None else weights * errors) @ sample(pattern, left, right)

    def beside(first: Tensor, second: Tensor) -> Tensor:
        both = first.new_zeros((1, len(first), 2 * half))
        both[0, :, : first.shape[-1]] = first
        both[0, :, half : half + second.shape[-1]] = second
        return both

    sums = kernels.pairings(pattern.first, beside(A, left), beside(B, right), values[None], weights)
    return sums[0].to(A.dtype)


def one_pass(pattern: Pattern, *tensors: Tensor) -> bool:
    """Whether compiled loops may take these tensors: no batch, and no derivative is wanted."""
    return (
        pattern.compiled
        and pattern.size > 0
        and numbers_alone(*tensors)
        and all(t.ndim <= 2 for t in tensors)
        and kernels.fits(*tensors)
    )


# -- derivatives -----------------------------------------------------------------------------------


def _applied(function: type[_Sample] | type[_Times], A: Tensor, B: Tensor, *rest) -> Tensor:
    """A function's numbers, on the tape alone where somebody reads it: a tape costs 0.1 ms."""
    if numbers_alone(A, B):
        return function.forward(A, B, *rest)
    return function.apply(A, B, *rest)  # pyright: ignore


class _Sample(torch.autograd.Function):
    """(A, B) -> the samples; one batch dimension."""

    @staticmethod
    def forward(A: Tensor, B: Tensor, pattern: Pattern) -> Tensor:
        return _sampled(pattern, A, B)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        A, B, ctx.pattern = inputs
        ctx.save_for_backward(A, B)
        ctx.save_for_forward(A, B)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (g,), (A, B) = grads, ctx.saved_tensors
        dA = dB = None
        if ctx.needs_input_grad[0]:
            dA = _Times.apply(g, B, ctx.pattern, False)
        if ctx.needs_input_grad[1]:
            dB = _Times.apply(g, A, ctx.pattern, True)
        return dA, dB, None

    @staticmethod
    def jvp(ctx, *grads):
        dA, dB = grads[:2]
        A, B = ctx.saved_tensors
        parts = [(dA, B), (A, dB)]
        found = [
            _Sample.apply(L, R, ctx.pattern) for L, R in parts if L is not None and R is not None
        ]
        return sum(found[1:], found[0])  # pyright: ignore

    @staticmethod
    def vmap(info, in_dims, *args):
        A, B, pattern = args
        A, B = (_batched(t, d, info.batch_size) for t, d in zip((A, B), in_dims[:2], strict=True))
        e = _Sample.apply(A.flatten(0, 1), B.flatten(0, 1), pattern)
        return e.unflatten(0, A.shape[:2]), 0  # pyright: ignore


class _Times(torch.autograd.Function):
    """(entries, P) -> EP, or EᴴP; one batch dimension."""

    @staticmethod
    def forward(e: Tensor, P: Tensor, pattern: Pattern, adjoint: bool) -> Tensor:
        return _multiplied(pattern, e, P, adjoint)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        e, P, ctx.pattern, ctx.adjoint = inputs
        ctx.save_for_backward(e, P)
        ctx.save_for_forward(e, P)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (g,), (e, P) = grads, ctx.saved_tensors
        de = dP = None
        if ctx.needs_input_grad[0]:
            pair = (P, g) if ctx.adjoint else (g, P)
            de = _Sample.apply(*pair, ctx.pattern)
        if ctx.needs_input_grad[1]:
            dP = _Times.apply(e, g, ctx.pattern, not ctx.adjoint)
        return de, dP, None, None

    @staticmethod
    def jvp(ctx, *grads):
        de, dP = grads[:2]
        e, P = ctx.saved_tensors
        parts = [(de, P), (e, dP)]
        found = [
            _Times.apply(L, R, ctx.pattern, ctx.adjoint)
            for L, R in parts
            if L is not None and R is not None
        ]
        return sum(found[1:], found[0])  # pyright: ignore

    @staticmethod
    def vmap(info, in_dims, *args):
        e, P, pattern, adjoint = args
        e, P = (_batched(t, d, info.batch_size) for t, d in zip((e, P), in_dims[:2], strict=True))
        EP = _Times.apply(e.flatten(0, 1), P.flatten(0, 1), pattern, adjoint)
        return EP.unflatten(0, P.shape[:2]), 0  # pyright: ignore


def _batched(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The dimension of vmap in front, also of what has none."""
    if dim is None:
        return tensor.expand(size, *tensor.shape)
    return tensor.movedim(dim, 0)


def _beside(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
    """Two tensors with one batch dimension, the same for both, and the batch that it stands for."""
    if A.ndim == B.ndim == 2:
        return A[None], B[None], torch.Size()
    batch = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    size = batch.numel()
    A, B = (t.expand(*batch, *t.shape[-2:]).reshape(size, *t.shape[-2:]) for t in (A, B))
    return A, B, batch


def _gathered(*tensors: Tensor) -> bool:
    """Whether rows must be gathered by plain operations."""
    mixed = any(t.dtype != tensors[0].dtype or t.dtype not in _REALS for t in tensors)
    return mixed or torch.compiler.is_compiling()


def _sums_by(index: Tensor, rows: Tensor, size: int) -> Tensor:
    return rows.new_zeros((*rows.shape[:-2], size, rows.shape[-1])).index_add(-2, index, rows)


# -- numbers ---------------------------------------------------------------------------------------


def _parts(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The columns in as many parts as the compiled loops need."""
    widest = kernels.WIDEST * 32 // tensors[0].element_size()
    return list(zip(*(t.split(widest, -1) for t in tensors), strict=True))


def _sampled(pattern: Pattern, A: Tensor, B: Tensor) -> Tensor:
    if not A.shape[-1] or not pattern.size:
        return A.new_zeros((len(A), pattern.size))
    if pattern.compiled and kernels.fits(A, B):
        found = [kernels.products(pattern.first, b, A=a)[0] for a, b in _parts(A, B)]
        return sum(found[1:], found[0])  # pyright: ignore
    if len(A) == 1 and pattern.first.blocks == 1:
        ones = A.new_ones(pattern.size)
        E = torch.sparse.sampled_addmm(_csr(pattern.first, ones), A[0], B[0].mT, beta=0.0)
        return E.values()[None]
    return (A[:, pattern.rows, :] * B[:, pattern.cols, :]).sum(-1)


def _multiplied(pattern: Pattern, e: Tensor, P: Tensor, adjoint: bool) -> Tensor:
    rows = pattern.shape[adjoint]
    if not P.shape[-1] or not pattern.size:
        return P.new_zeros((len(P), rows, P.shape[-1]))
    compiled = pattern.compiled and kernels.fits(e, P)
    if adjoint and compiled and kernels.alone(len(P)):
        e = e.contiguous()
        parts = [
            kernels.products(pattern.first, None, Q=part, entries=e, keep=False)[2]
            for (part,) in _parts(P)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)  # pyright: ignore
    places = pattern.second if adjoint else pattern.first
    if compiled:
        e = e.contiguous()
        parts = [
            kernels.products(places, part, entries=e, keep=False, times=True)[1]
            for (part,) in _parts(P)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)  # pyright: ignore
    if len(P) == 1 and places.blocks == 1:
        e = e[0] if places.place is None else e[0][places.place]
        return (_csr(places, e) @ P[0])[None]
    rows, cols = (pattern.cols, pattern.rows) if adjoint else (pattern.rows, pattern.cols)
    return _sums_by(rows, e[..., None] * P[:, cols, :], places.rows)


def _csr(places: Places, numbers: Tensor) -> Tensor:
    with warnings.catch_warnings():  # torch calls its compressed rows beta, once a process
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            places.starts.to(places.index.dtype),
            places.index,
            numbers,
            (places.rows, places.columns),
            check_invariants=False,
        )
