"""Does a finished run agree with the theory: the summary, its table and its sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deeplin.landscape import Plateau
from deeplin.loop import History, Kind, Result
from deeplin.prediction import Prediction
from deeplin.problems.contract import Problem
from deeplin.problems.spectrum import Spectrum

__all__ = ["Verdict", "fitted_rate", "judge"]

EXCESS_TOLERANCE = 1e-6  # relative, of the loss
RATE_TOLERANCE = 0.05  # relative, of the decay rate


@dataclass(frozen=True)
class Verdict:
    """The content of summary.json, the rows of the closing table, and its sentence.

    With repeats every number is that of the worst trajectory, the `shown`-th from 0, and
    `summary["repeats"]` holds all.
    """

    summary: dict[str, object]
    table: list[tuple[str, str, str, str]]
    sentence: str
    shown: int

    def __str__(self) -> str:
        widths = [max(len(row[i]) for row in self.table) for i in range(3)]
        return "\n".join(
            "  ".join(
                [*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]
            ).rstrip()
            for row in self.table
        )


@dataclass(frozen=True)
class _Seen:
    """What was measured of the worst trajectory, None where nothing is predicted to compare it."""

    loss: float
    excess: float | None
    distance: float | None
    rank: int
    rate: float | None
    gap_initial: float
    gap_final: float
    gradient_norm: float

    @property
    def state(self) -> str:
        if self.excess is None or self.distance is None:
            return f"loss {self.loss:.6g}, gradient norm {self.gradient_norm:.1e}, rank {self.rank}"
        return (
            f"relative excess loss {self.excess:.1e}, distance {self.distance:.1e}, "
            f"rank {self.rank}"
        )


@dataclass(frozen=True)
class _Checks:
    """Whether each prediction holds; None where there is none or nothing was measured."""

    loss: bool | None
    distance: bool | None
    rank: bool | None
    rate: bool | None

    @classmethod
    def of(cls, seen: _Seen, prediction: Prediction) -> _Checks:
        if seen.excess is None or seen.distance is None:
            return cls(None, None, None, None)
        rate, rho = seen.rate, prediction.rate
        near = seen.distance <= prediction.distance_tolerance
        return cls(
            abs(seen.excess) <= EXCESS_TOLERANCE,
            near if prediction.unique else None,
            seen.rank == prediction.rank,
            None if rate is None or not rho else abs(rate / rho - 1) <= RATE_TOLERANCE,
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
    problem: Problem,
    prediction: Prediction,
    history: History,
    result: Result,
    *,
    seconds: float,
    stochastic: bool = False,
    plateaus: Sequence[Sequence[Plateau]] = (),
) -> Verdict:
    """Hold a run's history against its prediction.

    `relative_excess_loss` is (L − L*)/L*, or relative to L(0) where the optimum L* is 0.
    `plateaus` are the critical points that each trajectory passed, for the summary.
    """
    last = history.records[-1]

    def over_time(name: str) -> Tensor:
        return history.column(name).reshape(len(history.records), -1)

    loss, ranks = over_time("loss")[-1], over_time("rank")[-1].int().tolist()
    gap = over_time("balancedness_gap").amax(1)
    relative, distance = None, None
    rates: list[float | None] = [None] * len(ranks)
    if prediction.limit is not None and prediction.loss is not None:
        relative = over_time("excess_loss")[-1] / _scale(problem, prediction.limit, prediction.loss)
        distance = over_time("distance_to_limit")
        floor = 1e3 * torch.finfo(distance.dtype).eps * max(prediction.size, 1e-300)
        if prediction.unique and not stochastic:
            rates = [fitted_rate(history.t, column, floor) for column in distance.unbind(1)]
    worst = int(loss.argmax() if relative is None else relative.abs().argmax())
    seen = _Seen(
        loss=float(loss[worst]),
        excess=None if relative is None else float(relative[worst]),
        distance=None if distance is None else float(distance[-1].max()),
        rank=next((rank for rank in ranks if rank != prediction.rank), prediction.rank),
        rate=_worst_rate(rates, prediction.rate),
        gap_initial=float(gap[0]),
        gap_final=float(gap[-1]),
        gradient_norm=float(over_time("gradient_norm")[-1].max()),
    )
    checks = _Checks.of(seen, prediction)
    rest = _resting_place(problem, history, worst)
    sentence = _sentence(seen, prediction, checks, result, stochastic, rest)
    summary: dict[str, object] = {
        "loss": seen.loss,
        "optimal_loss": prediction.loss,
        "relative_excess_loss": seen.excess,
        "distance_to_limit": seen.distance,
        "rank": seen.rank,
        "balancedness_gap_initial": seen.gap_initial,
        "balancedness_gap_final": seen.gap_final,
        "rate_measured": seen.rate,
        "rate_predicted": prediction.rate,
        "steps": last.step,
        "flow_time": last.t,
        "seconds": round(seconds, 3),
        "result": result.sentence,
        "result_kind": str(result.kind),
        "verdict": sentence,
    }
    passed = [[plateau.as_dict() for plateau in report] for report in plateaus]
    if len(ranks) > 1:
        summary["repeats"] = {
            "loss": loss.tolist(),
            "relative_excess_loss": None if relative is None else relative.tolist(),
            "distance_to_limit": None if distance is None else distance[-1].tolist(),
            "rank": ranks,
            "rate_measured": rates,
            **({"plateaus": passed} if passed else {}),
        }
    if passed:
        summary["plateaus"] = passed[worst]
    return Verdict(summary, _table(seen, prediction, checks), sentence, worst)


def _scale(problem: Problem, limit: Tensor, optimal_loss: float) -> float:
    """What an excess of the loss is relative to: L*, or for a perfect fit the loss of W = 0."""
    at_zero = float(problem.loss(torch.zeros_like(limit)))
    return optimal_loss if optimal_loss > 2e-12 * at_zero else at_zero


def _worst_rate(rates: Sequence[float | None], predicted: float | None) -> float | None:
    measured = [rate for rate in rates if rate is not None]
    if not measured:
        return None
    return max(measured, key=lambda rate: abs(rate - (predicted or 0.0)))


def _table(seen: _Seen, prediction: Prediction, checks: _Checks) -> list[tuple[str, str, str, str]]:
    def mark(check: bool | None, text: str) -> str:
        return text if check is None else f"{'ok' if check else 'NO'}   {text}".rstrip()

    gaps = [
        ("balancedness gap at the start", f"{seen.gap_initial:.2e}", "", ""),
        (
            "balancedness gap at the end",
            f"{seen.gap_final:.2e}",
            f"{seen.gap_initial:.2e}",
            "conserved by the flow, drifts with the step",
        ),
    ]
    first = ("", "run", "theory", "")
    if seen.excess is None or seen.distance is None:
        return [
            first,
            ("loss", f"{seen.loss:.10g}", "-", prediction.missing),
            ("gradient norm", f"{seen.gradient_norm:.2e}", "0", ""),
            ("rank of W", str(seen.rank), "-", ""),
            *gaps,
        ]
    rate, rho = seen.rate, prediction.rate
    rate_note = (
        prediction.rate_missing
        if rho is None
        else "no exponential decay was reached"
        if rate is None
        else f"{100 * (rate / rho - 1):+.2f} %, tolerance {100 * RATE_TOLERANCE:.0f} %"
    )
    return [
        first,
        (
            "loss",
            f"{seen.loss:.10g}",
            f"{prediction.loss:.10g}",
            mark(checks.loss, f"relative excess {seen.excess:.1e}"),
        ),
        (
            f"distance of W to its rank-{prediction.rank} optimum",
            f"{seen.distance:.2e}",
            "0",
            mark(checks.distance, f"tolerance {prediction.distance_tolerance:.1e}")
            if prediction.unique
            else "the optimum is not unique",
        ),
        ("rank of W", str(seen.rank), str(prediction.rank), mark(checks.rank, "")),
        (
            "local decay rate",
            "-" if rate is None else f"{rate:.5g}",
            "-" if rho is None else f"{rho:.5g}",
            mark(checks.rate, rate_note),
        ),
        *gaps,
    ]


def _resting_place(problem: Problem, history: History, worst: int) -> str | None:
    """J of the critical point W_J at which a trajectory ended, to 1e-6 of σ_1; None if at none."""
    last, optimum = history.records[-1].observed, problem.optimum
    if "nearest_modes" not in last or not isinstance(optimum, Spectrum):
        return None
    distance = float(last["nearest_distance"].reshape(-1)[worst])
    if distance > 1e-6 * optimum.scale:
        return None
    modes = last["nearest_modes"].reshape(-1, last["nearest_modes"].shape[-1])[worst]
    return "{" + ",".join(str(j + 1) for j in modes.nonzero().ravel().tolist()) + "}"


def _sentence(
    seen: _Seen,
    prediction: Prediction,
    checks: _Checks,
    result: Result,
    stochastic: bool,
    rest: str | None,
) -> str:
    if result.kind == Kind.DIVERGED:
        return f"No verdict: the run {result.sentence}"
    if seen.excess is None or seen.distance is None:
        return f"No verdict: {prediction.missing}; the run ended at {seen.state}."
    reached = checks.loss and checks.distance is not False and checks.rank
    if reached and checks.rate is not False:
        at_rate = (
            f", at the rate {seen.rate:.4g} where {prediction.rate:.4g} is predicted"
            if checks.rate
            else ""
        )
        where = f", distance {seen.distance:.1e}" if prediction.unique else ""
        return (
            f"Theory and run agree: W reached the predicted optimum of rank {prediction.rank} "
            f"(relative excess loss {seen.excess:.1e}{where}){at_rate}."
        )
    if reached:
        return (
            "Theory and run disagree: W reached the predicted optimum, but its distance decayed at "
            f"the rate {seen.rate:.4g} where {prediction.rate:.4g} is predicted."
        )
    if stochastic:
        return (
            f"No verdict: mini-batch noise holds W away from the optimum ({seen.state}); "
            "a smaller dt or full batches come closer."
        )
    if result.kind in (Kind.TIME, Kind.STEPS, Kind.INTERRUPTED):
        return f"Unfinished: W is not yet at the predicted optimum ({seen.state})."
    if rest is not None:
        return (
            f"W came to rest at the critical point {rest}, not at the optimum ({seen.state}): the "
            "start lies on what flows there."
        )
    return (
        f"Theory and run disagree: W came to rest away from the predicted optimum ({seen.state})."
    )
