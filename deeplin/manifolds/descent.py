"""Steps of gradient descent on small matrices of rank r, in compiled code."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.compiled import REALS, TALL, loops_for, width_of
from deeplin.linalg import values_known

__all__ = ["LARGEST_RANK", "descend", "takes"]

_SOURCE = Path(__file__).with_suffix(".c")
# Up to this the loops are faster than torch's products and decompositions.
LARGEST_RANK = 32


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("batch", "m", "n", "rank")),
        *(
            (name, ctypes.c_void_p)
            for name in ("point", "gradient", "buffer", "end", "moved", "room")
        ),
        *((name, ctypes.c_double) for name in ("rate", "momentum", "fresh")),
        *((name, ctypes.c_long) for name in ("nesterov", "tangent")),
    ]


def _loops_for(x: Tensor) -> ctypes.CDLL | None:
    return loops_for(_SOURCE, x.shape[-1], x.dtype, [TALL])


def takes(x: Tensor, *vectors: Tensor) -> bool:
    """Whether `descend` takes such points and vectors: float64 or float32, all alike, on a CPU, of
    no large rank, where values may be looked at and there is a compiler or what it made is kept.
    """
    alike = all(u.shape == x.shape and u.dtype == x.dtype and u.device == x.device for u in vectors)
    return (
        alike
        and x.dtype in REALS
        and x.device.type == "cpu"
        and x.shape[-1] <= LARGEST_RANK
        and x.numel() > 0
        and values_known()
        and _loops_for(x) is not None
    )


def descend(
    x: Float[Tensor, "*batch k r"],
    grad: Float[Tensor, "*batch k r"],
    buffer: Float[Tensor, "*batch k r"] | None,
    m: int,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    tangent: bool,
) -> tuple[Tensor, Tensor | None] | None:
    """`LowRankManifold.descend` of points (U, V, S), one below the other, by "splitting".

    `grad` is the gradient in the same coordinates; unless it is `tangent`, it is projected. None
    where a step loses rank, or a number is not finite or near the end of its range.
    """
    loops = _loops_for(x)
    assert loops is not None
    x, grad = x.detach().contiguous(), grad.contiguous()
    buffer = None if buffer is None else buffer.contiguous()
    k, r = x.shape[-2:]
    end, moved = torch.empty_like(x), None if buffer is None else torch.empty_like(x)
    tensors = (x, grad, buffer, end, moved)
    job = _Job(
        *(x.numel() // (k * r), m, k - r - m, r),
        *(None if part is None else part.data_ptr() for part in tensors),
        None,
        *(lr, momentum, 1 - dampening),
        *(nesterov and buffer is not None, tangent),
    )
    room = x.new_empty((loops.rooms(ctypes.byref(job)), width_of(r, x.dtype)))
    job.room = room.data_ptr()
    return (end, moved) if loops.steps(ctypes.byref(job)) else None
