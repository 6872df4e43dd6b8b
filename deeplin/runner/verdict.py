"""Does a finished run agree with the theory: the summary, its table and its sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deeplin.landscape import layer_rate, local_rate
from deeplin.loop import History, Result
from deeplin.network import end_to_end
from deeplin.problems import LeastSquares

__all__ = ["Prediction", "Verdict", "fitted_rate", "judge"]

EXCESS_TOLERANCE = 1e-6  # relative, of the loss
DISTANCE_TOLERANCE = 1e-3  # relative to ‖W*‖_F, or absolute if that is below 1
RATE_TOLERANCE = 0.05  # relative, of the decay rate
_LARGEST_EIGENPROBLEM = 10_000  # two minutes and 3 GB


@dataclass(frozen=True)
class Prediction:
    """What the theory says of a run's end.

    `rank` k is that of W(0) for a balanced start (BRTW Prop. 12), the smallest width for another,
    and at most rank Q; `limit` the minimizer on M_k and `loss` its loss (Prop. 32); `rate` the
    local decay rate of ‖W − limit‖_F, None where it is not predicted, with the reason. `pace` is
    that of balanced layers, whatever the start: what the length of a run is planned by.
    """

    rank: int
    limit: Tensor
    loss: float
    unique: bool
    rate: float | None
    rate_missing: str = ""
    pace: float | None = None

    @property
    def size(self) -> float:
        """‖limit‖_F."""
        return float(torch.linalg.matrix_norm(self.limit))

    @property
    def distance_tolerance(self) -> float:
        """1e-3 of the limit's norm, and at least 1e-3."""
        return DISTANCE_TOLERANCE * max(self.size, 1.0)

    @classmethod
    def of(
        cls, problem: LeastSquares, depth: float, start_rank: int, *, balanced: bool
    ) -> Prediction:
        k = min(start_rank, problem.rank_Q)
        limit = problem.minimizer(k)
        unique = problem.has_unique_minimizer(k)
        rate, pace, missing = None, None, ""
        if k == 0:
            missing = "W(0) = 0 stays 0"
        elif not unique:
            missing = f"σ_{k} = σ_{k + 1}: the minimizer is not unique"
        elif start_rank > problem.rank_Q:
            missing = "the rank of W(0) exceeds rank Q: the limit lies on the boundary of M_k"
        elif problem.rank_X < problem.d_x:
            missing = "XXᵀ is singular"
        else:
            pace = local_rate(problem, limit, depth)
            if balanced:
                rate = pace
            else:
                missing = "unbalanced layers have a rate of their own, known once they arrived"
        return cls(k, limit, float(problem.optimal_loss(k)), unique, rate, missing, pace)

    def arrived(self, problem: LeastSquares, layers: Sequence[Tensor]) -> Prediction:
        """The prediction with the rate that unbalanced layers have near where they ended.

        None is kept where they have not arrived, or where the eigenproblem is above 10 000.
        """
        W = end_to_end(layers)
        if self.rate is not None or self.pace is None or W.ndim != 2:
            return self
        if float(torch.linalg.matrix_norm(W - self.limit)) > self.distance_tolerance:
            return self
        dimension = min(W_j.shape[-2] for W_j in layers) * sum(W.shape)
        if dimension > _LARGEST_EIGENPROBLEM:
            reason = f"the rate of unbalanced layers is an eigenproblem of dimension {dimension}"
            return replace(self, rate_missing=reason)
        return replace(self, rate=layer_rate(problem, layers), rate_missing="")


@dataclass(frozen=True)
class Verdict:
    """The content of summary.json and the rows of the closing table.

    With repeats every number is that of the worst trajectory and `summary["repeats"]` holds all.
    """

    summary: dict[str, Any]
    table: list[tuple[str, str, str, str]]

    def __str__(self) -> str:
        widths = [max(len(row[i]) for row in self.table) for i in range(3)]
        return "\n".join(
            "  ".join(
                [*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]
            ).rstrip()
            for row in self.table
        )


def fitted_rate(t: Tensor, distance: Tensor, floor: float) -> float | None:
    """The slope of −log distance against t over the last e³ of a decay, by least squares.

    None if the distance has not decayed exponentially: fewer than 8 records above `floor`, less
    than a factor e of decay, or a fit off by more than 10 % somewhere. Where it rises again in the
    end, it had come to the noise of the integrator: that is a floor, too.

    Shapes: t, distance (records,).
    """
    least = float(distance.min())
    if float(distance[-1]) > least:
        floor = max(floor, 100 * least)
    below = (distance <= floor).nonzero()
    end = int(below[0]) if len(below) else len(distance)
    if end < 8:
        return None
    log = distance[:end].log()
    above = (log > log[-1] + 3).nonzero()
    start = min(int(above[-1]) + 1 if len(above) else 0, end - 8)
    x, y = t[start:end], log[start:end]
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    residual = float((y - y.mean() - slope * (x - x.mean())).abs().max())
    if float(y[0] - y[-1]) < 1 or residual > 0.1:
        return None
    return -slope


def judge(
    problem: LeastSquares,
    prediction: Prediction,
    history: History,
    result: Result,
    *,
    seconds: float,
    stochastic: bool = False,
) -> Verdict:
    """Hold a run's history against its prediction.

    `relative_excess_loss` is (L − L*)/L*, or relative to ½‖Y‖² where the optimum L* is 0.
    """
    last = history.records[-1]

    def over_time(name: str) -> Tensor:
        return history.column(name).reshape(len(history.records), -1)

    scale = prediction.loss
    if scale <= 1e-12 * float(problem.yy):  # a perfect fit: relative to the loss of W = 0
        scale = 0.5 * float(problem.yy)
    relative = over_time("excess_loss")[-1] / scale
    distance = over_time("distance_to_limit")
    floor = 1e3 * torch.finfo(distance.dtype).eps * max(prediction.size, 1e-300)
    rates = [
        None if stochastic or not prediction.unique else fitted_rate(history.t, column, floor)
        for column in distance.unbind(1)
    ]
    ranks = over_time("rank")[-1].int().tolist()
    gap = over_time("balancedness_gap").amax(1)
    worst = int(relative.abs().argmax())
    summary: dict[str, Any] = {
        "loss": float(over_time("loss")[-1, worst]),
        "optimal_loss": prediction.loss,
        "relative_excess_loss": float(relative[worst]),
        "distance_to_limit": float(distance[-1].max()),
        "rank": next((rank for rank in ranks if rank != prediction.rank), prediction.rank),
        "balancedness_gap_initial": float(gap[0]),
        "balancedness_gap_final": float(gap[-1]),
        "rate_measured": _worst_rate(rates, prediction.rate),
        "rate_predicted": prediction.rate,
        "steps": last.step,
        "flow_time": last.t,
        "seconds": round(seconds, 3),
        "result": result.sentence,
    }
    checks = _checks(summary, prediction)
    summary["verdict"] = _sentence(
        summary, prediction, checks, result, stochastic, _resting_place(problem, history, worst)
    )
    if len(ranks) > 1:
        summary["repeats"] = {
            "loss": over_time("loss")[-1].tolist(),
            "relative_excess_loss": relative.tolist(),
            "distance_to_limit": distance[-1].tolist(),
            "rank": ranks,
            "rate_measured": rates,
        }
    return Verdict(summary, _table(summary, prediction, checks))


def _checks(summary: dict, prediction: Prediction) -> dict[str, bool | None]:
    """Whether each prediction holds; None where there is none or nothing was measured."""
    rate, rho = summary["rate_measured"], prediction.rate
    near = summary["distance_to_limit"] <= prediction.distance_tolerance
    return {
        "loss": abs(summary["relative_excess_loss"]) <= EXCESS_TOLERANCE,
        "distance": near if prediction.unique else None,
        "rank": summary["rank"] == prediction.rank,
        "rate": None if rate is None or not rho else abs(rate / rho - 1) <= RATE_TOLERANCE,
    }


def _worst_rate(rates: Sequence[float | None], predicted: float | None) -> float | None:
    measured = [rate for rate in rates if rate is not None]
    if not measured:
        return None
    return max(measured, key=lambda rate: abs(rate - (predicted or 0.0)))


def _table(
    summary: dict, prediction: Prediction, checks: dict[str, bool | None]
) -> list[tuple[str, str, str, str]]:
    def mark(check: bool | None, text: str) -> str:
        return text if check is None else f"{'ok' if check else 'NO'}   {text}".rstrip()

    rate, rho = summary["rate_measured"], prediction.rate
    rate_note = (
        prediction.rate_missing
        if rho is None
        else "no exponential decay was reached"
        if rate is None
        else f"{100 * (rate / rho - 1):+.2f} %, tolerance {100 * RATE_TOLERANCE:.0f} %"
    )
    initial = summary["balancedness_gap_initial"]
    return [
        ("", "run", "theory", ""),
        (
            "loss",
            f"{summary['loss']:.10g}",
            f"{prediction.loss:.10g}",
            mark(checks["loss"], f"relative excess {summary['relative_excess_loss']:.1e}"),
        ),
        (
            f"distance of W to its rank-{prediction.rank} optimum",
            f"{summary['distance_to_limit']:.2e}",
            "0",
            mark(checks["distance"], f"tolerance {prediction.distance_tolerance:.1e}")
            if prediction.unique
            else "the optimum is not unique",
        ),
        ("rank of W", str(summary["rank"]), str(prediction.rank), mark(checks["rank"], "")),
        (
            "local decay rate",
            "-" if rate is None else f"{rate:.5g}",
            "-" if rho is None else f"{rho:.5g}",
            mark(checks["rate"], rate_note),
        ),
        ("balancedness gap at the start", f"{initial:.2e}", "", ""),
        (
            "balancedness gap at the end",
            f"{summary['balancedness_gap_final']:.2e}",
            f"{initial:.2e}",
            "conserved by the flow, drifts with the step",
        ),
    ]


def _resting_place(problem: LeastSquares, history: History, worst: int) -> str | None:
    """J of the critical point W_J at which a trajectory ended, to 1e-6 of σ_1; None if at none."""
    last = history.records[-1].observed
    if "nearest_modes" not in last:
        return None
    distance = float(last["nearest_distance"].reshape(-1)[worst])
    if distance > 1e-6 * float(problem.singular_values[0]):
        return None
    modes = last["nearest_modes"].reshape(-1, last["nearest_modes"].shape[-1])[worst]
    return "{" + ",".join(str(j + 1) for j in modes.nonzero().ravel().tolist()) + "}"


def _sentence(
    summary: dict,
    prediction: Prediction,
    checks: dict[str, bool | None],
    result: Result,
    stochastic: bool,
    rest: str | None,
) -> str:
    distance, excess = summary["distance_to_limit"], summary["relative_excess_loss"]
    reached = checks["loss"] and checks["distance"] is not False and checks["rank"]
    if result.kind == "diverged":
        return f"No verdict: the run {result.sentence}"
    if reached and checks["rate"] is not False:
        rate = summary["rate_measured"]
        at_rate = (
            f", at the rate {rate:.4g} where {prediction.rate:.4g} is predicted"
            if checks["rate"]
            else ""
        )
        where = f", distance {distance:.1e}" if prediction.unique else ""
        return (
            f"Theory and run agree: W reached the predicted optimum of rank {prediction.rank} "
            f"(relative excess loss {excess:.1e}{where}){at_rate}."
        )
    if reached:
        return (
            "Theory and run disagree: W reached the predicted optimum, but its distance decayed at "
            f"the rate {summary['rate_measured']:.4g} where {prediction.rate:.4g} is predicted."
        )
    state = f"relative excess loss {excess:.1e}, distance {distance:.1e}, rank {summary['rank']}"
    if stochastic:
        return (
            f"No verdict: mini-batch noise holds W away from the optimum ({state}); "
            "a smaller dt or full batches come closer."
        )
    if result.kind in ("time", "steps", "interrupted"):
        return f"Unfinished: W is not yet at the predicted optimum ({state})."
    if rest is not None:
        return (
            f"W came to rest at the critical point {rest}, not at the optimum ({state}): the start "
            "lies on what flows there."
        )
    return f"Theory and run disagree: W came to rest away from the predicted optimum ({state})."
