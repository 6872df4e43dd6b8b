"""The diagonal blocks of the Hessian of a sum over known entries, damped and inverted."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.linalg import gather_rows, sum_of_blocks, sum_over
from deeplin.sampled import Grams, Pattern

__all__ = ["RowTimes", "damped_inverses"]

# (X, Q) ↦ the rows X_i Q B_i Qᴴ, each with a matrix of its own.
RowTimes = Callable[[Tensor, Tensor], Tensor]


def damped_inverses(
    pattern: Pattern,
    weights: Float[Tensor, "*#batch p"] | None,
    U: Inexact[Tensor, "*batch m r"],
    V: Inexact[Tensor, "*batch n r"],
    damping: Float[Tensor, "*batch"],
    shift: float,
    group: dist.ProcessGroup | None = None,
) -> tuple[RowTimes, RowTimes]:
    """As `Problem.inverse_blocks`, of ½Σ w_ij |W_ij − x_ij|² over the places of a pattern.

    With a group each process has its own rows of U and of V, and the places of its own rows. What
    is not asked for is not computed.

    Cost: O(p r² + (m + n) r³), half of it for each side; of a group a gather of V, and the sums
        over all processes of the blocks of columns, by those of one process at a time.
    """
    r, n = V.shape[-1], pattern.shape[1]

    def of_rows() -> Grams:
        return Grams.of(pattern, gather_rows(V, n, group), weights)

    def of_columns() -> Grams:
        def some(columns: slice) -> Tensor:
            return Grams.of(pattern, U, weights, adjoint=True, rows=columns).stored

        compiled = Grams.of(pattern, U, weights, adjoint=True, rows=slice(0, 0)).compiled
        return Grams(sum_of_blocks(some, n, group), compiled)

    def inverse(grams: Grams) -> RowTimes:
        rows = U.new_tensor(grams.stored.shape[-3]).real
        traces, count = sum_over(group, grams.traces(), rows)
        return grams.inverse(damping * traces / (count * r) + shift)

    return _Once(lambda: inverse(of_rows())), _Once(lambda: inverse(of_columns()))


class _Once:
    """What a function of nothing makes, once it is called."""

    def __init__(self, make: Callable[[], RowTimes]):
        self._make, self._made = make, None

    def __call__(self, X: Tensor, Q: Tensor) -> Tensor:
        if self._made is None:
            self._made = self._make()
        return self._made(X, Q)
