"""Deep linear networks: the module, its starts, and the exact reductions of balanced layers."""

from deeplin.network.balanced import (
    check_balanced,
    compress,
    is_balanced,
    product_ranks,
    rebalance,
    relative_gap,
)
from deeplin.network.deep_linear import (
    DeepLinear,
    balancedness_gap,
    end_to_end,
    gap_norm,
    layer_gradients,
)
from deeplin.problems.widths import check_widths, grid_widths

__all__ = [
    "DeepLinear",
    "balancedness_gap",
    "check_balanced",
    "check_widths",
    "compress",
    "end_to_end",
    "gap_norm",
    "grid_widths",
    "is_balanced",
    "layer_gradients",
    "product_ranks",
    "rebalance",
    "relative_gap",
]
