"""Losses of a matrix W, their Euclidean gradients, and what is known of their optima."""

from deeplin.linalg import begin_processes, own_rows
from deeplin.problems.alternating import alternating_start
from deeplin.problems.approximation import MatrixApproximation
from deeplin.problems.classification import LogisticRegression
from deeplin.problems.completion import MatrixCompletion
from deeplin.problems.contract import Optimum, Problem
from deeplin.problems.function import from_loss
from deeplin.problems.gap import Gap, rank_by_gap
from deeplin.problems.least_squares import LeastSquares, autoencoder
from deeplin.problems.readers import from_file, from_frame
from deeplin.problems.ridge import Ridge
from deeplin.problems.robust import RobustCompletion
from deeplin.problems.sensing import MatrixSensing
from deeplin.problems.sharded import ShardedCompletion
from deeplin.problems.spectral import spectral_start
from deeplin.problems.spectrum import Spectrum

__all__ = [
    "Gap",
    "LeastSquares",
    "LogisticRegression",
    "MatrixApproximation",
    "MatrixCompletion",
    "MatrixSensing",
    "Optimum",
    "Problem",
    "Ridge",
    "RobustCompletion",
    "ShardedCompletion",
    "Spectrum",
    "alternating_start",
    "autoencoder",
    "begin_processes",
    "from_file",
    "from_frame",
    "from_loss",
    "own_rows",
    "rank_by_gap",
    "spectral_start",
]
