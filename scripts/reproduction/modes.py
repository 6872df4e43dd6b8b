"""The part of a run along the slowest mode of the linearised flow: a single exponential, late."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from deeplin.landscape import hessian, slowest_mode
from deeplin.problems import LeastSquares
from deeplin.runner.verdict import fitted_rate
from reproduction.runs import Run

# Of k(d_x + d_y) for unbalanced layers, whose mode is found by one factorisation of that size.
LARGEST = 4000


@cache
def mode_rate(run: Run) -> float | None:
    """The decay rate of ⟨P, W(t) − W⟩, fitted to its last e³ above the noise; None without W(t).

    P is the embedded Hessian at the limit W applied to the slowest mode ξ of the linearised flow:
    in the metric in which that flow follows the gradient ξ is orthogonal to all other modes, so
    that none of them is seen, however near their rates are. The mode is predicted from the problem
    and, of layers that are not balanced, from the layers where they end.
    """
    covector = slowest_covector(run)
    if covector is None:
        return None
    W = run.problem.minimizer(run.rank)
    left, right = run.history.column("left"), run.history.column("right")
    part = ((covector @ right.mT) * left).sum((-2, -1)) - (covector * W).sum()
    return fitted_rate(run.history.t, part.abs(), run.noise * float(covector.norm() * W.norm()))


def slowest_covector(run: Run) -> Tensor | None:
    """P of `mode_rate`; None where W(t) was not recorded, or the mode is too costly."""
    if "left" not in run.history.records[0].observed:
        return None
    problem = run.problem
    W = problem.minimizer(run.rank)
    if run.cfg.init.name == "orthogonal":
        H = hessian(problem, W, run.depth)
        direction = H.tangent(H.extreme().vectors[0])
    elif run.rank * sum(W.shape) <= LARGEST:
        direction = slowest_mode(problem, run.layers)[1]
    else:
        return None
    return embedded_hessian_of(problem, W, direction)


def embedded_hessian_of(problem: LeastSquares, W: Tensor, direction: Tensor) -> Tensor:
    """P with ⟨P, ·⟩ the embedded Hessian at a minimizer W along a tangent ξ, on tangents.

    P = ξC + (ξW⁺)ᵀG + G(W⁺ξ)ᵀ, G = ∇f(W).
    """
    G, inverse = problem.egrad(W), torch.linalg.pinv(W, rtol=1e-9)
    curved = (direction @ inverse).mT @ G + G @ (inverse @ direction).mT
    return direction @ problem.C + curved


def rate_of(run: Run) -> float | None:
    """The rate along the slowest mode where it is known, else that of the distance."""
    rate = mode_rate(run)
    return run.measured_rate if rate is None else rate


def known_rates(runs: list[Run]) -> np.ndarray:
    """The rates of runs, NaN where none could be fitted."""
    return np.array([rate_of(run) or np.nan for run in runs])
