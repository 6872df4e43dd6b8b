"""Completion of a matrix from known entries: biases, a ridge, the rank by held-out error."""

from __future__ import annotations

import warnings
from numbers import Integral, Real

import numpy as np
import torch
from numpy import ndarray
from scipy import sparse
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    RegressorMixin,
    TransformerMixin,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from deeplin.estimators.entries import Entries, pairs_of
from deeplin.estimators.validation import compressed, matrix, weights_of, with_labels
from deeplin.geometry.coordinates import Point
from deeplin.optim import Minimum, continuation, minimize
from deeplin.problems import MatrixCompletion, Problem, Ridge, alternating_start, rank_by_gap
from deeplin.problems.biases import Biases, fit_biases

__all__ = ["LowRankCompletion"]

# Of the entries that are held out to find the rank, and ranks without gain until it is found.
_HELD_OUT, _PATIENCE = 0.1, 2


class LowRankCompletion(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, RegressorMixin, BaseEstimator
):
    """A matrix from some of its entries: x_ij ≈ μ + a_i + b_j + W_ij, W of rank r.

    First μ, a, b (`problems.biases.fit_biases`), then W = UΣVᵀ of rank r that minimises
    ½Σ_l w_l (W_{i_l j_l} − residual_l)² + ½λ‖W‖_F², by Riemannian conjugate gradients or trust
    regions from `alternating_start`. The ridge is quadratic in W, so that steps and Hessians stay
    exact; it counts every entry of W, as if each were also seen as 0 with weight λ. Rows and
    columns that were never seen have bias 0 and W = 0 there.

    `fit(X, y)`: X (p, 2), pairs (row, column) of whole numbers >= 0, y (p,) the entries.
    `fit(X)`: X a scipy.sparse matrix; its stored entries, zeros included, are the known ones, and y
    is ignored.

    Source: [Van13]; ranks one by one: `deeplin.optim.continuation`.
    Cost: O(p r + (m + n) r²) an iteration, nothing m×n.

    Args:
        rank: r; "auto": the rank of least error on a tenth of the entries, found one rank after the
            other until two more do not lower it; all entries are then fitted with it. "gap": how
            many singular values of the entries, biases taken off, stand out of their noise
            (`deeplin.problems.rank_by_gap`): no fit, but small ones beside large ones are missed.
        biases: whether a, b and μ are fitted, or their ridge, a number: how many further entries of
            bias 0 each row and column has. True: 1.
        reg: λ.
        depth: of the metric, a number >= 1. It changes the way, not the minimizers.
        method: "cg" or "trust_region".
        tol: it ends where the norm of the Riemannian gradient is at most tol·‖∇f(0)‖.
        max_iter: the most iterations; where they do not suffice a ConvergenceWarning is given.
        random_state: of the start's iteration, and of the entries held out.

    Attributes:
        components_: Vᵀ, (rank_, n).
        row_components_: U, (m, rank_).
        singular_values_: Σ, (rank_,), descending.
        mean_, row_biases_, column_biases_: μ, a (m,), b (n,).
        rank_, n_iter_, loss_: what was reached; loss_ with the ridge.
        held_out_rmse_: with rank="auto", of the ranks 1, 2, …
        gap_: with rank="gap", the singular values and the edge of their noise.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> A, B = rng.standard_normal((40, 2)), rng.standard_normal((30, 2))
    >>> pairs = np.argwhere(rng.random((40, 30)) < 0.5)
    >>> entries = (A @ B.T)[*pairs.T]
    >>> model = LowRankCompletion(rank=2, biases=False, random_state=0).fit(pairs, entries)
    >>> bool(np.allclose(model.predict([[3, 4], [5, 6]]), [A[3] @ B[4], A[5] @ B[6]]))
    True
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "rank": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto", "gap"})],
        "biases": ["boolean", Interval(Real, 0, None, closed="left")],
        "reg": [Interval(Real, 0, None, closed="left")],
        "depth": [Interval(Real, 1, None, closed="both")],
        "method": [StrOptions({"cg", "trust_region"})],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        rank=10,
        *,
        biases: bool | float = True,
        reg=0.0,
        depth=1,
        method="cg",
        tol=1e-8,
        max_iter=500,
        random_state=None,
    ):
        self.rank = rank
        self.biases = biases
        self.reg = reg
        self.depth = depth
        self.method = method
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.positive_only = True
        tags.target_tags.required = False
        return tags

    # -- fit -------------------------------------------------------------------------------------

    def fit(self, X, y=None, sample_weight=None):
        """Biases and W of the known entries. Shapes: see above; sample_weight (p,), w."""
        self._validate_params()
        self._pairs = not sparse.issparse(X)
        known = self._entries(X, y, sample_weight)
        random = check_random_state(self.random_state)
        generator = torch.Generator().manual_seed(int(random.randint(2**31 - 1)))
        rank = self.rank
        for name in ("held_out_rmse_", "gap_"):
            vars(self).pop(name, None)
        if rank == "auto":
            self.held_out_rmse_ = self._errors_by_rank(known, generator)
            rank = 1 + int(np.argmin(self.held_out_rmse_))
        elif rank != "gap" and rank > min(known.shape):
            raise ValueError(
                f"rank must be at most min(m, n) = {min(known.shape)} of the known entries; got "
                f"rank={rank}: take fewer, or rank='auto'."
            )
        biases, problem, scale = self._problem(known)
        if rank == "gap" and scale:
            self.gap_ = rank_by_gap(problem, generator=generator)
            rank = self.gap_.rank
        elif rank == "gap":
            rank = 1  # of what round-off is left there is no spectrum
        found = None
        if scale:
            found = minimize(
                problem,
                alternating_start(problem, int(rank), generator=generator),
                **self._options(scale),
            )
        self._keep(known, biases, found, int(rank))
        return self

    def _entries(self, X, y, sample_weight) -> Entries:
        if sparse.issparse(X):
            return Entries.of_matrix(compressed(self, X))
        if y is None:
            raise ValueError(
                "LowRankCompletion.fit needs pairs and entries, fit(X, y) with X (p, 2), or a "
                "scipy.sparse matrix whose stored entries are known; requires y to be passed, but "
                "the target y is None."
            )
        X, y = with_labels(self, X, y, reset=True)
        weights = None if sample_weight is None else weights_of(sample_weight, X)
        rows, columns = pairs_of(X)
        return Entries(rows, columns, y, weights)

    def _options(self, scale: float) -> dict:
        return {
            "method": self.method,
            "depth": self.depth,
            "tol": self.tol * scale,
            "max_iter": int(self.max_iter),
        }

    def _problem(self, known: Entries) -> tuple[Biases | None, Problem, float]:
        """(biases, the problem of what they leave, ‖∇f(0)‖: 0 where they leave round-off)."""
        rows, columns, values, weights = known.tensors()
        biases, residual = None, values
        if self.biases is not False:
            biases = fit_biases(
                rows, columns, values, known.shape, weights, ridge=float(self.biases)
            )
            residual = values - biases.at(rows, columns)
        problem: Problem = MatrixCompletion(rows, columns, residual, known.shape, weights=weights)
        if self.reg:
            problem = Ridge(problem, self.reg)
        noise = 100 * torch.finfo(values.dtype).eps * float(values.norm())
        weighted = residual if weights is None else weights * residual
        return biases, problem, float(weighted.norm()) if float(residual.norm()) > noise else 0.0

    def _errors_by_rank(self, known: Entries, generator: torch.Generator) -> ndarray:
        """The held-out errors of rank 1, 2, …, until `_PATIENCE` more have not lowered them."""
        kept, held = known.split(_HELD_OUT, generator)
        biases, problem, scale = self._problem(kept)
        rows, columns, values, weights = held.tensors()
        if biases is not None:
            values = values - biases.at(rows, columns)
        w = torch.ones_like(values) if weights is None else weights
        errors: list[float] = []
        if not scale:
            return np.zeros(1)
        for found in continuation(
            problem, min(known.shape), generator=generator, **self._options(scale)
        ):
            point = found.point
            left = (point.U @ point.S)[rows]
            error = (left * point.V[columns]).sum(-1) - values
            errors.append(float((w * error.square()).sum() / w.sum()) ** 0.5)
            if len(errors) - 1 - int(np.argmin(errors)) >= _PATIENCE:
                break
        return np.array(errors)

    def _keep(
        self, known: Entries, biases: Biases | None, found: Minimum | None, rank: int
    ) -> None:
        m, n = known.shape
        if found is None:  # nothing is left to be explained
            zeros = np.zeros(rank)
            U, sigma, V = np.eye(m, rank), zeros, np.eye(n, rank)
            self.n_iter_, self.loss_ = 0, 0.0
        else:
            U, sigma, V = _decomposed(found.point)
            self.n_iter_, self.loss_ = found.iterations, float(found.loss)
            if not bool(found.converged):
                warnings.warn(
                    f"LowRankCompletion: after {found.iterations} iterations the gradient's norm "
                    f"is {float(found.gradient_norm):.3g}, above tol·‖∇f(0)‖: raise max_iter or "
                    "tol, or lower the rank.",
                    ConvergenceWarning,
                    stacklevel=3,
                )
        self.row_components_, self.singular_values_, self.components_ = U, sigma, V.T
        self.rank_ = self._n_features_out = rank
        self.mean_ = 0.0 if biases is None else float(biases.mean)
        self.row_biases_ = np.zeros(m) if biases is None else biases.rows.numpy()
        self.column_biases_ = np.zeros(n) if biases is None else biases.cols.numpy()

    # -- use -------------------------------------------------------------------------------------

    def predict(self, X):
        """μ + a_i + b_j + W_ij of each pair. Shapes: X (p, 2); (p,)."""
        check_is_fitted(self)
        X = matrix(self if self._pairs else None, X)
        rows, columns = pairs_of(X)
        a, seen_row = _padded(self.row_biases_, rows)
        b, seen_column = _padded(self.column_biases_, columns)
        both = np.flatnonzero(seen_row & seen_column)
        predicted = self.mean_ + a + b
        left = self.row_components_[rows[both]] * self.singular_values_
        predicted[both] += np.einsum("pr,rp->p", left, self.components_[:, columns[both]])
        return predicted

    def transform(self, X):
        """Coordinates z_i of new rows, for which x_ij ≈ μ + a_i + b_j + (z_i Vᵀ)_j, V and b fixed.

        a_i and then z_i are what `fit` would find for the row alone: of a row that was fitted z_i
        is that of UΣ. A row without known entries has z = 0.

        Shapes: X (q, n), scipy.sparse, its stored entries known; (q, rank_).
        """
        check_is_fitted(self)
        n = self.components_.shape[1]
        if not sparse.issparse(X) or X.shape[1] != n:
            raise ValueError(
                f"transform needs a scipy.sparse matrix of {n} columns, the stored entries of new "
                f"rows; got {type(X).__name__} of shape {np.shape(X)}."
            )
        known = Entries.of_matrix(compressed(None, X))
        count, r = X.shape[0], self.rank_
        rest = known.values - self.mean_ - self.column_biases_[known.columns]
        if self.biases is not False:
            entries = np.bincount(known.rows, minlength=count) + float(self.biases)
            sums = np.bincount(known.rows, rest, minlength=count)
            rest = rest - (sums / np.where(entries > 0, entries, 1.0))[known.rows]
        z = np.zeros((count, r))
        starts = np.searchsorted(known.rows, np.arange(count + 1))
        ridge = np.sqrt(self.reg) * np.eye(r)
        for i in np.flatnonzero(np.diff(starts)):
            part = slice(starts[i], starts[i + 1])
            V = self.components_[:, known.columns[part]].T
            right = np.concatenate([rest[part], np.zeros(r)])
            z[i] = np.linalg.lstsq(np.concatenate([V, ridge]), right, rcond=None)[0]
        return z

    def fit_transform(self, X, y=None, **fit_params):
        """`fit(X)` and the rows of UΣ: what `transform` gives of the rows that were fitted.

        Shapes: X (m, n), scipy.sparse; (m, rank_).
        """
        self.fit(X, y, **fit_params)
        return self.row_components_ * self.singular_values_

    def score(self, X, y=None, sample_weight=None):
        """R² = 1 − Σ(x − x̂)²/Σ(x − x̄)² of pairs and entries, or of a sparse matrix's entries."""
        if sparse.issparse(X):
            known = Entries.of_matrix(compressed(None, X))
            return r2_score(known.values, self.predict(known.pairs()))
        return super().score(X, y, sample_weight)


def _decomposed(point: Point) -> tuple[ndarray, ndarray, ndarray]:
    """(U, σ, V), σ descending and positive."""
    P, sigma, Q = point.spectrum
    parts: tuple[Tensor, ...] = point.U @ P, sigma, point.V @ Q
    U, s, V = (part.numpy() for part in parts)
    return U, s, V


def _padded(numbers: ndarray, index: ndarray) -> tuple[ndarray, ndarray]:
    """(numbers[index], and 0 beyond their end; which are not beyond)."""
    inside = index < len(numbers)
    return np.where(inside, numbers[np.where(inside, index, 0)], 0.0), inside
