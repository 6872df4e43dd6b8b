"""Matrix completion: the loss on the entries that are known, its products, its curvature."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor

from deeplin.problems.autograd import half_square
from deeplin.problems.contract import Problem

__all__ = ["MatrixCompletion"]


class MatrixCompletion(Problem):
    """f(W) = ½Σ_l (W[rows_l, cols_l] − values_l)², the error on the entries that are known.

    An entry that is listed c times counts c times.

    Shapes: rows, cols (p,), values (*batch, p), real or complex; shape (m, n).
    Cost: O(p q) for a factor pair of q columns; nothing m×n but in `egrad`.
    Raises: ValueError for indices outside the shape, or not one of each per value; TypeError for
        values that are no floating-point or complex tensor.

    >>> problem = MatrixCompletion([0, 1], [1, 0], torch.tensor([2.0, 3.0]), (2, 2))
    >>> problem.loss(torch.tensor([[9.0, 2.0], [1.0, 9.0]]))
    tensor(2.)
    """

    def __init__(
        self,
        rows: Int[Tensor, " p"] | Sequence[int],
        cols: Int[Tensor, " p"] | Sequence[int],
        values: Inexact[Tensor, "*batch p"],
        shape: tuple[int, int],
    ):
        if not isinstance(values, Tensor) or not (
            values.is_floating_point() or values.is_complex()
        ):
            given = f"dtype {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(
                "MatrixCompletion: values must be a floating-point or complex tensor; got "
                f"{given}: convert them with torch.as_tensor(values, dtype=torch.float64)."
            )
        self.rows = torch.as_tensor(rows, device=values.device)
        self.cols = torch.as_tensor(cols, device=values.device)
        self.values, self.shape = values, shape
        count = values.shape[-1] if values.ndim else 0
        if not self.rows.shape == self.cols.shape == (count,):
            raise ValueError(
                "MatrixCompletion(rows, cols, values, shape) needs one row and one column per "
                f"value; got {tuple(self.rows.shape)}, {tuple(self.cols.shape)} and "
                f"{tuple(values.shape)}."
            )
        for name, index, size in zip(("rows", "cols"), (self.rows, self.cols), shape, strict=True):
            if count and not bool(((index >= 0) & (index < size)).all()):
                raise ValueError(
                    f"MatrixCompletion: {name} must lie in 0..{size - 1}; got values in "
                    f"{int(index.min())}..{int(index.max())}."
                )

    def loss(self, W: Inexact[Tensor, "*#batch m n"]) -> Float[Tensor, "*#batch"]:
        """½ the sum of the squared errors on the known entries."""
        return half_square(W[..., self.rows, self.cols] - self.values, -1)

    def egrad(self, W: Inexact[Tensor, "*#batch m n"]) -> Inexact[Tensor, "*#batch m n"]:
        """∇f(W): the errors at the known entries, zero elsewhere; an entry listed twice counts so.

        Cost: an m×n matrix.
        """
        error = W[..., self.rows, self.cols] - self.values
        gradient = error.new_zeros((*error.shape[:-1], self.shape[0] * self.shape[1]))
        position = (self.rows * self.shape[1] + self.cols).expand_as(error)
        return gradient.scatter_add(-1, position, error).unflatten(-1, self.shape)

    def _entries(self, A: Tensor, B: Tensor) -> Inexact[Tensor, "*#batch p"]:
        """The entries of ABᴴ at the known places."""
        return (A[..., self.rows, :] * B[..., self.cols, :].conj()).sum(-1)

    def pair_loss(
        self, A: Inexact[Tensor, "*#batch m k"], B: Inexact[Tensor, "*#batch n k"]
    ) -> Float[Tensor, "*#batch"]:
        """f(ABᴴ) from the rows of A and B alone."""
        return half_square(self._entries(A, B) - self.values, -1)

    def _sparse_times(self, entries: Tensor, P: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
        """(EP, EᴴQ) of the matrix E that has these entries at the known places, else zeros."""
        rows = entries[..., None] * P[..., self.cols, :]
        cols = entries.conj()[..., None] * Q[..., self.rows, :]
        EP = rows.new_zeros((*rows.shape[:-2], self.shape[0], rows.shape[-1]))
        EhQ = cols.new_zeros((*cols.shape[:-2], self.shape[1], cols.shape[-1]))
        return EP.index_add(-2, self.rows, rows), EhQ.index_add(-2, self.cols, cols)

    def egrad_times(
        self, A: Tensor, B: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Inexact[Tensor, "*#batch m p"], Inexact[Tensor, "*#batch n q"]]:
        """(GP, GᴴQ) of G = ∇f(ABᴴ), which is sparse.

        Shapes: A (*batch, m, k), B (*batch, n, k), P (*batch, n, p), Q (*batch, m, q).
        Cost: one pass over the known entries for each column.
        """
        return self._sparse_times(self._entries(A, B) - self.values, P, Q)

    def hessian_times(
        self, A: Tensor, B: Tensor, left: Tensor, right: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Inexact[Tensor, "*#batch m p"], Inexact[Tensor, "*#batch n q"]]:
        """(HP, HᴴQ), H the known entries of ξ = left·rightᴴ; the same at every ABᴴ.

        Cost: as `egrad_times`.
        """
        batch = torch.broadcast_shapes(A.shape[:-2], self.values.shape[:-1])
        entries = self._entries(left, right)
        batch = torch.broadcast_shapes(batch, entries.shape[:-1])
        return self._sparse_times(entries.expand(*batch, -1), P, Q)

    @cached_property
    def _most_listed(self) -> int:
        position = self.rows * self.shape[1] + self.cols
        return int(position.unique(return_counts=True)[1].max()) if len(position) else 0

    def curvature(self, W: Inexact[Tensor, "*#batch m n"]) -> float:
        """The largest number of times that an entry is listed: the Hessian is diagonal. Exact."""
        return float(self._most_listed)

    def pair_curvature(self, A: Tensor, B: Tensor) -> float:
        """The largest number of times that an entry is listed, from A and B unseen."""
        return float(self._most_listed)
