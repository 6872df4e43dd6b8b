"""Samples that a problem was not made of, and how well a matrix predicts them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["HeldOut", "share_held_out"]


@dataclass(frozen=True)
class HeldOut:
    """Samples as those of the problem, prepared by what the others had: `x` and labels `y`.

    What W predicts of them is `basis`·W·x where coordinates are predicted, else W·x. `centre` is
    what was subtracted from the labels where these are one-hot classes, None where they are not.

    Shapes: x (n, k), a sample per row; y (n, q); basis (q, d_y); centre (q,).
    """

    x: Float[Tensor, "n k"]
    y: Float[Tensor, "n q"]
    centre: Float[Tensor, " q"] | None = None
    basis: Tensor | None = None

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """xᵀx, yᵀx, Σy², Σ(y − ȳ)²: with them the cost of a score does not depend on n."""
        x, y = self.x.double(), self.y.double()
        return x.mT @ x, y.mT @ x, y.square().sum(0), (y - y.mean(0)).square().sum(0)

    def after(self, T: Tensor, basis: Tensor | None) -> HeldOut:
        """The same with other coordinates of the inputs, T·x, and of what is predicted."""
        return replace(self, x=self.x @ T.mT, basis=basis)

    def to(self, *args, **kwargs) -> Self:
        """The same on another device or in another dtype, as `Tensor.to`."""
        x, y, centre, basis = (
            None if v is None else v.to(*args, **kwargs)
            for v in (self.x, self.y, self.centre, self.basis)
        )
        return replace(self, x=x, y=y, centre=centre, basis=basis)

    def scores(self, W: Float[Tensor, "*batch d_y k"]) -> dict[str, Float[Tensor, "*batch"]]:
        """How well W predicts: numbers that are 1 at best.

        - `test_r2`: the mean over the columns of y of R² = 1 − Σ(y − ŷ)²/Σ(y − ȳ)², ȳ the mean of
          these samples, as scikit-learn's r2_score has it
        - `test_variance_explained`: the same with both sums over all columns, in the units of the
          problem
        - `test_accuracy`: where the labels are classes, the share of samples whose largest
          prediction is that of their class

        Accuracy: eps, absolute. Cost: O(k²q) and for classes O(nkq), for each W.
        """
        V = W.double() if self.basis is None else self.basis.double() @ W.double()
        xx, yx, yy, total = self._moments
        residual = yy - 2 * (V * yx).sum(-1) + ((V @ xx) * V).sum(-1)
        constant = total == 0
        of_each = 1 - residual / torch.where(constant, 1.0, total)
        r2 = torch.where(constant, (residual <= 0).to(V.dtype), of_each)
        scores = {
            "test_r2": r2.mean(-1),
            "test_variance_explained": 1 - residual.sum(-1) / total.sum(),
        }
        if self.centre is not None:
            predicted, given = (v + self.centre for v in (self.x @ W.mT, self.y))
            right = predicted.argmax(-1) == given.argmax(-1)
            scores["test_accuracy"] = right.to(V.dtype).mean(-1)
        return scores


def share_held_out(
    m: int, share: float, generator: torch.Generator | None, what: str = "samples"
) -> tuple[Int[Tensor, " n"], Int[Tensor, " k"]]:
    """The numbers of round(share·m) samples, at random, and those of the others, both in order.

    Raises: ValueError where that is less than 2 of either.
    """
    count = round(share * m)
    if not 2 <= count <= m - 2:
        raise ValueError(
            f"problem.test={share:g} of {m} {what} holds out {count}; at least 2 must be held "
            "out, and 2 be left: choose another share, or problem.test=0."
        )
    order = torch.randperm(m, generator=generator)
    return order[:count].sort().values, order[count:].sort().values
