"""Tensors of a problem on another device or in another dtype, wherever it keeps them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["moved"]


def moved(value: object, args: tuple, kwargs: dict) -> object:
    """A tensor, or a tuple, list or dict of such, moved by Tensor.to(*args, **kwargs)."""
    if isinstance(value, Tensor):
        real = value.real.dtype if value.is_complex() else value.dtype
        probe = torch.empty(0, dtype=real, device=value.device).to(*args, **kwargs)
        dtype = probe.dtype
        if value.is_complex() and not dtype.is_complex:
            dtype = dtype.to_complex()
        elif not value.is_floating_point() and not value.is_complex():
            dtype = value.dtype
        return value.to(device=probe.device, dtype=dtype)
    if type(value) in (tuple, list):
        items = [moved(item, args, kwargs) for item in value]  # pyright: ignore
        same = all(a is b for a, b in zip(items, value, strict=True))  # pyright: ignore
        return value if same else type(value)(items)  # pyright: ignore
    if type(value) is dict:
        entries = {key: moved(item, args, kwargs) for key, item in value.items()}  # pyright: ignore
        return value if all(entries[key] is value[key] for key in entries) else entries  # pyright: ignore
    return value
