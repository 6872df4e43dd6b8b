"""Known entries of a matrix as scikit-learn has them: pairs and values, or a sparse matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy import ndarray
from scipy import sparse
from torch import Tensor

__all__ = ["Entries", "pairs_of"]


@dataclass(frozen=True)
class Entries:
    """Entries at (rows_l, columns_l). Shapes: each (p,); `size` that of the matrix, if known."""

    rows: ndarray
    columns: ndarray
    values: ndarray
    weights: ndarray | None = None
    size: tuple[int, int] | None = None

    @classmethod
    def of_matrix(cls, X: sparse.csr_array) -> Entries:
        """The stored entries of a compressed matrix, row by row, zeros among them."""
        m, n = X.shape  # pyright: ignore
        rows = np.repeat(np.arange(m), np.diff(X.indptr))
        return cls(rows, X.indices.astype(np.int64), X.data, None, (m, n))

    @cached_property
    def shape(self) -> tuple[int, int]:
        """That of the matrix; without a size the least that holds all entries."""
        if self.size is not None:
            return self.size
        return int(self.rows.max()) + 1, int(self.columns.max()) + 1

    def pairs(self) -> ndarray:
        """(row, column), (p, 2)."""
        return np.stack([self.rows, self.columns], 1)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(rows, columns, values, weights)."""
        rows, columns, values = (
            torch.from_numpy(np.ascontiguousarray(part))
            for part in (self.rows, self.columns, self.values)
        )
        return rows, columns, values, None if self.weights is None else torch.tensor(self.weights)

    def split(self, share: float, generator: torch.Generator) -> tuple[Entries, Entries]:
        """(kept, held out), drawn at random, each at least one; both of the same matrix.

        Raises: ValueError unless there are two entries.
        """
        count = len(self.values)
        if count < 2:
            raise ValueError(f"rank='auto' holds entries out and needs at least 2; got {count}.")
        order = torch.randperm(count, generator=generator).numpy()
        held = max(1, round(share * count))
        kept, out = (self._at(np.sort(part)) for part in (order[held:], order[:held]))
        return kept, out

    def _at(self, index: ndarray) -> Entries:
        weights = None if self.weights is None else self.weights[index]
        return Entries(
            self.rows[index], self.columns[index], self.values[index], weights, self.shape
        )


def pairs_of(X: ndarray) -> tuple[ndarray, ndarray]:
    """(rows, columns) of pairs. Raises: ValueError unless they are two whole numbers >= 0 each."""
    count, features = X.shape
    if X.size and X.min() < 0:
        raise ValueError(
            "Negative values in data passed as X: pairs are rows and columns counted from 0; got "
            f"{X.min():g}."
        )
    if features != 2:
        raise ValueError(
            "X must be pairs (row, column), of shape (p, 2); got n_samples = "
            f"{count}, n_features = {features}: a matrix is given as scipy.sparse, its known "
            "entries stored."
        )
    index = X.astype(np.int64)
    bad = np.flatnonzero((index != X).any(1))
    if len(bad):
        raise ValueError(
            "X must hold whole numbers, rows and columns counted from 0; got "
            f"{X[bad[0]].tolist()} in row {bad[0]}, of {len(bad)} such rows: number names with "
            "sklearn.preprocessing.OrdinalEncoder."
        )
    return index[:, 0], index[:, 1]
