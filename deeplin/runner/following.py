"""What a run follows: a flow of a network's layers, or that of a point on a manifold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig
from torch import Tensor

from deeplin.flows import PSDDLRAFlow
from deeplin.flows.contract import Flow, State
from deeplin.integrators import (
    AdaptiveStepper,
    IntegratorStepper,
    ProjectedRungeKutta,
    Rosenbrock,
    Stepper,
)
from deeplin.linalg import halves, hermitian_part
from deeplin.network import DeepLinear, end_to_end
from deeplin.prediction import Prediction, predict_flow
from deeplin.problems import LeastSquares
from deeplin.problems.contract import Problem
from deeplin.problems.data import Data
from deeplin.runner.named_flows import choose_flow, make_flow
from deeplin.runner.observables import factors
from deeplin.runner.targets import make, options_of
from deeplin.runner.terminal import slow

if TYPE_CHECKING:
    from deeplin.runner.riemannian import OnManifold

__all__ = ["Followed", "check_edge_of_cone", "check_fits", "followed", "followed_on"]


@dataclass(frozen=True)
class Followed:
    """A flow by its name from its state, with what is predicted of it, and why that flow."""

    name: str
    flow: Flow
    state: State
    prediction: Prediction
    noted: str | None
    on: OnManifold | None = None


def followed(
    flow_name: str,
    method: str,
    flows: Sequence[str],
    network: DeepLinear,
    problem: Problem,
    **options: bool,
) -> Followed:
    """The flow of a network that a method advances."""
    name, noted = choose_flow(flow_name, method, flows, network)
    flow, state = make_flow(name, network, problem, **options)
    return Followed(name, flow, state, _predicted(problem, flow, state), noted)


def followed_on(manifold: DictConfig, source: Data, network: DeepLinear) -> Followed:
    """The flow of a manifold's metric from the product of a network."""
    # geoopt, for such runs alone
    from deeplin.runner.riemannian import OnManifold, undetermined

    on = make(options_of(manifold, "name"), "manifold", source=source, network=network)
    if not isinstance(on, OnManifold):
        raise TypeError(
            f"the target of manifold={manifold.name} must return OnManifold; got "
            f"{type(on).__name__}."
        )
    prediction = _predicted(source.problem, on.flow, on.state)
    noted = undetermined(source.problem, on.manifold.rank)
    return Followed("manifold", on.flow, on.state, prediction, noted, on)


def _predicted(problem: Problem, flow: Flow, state: State) -> Prediction:
    _check_start(problem, factors(flow, state))
    with slow("computing what is predicted: the limit and the rate"):
        return predict_flow(problem, flow, state)


def check_fits(cfg: DictConfig, fitting: Sequence[str]) -> None:
    """Raise ValueError for a manifold with a method of networks, and the other way round."""
    if (cfg.get("manifold") is not None) == ("manifold" in fitting):
        if "manifold" in fitting and cfg.flow != "auto":
            raise ValueError(
                "a run on a manifold follows the flow of its metric, manifold.depth; got "
                f"flow={cfg.flow}: leave out flow."
            )
        return
    if "manifold" in fitting:
        raise ValueError(
            f"method={cfg.method.name} moves a point on a manifold: add manifold=fixed_rank or "
            "manifold=psd_fixed_rank."
        )
    raise ValueError(
        f"method={cfg.method.name} moves the layers of a network, no point on a manifold: use "
        "method=cg, trust_region, riemannian_sgd, riemannian_adam or line_search, or leave out "
        f"manifold={cfg.manifold.name}."
    )


def _check_start(problem: Problem, matrices: Sequence[Tensor]) -> None:
    """Raise ValueError where a loss of which nothing is known is not finite at the start."""
    if problem.optimum is None:
        parts = halves(matrices)
        if parts is None:
            loss = problem.loss(end_to_end(matrices))
        else:
            loss = problem.pair_loss(parts[0], parts[1].mH)
        if not bool(torch.isfinite(loss).all()):
            worst = loss.flatten()[~torch.isfinite(loss).flatten()][0]
            raise ValueError(
                f"at the start the loss is {float(worst)}, and no step goes on from there: start "
                "elsewhere, with another init or init.scale, or keep the loss finite."
            )


def check_edge_of_cone(
    problem: Problem, flow: Flow, stepper: Stepper, prediction: Prediction
) -> None:
    """Raise ValueError where explicit steps of U, S meet S → 0, at which no step is short enough.

    Of ½‖W − X‖² on the cone the rank of W(t) goes down to the number of positive eigenvalues of X.
    """
    if not isinstance(flow, PSDDLRAFlow) or flow.rescaled or not isinstance(problem, LeastSquares):
        return
    if not torch.equal(problem.C, torch.eye(problem.d_x).to(problem.C)):
        return
    rank = prediction.rank if prediction.start_rank is None else prediction.start_rank
    rank = min(rank, problem.optimum.rank)
    values = torch.linalg.eigvalsh(hermitian_part(problem.B))
    noise = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    positive = int((values > noise).sum())
    if isinstance(stepper, AdaptiveStepper | IntegratorStepper):
        fits = isinstance(stepper.integrator, ProjectedRungeKutta | Rosenbrock)
        if positive < rank and not fits:
            raise ValueError(
                f"flow=psd_dlra from rank {rank} tends to rank {positive}, since X has so many "
                "positive eigenvalues, and explicit steps of its factors, which divide by S, then "
                "become unstable however short they are: use flow=psd_dlra_rescaled, method=rgd or "
                "method=rosenbrock."
            )
