"""Runge–Kutta steps of the layer flow in compiled code, for large batches of tiny networks."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from deeplin.compiled import in_parts, library

__all__ = ["runge_kutta_step"]

# The widest layer: from there on torch.bmm is not slower.
_WIDEST = 8
# N·max d_j²: what a step keeps on the stack is 160 bytes times that.
_LARGEST = 2048
_REALS = {torch.float64: "double", torch.float32: "float"}
_VECTOR_BYTES = 32


def runge_kutta_step(
    layers: Sequence[Tensor],
    C: Tensor,
    B: Tensor,
    dt: float,
    nodes: Sequence[float],
    weights: Sequence[float],
) -> tuple[Tensor, ...]:
    """One explicit step: y + h Σ_s weights_s K_s with K_s at y + h nodes_{s−1} K_{s−1}.

    K is the velocity of the layer flow for ∇L¹(W) = WC − B. All stages of a network are computed
    while its matrices are in the first cache, four networks of float64 at a time, on as many
    threads as torch has. The system's C compiler (cc, or what CC names) builds the code for the
    widths at hand when they first come up on a machine, in well under a second, and it is kept
    (`deeplin.compiled.library`). Not differentiable.

    Source: BRTW (5); the code is layer_steps.c.
    Shapes: layers (*batch, d_j, d_{j−1}), max d_j <= 8, on a CPU; C (d_0, d_0), B (d_N, d_0); the
    result is laid out with the batch innermost, and is fastest if that holds for the layers, too
    (`linalg.batch_last`).
    Cost: 3N − 2 products of tiny matrices for each stage.
    Raises: ValueError for layers that are not tiny, do not fit each other, or are not float32 or
    float64 on a CPU, and without a C compiler.
    """
    widths = (layers[0].shape[-1], *(W_j.shape[-2] for W_j in layers))
    first, batch = layers[0], layers[0].shape[:-2]
    wanted = [(*batch, m, k) for k, m in itertools.pairwise(widths)]
    given = [tuple(W_j.shape) for W_j in layers]
    moments = [M.to(first).contiguous() for M in (C, B)]
    sizes = [tuple(M.shape) for M in moments]
    if given != wanted or sizes != [(widths[0], widths[0]), (widths[-1], widths[0])]:
        raise ValueError(
            "layers must be (*batch, d_j, d_{j−1}) with the same batch, C (d_0, d_0), B (d_N, d_0);"
            f" got layers {given}, C and B {sizes}."
        )
    if first.device.type != "cpu" or first.dtype not in _REALS:
        raise ValueError(
            "compiled steps are for float32 and float64 on a CPU; got layers of "
            f"{first.dtype} on {first.device}: use the integrator itself."
        )
    steps = _steps(widths, _REALS[first.dtype])
    start = [W_j.to(first).movedim((-2, -1), (0, 1)).contiguous() for W_j in layers]
    end = [torch.empty_like(W_j) for W_j in start]
    n = batch.numel()
    stages, real = len(weights), ctypes.c_double

    def part(begin: int, stop: int) -> None:
        steps.step(
            _pointers(start),
            _pointers(end),
            ctypes.c_long(n),
            ctypes.c_long(begin),
            ctypes.c_long(stop),
            ctypes.c_int(stages),
            (real * max(1, len(nodes)))(*nodes),
            (real * stages)(*weights),
            real(dt),
            *(ctypes.c_void_p(M.data_ptr()) for M in moments),
        )

    in_parts(part, n, _VECTOR_BYTES // first.element_size())
    return tuple(W_j.movedim((0, 1), (-2, -1)) for W_j in end)


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(W_j.data_ptr() for W_j in tensors))


@cache
def _steps(widths: tuple[int, ...], real: str) -> ctypes.CDLL:
    depth, widest = len(widths) - 1, max(widths)
    if widest > _WIDEST or depth * widest**2 > _LARGEST:
        raise ValueError(
            f"compiled steps are for tiny networks, max d_j <= {_WIDEST} and N·max d_j² <= "
            f"{_LARGEST}; got widths {list(widths)}: use the integrator itself."
        )
    numbers = ",".join(str(width) for width in widths)
    macros = [f"-DDEPTH={depth}", f"-DWIDTHS={numbers}", f"-DWIDEST={widest}", f"-DREAL={real}"]
    return library(Path(__file__).with_suffix(".c"), macros)
