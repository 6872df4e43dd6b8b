"""Deep linear networks and low-rank Riemannian optimisation in PyTorch."""

from deeplin import exact, flows, geometry, integrators, landscape, problems
from deeplin.loop import Solution, solve
from deeplin.network import DeepLinear, init
from deeplin.problems import LeastSquares, MatrixApproximation, MatrixCompletion, autoencoder

__all__ = [
    "DeepLinear",
    "LeastSquares",
    "MatrixApproximation",
    "MatrixCompletion",
    "Solution",
    "autoencoder",
    "exact",
    "flows",
    "geometry",
    "init",
    "integrators",
    "landscape",
    "problems",
    "solve",
]
