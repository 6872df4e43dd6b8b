"""scikit-learn's validation of arrays, with types: what comes out is numbers in float64."""

from __future__ import annotations

import numpy as np
from numpy import ndarray
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_sample_weight, check_array, validate_data

__all__ = ["compressed", "matrix", "weights_of", "with_labels"]


def matrix(estimator: BaseEstimator | None, X: object, *, reset: bool = False) -> ndarray:
    """A finite matrix; with an estimator also held against, or kept as, the features it knows."""
    if estimator is None:
        return check_array(X, dtype=np.float64)  # pyright: ignore
    return validate_data(estimator, X, reset=reset, dtype=np.float64)  # pyright: ignore


def with_labels(
    estimator: BaseEstimator, X: object, y: object, *, reset: bool, multi_output: bool = False
) -> tuple[ndarray, ndarray]:
    """(X, y), finite, of equally many samples."""
    X, y = validate_data(  # pyright: ignore
        estimator,
        X,  # pyright: ignore
        y,  # pyright: ignore
        reset=reset,
        multi_output=multi_output,
        y_numeric=True,
        dtype=np.float64,  # pyright: ignore
    )
    return X, np.asarray(y, dtype=np.float64)  # pyright: ignore


def compressed(estimator: BaseEstimator | None, X: object) -> sparse.csr_array:
    """A sparse matrix by rows; stored zeros are kept, entries stored twice are summed."""
    if estimator is None:
        X = check_array(X, accept_sparse="csr", dtype=np.float64)  # pyright: ignore
    else:
        X = validate_data(estimator, X, accept_sparse="csr", dtype=np.float64)  # pyright: ignore
    found = sparse.csr_array(X)
    if not found.has_canonical_format:
        found = found.copy()
        found.sum_duplicates()
    return found


def weights_of(sample_weight: object, X: ndarray) -> ndarray:
    """Weights >= 0, ones by default."""
    return _check_sample_weight(  # pyright: ignore
        sample_weight,
        X,
        dtype=np.float64,  # pyright: ignore
        ensure_non_negative=True,
    )
