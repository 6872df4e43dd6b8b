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

    With a group each process has its own rows of U and of V, and the places of its own rows.

    Cost: O(p r² + (m + n) r³); of a group a gather of V, and the sums over all processes of the
        blocks of columns, by those of one process at a time.
    """
    r, n = V.shape[-1], pattern.shape[1]
    G = Grams.of(pattern, gather_rows(V, n, group), weights)

    def of_columns(columns: slice) -> Tensor:
        return Grams.of(pattern, U, weights, adjoint=True, rows=columns).stored

    H = Grams(sum_of_blocks(of_columns, n, group), G.compiled)
    m = U.new_tensor(U.shape[-2]).real
    of_rows, of_columns_, m = sum_over(group, G.traces(), H.traces(), m)
    shifts = (damping * of_rows / (m * r) + shift, damping * of_columns_ / (n * r) + shift)
    return G.inverse(shifts[0]), H.inverse(shifts[1])
