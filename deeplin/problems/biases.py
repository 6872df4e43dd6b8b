"""What of a table of numbers its rows and columns explain alone: a mean, and a bias for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

__all__ = ["Biases", "fit_biases"]

# Conjugate gradients stop here, relative to the right-hand side; the fit is far less sharp.
_TOL = 1e-11


@dataclass(frozen=True)
class Biases:
    """The part μ + a_i + b_j of entry (i, j): `mean` μ, `rows` a and `cols` b.

    Shapes: mean (), rows (m,), cols (n,).
    """

    mean: Float[Tensor, ""]
    rows: Float[Tensor, " m"]
    cols: Float[Tensor, " n"]

    def at(self, rows: Int[Tensor, "*p"], cols: Int[Tensor, "*p"]) -> Float[Tensor, "*p"]:
        """μ + a_i + b_j at each place."""
        return self.mean + self.rows[rows] + self.cols[cols]


def fit_biases(
    rows: Int[Tensor, " p"],
    cols: Int[Tensor, " p"],
    values: Float[Tensor, " p"],
    shape: tuple[int, int],
    weights: Float[Tensor, " p"] | None = None,
    ridge: float = 1.0,
) -> Biases:
    """The mean μ of the known entries, and a, b that minimise
    Σ_l w_l (v_l − μ − a_{i_l} − b_{j_l})² + ridge (‖a‖² + ‖b‖²), both at once.

    μ is the weighted mean. The ridge is worth so many further entries of bias 0 in each row and
    column, at weight 1: a row with few entries has a small bias, one without any has none. With
    ridge = 0 a and b are those of least squares, up to a shift between the two in each connected
    part of the table.

    Source: the baseline estimates of [KBV09].
    Shapes: rows, cols, values, weights (p,); the biases (m,) and (n,).
    Cost: conjugate gradients, some tens of steps with O(p) each; nothing m×n.
    Accuracy: 1e-11, relative, in the residual of the normal equations.
    Raises: ValueError where there are no entries, or no weight, and unless ridge >= 0.
    """
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge must be a finite number >= 0; got {ridge}: ridge=1 for instance.")
    v = values.detach().cpu().double().numpy()
    w = np.ones_like(v) if weights is None else weights.detach().cpu().double().numpy()
    total = float(w.sum())
    if not total > 0:
        raise ValueError(
            "biases are fitted to entries with positive weights; got "
            f"{len(v)} entries of total weight {total:g}: fit none, biases=False."
        )
    mean = float(w @ v) / total
    x = _ridge(rows.cpu().numpy(), cols.cpu().numpy(), v - mean, w, shape, ridge)
    a, b = torch.as_tensor(x).to(values).split(list(shape))
    return Biases(values.new_tensor(mean), a, b)


def _ridge(rows, cols, v: ndarray, w: ndarray, shape: tuple[int, int], ridge: float) -> ndarray:
    """a and b, one after the other, from the normal equations of the fit."""
    from scipy.sparse import coo_array, csr_array
    from scipy.sparse.linalg import LinearOperator, cg

    m = shape[0]
    C, values = (coo_array((e, (rows, cols)), shape).tocsr() for e in (w, w * v))

    def sums(of: csr_array) -> ndarray:
        return np.concatenate([of.sum(1), of.sum(0)])

    diagonal = sums(C) + ridge
    alone = np.where(diagonal > 0, diagonal, 1.0)
    size = len(diagonal)

    def operator(times: Callable[[ndarray], ndarray]) -> LinearOperator:
        return LinearOperator((size, size), matvec=times, dtype=v.dtype)  # pyright: ignore

    normal = operator(lambda x: diagonal * x + np.concatenate([C @ x[m:], C.T @ x[:m]]))
    scaled = operator(lambda x: x / alone)
    x, failed = cg(normal, sums(values), rtol=_TOL, M=scaled)
    if failed:
        raise ValueError(
            f"the biases of {size} rows and columns were not found to {_TOL:g}: their weights "
            f"differ too much for ridge={ridge:g}; take a larger ridge."
        )
    return x
