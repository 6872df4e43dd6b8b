"""What a run showed of the trajectories of one prediction, and whether that holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deeplin.loop import History
from deeplin.prediction import Prediction
from deeplin.problems.contract import Problem

__all__ = [
    "EXCESS_TOLERANCE",
    "RATE_TOLERANCE",
    "Checks",
    "Part",
    "Seen",
    "fitted_rate",
    "parts_of",
]

EXCESS_TOLERANCE = 1e-6  # relative, of the loss
RATE_TOLERANCE = 0.05  # relative, of the decay rate


@dataclass(frozen=True)
class Seen:
    """What was measured of the worst trajectory, None where nothing is predicted to compare it.

    `rate` is that of the slowest mode where it was seen `alone`, else that of the distance. Modes
    near the slowest make the distance fall faster for long: a rate of it refutes ρ by being
    smaller, it does not by being larger. The gaps are those of layers; without layers there is the
    `largest_drift` of what the flow conserves.
    """

    loss: float
    excess: float | None
    distance: float | None
    rank: int
    rate: float | None
    alone: bool
    gap_initial: float | None
    gap_final: float | None
    largest_drift: float | None
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
class Checks:
    """Whether each prediction holds; None where there is none or nothing was measured."""

    loss: bool | None
    distance: bool | None
    rank: bool | None
    rate: bool | None

    @property
    def reached(self) -> bool:
        return bool(self.loss and self.distance is not False and self.rank)

    @classmethod
    def of(cls, seen: Seen, prediction: Prediction) -> Checks:
        if seen.excess is None or seen.distance is None:
            return cls(None, None, None, None)
        near = seen.distance <= prediction.distance_tolerance
        return cls(
            abs(seen.excess) <= EXCESS_TOLERANCE,
            near if prediction.unique else None,
            _has_rank(seen.rank, prediction),
            cls._of_rate(seen.rate, prediction.rate, seen.alone),
        )

    @staticmethod
    def _of_rate(rate: float | None, rho: float | None, alone: bool) -> bool | None:
        if rate is None or not rho:
            return None
        if not alone and rate / rho - 1 > RATE_TOLERANCE:
            return None
        return abs(rate / rho - 1) <= RATE_TOLERANCE


@dataclass(frozen=True)
class Part:
    """The trajectories of one prediction: the worst of them, and how each ended.

    - `members`: their numbers; `worst`: the number of the worst; `rates`: of each
    - `ends`: relative_excess_loss and distance_to_limit of each at the end
    - `there`: how many are at the limit; `left`: the times at which they left what is invariant,
      those that did not come back
    """

    prediction: Prediction
    members: list[int]
    worst: int
    seen: Seen
    checks: Checks
    rates: list[float | None]
    ends: dict[str, list[float | None]]
    there: int
    left: list[float]

    @property
    def badness(self) -> tuple[bool, bool, float]:
        """The larger the worse: left what is invariant; not at the limit; how far from it."""
        excess = self.seen.excess
        wrong = excess is not None and (not self.checks.reached or self.checks.rate is False)
        return bool(self.left), wrong, abs(excess or 0.0)


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


def parts_of(
    problem: Problem, prediction: Prediction, history: History, *, stochastic: bool
) -> list[Part]:
    """A run's end and rates, beside each prediction of its trajectories."""

    def over_time(name: str) -> Tensor:
        return history.column(name).reshape(len(history.records), -1)

    loss, ranks = over_time("loss")[-1], over_time("rank")[-1].int().tolist()
    living = [i for i in range(len(ranks)) if i not in history.lost] or list(range(len(ranks)))
    gradient = over_time("gradient_norm")[-1]

    def ends_of(name: str) -> tuple[float | None, float | None]:
        if name not in history.records[0].observed:
            return None, None
        largest = over_time(name)[:, living].amax(1)
        return float(largest[0]), float(largest[-1])

    gaps, drift = ends_of("balancedness_gap"), ends_of("largest_drift")[1]
    shows_mode = "along_slowest_mode" in history.records[0].observed
    shows_sign = "sign_det" in history.records[0].observed
    sign = over_time("sign_det") if shows_sign else None
    parts = []
    for case, of_case in prediction.grouped(len(ranks)):
        members = [i for i in of_case if i in living]
        if not members:
            continue
        relative, distance = None, None
        rates: list[float | None] = [None] * len(members)
        alone = [False] * len(members)
        if case.limit is not None and case.loss is not None:
            scale = _scale(problem, case.limit, case.loss)
            relative = over_time("excess_loss")[:, members] / scale
            distance = over_time("distance_to_limit")[:, members]
            floor = 1e3 * torch.finfo(distance.dtype).eps * max(case.size, 1e-300)
            if case.unique and not stochastic:
                rates = [fitted_rate(history.t, column, floor) for column in distance.unbind(1)]
                if case.mode is not None and shows_mode:
                    parts_along = over_time("along_slowest_mode")[:, members].unbind(1)
                    seen_along = [fitted_rate(history.t, c, floor) for c in parts_along]
                    alone = [rate is not None for rate in seen_along]
                    rates = [b if a is None else a for a, b in zip(seen_along, rates, strict=True)]
        left = [
            _left_at(
                case,
                history.t,
                None if sign is None else sign[:, i],
                None if relative is None else relative[:, number],
            )
            for number, i in enumerate(members)
        ]
        # What left is on its way elsewhere: no rate of this limit.
        rates = [rate if at is None else None for rate, at in zip(rates, left, strict=True)]
        ends = loss[members] if relative is None else relative[-1].abs()
        number = int(ends.argmax())
        worst = members[number]
        of_each = [
            Seen(
                loss=float(loss[i]),
                excess=None if relative is None else float(relative[-1, n]),
                distance=None if distance is None else float(distance[-1, n]),
                rank=ranks[i],
                rate=None,
                alone=False,
                gap_initial=gaps[0],
                gap_final=gaps[1],
                largest_drift=drift,
                gradient_norm=float(gradient[i]),
            )
            for n, i in enumerate(members)
        ]
        there = sum(
            at is None and Checks.of(s, case).reached for s, at in zip(of_each, left, strict=True)
        )
        worst_rate = _worst_rate(rates, alone, case.rate)
        seen = Seen(
            loss=float(loss[worst]),
            excess=of_each[number].excess,
            distance=None if distance is None else float(distance[-1].max()),
            rank=next((ranks[i] for i in members if not _has_rank(ranks[i], case)), ranks[worst]),
            rate=None if worst_rate is None else rates[worst_rate],
            alone=worst_rate is not None and alone[worst_rate],
            gap_initial=gaps[0],
            gap_final=gaps[1],
            largest_drift=drift,
            gradient_norm=float(gradient[members].max()),
        )
        gone = [at for at in left if at is not None]
        checks = Checks.of(seen, case)
        at_end: dict[str, list[float | None]] = {
            "relative_excess_loss": [s.excess for s in of_each],
            "distance_to_limit": [s.distance for s in of_each],
        }
        parts.append(Part(case, members, worst, seen, checks, rates, at_end, there, gone))
    return parts


def _has_rank(rank: int, prediction: Prediction) -> bool:
    """Whether W(t) may have it: that of the start, or of the limit, or numerically between."""
    most = prediction.rank if prediction.start_rank is None else prediction.start_rank
    return prediction.rank <= rank <= max(most, prediction.rank)


def _left_at(
    case: Prediction, t: Tensor, sign: Tensor | None, relative: Tensor | None
) -> float | None:
    """When a trajectory was first seen outside what is invariant; None if it ended inside.

    The sign of det W that the flow keeps has changed, or the loss is below its infimum there.
    """
    seen = []
    if case.sign and sign is not None:
        other = sign == -case.sign
        known = sign[sign != 0]
        if len(known) and float(known[-1]) == -case.sign:
            seen.append(float(t[other.nonzero()[0, 0]]))
    if case.why and relative is not None and float(relative[-1]) < -EXCESS_TOLERANCE:
        seen.append(float(t[(relative < -EXCESS_TOLERANCE).nonzero()[0, 0]]))
    return min(seen) if seen else None


def _scale(problem: Problem, limit: Tensor, optimal_loss: float) -> float:
    """What an excess of the loss is relative to: L*, or for a perfect fit the loss of W = 0."""
    at_zero = float(problem.loss(torch.zeros_like(limit)))
    return optimal_loss if optimal_loss > 2e-12 * at_zero else at_zero


def _worst_rate(
    rates: Sequence[float | None], alone: Sequence[bool], predicted: float | None
) -> int | None:
    """The number of the rate that is farthest from the predicted one, first of those that refute.

    A rate of the distance above the predicted one is the last of all.
    """
    known = [i for i, rate in enumerate(rates) if rate is not None]

    def badness(i: int) -> tuple[bool, float]:
        excess = (rates[i] or 0.0) - (predicted or 0.0)
        return alone[i] or excess < 0, abs(excess)

    return max(known, key=badness) if known else None
