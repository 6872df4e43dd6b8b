"""Matrix completion larger than one process: each has the known entries of a block of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float, Inexact, Int
from torch import Tensor

from deeplin.linalg import (
    agreed,
    begun,
    check_backend,
    check_rows,
    gather_rows,
    own_rows,
    scatter_rows,
    sum_over,
)
from deeplin.problems.blocks import RowTimes
from deeplin.problems.completion import MatrixCompletion
from deeplin.problems.contract import Problem

__all__ = ["ShardedCompletion"]


class ShardedCompletion(Problem):
    """`MatrixCompletion` over the processes of a group: each gives the entries of its own rows.

    f(W) = ½Σ_l w_l |W[rows_l, cols_l] − values_l|² over the entries of all. Process i of p has the
    rows from i·⌈m/p⌉ on, ⌈m/p⌉ of them or what is left: `own_rows(m, group)` says which. Factors
    are spread alike, that of the left by these rows, that of the right by blocks of the n columns;
    `spectral_start` and `minimize` take the problem as they take any, and every process must call
    them. Numbers are those of one process up to the order of sums.

    For a pass over its entries a process needs the right factor whole: of the memory the entries
    and what is kept of the factors fall as 1/p, the n×k matrix that is gathered for each pass, and
    what of GᴴU is summed, do not; give the matrix so that n <= m.

    Shapes: rows, cols (p,) of the own entries, counted in the whole matrix; values (p,); shape
        (m, n), of the whole. Factors as in `MatrixCompletion`, their own rows alone.
    Cost: `MatrixCompletion`'s for the own entries; a gather of an n×k matrix, and the sum of
        another, scattered, for each pair of products.
    Raises: ValueError for rows that are another process's, and where a process would have none, on
        all of them;
        RuntimeError where a derivative is wanted of `pair_loss`; as `MatrixCompletion`.
    """

    def __init__(
        self,
        rows: Int[Tensor, " p"] | Sequence[int],
        cols: Int[Tensor, " p"] | Sequence[int],
        values: Inexact[Tensor, " p"],
        shape: tuple[int, int],
        *,
        group: dist.ProcessGroup | None = None,
        weights: Float[Tensor, " p"] | None = None,
        products: str = "auto",
    ):
        self.shape, self.group = shape, begun("ShardedCompletion", group)
        for name, count in zip("mn", self.shape, strict=True):
            check_rows(name, count, self.group)
        self.own = agreed(
            self.group, partial(self._made, torch.as_tensor(rows), cols, values, weights, products)
        )

    def _made(
        self,
        rows: Tensor,
        cols: Tensor | Sequence[int],
        values: Tensor,
        weights: Tensor | None,
        products: str,
    ) -> MatrixCompletion:
        (m, n), here = self.shape, self.own_rows
        rows, height = rows - here.start, here.stop - here.start
        if rows.numel() and not bool(((rows >= 0) & (rows < height)).all()):
            raise ValueError(
                f"ShardedCompletion: this process has the rows {here.start}..{here.stop - 1} of "
                f"{m}, as own_rows({m}, group) says; got entries of "
                f"{int(rows.min()) + here.start}..{int(rows.max()) + here.start}: "
                "give each process those of its own."
            )
        if isinstance(values, Tensor) and values.ndim != 1:
            raise ValueError(
                "ShardedCompletion takes one matrix, values of shape (p,); got "
                f"{tuple(values.shape)}: spread the matrices of a batch, not their rows."
            )
        own = MatrixCompletion(rows, cols, values, (height, n), weights=weights, products=products)
        check_backend("ShardedCompletion", own.values.device, self.group)
        return own

    @property
    def own_rows(self) -> slice:
        """The rows of which this process has the entries."""
        return own_rows(self.shape[0], self.group)

    @property
    def field(self) -> Literal["real", "complex"]:
        """That of the values."""
        return self.own.field

    def to(self, *args, **kwargs) -> ShardedCompletion:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As `Problem.to`."""
        own = self.own.to(*args, **kwargs)
        if own is self.own:
            return self
        check_backend("ShardedCompletion", own.values.device, self.group)
        moved = ShardedCompletion.__new__(ShardedCompletion)
        moved.shape, moved.group, moved.own = self.shape, self.group, own
        return moved

    # -- of whole matrices -----------------------------------------------------------------------

    def loss(self, W: Inexact[Tensor, "*#batch m n"]) -> Float[Tensor, "*#batch"]:
        """½ the weighted sum of the squared errors, of a W that each process has whole."""
        _no_tape(W)
        return self._sum(self.own.loss(W[..., self.own_rows, :]))

    def egrad(self, W: Inexact[Tensor, "*#batch m n"]) -> Inexact[Tensor, "*#batch m n"]:
        """∇f(W), on each process."""
        G = torch.zeros_like(W)
        G[..., self.own_rows, :] = self.own.egrad(W[..., self.own_rows, :])
        return self._sum(G)

    # -- of factors ------------------------------------------------------------------------------

    def _sum(self, part: Tensor) -> Tensor:
        return sum_over(self.group, part)[0]

    def _whole(self, B: Tensor) -> Tensor:
        return gather_rows(B, self.shape[1], self.group)

    def pair_loss(self, A: Inexact[Tensor, "m k"], B: Inexact[Tensor, "n k"]) -> Float[Tensor, ""]:
        """f(ABᴴ) from the own rows of A and B; autograd does not go through processes."""
        _no_tape(A, B)
        return self._sum(self.own.pair_loss(A, self._whole(B)))

    def loss_and_products(
        self, U: Tensor, S: Tensor, V: Tensor
    ) -> tuple[Float[Tensor, ""], Tensor, Tensor]:
        """(f, GV, GᴴU), own rows."""
        loss, GV, GhU = self.own.loss_and_products(U, S, self._whole(V))
        return self._sum(loss), GV, scatter_rows(GhU, self.group)

    def egrad_times(
        self, A: Tensor, B: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Inexact[Tensor, "m p"], Inexact[Tensor, "n q"]]:
        """(GP, GᴴQ) of G = ∇f(ABᴴ), own rows."""
        whole = self._whole(B)
        other = whole if P is B else self._whole(P)
        GP, GhQ = self.own.egrad_times(A, whole, other, Q)
        return GP, scatter_rows(GhQ, self.group)

    def egrad_at(self, A: Tensor, B: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """As `Problem.egrad_at`; the errors are computed once."""
        return partial(self._spread, self.own.egrad_at(A, self._whole(B)))

    def _spread(self, times: Callable, P: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
        EP, EhQ = times(self._whole(P), Q)
        return EP, scatter_rows(EhQ, self.group)

    def back_projection(
        self, like: Tensor
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """As `MatrixCompletion.back_projection`; columns count over all processes."""
        of_rows, of_columns = self.own.squares_of_each()
        of_columns, total = sum_over(self.group, of_columns, of_rows.sum())
        m, n = self.shape
        times, adjoint_times = self.own.evened(like, (of_rows, total / m), (of_columns, total / n))
        return (
            lambda P: times(self._whole(P)),
            lambda Q: scatter_rows(adjoint_times(Q), self.group),
        )

    def quadratic_along(self, left: Tensor, right: Tensor) -> Float[Tensor, ""]:
        """As `MatrixCompletion.quadratic_along`."""
        return self._sum(self.own.quadratic_along(left, self._whole(right)))

    def hessian_times(
        self, A: Tensor, B: Tensor, left: Tensor, right: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Inexact[Tensor, "m p"], Inexact[Tensor, "n q"]]:
        """(HP, HᴴQ) of H = D∇f[left·rightᴴ], own rows."""
        whole, other = self._whole(right), self._whole(P)
        # Of B, of which the Hessian knows nothing, the dtype and device alone are asked.
        HP, HhQ = self.own.hessian_times(A, B, left, whole, other, Q)
        return HP, scatter_rows(HhQ, self.group)

    def inverse_blocks(
        self, U: Tensor, S: Tensor, V: Tensor, damping: Tensor, shift: float = 0.0
    ) -> tuple[RowTimes, RowTimes]:
        """As `MatrixCompletion.inverse_blocks`, own rows."""
        return self.own.inverse_blocks(U, S, V, damping, shift, group=self.group)

    # -- curvature -------------------------------------------------------------------------------

    def _largest(self, own: float) -> float:
        most = self.own.values.new_tensor(own).real
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self.group)
        return float(most)

    def curvature(self, W: Inexact[Tensor, "*#batch m n"]) -> float:
        """As `MatrixCompletion.curvature`; the largest of all processes."""
        return self._largest(self.own.curvature(W))

    def pair_curvature(self, A: Tensor, B: Tensor) -> float:
        """As `curvature`."""
        return self._largest(self.own.pair_curvature(A, B))


def _no_tape(*tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise RuntimeError(
            "ShardedCompletion: autograd does not go through processes; take its own derivatives, "
            "egrad_times and hessian_times, as a solver does that is given problem=...."
        )
