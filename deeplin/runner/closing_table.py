"""The table at a run's end: what was measured beside what is predicted."""

from __future__ import annotations

from deeplin.prediction import Prediction
from deeplin.runner.measured import RATE_TOLERANCE, Checks, Seen

__all__ = ["closing_table"]


def closing_table(
    seen: Seen, prediction: Prediction, checks: Checks, failed: str
) -> list[tuple[str, str, str, str]]:
    """Rows (what, run, theory, note), a head first; `failed` stands where a prediction fails."""

    def mark(check: bool | None, text: str) -> str:
        return text if check is None else f"{'ok' if check else failed}   {text}".rstrip()

    kept = _conserved(seen)
    first = ("", "run", "theory", "")
    if seen.excess is None or seen.distance is None:
        return [
            first,
            ("loss", f"{seen.loss:.10g}", "-", prediction.missing),
            ("gradient norm", f"{seen.gradient_norm:.2e}", "0", ""),
            ("rank of W", str(seen.rank), "-", ""),
            *kept,
        ]
    what = "limit" if prediction.why else "optimum"
    start, ranks = prediction.start_rank, str(prediction.rank)
    if prediction.why and start is not None and start > prediction.rank:
        ranks = f"{start} to {ranks}"
    rate, rho = seen.rate, prediction.rate
    rate_note = (
        prediction.rate_missing
        if rho is None
        else "no exponential decay was reached"
        if rate is None
        else f"{100 * (rate / rho - 1):+.2f} %, tolerance {100 * RATE_TOLERANCE:.0f} %"
        if seen.alone or checks.rate is not None
        else f"{100 * (rate / rho - 1):+.2f} %: of the distance, which faster modes still make fall"
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
            f"distance of W to its rank-{prediction.rank} {what}",
            f"{seen.distance:.2e}",
            "0",
            mark(checks.distance, f"tolerance {prediction.distance_tolerance:.1e}")
            if prediction.unique
            else "the optimum is not unique",
        ),
        ("rank of W", str(seen.rank), ranks, mark(checks.rank, "")),
        (
            "local decay rate",
            "-" if rate is None else f"{rate:.5g}",
            "-" if rho is None else f"{rho:.5g}",
            mark(checks.rate, rate_note),
        ),
        *kept,
    ]


def _conserved(seen: Seen) -> list[tuple[str, str, str, str]]:
    if seen.gap_initial is None or seen.gap_final is None:
        if seen.largest_drift is None:
            return []
        drift = f"{seen.largest_drift:.2e}"
        return [("largest drift at the end", drift, "0", "of what the flow conserves")]
    start = f"{seen.gap_initial:.2e}"
    return [
        (
            "balancedness gap at the start",
            start,
            "",
            "largest |W_{j+1}'W_{j+1} - W_jW_j'|, 0 for balanced layers",
        ),
        (
            "balancedness gap at the end",
            f"{seen.gap_final:.2e}",
            start,
            "conserved by the flow, drifts with the step",
        ),
    ]
