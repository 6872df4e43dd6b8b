"""The methods of `deeplin.optim` in a run: their steps, what they know, and when they rest.

geoopt, which takes a second to import, is loaded with this module, for runs on a manifold alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deeplin.integrators import OptimizerStepper, Stepper
from deeplin.loop import History, Kind, Result, Stop
from deeplin.manifolds import FixedRankFactored
from deeplin.network import DeepLinear, init
from deeplin.optim import ConjugateGradient, TrustRegion, rank_increase
from deeplin.optim.solver import Solver
from deeplin.problems.contract import Problem
from deeplin.problems.data import Data
from deeplin.runner.methods import MakeOptimizer
from deeplin.runner.observables import Known, Observables
from deeplin.runner.riemannian import OnManifold

__all__ = [
    "AtRest",
    "continuation_start",
    "known_to",
    "observed",
    "solver_of",
    "solver_steps",
    "with_solver",
]


def solver_steps(on: OnManifold, source: Data, *, optimizer: MakeOptimizer) -> OptimizerStepper:
    """A method of `deeplin.optim`, each matrix of a batch by itself; t counts its iterations.

    With U, S, V of the manifold fixed_rank by the problem's own products and second derivatives;
    else by its gradients.
    """
    exact = isinstance(on.manifold, FixedRankFactored)
    known = {"problem": source.problem} if exact else {}
    made = optimizer([on.point], **known)
    if not isinstance(made, Solver):
        raise TypeError(
            "method.optimizer must be ConjugateGradient or TrustRegion of deeplin.optim; got "
            f"{type(made).__name__}."
        )
    return OptimizerStepper(
        [on.point],
        made,
        lambda k: on.loss(),
        1.0,
        on.flow,
        state_of=on.state_of,
        take=made.step if exact else lambda: made.step(on.evaluated),  # pyright: ignore
        counts=True,
    )


def solver_of(stepper: Stepper) -> Solver | None:
    """The method of `deeplin.optim` that takes a stepper's steps, if one does."""
    optimizer = stepper.optimizer if isinstance(stepper, OptimizerStepper) else None
    return optimizer if isinstance(optimizer, Solver) else None


@dataclass(frozen=True)
class AtRest:
    """Stop once no step of a solver decreases the loss, of any trajectory."""

    solver: Solver

    def __call__(self, history: History) -> Result | None:
        record = history.records[-1]
        if record.step == 0 or not bool(history.living(self.solver.finished.cpu()).all()):
            return None
        norm = max(history.living(record.observed["gradient_norm"]).tolist())
        return Result(
            Kind.STAGNATED,
            f"stagnated at t = {record.t:.6g}: no step of {type(self.solver).__name__} decreases "
            f"the loss any more, at gradient norm {norm:.2g}.",
        )


def observed(
    stepper: Stepper, observables: Callable[..., Observables]
) -> tuple[Observables, tuple[Stop, ...]]:
    """What is seen along a run on a manifold, and the stops that its method brings.

    - `observables`: a function of what a method knows (`flow_observables`)
    """
    solver = solver_of(stepper)
    if solver is None:
        return observables(), ()
    seen = observables(known_to(solver, stepper))
    return with_solver(seen, solver, stepper), (AtRest(solver),)


def known_to(solver: Solver, stepper: Stepper) -> Callable[[], Known]:
    """What a solver knows of the one matrix where it is, after a step: loss and gradient norm."""

    def known() -> Known:
        if stepper.step == 0 or stepper.batch:
            return {}
        return {"loss": solver.loss.clone(), "gradient_norm": solver.gradient_norm.clone()}

    return known


def with_solver(observe: Observables, solver: Solver, stepper: Stepper) -> Observables:
    """The same observables, and what a solver knows of the step that it took last.

    Of conjugate gradients `step_length`, t of R_W(tη); of a trust region `radius`, that of the next
    step, and `rho`, how much of what the model promised came. Before the first step they are 0, and
    rho 1.
    """

    def known(like: Tensor) -> dict[str, Tensor]:
        none, all_ = torch.zeros_like(like), torch.ones_like(like)
        if isinstance(solver, TrustRegion):
            begun = stepper.step > 0
            radius, rho = (solver.radius, solver.rho) if begun else (none, all_)
            return {"radius": radius.clone(), "rho": rho.clone()}
        if isinstance(solver, ConjugateGradient):
            return {"step_length": solver.length.clone() if stepper.step > 0 else none}
        return {}

    def observe_all(t: float, y: Sequence[Tensor]) -> dict[str, Tensor]:
        seen = observe(t, y)
        return seen | known(seen["loss"])

    return observe_all


def continuation_start(
    net: DeepLinear, problem: Problem, generator: torch.Generator, *, share: float = 0.1
) -> None:
    """Balanced layers of W(0), which was found rank by rank: the best of rank r − 1, and a pair.

    r = min_j d_j. Every repeat has the same.
    Source: [UV14], `deeplin.optim.continuation`.
    """
    with torch.no_grad():
        point = rank_increase.continuation_start(
            problem, min(net.widths), share=share, generator=generator
        )
    s = torch.linalg.diagonal(point.S).real
    init.balanced_factors_(net, point.U, s, point.V)
