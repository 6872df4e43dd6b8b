"""Reduced-rank regression, in closed form from moments."""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np
import torch
from numpy import ndarray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from deeplin.estimators.validation import matrix, weights_of, with_labels
from deeplin.problems import LeastSquares

__all__ = ["ReducedRankRegression"]


class ReducedRankRegression(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Least squares under a bound on the rank: min ½Σ_i ‖y_i − Wx_i − b‖² + ½λ‖W‖², rank W ≤ r.

    With C = XXᵀ + λI and B = YXᵀ of centred data and Q = BC^{-1/2} = Σ σ_j u_j v_jᵀ the minimizer
    is W = Σ_{j≤r} σ_j u_j v_jᵀ C^{-1/2}; where C is singular, inverse powers are those of its
    pseudo-inverse, and W is zero on what no sample excites. Unlike in a regression after PCA the
    directions that are kept are those that matter for y.

    `partial_fit` takes a stream: what is kept are means and centred moments, (d_x + d_y)d_x numbers
    in all, and the result is that of `fit` on all samples.

    Source: BRTW Prop. 32, BRTW (31).
    Cost: O(n d_x (d_x + d_y) + d_x³).

    Args:
        rank: r; what is above min(d_x, d_y) bounds nothing.
        reg: λ, the ridge.
        fit_intercept: whether b is fitted, else 0 and nothing is centred.

    Attributes:
        coef_: W, (d_y, d_x), or (d_x,) for y of one dimension.
        intercept_: b.
        rank_: the rank of W: less than `rank` where the data hold less.
        singular_values_: σ_1 ≥ σ_2 ≥ …, all of them: a gap tells the rank.
        n_samples_seen_: their number.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((50, 4)), np.outer([1.0, 2.0, 3.0], [1.0, 0.0, -1.0, 1.0])
    >>> model = ReducedRankRegression(rank=1).fit(X, X @ W.T + 5)
    >>> bool(np.allclose(model.coef_, W)), bool(np.allclose(model.intercept_, 5))
    (True, True)
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "rank": [Interval(Integral, 1, None, closed="left")],
        "reg": [Interval(Real, 0, None, closed="left")],
        "fit_intercept": ["boolean"],
    }

    def __init__(self, rank=10, *, reg=0.0, fit_intercept=True):
        self.rank = rank
        self.reg = reg
        self.fit_intercept = fit_intercept

    def fit(self, X, y, sample_weight=None):
        """The minimizer. Shapes: X (n, d_x), y (n, d_y) or (n,), sample_weight (n,)."""
        self._forget()
        return self.partial_fit(X, y, sample_weight)

    def partial_fit(self, X, y, sample_weight=None):
        """The minimizer of these samples and all before. Shapes: as `fit`."""
        self._validate_params()
        first = "_moments" not in vars(self)
        X, y = with_labels(self, X, y, reset=first, multi_output=True)
        Y, w = y.reshape(len(X), -1), weights_of(sample_weight, X)
        if first:
            self._moments = _Moments(X.shape[1], Y.shape[1], centred=self.fit_intercept)
            self._flat = y.ndim == 1
        if Y.shape[1] != self._moments.B.shape[0]:
            raise ValueError(
                f"y must have {self._moments.B.shape[0]} columns, as in the samples before; got "
                f"{Y.shape[1]}."
            )
        self._moments.add(X, Y, w)
        self.n_samples_seen_ = self._moments.count
        self._solve()
        return self

    def _forget(self) -> None:
        for name in ("_moments", "n_samples_seen_"):
            vars(self).pop(name, None)

    def _solve(self) -> None:
        known = self._moments
        C = known.C + self.reg * np.eye(len(known.C))
        W = np.zeros_like(known.B)
        self.rank_, self.singular_values_ = 0, np.zeros(0)
        if known.B.any():
            # In units in which the moments are of size one: nothing over- or underflows.
            x, y = np.sqrt(np.trace(C)), np.sqrt(known.yy)
            problem = LeastSquares.from_moments(
                torch.from_numpy(C / x**2), torch.from_numpy(known.B / (x * y)), 1.0
            )
            self.rank_ = min(int(self.rank), problem.rank_Q)
            self.singular_values_ = y * problem.singular_values.numpy()
            if self.rank_:
                W = (y / x) * problem.minimizer(self.rank_).numpy()
        b = known.y - W @ known.x
        self.coef_, self.intercept_ = (W[0], float(b[0])) if self._flat else (W, b)

    def predict(self, X):
        """XWᵀ + b. Shapes: X (n, d_x); (n, d_y), or (n,) for y of one dimension."""
        check_is_fitted(self)
        return matrix(self, X) @ self.coef_.T + self.intercept_


class _Moments:
    """Means and centred moments of a stream of weighted samples.

    Source: pairwise updates of moments, as [CGL83] have them for variances.
    """

    def __init__(self, d_x: int, d_y: int, *, centred: bool):
        self.centred, self.count, self.weight, self.yy = centred, 0, 0.0, 0.0
        self.x, self.y = np.zeros(d_x), np.zeros(d_y)
        self.C, self.B = np.zeros((d_x, d_x)), np.zeros((d_y, d_x))

    def add(self, X: ndarray, Y: ndarray, w: ndarray) -> None:
        """Further samples; those of weight 0 are none."""
        self.count += len(X)
        weight = float(w.sum())
        if weight == 0:
            return
        if self.centred:
            x, y = w @ X / weight, w @ Y / weight
            X, Y = X - x, Y - y
            total = self.weight + weight
            share = self.weight * weight / total
            dx, dy = x - self.x, y - self.y
            self.C += share * np.outer(dx, dx)
            self.B += share * np.outer(dy, dx)
            self.yy += share * float(dy @ dy)
            self.x, self.y = self.x + weight / total * dx, self.y + weight / total * dy
            self.weight = total
        self.C += (X.T * w) @ X
        self.B += (Y.T * w) @ X
        self.yy += float(w @ np.square(Y).sum(1))
