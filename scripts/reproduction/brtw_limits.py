"""BRTW Figs 1 to 3, 5 and 6: where the autoencoder's flow goes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reproduction import Claim, Others, subject
from reproduction.modes import mode_rate
from reproduction.panels import PREDICTED, canvas, decays, panel_per, split, spread
from reproduction.runs import Run

AUTOENCODER = "U_r U_rᵀ"


# Of every fitted rate, in every figure; fixed before the runs of these seeds.
RATE_TOLERANCE = 0.03


def distance(run: Run) -> np.ndarray:
    return run.to_optimum


def arrived(run: Run, bound: float = 1e-6) -> bool | None:
    """Whether ‖W − limit‖ is below a bound, relative to W; None while it still falls."""
    d = distance(run)
    if d[-1] <= bound * run.size:
        return True
    return None if d[-1] < 0.9 * d[len(d) * 3 // 4] else False


def worst(verdicts: Sequence[bool | None]) -> bool | None:
    if False in verdicts:
        return False
    return None if None in verdicts or not verdicts else True


def limit_claim(source: str, runs: Sequence[Run], what: str, bound: float = 1e-6) -> Claim:
    ends = [distance(r)[-1] / r.size for r in runs]
    return Claim(
        "paper",
        source,
        f"W(t) converges to {what}",
        f"largest final distance {max(ends):.1e}, relative to the limit",
        f"{bound:g}: far below the distance of any other critical point",
        worst([arrived(r, bound) for r in runs]),
    )


def rate_claims(source: str, runs: Sequence[Run], what: str) -> list[Claim]:
    """The decays against the predicted rates, of all seeds.

    Modes near the slowest are seen in the distance for long and make it fall faster than ρ: a rate
    fitted to it refutes ρ by being smaller, it does not by being larger. Where W(t) is recorded,
    its part along the slowest mode is that mode alone, and is held to ρ on both sides.
    """
    bound = f"{RATE_TOLERANCE:.0%}, for all fitted rates"
    fits = [(r.measured_rate, r.predicted_rate) for r in runs]
    errors = [m / p - 1 for m, p in fits if m and p]
    missing = len(runs) - len(errors)
    unseen = f"; {missing} without a fit or a prediction" if missing else ""
    slower = worst([e >= -RATE_TOLERANCE for e in errors])
    found = [
        Claim(
            "ours",
            source,
            f"the distance falls no slower than at the predicted rate, {what}",
            f"least excess {min(errors, default=math.nan):+.2%} in {len(errors)} fits{unseen}",
            bound,
            None if missing and slower else slower,
        )
    ]
    alone = [(mode_rate(r), r.predicted_rate) for r in runs]
    known = [abs(m / p - 1) for m, p in alone if m and p]
    if known:
        told = f"largest deviation {max(known):.2%} in {len(known)} of {len(runs)} runs"
        statement = f"along the slowest mode W(t) arrives at the predicted rate, {what}"
        holds = all(e <= RATE_TOLERANCE for e in known)
        found.append(Claim("ours", source, statement, told, bound, holds))
    return found


def by_size(run: Run) -> str:
    return f"d = {run.d}, r = {run.rank}"


def limits_figure(runs: Sequence[Run]) -> Figure:
    """A panel for each depth, a curve for each size: the distance to the limit."""

    def draw(ax: Axes, depth: int, members: list[Run]) -> None:
        ordered = sorted(members, key=lambda r: r.d)
        decays(ax, ordered, distance, by_size, predicted=True, floor=1e-10)
        ax.set(title=f"N = {depth}", ylabel=r"$\|W(t) - U_r U_r^T\|_F$")

    return panel_per(runs, lambda r: r.depth, draw, columns=2)


@subject(
    "brtw/fig01",
    "Convergence of W(t) from balanced starts",
    quick={"size": "[2,4],[5,10]", "seed": "0,1"},
)
class Fig01:
    draw = staticmethod(limits_figure)

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        found = [
            limit_claim("BRTW Fig. 1", members, f"{AUTOENCODER}, balanced, N = {depth}")
            for depth, members in split(runs, lambda r: r.depth).items()
        ]
        return [*found, *rate_claims("BRTW Fig. 1", runs, "balanced, all N and d")]


@subject(
    "brtw/fig02",
    "The error of the autoencoder from balanced starts",
    quick={"size": "[2,4]", "seed": "0,1"},
)
class Fig02:
    @staticmethod
    def draw(runs: Sequence[Run]) -> Figure:
        def draw(ax: Axes, depth: int, members: list[Run]) -> None:
            ordered = sorted(members, key=lambda r: r.d)
            spread(ax, ordered, lambda r: np.sqrt(2 * r["loss"]), by_size)
            for runs_of_size in split(ordered, by_size).values():
                roots = [math.sqrt(2 * r.summary["optimal_loss"]) for r in runs_of_size]
                ax.axhline(float(np.median(roots)), **PREDICTED)
            ax.plot([], [], label=r"$(\sum_{i>r} \lambda_i)^{1/2}$", **PREDICTED)
            ax.set(title=f"N = {depth}", xlabel="flow time t", ylabel=r"$\|X - W(t)X\|_F$")
            ax.set_xscale("log")
            ax.set_ylim(0, 1.4 * ax.get_ylim()[1])
            ax.legend(frameon=False, fontsize=8.5, loc="upper right", ncols=2)

        return panel_per(runs, lambda r: r.depth, draw)

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        found = []
        for depth, members in split(runs, lambda r: r.depth).items():
            roots = [math.sqrt(2 * r.summary["optimal_loss"]) for r in members]
            ends = [math.sqrt(2 * r.summary["loss"]) for r in members]
            error = max(abs(e / s - 1) for e, s in zip(ends, roots, strict=True))
            found.append(
                Claim(
                    "paper",
                    "BRTW Fig. 2",
                    f"‖X − W(t)X‖_F → (Σ_(i>r) λ_i)^(1/2), N = {depth}",
                    f"largest relative error {error:.1e}",
                    "1e-9: the error is of second order in the distance",
                    error <= 1e-9 if worst([arrived(r) for r in members]) else None,
                )
            )
        run = runs[0]
        loss, root = run.summary["loss"], math.sqrt(2 * run.summary["optimal_loss"])
        found.append(
            Claim(
                "paper",
                "BRTW Fig. 2",
                "the text: the functional L¹(W(t)) converges to (Σ_(i>r) λ_i)^(1/2)",
                f"L¹ → {loss:.6g}, the root is {root:.6g}, half its square {root**2 / 2:.6g}",
                "1e-3",
                abs(loss / root - 1) <= 1e-3,
                wrong="S1: the root is the limit of ‖X − WX‖_F; L¹ is half the square of that",
            )
        )
        return found


@subject(
    "brtw/fig03",
    "Two layers become each other's transpose",
    quick={"problem.d": "20", "length": "[2,100]", "seed": "4"},
)
class Fig03:
    @staticmethod
    def draw(runs: Sequence[Run]) -> Figure:
        def draw(ax: Axes, name: str, members: list[Run]) -> None:
            decays(ax, members, lambda r: r["tie_gap"], by_size, predicted=True)
            kind = "general balanced start" if name == "orthogonal" else "special balanced start"
            ax.set(title=f"N = 2, {kind}", ylabel=r"$\|W_1(t) - W_2(t)^T\|_F$")

        return panel_per(runs, lambda r: r.cfg.init.name, draw)

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        found = []
        for name, members in split(runs, lambda r: r.cfg.init.name).items():
            ends = [r["tie_gap"][-1] / math.sqrt(r.rank) for r in members]
            found.append(
                Claim(
                    "paper",
                    "BRTW Fig. 3",
                    f"‖W_1(t) − W_2(t)ᵀ‖ → 0, {name} start",
                    f"largest final value {max(ends):.1e} of ‖W_1‖",
                    "1e-5",
                    worst(
                        [
                            e <= 1e-5 or (None if not arrived(r, 1e-5) else False)
                            for e, r in zip(ends, members, strict=True)
                        ]
                    ),
                )
            )
        tied = [r for r in runs if r.cfg.init.name == "orthogonal"]
        rises = [(r["tie_gap"][0], r["tie_gap"].max()) for r in tied]
        found.append(
            Claim(
                "ours",
                "BRTW §7.3",
                "“W_2(t) = W_1(t)ᵀ” holds in the limit, not along the way (S1): under (48) tied "
                "layers, which §5 keeps tied, come apart first (C2)",
                f"from {max(a for a, _ in rises):.0e} it rises to {min(b for _, b in rises):.2f}",
                "from 1e-12 or less to 0.1 or more",
                all(a <= 1e-12 and b >= 0.1 for a, b in rises),
            )
        )
        return found


@subject(
    "brtw/fig05",
    "Convergence of W(t) from unbalanced starts",
    quick={"size": "[2,10]", "seed": "0,1"},
)
class Fig05:
    draw = staticmethod(limits_figure)

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        found = [
            limit_claim("BRTW Fig. 5", members, f"{AUTOENCODER}, unbalanced, N = {depth}")
            for depth, members in split(runs, lambda r: r.depth).items()
        ]
        what = "that of the unbalanced layers where they end"
        return [*found, *rate_claims("BRTW Fig. 5", runs, what)]


@subject(
    "brtw/fig06",
    "Unbalanced starts: the limit, and the layers that stay apart",
    quick={"size": "[2,10]", "seed": "0,1"},
)
class Fig06:
    @staticmethod
    def draw(runs: Sequence[Run]) -> Figure:
        figure, (left, right) = canvas(2)
        deep, two = ([r for r in runs if (r.depth == 2) == flat] for flat in (False, True))
        shown = deep or two
        decays(left, shown, distance, by_size, predicted=True, floor=1e-10)
        left.set(title=f"N = {shown[0].depth}", ylabel=r"$\|W(t) - U_r U_r^T\|_F$")
        spread(right, two, lambda r: r["tie_gap"], by_size)
        for members in split(two, by_size).values():
            right.axhline(float(np.median([_least_gap(r) for r in members])), **PREDICTED)
        right.plot([], [], label="least that its gap allows", **PREDICTED)
        right.set_xscale("log")
        right.set(title="N = 2", xlabel="flow time t", ylabel=r"$\|W_2(t) - W_1(t)^T\|_F$")
        right.set_ylim(0, 1.45 * right.get_ylim()[1])
        right.legend(frameon=False, fontsize=8.5, loc="upper right", ncols=2)
        return figure

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        deep, two = ([r for r in runs if (r.depth == 2) == flat] for flat in (False, True))
        found = []
        if deep:
            found.append(
                limit_claim(
                    "BRTW Fig. 6 left", deep, f"{AUTOENCODER}, unbalanced, N = {deep[0].depth}"
                )
            )
            what = "that of the unbalanced layers where they end"
            found += rate_claims("BRTW Fig. 6 left", deep, what)
        ends = [r["tie_gap"][-1] for r in two]
        still = [abs(r["tie_gap"][-1] / r["tie_gap"][len(r.t) * 3 // 4] - 1) for r in two]
        found.append(
            Claim(
                "paper",
                "BRTW Fig. 6 right",
                "N = 2, unbalanced: W_2(t) does not converge to W_1(t)ᵀ",
                f"‖W_2 − W_1ᵀ‖ comes to rest at {min(ends):.3g} or more "
                f"(it moves by {max(still):.0e} in the last quarter)",
                "0.01, far above its distance from rest",
                min(ends) > 0.01 and max(still) < 0.01
                if worst([arrived(r) for r in two])
                else None,
            )
        )
        floors = [(e, _least_gap(r)) for e, r in zip(ends, two, strict=True)]
        found.append(
            Claim(
                "ours",
                "BRTW Lemma 2(3)",
                "the conserved gap D forbids it: ‖W_2 − W_1ᵀ‖ ≥ ‖D‖/(‖W_1‖ + ‖W_2‖)",
                f"the least ratio of the two is {min(a / b for a, b in floors):.3g} "
                f"in {len(floors)} runs",
                "the bound",
                all(a >= b for a, b in floors),
            )
        )
        return found


def _least_gap(run: Run) -> float:
    """‖D‖_F/(‖W_1‖ + ‖W_2‖) ≤ ‖W_2 − W_1ᵀ‖_F, from D = W_2ᵀ(W_2 − W_1ᵀ) + (W_2 − W_1ᵀ)ᵀW_1ᵀ."""
    W_1, W_2 = run.layers
    norms = [torch.linalg.matrix_norm(W, 2) for W in (W_1, W_2)]
    return float(torch.linalg.matrix_norm(W_2.mT @ W_2 - W_1 @ W_1.mT) / sum(norms))
