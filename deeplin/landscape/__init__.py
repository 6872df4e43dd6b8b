"""Critical points of the loss, their kinds and Hessians, local rates, spurious points, reports."""

from deeplin.landscape.classification import classify
from deeplin.landscape.closed_form import nearest_critical_point
from deeplin.landscape.critical import CriticalPoint, critical_points, lift, saddle_curve
from deeplin.landscape.criticality import is_critical
from deeplin.landscape.curvature import (
    LayerHessian,
    RiemannianHessian,
    hessian,
    local_mode,
    local_rate,
)
from deeplin.landscape.escape import escape_direction
from deeplin.landscape.factored import FactoredHessian
from deeplin.landscape.neighbours import fan_around, neighbours_of, spurious_point
from deeplin.landscape.operators import Eigenpairs
from deeplin.landscape.passages import Plateau, plateau_table, plateaus, plateaus_of_modes
from deeplin.landscape.rates import layer_rate, slowest_mode
from deeplin.landscape.spurious import (
    ExtendedJacobian,
    SpuriousPoint,
    dlra_jacobian,
    fibre_point,
    iteration_jacobian,
    spurious_points,
)
from deeplin.problems.spectrum import Nearest

__all__ = [
    "CriticalPoint",
    "Eigenpairs",
    "ExtendedJacobian",
    "FactoredHessian",
    "LayerHessian",
    "Nearest",
    "Plateau",
    "RiemannianHessian",
    "SpuriousPoint",
    "classify",
    "critical_points",
    "dlra_jacobian",
    "escape_direction",
    "fan_around",
    "fibre_point",
    "hessian",
    "is_critical",
    "iteration_jacobian",
    "layer_rate",
    "lift",
    "local_mode",
    "local_rate",
    "nearest_critical_point",
    "neighbours_of",
    "plateau_table",
    "plateaus",
    "plateaus_of_modes",
    "saddle_curve",
    "slowest_mode",
    "spurious_point",
    "spurious_points",
]
