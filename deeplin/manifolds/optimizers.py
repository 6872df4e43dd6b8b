"""geoopt's optimizers, where a run that is cut short asks for more than they keep."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import geoopt
import torch
from geoopt.optim.rlinesearch import LineSearchWarning

__all__ = ["RiemannianLineSearch", "is_riemannian_sgd"]

# What geoopt's line search remembers beside the state of its parameters.
_REMEMBERED = (
    *("old_phi0", "old_derphi0", "last_step_size", "_last_step", "_grads_computed", "prev_loss"),
)


class RiemannianLineSearch(geoopt.optim.RiemannianLineSearch):
    """geoopt's, whose `state_dict` holds all that the next step depends on.

    Where no step is found it stays where it is, without the warnings of geoopt, SciPy and NumPy.
    """

    def state_dict(self) -> dict:
        remembered = {name: vars(self)[name] for name in _REMEMBERED}
        return {**super().state_dict(), "remembered": remembered}

    def load_state_dict(self, state_dict: dict) -> None:
        vars(self).update(state_dict["remembered"])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "remembered"})

    def step(
        self,
        closure: Callable[[], float],
        force_step: bool = False,
        recompute_gradients: bool = False,
        no_step: bool = False,
    ) -> float | None:
        self.step_size_history.clear()  # grows by one in every step, and nothing here reads it
        with warnings.catch_warnings():
            for kind in (LineSearchWarning, RuntimeWarning, DeprecationWarning):
                warnings.simplefilter("ignore", kind)
            return super().step(closure, force_step, recompute_gradients, no_step)


def is_riemannian_sgd(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer is geoopt's RiemannianSGD and no other."""
    return type(optimizer) is geoopt.optim.RiemannianSGD
