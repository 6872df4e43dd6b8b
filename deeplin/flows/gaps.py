"""Derivatives of singular values and vectors, which autograd does not know where two are equal."""

from __future__ import annotations

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.linalg import values_known

__all__ = ["may_be_differentiated", "without_derivative_at_gaps"]


def may_be_differentiated(part: Inexact[Tensor, "..."]) -> bool:
    """Whether autograd, or a transform, may ask for derivatives by this part of a state."""
    return not values_known() or (part.requires_grad and torch.is_grad_enabled())


def without_derivative_at_gaps(
    log_s: Float[Tensor, "*batch k"], flow: str
) -> Float[Tensor, "*batch k"]:
    """The same numbers, log σ in descending order, with NaN for a derivative at gaps below √ε.

    Raises: ValueError there, where values are known.
    """
    gap = (log_s[..., :-1] - log_s[..., 1:]).detach()
    close = gap <= torch.finfo(log_s.dtype).eps ** 0.5
    if values_known() and bool(close.any()):
        raise ValueError(
            f"the velocity of {flow} has no derivative by autograd where two singular values "
            f"of W agree to √ε; the smallest relative gap is {float(gap.min()):.2g}: take "
            "differences of it, or detach the state."
        )
    moved = torch.where(close, log_s[..., :1] - log_s[..., :1].detach(), 1.0)
    return log_s + 0.0 * moved.sqrt().sum(-1, keepdim=True)  # the root's derivative at 0 is inf
