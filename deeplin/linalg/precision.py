"""The precision of decompositions: bfloat16 and float16 are for storing alone."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["working", "working_dtype"]


def working_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    """float32 for bfloat16 and float16, in which LAPACK has nothing; others as they are."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def working(x: Tensor) -> Tensor:
    """The tensor in `working_dtype`."""
    dtype = working_dtype(x.dtype)
    return x if dtype == x.dtype else x.to(dtype)
