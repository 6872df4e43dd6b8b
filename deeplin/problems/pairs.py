"""A user's pairs (row, column) as places of a matrix, and its entries as the user's values."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Float, Inexact, Int
from numpy.typing import ArrayLike
from torch import Tensor

from deeplin.problems.biases import Biases
from deeplin.problems.planted import entries_at

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Labels", "Pairs"]


@dataclass(frozen=True)
class Labels:
    """What rows, or columns, are called: `of[i]`, in ascending order, words or whole numbers.

    `of` None: they are called by their indices 0..size−1.
    """

    size: int
    of: np.ndarray | None = None

    @classmethod
    def coded(cls, cells: np.ndarray) -> tuple[Labels, Int[Tensor, " p"]]:
        """(the distinct cells, and for each the number that it has among them)."""
        of, numbers = np.unique(cells, return_inverse=True)
        return cls(len(of), of), torch.from_numpy(numbers.reshape(-1).astype(np.int64))

    def numbers(self, cells: np.ndarray, name: str) -> Int[Tensor, " p"]:
        """The number of each cell, −1 for a label that there is not.

        Raises: ValueError for an index outside 0..size−1, and for numbers where words are labels.
        """
        if self.of is None:
            index = _whole(cells, name)
            outside = (index < 0) | (index >= self.size)
            if outside.any():
                at = int(outside.argmax())
                raise ValueError(
                    f"pairs must have {name} in 0..{self.size - 1}; pair {at + 1} has {index[at]}."
                )
            return torch.from_numpy(index)
        words = self.of.dtype.kind == "U"
        given = cells.astype(str) if words else _whole(cells, name)
        at = np.searchsorted(self.of, given).clip(max=self.size - 1)
        return torch.from_numpy(np.where(self.of[at] == given, at, -1).astype(np.int64))

    def state_dict(self) -> dict[str, object]:
        of = self.of
        if of is None:
            return {"size": self.size, "of": None}
        words = of.dtype.kind == "U"
        return {"size": self.size, "of": of.tolist() if words else torch.from_numpy(of)}

    @classmethod
    def from_state_dict(cls, saved: Mapping[str, object]) -> Labels:
        of = saved["of"]
        if isinstance(of, Tensor):
            of = of.numpy(force=True)
        elif of is not None:
            of = np.array(cast(Sequence[str], of), dtype=str)
        return cls(cast(int, saved["size"]), of)


def _whole(cells: np.ndarray, name: str) -> np.ndarray:
    try:
        numbers = cells.astype(float)
    except (TypeError, ValueError):
        numbers = np.full(len(cells), np.nan)
    bad = ~(numbers == np.round(numbers))
    if bad.any():
        at = int(bad.argmax())
        raise ValueError(
            f"pairs must have whole numbers for {name}, as the data had; pair {at + 1} has "
            f"{cells[at]!r}."
        )
    return cells.astype(np.int64) if cells.dtype.kind in "iu" else numbers.astype(np.int64)


@dataclass(frozen=True)
class Pairs:
    """From a user's pairs to places of a matrix, and from W to what it says of them.

    The value of a pair is W[i, j], and of fitted `biases` μ + a_i + b_j with it. `names` are those
    of rows, columns and values.
    """

    rows: Labels
    cols: Labels
    biases: Biases | None = None
    names: tuple[str, str, str] = ("row", "column", "value")

    def places(
        self, pairs: ArrayLike | Tensor | DataFrame
    ) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
        """(rows, cols) of pairs, an array (p, 2), or a pandas table that has their columns.

        −1 for a label that the data did not have.
        Raises: ValueError for other shapes, and as `Labels.numbers`.
        """
        pandas = sys.modules.get("pandas")  # who has a table of its has it loaded
        if pandas is not None and isinstance(pairs, pandas.DataFrame):
            frame = cast("DataFrame", pairs)
            missing = [name for name in self.names[:2] if name not in frame.columns]
            if missing:
                raise ValueError(f"pairs must have a column {missing[0]!r}; it has none.")
            columns = [frame[name].to_numpy() for name in self.names[:2]]
        else:
            given = pairs.numpy(force=True) if isinstance(pairs, Tensor) else np.asarray(pairs)
            if given.ndim != 2 or given.shape[1] != 2:
                raise ValueError(
                    f"pairs must be an array of shape (p, 2), {self.names[0]} and "
                    f"{self.names[1]} of each; got shape {given.shape}."
                )
            columns = [given[:, 0], given[:, 1]]
        named = zip((self.rows, self.cols), columns, self.names[:2], strict=True)
        rows, cols = (labels.numbers(cells, name) for labels, cells, name in named)
        return rows, cols

    def predicted(
        self,
        A: Inexact[Tensor, "*batch m k"],
        B: Inexact[Tensor, "*batch n k"],
        pairs: ArrayLike | Tensor | DataFrame,
    ) -> Float[Tensor, "*batch p"]:
        """What ABᴴ and the biases say of pairs; where a label is not known it has no part in it."""
        rows, cols = self.places(pairs)
        seen_row, seen_col = rows >= 0, cols >= 0
        values = entries_at(rows.clamp(min=0), cols.clamp(min=0), A, B)
        values = torch.where(seen_row & seen_col, values, torch.zeros_like(values))
        if self.biases is None:
            return values
        mean, a, b = self.biases.mean, self.biases.rows, self.biases.cols
        row_part = torch.where(seen_row, a[rows.clamp(min=0)], 0.0)
        return values + mean + row_part + torch.where(seen_col, b[cols.clamp(min=0)], 0.0)

    def state_dict(self) -> dict[str, object]:
        """Plain numbers, words and tensors."""
        b = self.biases
        return {
            "rows": self.rows.state_dict(),
            "cols": self.cols.state_dict(),
            "biases": None if b is None else [b.mean, b.rows, b.cols],
            "names": list(self.names),
        }

    @classmethod
    def from_state_dict(cls, saved: Mapping[str, object]) -> Pairs:
        biases = cast(list[Tensor] | None, saved["biases"])
        rows, cols, value = cast(Sequence[str], saved["names"])
        return cls(
            Labels.from_state_dict(cast(Mapping[str, object], saved["rows"])),
            Labels.from_state_dict(cast(Mapping[str, object], saved["cols"])),
            None if biases is None else Biases(*biases),
            (rows, cols, value),
        )
