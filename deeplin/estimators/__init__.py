"""Low-rank problems with scikit-learn's interface."""

from deeplin.estimators.completion import LowRankCompletion
from deeplin.estimators.regression import ReducedRankRegression

__all__ = ["LowRankCompletion", "ReducedRankRegression"]
