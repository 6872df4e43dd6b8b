"""Does a finished run agree with the theory: the summary, its table and its sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from deeplin.landscape import Plateau
from deeplin.loop import History, Kind, Result
from deeplin.prediction import Prediction
from deeplin.problems.contract import Problem
from deeplin.problems.spectrum import Spectrum
from deeplin.runner.closing_table import closing_table
from deeplin.runner.measured import (
    EXCESS_TOLERANCE,
    Part,
    Seen,
    fitted_rate,
    parts_of,
)
from deeplin.runner.terminal import laid_out
from deeplin.runner.unpredicted import Place, place_of, told_of

__all__ = ["Verdict", "fitted_rate", "judge"]


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
        return laid_out(self.table)


def judge(
    problem: Problem,
    prediction: Prediction,
    history: History,
    result: Result,
    *,
    seconds: float,
    stochastic: bool = False,
    plateaus: Sequence[Sequence[Plateau]] = (),
    unstable: str | None = None,
    matrices: Sequence[Tensor] = (),
    follows_no_flow: str | None = None,
) -> Verdict:
    """Hold a run's history against its prediction.

    `relative_excess_loss` is (L − L*)/L*, or relative to L(0) where the optimum L* is 0. `plateaus`
    are the critical points that each trajectory passed; `unstable` says what is too long of the
    steps; `matrices` have the W of the end for their product, for where nothing is predicted;
    `follows_no_flow` names an optimizer that does not. Trajectories that were lost on the way are
    not judged.
    """
    parts = parts_of(problem, prediction, history, stochastic=stochastic)
    part = max(parts, key=lambda part: part.badness)
    seen, prediction, worst = part.seen, part.prediction, part.worst
    place, scores = None, _scores(problem, prediction, history, worst)
    if problem.optimum is None and matrices:
        place = place_of(problem, [M.reshape(-1, *M.shape[-2:])[worst] for M in matrices], result)
    end = _End(
        result,
        stochastic,
        unstable,
        _resting_place(problem, history, worst),
        _rise(history, worst),
        place,
        problem.told({name: measured for name, (measured, _) in scores.items()}),
        follows_no_flow,
    )
    sentence = _without_the_lost(history, result) + _sentence(part, end) + _by_their_starts(parts)
    summary: dict[str, object] = {
        "loss": seen.loss,
        "optimal_loss": prediction.loss,
        "relative_excess_loss": seen.excess,
        **{name: measured for name, (measured, _) in scores.items()},
        "distance_to_limit": seen.distance,
        "rank": seen.rank,
        "balancedness_gap_initial": seen.gap_initial,
        "balancedness_gap_final": seen.gap_final,
        "largest_drift": seen.largest_drift,
        "rate_measured": seen.rate,
        "rate_predicted": prediction.rate,
        "steps": result.step,
        "flow_time": result.t,
        "seconds": round(seconds, 3),
        "result": result.sentence,
        "result_kind": str(result.kind),
        "verdict": sentence,
    }
    passed = [[plateau.as_dict() for plateau in report] for report in plateaus]
    if any(p.left for p in parts):
        summary["left_invariant_set_at"] = min(min(p.left) for p in parts if p.left)
    if history.records[-1].observed["loss"].numel() > 1:
        summary["repeats"] = _of_repeats(problem, history, parts, passed)
    if passed:
        summary["plateaus"] = passed[worst]
    table = closing_table(
        seen, prediction, part.checks, "unfinished" if _is_open(part, end) else "NO"
    )
    table[2:2] = [
        (name.replace("_", " "), f"{run:.10g}", "-" if limit is None else f"{limit:.10g}", "")
        for name, (run, limit) in scores.items()
    ]
    return Verdict(summary, table, sentence, worst)


def _scores(
    problem: Problem, prediction: Prediction, history: History, worst: int
) -> dict[str, tuple[float, float | None]]:
    """What the problem itself reports of a trajectory's end, and of the limit predicted for it."""
    last, limit = history.records[-1].observed, prediction.limit
    of_limit = {} if limit is None else problem.report(limit)
    like = history.column("loss")
    names = of_limit or problem.report_pair(*(like.new_zeros(d, 1) for d in problem.shape))
    return {
        name: (
            float(last[name].reshape(-1)[worst]),
            float(of_limit[name]) if name in of_limit else None,
        )
        for name in names
        if name in last
    }


def _of_repeats(
    problem: Problem, history: History, parts: Sequence[Part], passed: list[list[dict[str, object]]]
) -> dict[str, object]:
    """The numbers of every trajectory, in their order."""
    last = history.records[-1].observed
    found: dict[str, object] = {"loss": last["loss"].reshape(-1).tolist()}
    by_number = {i: (p, n) for p in parts for n, i in enumerate(p.members)}
    each = [by_number.get(i) for i in range(last["loss"].numel())]  # None of those that were lost
    for name in ("relative_excess_loss", "distance_to_limit"):
        known = any(p.prediction.limit is not None for p in parts)
        found[name] = [at and at[0].ends[name][at[1]] for at in each] if known else None
    found["rank"] = last["rank"].reshape(-1).int().tolist()
    found["rate_measured"] = [at and at[0].rates[at[1]] for at in each]
    if history.lost:
        found["lost"] = [
            None if i not in history.lost else asdict(history.lost[i]) for i in range(len(each))
        ]
    if len(parts) > 1:
        found["optimal_loss"] = [at and at[0].prediction.loss for at in each]
        found["rank_predicted"] = [at and at[0].prediction.rank for at in each]
    if passed:
        found["plateaus"] = passed
    return found


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


def _rise(history: History, worst: int) -> tuple[float, float] | None:
    """(the loss of a trajectory's start, that of its end), if the end's is above."""
    loss = history.column("loss").reshape(len(history.records), -1)[:, worst]
    first, last = float(loss[0]), float(loss[-1])
    return (first, last) if last > first + EXCESS_TOLERANCE * abs(first) else None


def _without_the_lost(history: History, result: Result) -> str:
    if not result.lost or result.rest is None:
        return ""
    count = history.records[-1].observed["loss"].numel()
    return f"Of {count - len(result.lost)} of {count} trajectories, without those lost: "


@dataclass(frozen=True)
class _End:
    """How a run ended: what is said where it is not at what is predicted.

    `unstable`: what is too long of the steps, `rest`: at which critical point W is, `rise`: from
    where to where the loss rose, `place`: of W where nothing is predicted; None if not so.
    `found`: what the problem says of W.
    """

    result: Result
    stochastic: bool
    unstable: str | None
    rest: str | None
    rise: tuple[float, float] | None
    place: Place | None
    found: str
    follows_no_flow: str | None

    @property
    def kind(self) -> Kind:
        return self.result.kind if self.result.rest is None else self.result.rest


def _is_open(part: Part, end: _End) -> bool:
    """Whether what does not hold at a run's end might still have come: it was on its way."""
    if part.left or part.checks.reached:
        return False
    if end.kind in (Kind.TIME, Kind.STEPS):
        return end.unstable is None and end.rise is None and not end.stochastic
    return end.kind is Kind.INTERRUPTED


def _sentence(part: Part, end: _End) -> str:
    seen, prediction, checks = part.seen, part.prediction, part.checks
    if end.kind in (Kind.DIVERGED, Kind.FAULT):
        return f"No verdict: the run {end.result.sentence}"
    if seen.excess is None or seen.distance is None:
        return _unpredicted(part, end)
    if part.left and end.follows_no_flow is None:
        return _left(part)
    what = "limit" if prediction.why else "optimum"
    because = f": {prediction.because}" if prediction.because else ""
    if checks.reached and checks.rate is not False:
        at_rate = (
            f", at the rate {seen.rate:.4g} where {prediction.rate:.4g} is predicted"
            if checks.rate
            else ""
        )
        where = f", distance {seen.distance:.1e}" if prediction.unique else ""
        return (
            f"Theory and run agree: W reached the predicted {what} of rank {prediction.rank} "
            f"(relative excess loss {seen.excess:.1e}{where}){at_rate}{because}."
        )
    if checks.reached:
        return (
            f"Theory and run disagree: W reached the predicted {what}, but "
            f"{'its slowest mode' if seen.alone else 'its distance'} decayed at "
            f"the rate {seen.rate:.4g} where {prediction.rate:.4g} is predicted."
        )
    return _elsewhere(part, end, what, because)


def _unpredicted(part: Part, end: _End) -> str:
    """What is told of a run of which nothing is predicted, by how it ended."""
    seen = part.seen
    if end.unstable is not None or (end.rise is not None and not end.stochastic):
        return _strayed(seen, end)
    if end.place is None:
        return f"No verdict: {part.prediction.missing}; the run ended at {seen.state}."
    return told_of(end.place, end.kind, seen.state, end.found, stochastic=end.stochastic)


def _strayed(seen: Seen, end: _End) -> str:
    """What is told of a run that is not that of the flow."""
    if end.unstable is not None or end.rise is None:
        return f"No verdict ({seen.state}): {end.unstable}"
    first, last = end.rise
    return (
        f"No verdict: the loss rose from {first:.4g} to {last:.4g}, as no descent does "
        f"({seen.state}): the steps do not follow the flow; take a smaller step or tolerance."
    )


def _elsewhere(part: Part, end: _End, what: str, because: str) -> str:
    """What is told of a run that did not reach what is predicted, by how it ended."""
    seen = part.seen
    if part.left:
        return (
            f"No verdict: {end.follows_no_flow}, which follows no flow, left what the flow keeps "
            f"({seen.state}){because}."
        )
    if end.unstable is not None:
        return _strayed(seen, end)
    if end.stochastic and end.kind is not Kind.INTERRUPTED:
        return (
            f"No verdict: mini-batch noise holds W away from the {what} ({seen.state}); "
            "a smaller dt or full batches come closer."
        )
    if end.rise is not None:
        return _strayed(seen, end)
    if end.kind in (Kind.TIME, Kind.STEPS, Kind.INTERRUPTED):
        return f"Unfinished: W is not yet at the predicted {what} ({seen.state}){because}."
    if end.rest is not None:
        return (
            f"W came to rest at the critical point {end.rest}, not at the {what} ({seen.state}): "
            "the start lies on what flows there."
        )
    if end.kind is Kind.CONVERGED:
        return (
            f"Stopped early: the gradient norm, {seen.gradient_norm:.2g}, fell to what is asked of "
            f"it before W was at the predicted {what} ({seen.state}){because}; a smaller "
            "stop.grad_norm goes on."
        )
    if end.kind is Kind.PAST_BEST:
        return (
            f"Stopped early, where what is held out is predicted worse again, before W was at the "
            f"predicted {what} ({seen.state}){because}."
        )
    if end.follows_no_flow is not None:
        return (
            f"No verdict: {end.follows_no_flow}, which follows no flow, came to rest away from the "
            f"predicted {what} ({seen.state})."
        )
    return f"Theory and run disagree: W came to rest away from the predicted {what} ({seen.state})."


def _left(part: Part) -> str:
    """What is told of a run that ended where the theory does not allow."""
    prediction, times = part.prediction, part.left
    name = f"det W {'<' if prediction.sign < 0 else '>'} 0" if prediction.sign else "of its start"
    count = (
        f", in {len(times)} of {len(part.members)} trajectories" if len(part.members) > 1 else ""
    )
    predicted = f" Predicted: {prediction.because}." if prediction.because else ""
    return (
        f"Theory and run disagree: W left the invariant set {name} at t = {min(times):.4g}{count}: "
        f"the integrator, not the flow.{predicted}"
    )


def _by_their_starts(parts: Sequence[Part]) -> str:
    """How the trajectories ended, where not the same is predicted for all."""
    if len(parts) < 2:
        return ""
    trajectories = sum(len(part.members) for part in parts)
    told = []
    for part in parts:
        limit = part.prediction
        where = f"to rank {limit.rank}, loss {limit.loss:.6g}" if limit.limit is not None else "?"
        gone = f", {len(part.left)} left what is invariant" if part.left else ""
        told.append(f"{len(part.members)} of {trajectories} {where} ({part.there} there{gone})")
    return f" By their starts: {'; '.join(told)}."
