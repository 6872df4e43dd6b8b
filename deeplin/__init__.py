"""Deep linear networks and low-rank Riemannian optimisation in PyTorch."""

from deeplin import exact, flows, init, landscape
from deeplin.network import DeepLinear
from deeplin.problems import LeastSquares, autoencoder
from deeplin.solve import Solution, solve

__all__ = [
    "DeepLinear",
    "LeastSquares",
    "Solution",
    "autoencoder",
    "exact",
    "flows",
    "init",
    "landscape",
    "solve",
]
