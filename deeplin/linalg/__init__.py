"""Pure functions on matrices: products, powers, orthonormal factors, graded SVDs, truncation."""

from deeplin.linalg.graded import graded_svd
from deeplin.linalg.hermitian import hermitian_part, is_semidefinite
from deeplin.linalg.lanczos import largest_modulus
from deeplin.linalg.orthonormal import orthonormal_factor, random_orthogonal
from deeplin.linalg.powers import expm1_ratio, power_divided_difference
from deeplin.linalg.precision import working, working_dtype
from deeplin.linalg.processes import begin_processes, check_backend
from deeplin.linalg.products import (
    batch_last,
    chain,
    halves,
    matmul,
    plus_tall_times,
    product_svd,
    product_svdvals,
    sum_of_tall,
    tall_times,
)
from deeplin.linalg.shards import (
    adjoint_products,
    agreed,
    begun,
    check_rows,
    gather_rows,
    gathered,
    own_rows,
    scatter_rows,
    sum_of_blocks,
    sum_over,
    tall_qr,
)
from deeplin.linalg.subspace import leading_svd
from deeplin.linalg.truncation import psd_tangent_step, tangent_step
from deeplin.linalg.values import numbers_alone, values_known

__all__ = [
    "adjoint_products",
    "agreed",
    "batch_last",
    "begin_processes",
    "begun",
    "chain",
    "check_backend",
    "check_rows",
    "expm1_ratio",
    "gather_rows",
    "gathered",
    "graded_svd",
    "halves",
    "hermitian_part",
    "is_semidefinite",
    "largest_modulus",
    "leading_svd",
    "matmul",
    "numbers_alone",
    "orthonormal_factor",
    "own_rows",
    "plus_tall_times",
    "power_divided_difference",
    "product_svd",
    "product_svdvals",
    "psd_tangent_step",
    "random_orthogonal",
    "scatter_rows",
    "sum_of_blocks",
    "sum_of_tall",
    "sum_over",
    "tall_qr",
    "tall_times",
    "tangent_step",
    "values_known",
    "working",
    "working_dtype",
]
