"""One-step methods, fixed and adaptive, and the steppers that advance a state with them."""

from deeplin.flows.contract import State
from deeplin.integrators.adaptive import AdaptiveStepper
from deeplin.integrators.chebyshev import RKC
from deeplin.integrators.compiled import Compiled
from deeplin.integrators.contract import ErrorControlled, Integrator, bound
from deeplin.integrators.explicit import RK4, DormandPrince, Euler
from deeplin.integrators.optimizers import OptimizerStepper, minibatch_indices
from deeplin.integrators.projected import ProjectedRungeKutta
from deeplin.integrators.rosenbrock import Rosenbrock
from deeplin.integrators.states import Packing, hermite
from deeplin.integrators.steppers import IntegratorStepper, Stepper

__all__ = [
    "RK4",
    "RKC",
    "AdaptiveStepper",
    "Compiled",
    "DormandPrince",
    "ErrorControlled",
    "Euler",
    "Integrator",
    "IntegratorStepper",
    "OptimizerStepper",
    "Packing",
    "ProjectedRungeKutta",
    "Rosenbrock",
    "State",
    "Stepper",
    "bound",
    "hermite",
    "minibatch_indices",
]
