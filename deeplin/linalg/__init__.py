"""Pure functions on matrices: products, powers, orthonormal factors, graded SVDs, truncation."""

from deeplin.linalg.graded import graded_svd
from deeplin.linalg.matrices import (
    batch_last,
    chain,
    expm1_ratio,
    hermitian_part,
    matmul,
    orthonormal_factor,
    plus_tall_times,
    power_divided_difference,
    product_svdvals,
    psd_power,
    random_orthogonal,
    tall_times,
)
from deeplin.linalg.truncation import psd_tangent_step, tangent_step

__all__ = [
    "batch_last",
    "chain",
    "expm1_ratio",
    "graded_svd",
    "hermitian_part",
    "matmul",
    "orthonormal_factor",
    "plus_tall_times",
    "power_divided_difference",
    "product_svdvals",
    "psd_power",
    "psd_tangent_step",
    "random_orthogonal",
    "tall_times",
    "tangent_step",
]
