"""What keeps numbers from being a size, a matrix, a point of rank r: in one sentence each."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplin.geometry.coordinates import Point, Tangent
from deeplin.linalg import values_known

__all__ = ["check_numbers", "largest_value", "lost_rank", "spectrum_defect", "whole_number"]


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


def largest_value(point: Point) -> str:
    """σ_1 of a point, the largest of a batch, as it is told."""
    S = point.S
    finite = torch.isfinite(S).all(-1).all(-1)
    if not bool(finite.all()):
        return "W holds nan or inf itself"
    return f"σ_1 = {float(torch.linalg.matrix_norm(S, 2).max()):.3g}"


def lost_rank(point: Point, tangent: Tangent, kept: Tensor, rank: int) -> str:
    """Why no step, however short, keeps the rank: W has not got it. With what was measured.

    A W that has it is too large for its squares, and a step longer than W itself is one of an
    iteration that diverges, too; else W was handed over so.
    """
    kind = str(point.S.dtype).removeprefix("torch.")
    remedy = (
        "take a smaller learning rate (with momentum, a tenth of it at first) or clip the gradient"
    )
    batch = kept.shape
    S = point.S.expand(*batch, rank, rank)[~kept]
    if not bool(torch.isfinite(S).all()):
        return f"the iteration has diverged, W holds nan or inf: {remedy}."
    parts = (tangent.M, tangent.Up, tangent.Vp)
    square = sum(torch.linalg.matrix_norm(part).square() for part in parts)
    length = torch.as_tensor(square).sqrt().expand(batch)[~kept]
    values = torch.linalg.svdvals(S)
    worst = int((values[..., -1] / values[..., 0]).nan_to_num(nan=0.0).argmin())
    first, last, step = (float(v[worst]) for v in (values[..., 0], values[..., -1], length))
    seen = f"σ_1 = {first:.3g}, σ_{rank} = {last:.3g}, a step of norm {step:.3g}"
    if last > rank * torch.finfo(values.dtype).eps * first:
        return f"the iteration diverges: W has grown to the limits of {kind} ({seen}): {remedy}."
    if not step <= float(torch.linalg.vector_norm(values[worst])):  # NaN, too
        return f"the iteration diverges, and W has lost rank {rank} to {kind} ({seen}): {remedy}."
    return (
        f"x must have rank {rank}, and has not in {kind} ({seen}): call projx(x) or "
        "assert_check_point_on_manifold(x) on the starting point; where the iteration came here by "
        "itself, its limit has a lower rank: take that as the rank."
    )
