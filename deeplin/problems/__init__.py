"""Losses of a matrix W, their Euclidean gradients, and what is known of their optima."""

from deeplin.problems.approximation import MatrixApproximation, MatrixCompletion
from deeplin.problems.contract import Optimum, Problem, from_loss
from deeplin.problems.least_squares import LeastSquares, autoencoder
from deeplin.problems.spectrum import Spectrum

__all__ = [
    "LeastSquares",
    "MatrixApproximation",
    "MatrixCompletion",
    "Optimum",
    "Problem",
    "Spectrum",
    "autoencoder",
    "from_loss",
]
