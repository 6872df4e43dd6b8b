"""Places of a sparse matrix in one order."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

__all__ = ["Places"]


@dataclass(frozen=True)
class Places:
    """Places row by row, once for each block of columns; sums are kept per chunk of rows.

    Shapes: starts (blocks·rows + 1,) int64; index (p,), the columns; place (p,), where the number
        of each stands, or None: in this order; bounds (chunks + 1,), rows.
    """

    rows: int
    columns: int
    blocks: int
    starts: Int[Tensor, " s"]
    index: Int[Tensor, " p"]
    place: Int[Tensor, " p"] | None
    bounds: Int[Tensor, " c"]
