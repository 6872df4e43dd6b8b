"""Deep linear networks and low-rank Riemannian optimisation in PyTorch."""

from deeplin import exact, flows, geometry, integrators, landscape, problems
from deeplin.loop import Solution, solve
from deeplin.network import DeepLinear, init
from deeplin.prediction import Prediction, predict
from deeplin.problems import (
    LeastSquares,
    LogisticRegression,
    MatrixApproximation,
    MatrixCompletion,
    MatrixSensing,
    Problem,
    autoencoder,
    from_loss,
)

__all__ = [
    "DeepLinear",
    "LeastSquares",
    "LogisticRegression",
    "MatrixApproximation",
    "MatrixCompletion",
    "MatrixSensing",
    "Prediction",
    "Problem",
    "Solution",
    "autoencoder",
    "exact",
    "flows",
    "from_loss",
    "geometry",
    "init",
    "integrators",
    "landscape",
    "predict",
    "problems",
    "solve",
]
