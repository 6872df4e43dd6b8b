"""Whether the numbers in a tensor may be looked at."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["numbers_alone", "values_known"]


def values_known() -> bool:
    """True where a tensor's values may decide what is computed next: plain eager execution.

    False inside torch.func's transforms and while torch.compile or torch.export trace. Whatever
    asks takes a shortcut where it may, and where it may not does the same by masks and a fixed
    number of rounds; it raises and warns only where it may.
    """
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


def numbers_alone(*tensors: Tensor) -> bool:
    """Whether nobody asks for derivatives of what is computed from these: `values_known`, no tape
    that leads to one of them, no level of forward mode."""
    if not values_known() or forward_ad._current_level >= 0:
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
