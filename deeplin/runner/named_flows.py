"""The flows that a configuration names, at the layers of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deeplin.flows import (
    CoupledAutoencoderFlow,
    DLRAFlow,
    EndToEndFlow,
    LayerFlow,
    OjaFlow,
    PQWFlow,
    PSDDLRAFlow,
    RiccatiFlow,
    compress,
)
from deeplin.flows.contract import Flow, State
from deeplin.network import (
    DeepLinear,
    check_balanced,
    is_balanced,
    product_ranks,
    relative_gap,
)
from deeplin.problems import LeastSquares
from deeplin.problems.contract import Problem

__all__ = ["FLOWS", "choose_flow", "common_rank", "make_flow"]

_OF_MATRICES: dict[str, Callable[[Problem, int], Flow]] = {
    "end_to_end": lambda problem, depth: EndToEndFlow(problem, depth),
    "pqw": lambda problem, depth: PQWFlow(problem, depth),
    "dlra": lambda problem, depth: DLRAFlow(problem),
    "dlra_rescaled": lambda problem, depth: DLRAFlow(problem, rescaled=True),
    "psd_dlra": lambda problem, depth: PSDDLRAFlow(problem),
    "psd_dlra_rescaled": lambda problem, depth: PSDDLRAFlow(problem, rescaled=True),
}
_OF_TWO_LAYERS = ("oja", "coupled", "riccati")
_OF_BALANCED = ("compressed", "end_to_end", "pqw")
_SHOWN = 10  # repeats that a message lists
FLOWS = ("layers", "compressed", *_OF_MATRICES, *_OF_TWO_LAYERS)


def choose_flow(
    name: str, method: str, fitting: Sequence[str], network: DeepLinear
) -> tuple[str, str | None]:
    """(the flow that a method advances, a sentence where it is not the usual one).

    By `auto` the first of those that the method is made for; where that follows balanced layers
    only and the start is not balanced, the flow of layers, if the method takes it.

    Raises: ValueError for a flow that the method is not made for.
    """
    if name != "auto":
        if name in fitting:
            return name, None
        raise ValueError(
            f"flow must be auto or one of {', '.join(fitting)} for method={method}; got {name!r}."
        )
    first = fitting[0]
    weights = [W_j.detach() for W_j in network.weights]
    if first not in _OF_BALANCED or "layers" not in fitting or is_balanced(weights):
        return first, None
    gap = float(relative_gap(weights).max())
    return "layers", (
        f"flow=layers, since {first} follows balanced layers only: the largest gap of the start is "
        f"{gap:.2g} of its largest ‖W_j‖²"
    )


def make_flow(
    name: str,
    network: DeepLinear,
    problem: Problem,
    *,
    rebalance: bool = False,
    multiplicative: bool = False,
) -> tuple[Flow, State]:
    """(flow, its state at the network's layers) by the name of the flow.

    - `rebalance`: the flow of layers projects them back onto exact balancedness
    - `multiplicative`: the flows dlra and dlra_rescaled in coordinates moved by multiplication,
      those of the end-to-end flow of depth 1

    Layers and factors of layers keep a rank for each trajectory. The flows of matrices, and layers
    that are rebalanced, have one for the whole batch.

    Raises: ValueError for a flow that does not fit the network or the problem, for layers that are
        not balanced where it follows only those, and for W(0) of several ranks where it takes one.
    """
    weights = [W_j.detach() for W_j in network.weights]
    if name == "layers":
        rank = None
        if rebalance:
            check_balanced(weights, "method.rebalance=true")
            rank = common_rank(weights, "method.rebalance=true")
        flow = LayerFlow(problem, balanced_rank=rank)
        return flow, flow.init_state(network)
    if name == "compressed":
        flow = LayerFlow(problem)
        return flow, flow.init_state(compress(weights))
    if name in _OF_TWO_LAYERS:
        return _two_layer_flow(name, problem, weights)
    if multiplicative and name.startswith("dlra"):
        flow = EndToEndFlow(problem, 1, rescaled=name.endswith("rescaled"))
    else:
        flow = _OF_MATRICES[name](problem, network.depth)
    return flow, flow.init_state(weights, common_rank(weights, f"flow={name}"))


def common_rank(weights: Sequence[Tensor], who: str) -> int:
    """The rank of W(0). Raises: ValueError, which names the repeats, where it is not the same."""
    ranks = product_ranks(weights).flatten().tolist()
    repeats = {
        rank: [i for i, r in enumerate(ranks, 1) if r == rank] for rank in sorted(set(ranks))
    }
    if len(repeats) == 1:
        return ranks[0]
    most = max(repeats, key=lambda rank: (len(repeats[rank]), rank))
    told = [f"{rank} in repeat {_listed(of)}" for rank, of in repeats.items() if rank != most]
    raise ValueError(
        f"{who} runs all repeats at one rank, but W(0) has rank {', rank '.join(told)}, and rank "
        f"{most} in the other {len(repeats[most])}: run each rank by itself, or a method on "
        "flow=layers without rebalance, where each repeat keeps its own."
    )


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return shown if len(numbers) <= _SHOWN else f"{shown} and {len(numbers) - _SHOWN} more"


def _two_layer_flow(name: str, problem: Problem, weights: Sequence[Tensor]) -> tuple[Flow, State]:
    """Oja's flow, the coupled one of V = W_2 = W_1ᵀ, or the untied one of V = (W_1ᵀ; W_2)."""
    autoencoder = isinstance(problem, LeastSquares) and problem.is_autoencoder
    if len(weights) != 2 or not isinstance(problem, LeastSquares) or not autoencoder:
        raise ValueError(
            f"flow={name} is that of an autoencoder of two layers; got {len(weights)} layers"
            f"{'' if autoencoder else ' and labels'}: use network.depth=2 with "
            "problem=digits or gaussian."
        )
    W_1, W_2 = weights
    if name == "riccati":
        flow = RiccatiFlow(problem.C)
        return flow, flow.init_state(torch.cat([W_1.mT, W_2], -2))
    flow = OjaFlow(problem.C) if name == "oja" else CoupledAutoencoderFlow(problem.C)
    if float((W_2 - W_1.mT).abs().max()) > 1e-12 * float(W_2.abs().max()):
        raise ValueError(f"flow={name} needs tied layers, W_2 = W_1ᵀ: use init=orthogonal.")
    return flow, flow.init_state(W_2)
