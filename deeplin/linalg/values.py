"""Whether the numbers in a tensor may be looked at."""

from __future__ import annotations

import torch

__all__ = ["values_known"]


def values_known() -> bool:
    """True where a tensor's values may decide what is computed next: plain eager execution.

    False inside torch.func's transforms and while torch.compile or torch.export trace. Whatever
    asks takes a shortcut where it may, and where it may not does the same by masks and a fixed
    number of rounds; it raises and warns only where it may.
    """
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())
