"""The limit of a rank, or of what is conserved besides it, with its loss and its rate."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Inexact
from torch import Tensor

from deeplin.geometry.metric import DepthMetric, Metric
from deeplin.landscape import local_mode, local_rate
from deeplin.prediction.conserved import Reach
from deeplin.prediction.statement import Prediction
from deeplin.problems import LeastSquares
from deeplin.problems.contract import Problem
from deeplin.problems.spectrum import Spectrum

__all__ = ["prediction_in_reach", "prediction_of_rank"]


def prediction_of_rank(
    problem: Problem, metric: Metric | None, start_rank: int, *, balanced: bool
) -> Prediction:
    """The prediction for a start of that rank in a metric."""
    optimum = problem.optimum
    if optimum is None:
        missing = "nothing is known in advance of the optimum of this loss"
        return Prediction(
            start_rank, None, None, False, None, missing, None, missing, start_rank=start_rank
        )
    k = min(start_rank, optimum.rank)
    limit, unique = optimum.minimizer(k), optimum.is_unique(k)
    rate, mode, pace, missing = None, None, None, ""
    if k == 0:
        missing = "W(0) = 0 stays 0"
    elif not unique:
        missing = f"σ_{k} = σ_{k + 1}: the minimizer is not unique"
    elif start_rank > optimum.rank:
        missing = "the rank of W(0) exceeds rank Q: the limit lies on the boundary of M_k"
    elif isinstance(problem, LeastSquares) and problem.rank_X < problem.d_x:
        missing = "XXᵀ is singular"
    elif metric is None:
        missing = "the flow is none of those whose rate is known"
    else:
        pace, slowest = local_mode(problem, limit, metric)
        if balanced:
            rate, mode = pace, slowest
        else:
            missing = "unbalanced layers have a rate of their own, known once they arrived"
    loss = float(optimum.optimal_loss(k))
    return Prediction(k, limit, loss, unique, rate, missing, pace, start_rank=start_rank, mode=mode)


def prediction_in_reach(
    problem: Problem,
    optimum: Spectrum,
    metric: Metric,
    W: Inexact[Tensor, "m n"],
    rank: int,
    seen: Reach,
    *,
    passes: bool,
) -> Prediction:
    """The prediction for a balanced start: the minimizer of its rank, or what is in reach of it.

    - `passes`: whether W(t) can pass through det W = 0 where N < 2
    """
    n = W.shape[-1]
    plain = prediction_of_rank(problem, metric, rank, balanced=True)
    depth = metric.depth if isinstance(metric, DepthMetric) else 1.0
    kept = depth >= 2
    plain = replace(plain, sign=int(seen.sign) if kept else 0)
    J = seen.modes.nonzero().ravel().tolist()
    counts = [sum(j in g for j in J) for g in optimum.groups]
    most = min(rank, optimum.rank)
    if counts == [min(len(g), max(0, most - g.start)) for g in optimum.groups]:
        return plain
    negative, whole = bool(seen.negative), rank == n == W.shape[-2]
    if negative and not kept:
        if passes and whole:
            note = (
                "for N = 1 W(t) meets det W = 0 in finite time, where the flow on M_k ends, and "
                "passes to the side of the optimum"
            )
            return replace(plain, note=note)
        missing = (
            "a determinant of W(0) has the sign that the optimum has not, and the flow of this "
            "metric meets 0 in finite time or by a clock of its own"
        )
        return Prediction(
            plain.rank, None, None, False, None, missing, plain.pace, missing, start_rank=rank
        )
    k = len(J)
    limit = optimum.point(j + 1 for j in J)
    loss = float(optimum.residual + 0.5 * (optimum.s.square().sum() - optimum.s[J].square().sum()))
    ends = f"W(t) ends at rank {k}, loss {loss:.6g}"
    if negative and whole and int(seen.blocks) == 1:
        ours, its = ("<", ">") if seen.sign < 0 else (">", "<")
        why = f"det W {ours} 0 is conserved, the optimum of rank {n} has det W {its} 0: {ends}"
    else:
        signs = ", and some with the sign of the determinant that it has not" if negative else ""
        why = (
            "W(0) lies in an invariant subspace, apart from singular vectors of the optimum"
            f"{signs}: {ends}"
        )
    rate, missing = _rate_in_reach(problem, optimum, metric, depth, W, seen, J)
    if plain.rate is None:
        rate, missing = None, plain.rate_missing
    pace = plain.pace if plain.pace is None or rate is None else min(plain.pace, rate)
    unique = all(count in (0, len(g)) for count, g in zip(counts, optimum.groups, strict=True))
    return Prediction(
        k,
        limit,
        loss,
        unique,
        rate,
        missing,
        pace,
        start_rank=rank,
        why=why,
        escape=_escape(J, depth),
        sign=int(seen.sign) if kept else 0,
    )


def _escape(J: list[int], depth: float) -> str:
    """What becomes of a plain integrator at W_J, from where L^N can fall.

    Source: BRTW Prop. 35, BRTW Prop. 36, BRTW Prop. 38.
    """
    best = list(range(len(J))) == J
    if not best:
        return "a strict saddle, unstable: a plain integrator will leave it"
    if depth == 2:
        on = "a minimum on its own rank and " if J else ""
        return f"{on}a strict saddle of L^N, unstable: a plain integrator will leave it"
    return "no minimum of L^N, unstable: a plain integrator may leave it, if late"


def _rate_in_reach(
    problem: Problem,
    optimum: Spectrum,
    metric: Metric,
    depth: float,
    W: Tensor,
    seen: Reach,
    J: list[int],
) -> tuple[float | None, str]:
    """(ρ, why there is none) at a limit that is not the minimizer of the start's rank.

    A scalar block moves by ẇ = −N|w|^{2−2/N}(cw − σ√c), c = v*Cv: ρ = Nc|σ/√c|^{2−2/N} at its
    optimum, 2σ√c at 0 for N = 2 and none for N > 2, where w ~ t^{−N/(N−2)}. So does what is missing
    at W_{1..n−1} for det W of the other sign, with √c = ‖C^{1/2}v_n‖.
    """
    C = optimum.C
    c = (optimum.V.conj() * (optimum.V if C is None else C @ optimum.V)).sum(-2).real
    if seen.negative and depth > 2:
        return None, "the smallest singular value decays as a power of t"
    rates = []
    if seen.scalar and all(len(g) == 1 for g in optimum.groups):
        overlap = (optimum.U.conj() * (W.to(optimum.V.dtype) @ optimum.V)).sum(-2).real
        there = overlap.abs() > 1e3 * torch.finfo(W.dtype).eps * torch.linalg.matrix_norm(W)
        for j in there.nonzero().ravel().tolist():
            sigma, root = float(optimum.s[j]), math.sqrt(float(c[j]))
            at_optimum = depth * root**2 * (sigma / root) ** (2 - 2 / depth) if depth < 1e9 else 0.0
            rates.append(at_optimum if j in J else 2 * sigma * root)
    elif seen.negative and int(seen.blocks) == 1 and len(J) == len(W) - 1 == W.shape[1] - 1:
        if len(J) and not optimum.is_unique(len(J)):
            return None, f"σ_{len(J)} = σ_{len(J) + 1}: the limit is not unique"
        rates.append(2 * float(optimum.s[-1]) * math.sqrt(float(c[-1])))
        if J:
            rates.append(local_rate(problem, optimum.minimizer(len(J)), metric))
    if not rates or not min(rates) > 0:
        return None, "the rate inside an invariant subspace is not predicted"
    return min(rates), ""
