"""Critical points of the loss, their kinds and Hessians, local rates, spurious points, reports."""

from deeplin.landscape.classification import classify, is_critical
from deeplin.landscape.critical import CriticalPoint, critical_points, lift, saddle_curve
from deeplin.landscape.curvature import (
    Eigenpairs,
    LayerHessian,
    RiemannianHessian,
    hessian,
    local_rate,
)
from deeplin.landscape.escape import escape_direction
from deeplin.landscape.frame import Nearest, nearest_critical_point

__all__ = [
    "CriticalPoint",
    "Eigenpairs",
    "LayerHessian",
    "Nearest",
    "RiemannianHessian",
    "classify",
    "critical_points",
    "escape_direction",
    "hessian",
    "is_critical",
    "lift",
    "local_rate",
    "nearest_critical_point",
    "saddle_curve",
]
