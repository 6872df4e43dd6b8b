"""BRTW Figs 7 to 12: how fast the flow arrives, for autoencoders and for a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reproduction import Claim, Others, subject
from reproduction.brtw_limits import (
    AUTOENCODER,
    RATE_TOLERANCE,
    arrived,
    distance,
    limit_claim,
    rate_claims,
    worst,
)
from reproduction.modes import rate_of
from reproduction.panels import canvas, decays, panel_per, split, time_to
from reproduction.runs import Run


def by_depth(run: Run) -> str:
    return f"N = {run.depth}"


def size_of(run: Run) -> str:
    return f"(d, r) = ({run.d}, {run.rank})"


def to_last(run: Run) -> np.ndarray:
    """‖W(t) − W(T)‖_F from the recorded factors."""
    left, right = run.history.column("left"), run.history.column("right")
    last = left[-1] @ right[-1]
    norms = [torch.linalg.matrix_norm(L @ R - last) for L, R in zip(left, right, strict=True)]
    return torch.stack(norms).numpy()


def panels(
    runs: Sequence[Run], values: Callable[[Run], np.ndarray], ylabel: str, *, predicted: bool
) -> Figure:
    """A panel for each size, a curve for each depth."""

    def draw(ax: Axes, _: int, members: list[Run]) -> None:
        decays(ax, _sorted(members), values, by_depth, predicted=predicted, floor=1e-10)
        ax.set(title=size_of(members[0]), ylabel=ylabel)

    return panel_per(runs, lambda r: r.d, draw)


def by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of each seed, from the smallest N to the largest."""
    return [_sorted(members) for members in split(runs, lambda r: r.cfg.seed).values()]


def medians(runs: Sequence[Run], value: Callable[[Run], float | None]) -> dict[int, float]:
    """The median over the seeds for each N; NaN where a run has no value."""
    of_depth = split(runs, lambda r: r.depth)
    return {n: float(np.median([value(r) or np.nan for r in m])) for n, m in of_depth.items()}


def _sorted(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda r: r.depth)


def autoencoder_figure(runs: Sequence[Run]) -> Figure:
    """Above the paper's ‖W(t) − W(T)‖, which plunges at T; below the distance to the limit."""
    sizes = split(runs, lambda r: r.d)
    figure, axes = canvas(len(sizes), 2, height=3.3)
    for i, members in enumerate(sizes.values()):
        above, below = axes[i], axes[len(sizes) + i]
        decays(above, _sorted(members), to_last, by_depth, floor=1e-10)
        decays(below, _sorted(members), distance, by_depth, predicted=True, floor=1e-10)
        above.set(title=size_of(members[0]), ylabel=r"$\|W(t) - W(T)\|_F$", xlabel="")
        below.set(ylabel=r"$\|W(t) - U_r U_r^T\|_F$")
    return figure


@subject(
    "brtw/fig07",
    "Rates from balanced starts, autoencoder",
    quick={"size": "[2,20],[5,20]", "seed": "0,1"},
)
class Fig07:
    draw = staticmethod(autoencoder_figure)

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        sizes = split(runs, lambda r: r.d)
        found = []
        for members in sizes.values():
            source = f"BRTW Fig. 7, {size_of(members[0])}"
            found.append(limit_claim(source, members, f"{AUTOENCODER}, balanced", 1e-5))
            found += rate_claims(source, members, "every N")
            rates = [[rate_of(r) or np.nan for r in each] for each in by_seed(members)]
            if len(rates[0]) > 1:
                change = [each[-1] / each[0] - 1 for each in rates]
                spread = max(max(each) / min(each) - 1 for each in rates)
                found.append(
                    Claim(
                        "paper",
                        f"BRTW §7.3, {size_of(members[0])}",
                        "the convergence rates decrease with N",
                        "deepest over N = 2: "
                        + ", ".join(f"{c:+.2%}" for c in change)
                        + f" for the seeds; any two N of a seed are equal to {spread:.2%}",
                        f"smaller by more than {RATE_TOLERANCE:.0%} in the median",
                        bool(np.median(change) < -RATE_TOLERANCE),
                        wrong="E9: the asymptotic rate does not depend on N",
                    )
                )
        if len(sizes) > 1:
            small, large = (
                [m[0].predicted_rate or np.nan for m in by_seed(of_size)]
                for of_size in sizes.values()
            )
            found.append(
                Claim(
                    "paper",
                    "BRTW §7.1",
                    "the convergence rates decrease with d",
                    f"ρ = {_range(small)} at d = {min(sizes)}, {_range(large)} at d = {max(sizes)}",
                    "smaller in every seed; r grows with d, too",
                    all(b < a for a, b in zip(small, large, strict=True)),
                )
            )
        plunge = [to_last(r)[-2] / distance(r)[-2] for r in runs]
        found.append(
            Claim(
                "ours",
                "BRTW Fig. 7",
                "‖W(t) − W(T)‖ plunges near T by construction, the distance does not",
                f"ratio of the two one record before T: {_range(plunge)}, at T: 0",
                "the ratio is below 1 in the median, and no distance at T is 0",
                bool(np.median(plunge) < 1 and all(distance(r)[-1] > 0 for r in runs)),
            )
        )
        return found


def _range(values: Sequence[float]) -> str:
    return f"{np.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


@subject(
    "brtw/fig08",
    "Rates from unbalanced starts, autoencoder",
    quick={"size": "[2,20]", "seed": "0,1"},
)
class Fig08:
    draw = staticmethod(autoencoder_figure)

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        found = []
        for members in split(runs, lambda r: r.d).values():
            source = f"BRTW Fig. 8, {size_of(members[0])}"
            found.append(limit_claim(source, members, f"{AUTOENCODER}, unbalanced", 1e-5))
            found += rate_claims(source, members, "that of the unbalanced layers where they end")
        pairs = pairs_of(runs, others("brtw/fig07"))
        if pairs:
            times = [(time_to(a, 1e-3), time_to(b, 1e-3)) for a, b in pairs]
            later = sum(b > a for a, b in times)
            found.append(
                Claim(
                    "paper",
                    "BRTW §7.1.3",
                    "convergence is slightly faster from balanced than from unbalanced starts",
                    f"to a thousandth of the distance: later in {later} of {len(times)} cases, "
                    f"median ratio {np.median([b / a for a, b in times]):.2f}",
                    "later in the median; it depends on the scale of the Gaussian layers, which "
                    "the paper leaves open",
                    bool(np.median([b / a for a, b in times]) > 1),
                )
            )
        return found


def pairs_of(runs: Sequence[Run], others: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Each run beside the other of its d, N and seed, that first."""
    known = {(r.d, r.depth, r.cfg.seed): r for r in others}
    keyed = [((r.d, r.depth, r.cfg.seed), r) for r in runs]
    return [(known[key], r) for key, r in keyed if key in known]


def least_value(run: Run) -> float:
    """σ_r(W̃), W̃ the solution."""
    return float(torch.linalg.svdvals(run.problem.solution)[run.rank - 1])


def lower_bound(run: Run) -> float:
    """σ_r(W̃)^{2−2/N} λ_min(C) ≤ ρ: the least eigenvalues of 𝒜_W and of ξ ↦ P_W(ξC) on T_W."""
    least = float(run.problem.spectrum.values[-1])
    return least_value(run) ** (2 - 2 / run.depth) * least


def supervised_claims(source: str, runs: Sequence[Run], start: str) -> list[Claim]:
    found = []
    for members in split(runs, lambda r: r.d).values():
        where = f"{source}, {size_of(members[0])}"
        found.append(limit_claim(where, members, f"W of (32), {start}", 1e-5))
        found += rate_claims(where, members, f"{start}, every N")
        if start == "balanced":
            above = [(r.depth, (rate_of(r) or np.nan) / lower_bound(r) - 1) for r in members]
            least = {n: min(e for depth, e in above if depth == n) for n, _ in sorted(above)}
            found.append(
                Claim(
                    "ours",
                    where,
                    "σ_r(W̃)^(2−2/N) λ_min(XXᵀ), the least eigenvalues of 𝒜_W and of the Hessian, "
                    "bounds the rate from below",
                    "least excess " + ", ".join(f"{e:+.1%} (N = {n})" for n, e in least.items()),
                    f"{RATE_TOLERANCE:.0%}, the tolerance of a fitted rate, below it",
                    all(e >= -RATE_TOLERANCE for e in least.values()),
                )
            )
        rates, teachers = medians(members, rate_of), medians(members, least_value)
        if len(rates) > 1:
            told = [f"{m:.3g} (N = {n}, σ_r(W̃) = {teachers[n]:.2g})" for n, m in rates.items()]
            found.append(
                Claim(
                    "paper",
                    where,
                    "convergence is slower for larger N",
                    "median rates " + ", ".join(told),
                    "smaller for the largest N than for the smallest; not by N alone (E9): the "
                    "teacher is drawn with the student's N layers, and σ_r(W̃) falls with N",
                    rates[max(rates)] < rates[min(rates)],
                )
            )
    return found


@subject(
    "brtw/fig09",
    "Rates from balanced starts, supervised",
    quick={"size": "[2,20],[20,20]", "seed": "0"},
)
class Fig09:
    @staticmethod
    def draw(runs: Sequence[Run]) -> Figure:
        return panels(runs, distance, r"$\|W(t) - U_k \Sigma_k V_k^T C^{-1/2}\|_F$", predicted=True)

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        return supervised_claims("BRTW Fig. 9", runs, "balanced")


@subject(
    "brtw/fig10",
    "Rates from unbalanced starts, supervised",
    quick={"size": "[2,20]", "seed": "0,1"},
)
class Fig10:
    draw = Fig09.draw

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        found = supervised_claims("BRTW Fig. 10", runs, "unbalanced")
        pairs = pairs_of(runs, others("brtw/fig09"))
        rates = [(rate_of(a), rate_of(b)) for a, b in pairs]
        ratios = [b / a for a, b in rates if a and b]
        if ratios:
            found.append(
                Claim(
                    "paper",
                    "BRTW §7.2",
                    "the rate seems not to depend on the start, balanced or not",
                    f"ratios {_range(ratios)}, {len(ratios)} pairs of runs",
                    "within a factor of 2 in nine of ten pairs",
                    bool(np.mean([0.5 <= q <= 2 for q in ratios]) >= 0.9),
                )
            )
        return found


def to_teacher(run: Run) -> np.ndarray:
    """‖W(t) − W̃‖_F from the recorded factors and the teacher itself."""
    teacher = run.data.truth
    assert teacher is not None
    left, right = run.history.column("left"), run.history.column("right")
    norms = [torch.linalg.matrix_norm(L @ R - teacher) for L, R in zip(left, right, strict=True)]
    return torch.stack(norms).numpy()


@subject(
    "brtw/fig11",
    "Convergence to the true parameters",
    quick={"size": "[2,20]", "init": "orthogonal", "seed": "0,1"},
)
class Fig11:
    @staticmethod
    def draw(runs: Sequence[Run]) -> Figure:
        def draw(ax: Axes, unbalanced: bool, members: list[Run]) -> None:
            decays(ax, _sorted(members), to_teacher, by_depth, predicted=True, floor=1e-10)
            kind = "unbalanced" if unbalanced else "balanced"
            ax.set(title=f"{size_of(members[0])}, {kind}", ylabel=r"$\|W(t) - \tilde{W}\|_F$")

        return panel_per(runs, lambda r: r.cfg.init.name != "orthogonal", draw)

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        apart = [float(np.abs(to_teacher(r) - distance(r)).max()) / r.size for r in runs]
        return [
            Claim(
                "paper",
                "BRTW Fig. 11",
                "W of (32) is the true W̃: the same curves as the left panels of Figs 9 and 10",
                f"largest difference of the curves {max(apart):.1e}, relative to ‖W̃‖",
                "1e-10: round-off of the pseudo-inverse",
                max(apart) <= 1e-10,
            )
        ]


@subject(
    "brtw/fig12",
    "The supervised loss from balanced starts",
    quick={"size": "[2,20],[20,20]", "seed": "0"},
)
class Fig12:
    @staticmethod
    def draw(runs: Sequence[Run]) -> Figure:
        def draw(ax: Axes, _: int, members: list[Run]) -> None:
            # The loss decays at twice the rate of the distance.
            ordered = _sorted(members)
            decays(ax, ordered, lambda r: r["loss"], by_depth, True, floor=1e-18, times=2)
            ax.set(title=size_of(members[0]), ylabel=r"$\frac{1}{2}\|Y - W(t)X\|_F^2$")

        return panel_per(runs, lambda r: r.d, draw)

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        found = []
        for members in split(runs, lambda r: r.d).values():
            ends = [r["loss"][-1] / r["loss"][0] for r in members]
            found.append(
                Claim(
                    "paper",
                    f"BRTW Fig. 12, {size_of(members[0])}",
                    "the supervised loss converges to 0",
                    f"largest final loss {max(ends):.1e} of the first",
                    "1e-10",
                    True if max(ends) <= 1e-10 else worst([arrived(r, 0.0) for r in members]),
                )
            )
            ratios = _slowdowns(members, "loss")
            autoencoder = [r for r in others("brtw/fig07") if r.d == members[0].d]
            compared = _slowdowns(autoencoder, "distance_to_limit")
            if ratios and compared:
                found.append(
                    Claim(
                        "paper",
                        f"BRTW §7.2, d = {members[0].d}",
                        "the dependence on N is much stronger than for the autoencoder",
                        f"time to a thousandth, deepest over N = 2: {_range(ratios)}; "
                        f"autoencoder {_range(compared)}",
                        "twice as strong in the median",
                        bool(np.median(ratios) > 2 * np.median(compared)),
                    )
                )
        return found


def _slowdowns(runs: Sequence[Run], column: str) -> list[float]:
    """The time to a thousandth for the largest N over that for the smallest, of each seed."""
    seeds = [each for each in by_seed(runs) if len(each) > 1]
    return [time_to(e[-1], 1e-3, column) / time_to(e[0], 1e-3, column) for e in seeds]
