"""A problem made of one function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.problems.contract import Problem

__all__ = ["FromLoss", "from_loss"]


class FromLoss(Problem):
    """The problem of a function; see `from_loss`."""

    def __init__(
        self,
        loss: Callable[..., Tensor],
        shape: tuple[int, int],
        *,
        pair: bool = False,
        field: Literal["real", "complex"] = "real",
    ):
        if not callable(loss):
            raise TypeError(
                f"from_loss(loss, shape) needs a function of W; got a {type(loss).__name__}."
            )
        if field not in ("real", "complex"):
            raise ValueError(f"field must be 'real' or 'complex'; got {field!r}.")
        self.shape = shape
        self._function, self._pair = loss, pair
        self._field: Literal["real", "complex"] = field

    @property
    def field(self) -> Literal["real", "complex"]:
        """Which matrices W are meant."""
        return self._field

    def loss(self, W: Inexact[Tensor, "*#batch m n"]) -> Float[Tensor, "*#batch"]:
        """f(W); of a function of pairs, that of W·I, with the smaller identity."""
        if not self._pair:
            return self._function(W)
        m, n = W.shape[-2:]
        eye = torch.eye(min(m, n), dtype=W.dtype, device=W.device)
        eye = eye.expand(*W.shape[:-2], *eye.shape)
        return self._function(eye, W.mH) if m < n else self._function(W, eye)

    def pair_loss(
        self, A: Inexact[Tensor, "*#batch m k"], B: Inexact[Tensor, "*#batch n k"]
    ) -> Float[Tensor, "*#batch"]:
        """f(ABᴴ)."""
        return self._function(A, B) if self._pair else self._function(A @ B.mH)

    def __repr__(self) -> str:
        return f"from_loss({self._function!r}, {self.shape})"


def from_loss(
    loss: Callable[..., Tensor],
    shape: tuple[int, int],
    *,
    pair: bool = False,
    field: Literal["real", "complex"] = "real",
) -> Problem:
    """The problem of a function loss(W), or with `pair` of loss(A, B) = f(ABᴴ).

    The function takes batches, W (*batch, m, n) -> (*batch), and is written with torch; of two
    factors A (*batch, m, k), B (*batch, n, k), for any k, it must depend on ABᴴ alone.

    Shapes: shape = (m, n).
    Raises: ValueError for a shape that is not two positive integers; TypeError for no function.

    >>> problem = from_loss(lambda W: (W - 1).square().sum((-2, -1)), (2, 3))
    >>> round(problem.curvature(torch.zeros(2, 3)), 5)
    2.0
    """
    return FromLoss(loss, shape, pair=pair, field=field)
