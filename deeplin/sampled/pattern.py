"""The places of a sparse matrix, in the two orders in which its products go through them."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Inexact, Int
from torch import Tensor

from deeplin.sampled import kernels
from deeplin.sampled.places import Places

__all__ = ["Pattern"]

# Columns in a block. The second cache holds so many rows of two factors, one of which is added to:
# with ten columns of float64 0.8 MB; or, of the transpose, of one factor, and a line of the numbers
# for each of them, and its page.
_FIRST, _SECOND = 4096, 1536
# A block needs so many places in each row to be worth its pass over the rows.
_PER_ROW = 8
# Places in a chunk of rows, the least that a thread takes.
_CHUNK = 2**16


class Pattern:
    """Places (rows_l, cols_l) of an m×n matrix: the compressed rows of it and of its transpose.

    Numbers at the places are kept in the order of `first`; `order` takes them there from the
    order in which the places were given. A place may be listed several times.

    With `compiled`, where there is a compiler, products are taken in compiled loops, and the
    columns stand in blocks that fit the cache.

    Shapes: rows, cols (p,), 0 <= rows < m, 0 <= cols < n; both kept in order; order (p,).
    Cost: 40 bytes a place in all; a counting sort, or where there is no compiler one by comparing.
    """

    def __init__(
        self,
        rows: Int[Tensor, " p"],
        cols: Int[Tensor, " p"],
        shape: tuple[int, int],
        *,
        compiled: bool = True,
    ):
        self.shape, self.size = shape, len(rows)
        small = max(*shape, self.size) < 2**31  # the loops count in 32 bits
        self.compiled = compiled and small and rows.device.type == "cpu" and kernels.available()
        rows, cols = rows.long(), cols.long()
        self.order, self.first = _places(
            rows, cols, shape, _FIRST if self.compiled else None, sorted=_sorted(rows, cols)
        )
        self.rows, self.cols = rows[self.order], self.first.index.long()

    @cached_property
    def second(self) -> Places:
        """Column by column: the rows of the transpose."""
        shape = self.shape[1], self.shape[0]
        # All places of a column are in one block of columns, in the order of their rows.
        order, places = _places(
            self.cols, self.rows, shape, _SECOND if self.compiled else None, sorted=True
        )
        kind = torch.int32 if self.size < 2**31 else torch.int64
        return Places(**{**vars(places), "place": order.to(kind)})

    @cached_property
    def _first_of_each(self) -> Int[Tensor, " q"]:
        """Where each place that is listed stands for the first time, in order."""
        other = (self.rows.diff() != 0) | (self.cols.diff() != 0)
        return torch.cat([other.new_ones(min(1, self.size)), other]).nonzero().flatten()

    @property
    def most_listed(self) -> int:
        """The largest number of times that a place is listed."""
        if not self.size:
            return 0
        ends = torch.cat([self._first_of_each, self.rows.new_full((1,), self.size)])
        return int(ends.diff().max())

    def summed(self, numbers: Inexact[Tensor, " p"]) -> Inexact[Tensor, " q"]:
        """The sums of the numbers, in order, of each place that is listed."""
        which = torch.zeros_like(self.rows)
        which[self._first_of_each] = 1
        sums = numbers.new_zeros(len(self._first_of_each))
        return sums.index_add(0, which.cumsum(0) - 1, numbers)


def _sorted(rows: Tensor, cols: Tensor) -> bool:
    """Whether the places stand row by row, in the order of the columns, as many files have them."""

    def ascend(rows: Tensor, cols: Tensor) -> bool:
        down = rows.diff()
        return bool(((down > 0) | ((down == 0) & (cols.diff() >= 0))).all())

    few = 1000
    return rows.is_cpu and ascend(rows[:few], cols[:few]) and ascend(rows, cols)


def _places(
    rows: Tensor, cols: Tensor, shape: tuple[int, int], block: int | None, *, sorted: bool
) -> tuple[Tensor, Places]:
    """The order of the places by block of columns, row and column, and what is kept of it.

    With `sorted` the places of each row stand in the order of their columns already.
    """
    m, n = shape
    most = max(1, len(rows) // (_PER_ROW * m))
    blocks = max(1, min(-(-n // block), most)) if block else 1
    width = -(-n // blocks)
    key = rows if blocks == 1 else cols // width * m + rows
    order = None if sorted else kernels.order_by(cols, n)[0]
    order, starts = kernels.order_by(key, blocks * m, order)
    index = cols[order]
    per_row = starts.diff().unflatten(0, (blocks, m)).sum(0).cumsum(0)
    chunks = max(1, len(rows) // _CHUNK)
    cuts = torch.arange(1, chunks, device=rows.device) * _CHUNK
    inner = torch.searchsorted(per_row, cuts)
    bounds = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), m)])
    kind = torch.int32 if n < 2**31 else torch.int64
    return order, Places(m, n, blocks, starts, index.to(kind), None, bounds)
