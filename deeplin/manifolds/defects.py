"""What keeps numbers from being a size, a matrix, a point of rank r: in one sentence each."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplin.linalg import values_known

__all__ = ["check_numbers", "spectrum_defect", "whole_number"]


def whole_number(owner: str, name: str, value: int) -> int:
    """A size as given. Raises: TypeError unless it is an int, ValueError unless it is positive."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}({name}=...) must be an int; got {value!r}: write {name}=2.")
    if value < 1:
        raise ValueError(f"{owner}({name}=...) must satisfy {name} >= 1; got {name}={value}.")
    return value


def check_numbers(x: Tensor, method: str) -> None:
    """Raises: TypeError for integers, ValueError for entries that are known not to be finite."""
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"{method} must get floating-point numbers; got {x.dtype}: x.double().")
    if values_known() and not bool(torch.isfinite(x).all()):
        raise ValueError(f"{method}: x must be finite; it has nan or inf entries.")


def spectrum_defect(values: Tensor, next_value: Tensor, rank: int, tolerance: float) -> str | None:
    """Whether descending values[..., :r] are of rank r, and the one after them is round-off."""
    if values.numel() == 0:  # an empty batch
        return None
    largest = values[..., 0].abs()  # of eigenvalues none may be positive
    beyond = (next_value / largest).nan_to_num(nan=0.0).max().item()
    if beyond > tolerance:
        return (
            f"x must have rank {rank}; it has more: σ_{rank + 1}/σ_1 = {beyond:.3g} "
            f"is above {tolerance:.3g}; use projx(x)."
        )
    floor = rank * torch.finfo(values.dtype).eps
    least = (values[..., -1] / largest).nan_to_num(nan=0.0).min().item()
    if least < 0:
        return (
            f"x must have {rank} positive eigenvalues; it has fewer: λ_{rank}/|λ_1| = {least:.3g}; "
            "take a smaller rank."
        )
    if least <= floor:
        return (
            f"x must have rank {rank}; it has less: σ_{rank}/σ_1 = {least:.3g} is not above "
            f"{floor:.3g}; take a smaller rank."
        )
    return None
