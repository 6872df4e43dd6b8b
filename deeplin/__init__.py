"""Deep linear networks and low-rank Riemannian optimisation in PyTorch."""

from deeplin import exact, flows, init, landscape
from deeplin.approximation import MatrixApproximation, MatrixCompletion
from deeplin.network import DeepLinear
from deeplin.problems import LeastSquares, autoencoder
from deeplin.solve import Solution, solve

__all__ = [
    "DeepLinear",
    "LeastSquares",
    "MatrixApproximation",
    "MatrixCompletion",
    "Solution",
    "autoencoder",
    "exact",
    "flows",
    "init",
    "landscape",
    "solve",
]
