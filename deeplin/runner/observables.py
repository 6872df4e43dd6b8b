"""What is worth seeing along a run: named tensors of (t, y), without any input or output."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from deeplin.flows import DLRAFlow, EndToEndFlow, LayerFlow
from deeplin.flows.contract import Flow, State
from deeplin.linalg import halves, product_svdvals
from deeplin.network import end_to_end, gap_norm, layer_gradients
from deeplin.problems import LeastSquares
from deeplin.problems.contract import Problem
from deeplin.problems.spectrum import Spectrum

__all__ = [
    "KEPT_ASIDE",
    "Known",
    "Observables",
    "effective_rank",
    "factors",
    "flow_observables",
    "layer_observables",
    "with_factors",
]

# Observables that checkpoints hold and nothing else shows: they are no curves.
KEPT_ASIDE = ("nearest_modes", "along_slowest_mode", "left", "right")
# Entries of a batch of W at once: what is computed from them stays in the cache.
_BLOCK = 2**16


Observables = Callable[[float, Sequence[Tensor]], dict[str, Tensor]]
Known = Mapping[str, Tensor]


def layer_observables(
    problem: Problem, limit: Tensor | None, optimum: Tensor | None = None
) -> Observables:
    """The function (t, layers) -> observables of a deep linear network.

    - `loss`: L^N, and what the problem itself reports
    - where a limit is predicted `excess_loss`: L^N − L¹(limit), of least squares without
      cancellation, and `distance_to_limit`: ‖W − limit‖_F (on the range of X, where W is
      determined); `distance_to_optimum` where the optimum of the start's rank is another
    - `gradient_norm`: (Σ_j ‖∇_{W_j}L^N‖_F²)^{1/2}
    - `balancedness_gap`: max_j ‖W_{j+1}ᴴW_{j+1} − W_jW_jᴴ‖_F
    - `singular_values`: those of W, as many as the smallest width; `rank`: those above
      max(d_x, d_y)·eps·σ_1
    - where the critical points are known `nearest_modes`: J of the W_J nearest to W, as a mask
      (BRTW Prop. 32), and `nearest_distance`: ‖(W − W_J)C^{1/2}‖_F
    - `tie_gap`: ‖W_2 − W_1ᴴ‖_F, for two layers between equal widths only (BRTW Fig. 3,
      BRTW Lemma 46)

    Shapes: each (*batch), singular_values (*batch, min_j d_j), nearest_modes (*batch, q).
    """
    seen_of = _matrix_observables(problem, limit, optimum)

    def observe(t: float, layers: Sequence[Tensor]) -> dict[str, Tensor]:
        d_y, d_x = layers[-1].shape[-2], layers[0].shape[-1]
        if problem.optimum is None:
            gradients = layer_gradients(layers, problem)
        else:
            gradients = layer_gradients(layers, problem.egrad(end_to_end(layers)))
        s = product_svdvals(layers)
        noise = max(d_y, d_x) * torch.finfo(s.dtype).eps * s[..., :1]
        tied = len(layers) == 2 and d_y == d_x
        return {
            **seen_of(layers, {}),
            "gradient_norm": sum(G_j.abs().square().sum((-2, -1)) for G_j in gradients) ** 0.5,
            "balancedness_gap": gap_norm(layers),
            "singular_values": s,
            "rank": (s > noise).sum(-1),
            **({"tie_gap": torch.linalg.matrix_norm(layers[1] - layers[0].mH)} if tied else {}),
        }

    return observe


def _matrix_observables(
    problem: Problem, limit: Tensor | None, best: Tensor | None
) -> Callable[[Sequence[Tensor], Known], dict[str, Tensor]]:
    """The function of matrices whose product is W -> what depends on W alone.

    Under `layer_observables`' names. Where no optimum is known W is not formed, but by a loss that
    takes no pairs.

    Source of the nearest critical point: BRTW Prop. 32 (`Spectrum.nearest`).
    """
    optimum = problem.optimum
    moments = problem if isinstance(problem, LeastSquares) else None
    E = None
    if moments is not None and moments.rank_X < moments.d_x:
        E = moments.range_basis()

    def distance(W: Tensor, to: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(W - to if E is None else (W - to) @ E)

    def observe(W: Tensor, limit: Tensor | None, best: Tensor | None) -> dict[str, Tensor]:
        seen = {"loss": problem.loss(W), **problem.report(W)}
        if limit is not None:
            seen["excess_loss"] = (
                seen["loss"] - problem.loss(limit)
                if moments is None
                else moments.loss_difference(W, limit)
            )
            seen["distance_to_limit"] = distance(W, limit)
        if best is not None:
            seen["distance_to_optimum"] = distance(W, best)
        if isinstance(optimum, Spectrum):
            near = optimum.nearest(W)
            seen |= {"nearest_modes": near.modes, "nearest_distance": near.distance}
        return seen

    def in_blocks(W: Tensor) -> dict[str, Tensor]:
        if W.ndim != 3:
            return observe(W, limit, best)
        size = max(1, _BLOCK // W[0].numel())
        of_each = (
            itertools.repeat(to) if to is None or to.ndim == 2 else to.split(size)
            for to in (limit, best)
        )
        blocks = [observe(*parts) for parts in zip(W.split(size), *of_each, strict=False)]
        return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}

    def of_product(matrices: Sequence[Tensor], known: Known) -> dict[str, Tensor]:
        parts = halves(matrices) if optimum is None and limit is None and best is None else None
        if parts is None:
            return in_blocks(end_to_end(matrices))
        A, B = parts[0], parts[1].mH
        loss = known["loss"] if "loss" in known else problem.pair_loss(A, B)
        return {"loss": loss, **problem.report_pair(A, B)}

    return of_product


def effective_rank(s: Tensor) -> Tensor:
    """exp(−Σ p_i log p_i), p = σ/Σσ: k where k singular values are equal; 0 for W = 0.

    Source: [RV07]; of matrix factorisation: [ACHL19]. Shapes: s (*batch, k) -> (*batch).
    """
    total = s.sum(-1, keepdim=True)
    p = s / torch.where(total > 0, total, 1.0)
    return torch.where(total[..., 0] > 0, torch.special.entr(p).sum(-1).exp(), 0.0)


def flow_observables(
    flow: Flow,
    problem: Problem,
    limit: Tensor | None,
    y0: State,
    optimum: Tensor | None = None,
    mode: Tensor | None = None,
    known: Callable[[], Known] = dict,
) -> Observables:
    """The function (t, state) -> observables of any flow of W, under `layer_observables`' names.

    `gradient_norm` is that of the flow's own metric, which for balanced layers is the layers';
    without layers there is no `balancedness_gap`, but `largest_drift` of a conserved quantity. And
    `drift_<name>` for each of the flow's conserved quantities: its distance from that of y0. For
    square real W of full rank `sign_det`, the sign of det W, 0 where round-off hides it. Given the
    P of `Prediction.mode`, `along_slowest_mode`: |⟨P, W − limit⟩|/‖P‖_F. Where no optimum is known
    the `effective_rank` of W.

    - `known`: loss and gradient norm of the state that is observed, where a method knows them
    """
    start, sign_of = flow.conserved(y0), _sign_of_determinant(flow, y0)
    layers = layer_observables(problem, limit, optimum)
    seen_of = _matrix_observables(problem, limit, optimum)

    def observe(t: float, state: Sequence[Tensor]) -> dict[str, Tensor]:
        y = tuple(state)
        conserved, drift = flow.conserved(y), {}
        for name, value in conserved.items():
            change = (value - start[name]).unsqueeze(-1).flatten(y[0].ndim - 2)
            drift[f"drift_{name}"] = torch.linalg.vector_norm(change, dim=-1)
        if sign_of is not None:
            kept = conserved.get("sign_det")
            drift["sign_det"] = sign_of(y) if kept is None else kept
        if mode is not None and limit is not None:
            along = (mode.conj() * (flow.end_to_end(y) - limit)).real.sum((-2, -1))
            drift["along_slowest_mode"] = along.abs() / torch.linalg.matrix_norm(mode)
        if isinstance(flow, LayerFlow):
            return with_effective_rank(layers(t, y) | drift)
        found = known()
        norm = found["gradient_norm"] if "gradient_norm" in found else flow.gradient_norm(y)
        largest = y[0].real.new_zeros(flow.batch_shape(y))
        for name, change in drift.items():
            if name.startswith("drift_"):
                largest = torch.maximum(largest, change)
        seen = {
            **seen_of(factors(flow, y), found),
            "gradient_norm": norm,
            "largest_drift": largest,
            "singular_values": flow.singular_values(y),
            "rank": flow.rank(y),
        }
        return with_effective_rank(seen | drift)

    def with_effective_rank(seen: dict[str, Tensor]) -> dict[str, Tensor]:
        if problem.optimum is None:
            seen["effective_rank"] = effective_rank(seen["singular_values"])
        return seen

    return observe


def _sign_of_determinant(flow: Flow, y0: State) -> Callable[[State], Tensor] | None:
    """The function y -> the sign of det W, 0 where it is not known; None where W is not for it.

    Of square layers it is the product of their signs: σ_min(W_j) is about the N-th root of that of
    W, far above round-off when that is below it.
    """
    matrices = factors(flow, y0)
    n = matrices[0].shape[-1]
    square = matrices[-1].shape[-2] == n and not y0[0].is_complex()
    if not square or int(flow.rank(y0).max()) < n:
        return None

    def sign_of(A: Tensor) -> Tensor:
        A = A.double()
        s = torch.linalg.svdvals(A)
        known = s[..., -1] > n * torch.finfo(s.dtype).eps * s[..., 0]
        return torch.where(known, torch.linalg.slogdet(A).sign, 0.0)

    def of_state(y: State) -> Tensor:
        if isinstance(flow, LayerFlow) and all(W_j.shape[-2:] == (n, n) for W_j in y):
            return torch.stack([sign_of(W_j) for W_j in y]).prod(0)
        return sign_of(flow.end_to_end(y))

    return of_state


def with_factors(observe: Observables, flow: Flow) -> Observables:
    """The same observables, and W(t) as `left` (*batch, d_y, k) times `right` (*batch, k, d_x).

    Layers are split at their narrowest width k; other states give UΣ and Vᴴ for the end-to-end
    flow, W and the identity for the rest.
    """

    def split(y: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        parts = factors(flow, y)
        if len(parts) == 1:
            W = parts[0]
            return W, torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
        p = min(range(1, len(parts)), key=lambda j: parts[j - 1].shape[-2])
        return end_to_end(parts[p:]), end_to_end(parts[:p])

    def observe_all(t: float, y: Sequence[Tensor]) -> dict[str, Tensor]:
        left, right = split(y)
        return observe(t, y) | {"left": left, "right": right}

    return observe_all


def factors(flow: Flow, y: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """W as matrices whose product it is, the first to be applied first: layers, or thin ones.

    Of the end-to-end flow they are Vᴴ and UΣ, of U, S, V they are Vᴴ and US, of other states W
    alone.

    Shapes: (*batch, k, d_x), …, (*batch, d_y, k).
    """
    if isinstance(flow, LayerFlow):
        return tuple(y)
    if isinstance(flow, EndToEndFlow):
        U, log_s, V = y
        return V.mH.resolve_conj(), U * log_s.exp()[..., None, :]
    if isinstance(flow, DLRAFlow):
        point = flow.point(tuple(y))
        return point.V.mH.resolve_conj(), point.U @ point.S
    return (flow.end_to_end(tuple(y)),)
