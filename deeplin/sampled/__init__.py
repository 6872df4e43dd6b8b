"""A product ABᴴ at given places, and sparse matrices of these places times thin ones."""

from deeplin.sampled.blocks import Grams
from deeplin.sampled.kernels import require
from deeplin.sampled.pattern import Pattern
from deeplin.sampled.products import (
    adjoint_times,
    one_pass,
    residual_times,
    sample,
    slope_sum,
    sparse_times,
    square_sum,
)
from deeplin.sampled.tangents import TangentProducts

__all__ = [
    "Grams",
    "Pattern",
    "TangentProducts",
    "adjoint_times",
    "one_pass",
    "require",
    "residual_times",
    "sample",
    "slope_sum",
    "sparse_times",
    "square_sum",
]
