"""What is asked of the indices and the weights of known entries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["indices_of", "weights_of"]


def indices_of(name: str, index: Tensor | Sequence[int], values: Tensor) -> Tensor:
    """Indices as integers, where the values are. Raises: TypeError for others."""
    index = torch.as_tensor(index, device=values.device)
    if not index.numel():
        return index.long()
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(
            f"MatrixCompletion: {name} must be whole numbers; got dtype {index.dtype}: convert "
            f"them with torch.as_tensor({name}, dtype=torch.int64)."
        )
    return index.long()


def weights_of(weights: Tensor, values: Tensor) -> Tensor:
    """Weights, in the precision of the values. Raises: TypeError and ValueError for others."""
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        given = f"dtype {weights.dtype}" if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(
            f"MatrixCompletion: weights must be a tensor of real numbers; got {given}: convert "
            "them with torch.as_tensor(weights, dtype=torch.float64)."
        )
    if weights.shape != values.shape[-1:]:
        raise ValueError(
            "MatrixCompletion needs one weight per known entry, of shape "
            f"{tuple(values.shape[-1:])}; got {tuple(weights.shape)}."
        )
    if not bool(((weights >= 0) & torch.isfinite(weights)).all()):
        raise ValueError(
            "MatrixCompletion: weights must be finite and not negative; got values in "
            f"{float(weights.min()):.3g}..{float(weights.max()):.3g}."
        )
    return weights.to(values.real.dtype)
