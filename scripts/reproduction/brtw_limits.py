"""BRTW Figs 1 to 6 and Remark 42: where the autoencoder's flow goes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from reproduction import Claim, Others, subject
from reproduction.panels import COLOURS, PREDICTED, canvas, decays, split
from reproduction.runs import Run

NEAR = 1e-6  # of ‖U_rU_rᵀ‖ = √r: where e^{−ρt} stands at t = 14/ρ, and the runs go on to 20/ρ


def distance(run: Run) -> np.ndarray:
    return run["distance_to_limit"]


def arrived(run: Run, bound: float = NEAR) -> bool | None:
    """Whether ‖W − limit‖ is below a bound, relative to the limit; None while it still falls."""
    d = distance(run)
    if d[-1] <= bound * math.sqrt(run.rank):
        return True
    return None if d[-1] < 0.9 * d[len(d) * 3 // 4] else False


def worst(verdicts: Sequence[bool | None]) -> bool | None:
    if False in verdicts:
        return False
    return None if None in verdicts or not verdicts else True


def limit_claim(source: str, runs: Sequence[Run], what: str) -> Claim:
    ends = [distance(r)[-1] / math.sqrt(r.rank) for r in runs]
    return Claim(
        source,
        f"W(t) converges to U_r U_rᵀ, {what}",
        f"largest final distance {max(ends):.1e} of ‖U_rU_rᵀ‖",
        f"{NEAR:g}: below e^-14 of the start",
        worst([arrived(r) for r in runs]),
    )


def rate_claim(source: str, runs: Sequence[Run], what: str, tolerance: float = 0.03) -> Claim:
    """The fitted decay rates against the predicted ones."""
    known = [(r.measured_rate, r.predicted_rate) for r in runs]
    errors = [abs(m / p - 1) for m, p in known if m and p]
    missing = len(runs) - len(errors)
    return Claim(
        source,
        f"(ours) the decay has the predicted rate, {what}",
        f"largest deviation {max(errors, default=math.nan):.2%} in {len(errors)} fits"
        + (f"; {missing} not yet exponential" if missing else ""),
        f"{tolerance:.0%}: the next slower mode is still seen in a fit over the last e^3",
        None if missing or not errors else max(errors) <= tolerance,
    )


def by_size(run: Run) -> str:
    return f"d = {run.d}, r = {run.rank}"


def limits_figure(runs: Sequence[Run]) -> Figure:
    """A panel for each depth, a curve for each size: the distance to the limit."""
    depths = split(runs, lambda r: r.depth)
    figure, axes = canvas(min(len(depths), 2), math.ceil(len(depths) / 2))
    for ax, (depth, members) in zip(axes, depths.items(), strict=False):
        decays(ax, sorted(members, key=lambda r: r.d), distance, by_size, predicted=True)
        ax.set_title(f"N = {depth}")
        ax.set_ylabel(r"$\|W(t) - U_r U_r^T\|_F$")
    return figure


@subject(
    "brtw/fig01",
    "Convergence of W(t) from balanced starts",
    quick={"network.depth": "2,5", "d_per_layer": "2"},
)
class Fig01:
    draw = staticmethod(limits_figure)

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        found = [
            limit_claim("BRTW Fig. 1", members, f"balanced, N = {depth}")
            for depth, members in split(runs, lambda r: r.depth).items()
        ]
        return [*found, rate_claim("BRTW Fig. 1", runs, "balanced, all N and d")]


@subject(
    "brtw/fig02",
    "The error of the autoencoder from balanced starts",
    quick={"network.depth": "2", "d_per_layer": "2"},
)
class Fig02:
    @staticmethod
    def draw(runs: Sequence[Run]) -> Figure:
        depths = split(runs, lambda r: r.depth)
        figure, axes = canvas(len(depths))
        for ax, (depth, members) in zip(axes, depths.items(), strict=True):
            for i, run in enumerate(sorted(members, key=lambda r: r.d)):
                later = run.t > 0
                error = np.sqrt(2 * run["loss"])
                ax.semilogx(run.t[later], error[later], color=COLOURS[i % 6], label=by_size(run))
                ax.axhline(math.sqrt(2 * run.summary["optimal_loss"]), **PREDICTED)
            ax.plot([], [], label=r"$(\sum_{i>r} \lambda_i)^{1/2}$", **PREDICTED)
            ax.set(title=f"N = {depth}", xlabel="flow time t", ylabel=r"$\|X - W(t)X\|_F$")
            ax.legend(frameon=False, fontsize=8.5)
        return figure

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        found = []
        for depth, members in split(runs, lambda r: r.depth).items():
            roots = [math.sqrt(2 * r.summary["optimal_loss"]) for r in members]
            ends = [math.sqrt(2 * r.summary["loss"]) for r in members]
            error = max(abs(e / s - 1) for e, s in zip(ends, roots, strict=True))
            found.append(
                Claim(
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
                "BRTW Fig. 2",
                "the text: the functional L¹(W(t)) converges to (Σ_(i>r) λ_i)^(1/2)",
                f"L¹ → {loss:.6g}, the root is {root:.6g}, half its square {root**2 / 2:.6g}",
                "1e-3",
                abs(loss / root - 1) <= 1e-3,
                wrong="the root is the limit of ‖X − WX‖_F; L¹ is half the square of that",
            )
        )
        return found


@subject(
    "brtw/fig03",
    "Two layers become each other's transpose",
    quick={"problem.d": "20", "method.t1": "100"},
)
class Fig03:
    @staticmethod
    def draw(runs: Sequence[Run]) -> Figure:
        starts = split(runs, lambda r: r.cfg.init.name)
        figure, axes = canvas(len(starts))
        for ax, (name, members) in zip(axes, starts.items(), strict=True):
            decays(ax, members, lambda r: r["tie_gap"], by_size, predicted=True)
            kind = "general balanced start" if name == "orthogonal" else "special balanced start"
            ax.set(title=f"N = 2, {kind}", ylabel=r"$\|W_1(t) - W_2(t)^T\|_F$")
        return figure

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        found = []
        for name, members in split(runs, lambda r: r.cfg.init.name).items():
            ends = [r["tie_gap"][-1] / math.sqrt(r.rank) for r in members]
            found.append(
                Claim(
                    "BRTW Fig. 3",
                    f"‖W_1(t) − W_2(t)ᵀ‖ → 0, {name} start",
                    f"largest final value {max(ends):.1e} of ‖W_1‖",
                    "1e-4 at t = 300, where the slowest mode, ρ = 0.038, stands at 1e-5",
                    worst(
                        [
                            e <= 1e-4 or (None if not arrived(r, 1e-4) else False)
                            for e, r in zip(ends, members, strict=True)
                        ]
                    ),
                )
            )
        tied = [r for r in runs if r.cfg.init.name == "orthogonal"]
        rises = [(r["tie_gap"][0], r["tie_gap"].max()) for r in tied]
        found.append(
            Claim(
                "BRTW §5, §7.1.1",
                "the flow (48) keeps W_2 = W_1ᵀ, as the coupled flow of §5 does",
                f"from {max(a for a, _ in rises):.0e} it rises to {min(b for _, b in rises):.2f}",
                "1e-6",
                all(b <= 1e-6 for _, b in rises),
                wrong="§5's flow ties the layers; the untied one loses the symmetry at once and "
                "regains it in the limit",
            )
        )
        return found


def norm_of(run: Run) -> np.ndarray:
    return np.sqrt((run["singular_values"] ** 2).sum(-1))


@subject(
    "brtw/fig04",
    "The special start that violates condition (37)",
    quick={"problem.d": "20", "method.t1": "100"},
)
class Fig04:
    @staticmethod
    def draw(runs: Sequence[Run]) -> Figure:
        depths = split(runs, lambda r: r.depth)
        figure, axes = canvas(1 + len(depths))
        for ax, (depth, members) in zip(axes, depths.items(), strict=False):
            for i, run in enumerate(members):
                ax.semilogy(run.t, norm_of(run), color=COLOURS[i], label=by_size(run), lw=1.5)
            ax.set(title=f"N = {depth}", xlabel="flow time t", ylabel=r"$\|W(t)\|_F$")
            if depth == 2:
                ax.set_xlim(0, 30)
                time = _escape_time(members[0])
                ax.axvline(time, label=r"$\log(1/\epsilon)/\lambda_1$, d = 10", **PREDICTED)
            else:
                ax.set_xscale("log")
                t = members[0].t[members[0].t > 10]
                y = 2 * norm_of(members[0])[members[0].t > 10][0] * (t / t[0]) ** -3.0
                ax.plot(t, y, label=r"$t^{-3}$", **PREDICTED)
            ax.legend(frameon=False, fontsize=8.5)
        last = axes[-1]
        decays(last, depths[min(depths)], distance, by_size, predicted=True)
        last.set(title=f"N = {min(depths)}", ylabel=r"$\|W(t) - U_r U_r^T\|_F$")
        return figure

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        two, three = ([r for r in runs if r.depth == n] for n in (2, 3))
        dips = [(norm_of(r).min() / math.sqrt(r.rank), r.t[norm_of(r).argmin()]) for r in two]
        times = [(_left_zero(r), _escape_time(r)) for r in two]
        off = max(abs(seen / told - 1) for seen, told in times)
        found = [
            Claim(
                "BRTW Fig. 4 left",
                "W(t) approaches 0 in a first phase: the dip",
                f"‖W‖ falls to {max(d for d, _ in dips):.0e} of its start or less, "
                f"at t = {min(t for _, t in dips):.2f} to {max(t for _, t in dips):.2f}",
                "1e-3",
                all(d <= 1e-3 for d, _ in dips),
            ),
            Claim(
                "BRTW Remark 42",
                "N = 2 by a plain integrator: the limit is 0",
                f"‖W‖ at the end {min(norm_of(r)[-1] for r in two):.3g} or more",
                "1e-6",
                all(norm_of(r)[-1] <= 1e-6 for r in two),
                wrong="0 is a strict saddle: round-off feeds the growing mode, as the text suspects; "
                "brtw/remark42 shows the flow itself",
            ),
            Claim(
                "BRTW Fig. 4 left",
                "(ours) it escapes when round-off ε has grown at the rate λ_1: t = log(1/ε)/λ_1",
                f"largest deviation {off:.0%} ("
                + ", ".join(f"{a:.1f} for {b:.1f}" for a, b in times)
                + ")",
                "25 %: ε is known up to a factor of 100",
                off <= 0.25,
            ),
            limit_claim("BRTW Fig. 4 right", two, "slowly, after the escape"),
        ]
        slopes = [_slope(r) for r in three]
        if slopes:
            error = max(abs(s + 3) for s in slopes)
            found.append(
                Claim(
                    "BRTW Fig. 4, N = 3",
                    "(ours) for N = 3 the approach to 0 is algebraic, ‖W‖ ~ t^-3, and stays",
                    f"slopes {min(slopes):.3f} to {max(slopes):.3f}",
                    "-3 ± 0.1",
                    error <= 0.1,
                )
            )
        return found


def _escape_time(run: Run) -> float:
    """log(1/ε)/λ_1: the linearisation at 0 has the rates ±λ_i, N = 2."""
    problem = run.experiment.data.problem
    return math.log(1 / torch.finfo(torch.float64).eps) / float(problem.spectrum.values[0])


def _left_zero(run: Run) -> float:
    """When ‖W‖ is again half of what the first mode alone will bring, 1."""
    norm = norm_of(run)
    after = np.arange(len(norm)) > norm.argmin()
    return float(run.t[after & (norm > 0.5)][0]) if (after & (norm > 0.5)).any() else math.inf


def _slope(run: Run) -> float:
    late = run.t > 0.2 * run.t[-1]
    return float(np.polyfit(np.log(run.t[late]), np.log(norm_of(run)[late]), 1)[0])


@subject("brtw/remark42", "The special start, integrated with its structure", quick={})
class Remark42:
    @staticmethod
    def draw(runs: Sequence[Run]) -> Figure:
        figure, (ax,) = canvas(1)
        run = runs[0]
        ax.semilogy(run.t, norm_of(run), color=COLOURS[0], lw=1.6, label="structure-keeping run")
        ax.semilogy(run.t, _closed_form(run), label="closed form of Remark 42", **PREDICTED)
        ax.set(xlabel="flow time t", ylabel=r"$\|W(t)\|_F$", title=f"N = 2, {by_size(run)}")
        ax.legend(frameon=False)
        return figure

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        run = runs[0]
        norm = norm_of(run)
        error = float(np.abs(norm / _closed_form(run) - 1).max())
        return [
            Claim(
                "BRTW Remark 42",
                "W(t) = −Σ u_iu_iᵀ/(2e^(2λ_i t) − 1) → 0",
                f"‖W({run.t[-1]:.0f})‖ = {norm[-1]:.2e}, largest relative error {error:.1e}",
                "1e-6, relative to a norm below 1e-40",
                error <= 1e-6 and bool(norm[-1] < 1e-40),
            ),
        ]


def _closed_form(run: Run) -> np.ndarray:
    values = run.experiment.data.problem.spectrum.values[: run.rank]
    rows = torch.from_numpy(run.t)[:, None] * values
    return np.sqrt(((2 * torch.exp(2 * rows) - 1) ** -2).sum(-1).numpy())


@subject(
    "brtw/fig05",
    "Convergence of W(t) from unbalanced starts",
    quick={"network.depth": "2", "d_per_layer": "5"},
)
class Fig05:
    draw = staticmethod(limits_figure)

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        found = [
            limit_claim("BRTW Fig. 5", members, f"unbalanced, N = {depth}")
            for depth, members in split(runs, lambda r: r.depth).items()
        ]
        return [*found, rate_claim("BRTW Fig. 5", runs, "of the unbalanced layers where they end")]


@subject(
    "brtw/fig06",
    "Unbalanced starts: the limit, and the layers that stay apart",
    quick={"network.depth": "2", "d_per_layer": "5"},
)
class Fig06:
    @staticmethod
    def draw(runs: Sequence[Run]) -> Figure:
        figure, (left, right) = canvas(2)
        deep, two = ([r for r in runs if (r.depth == 2) == flat] for flat in (False, True))
        shown = deep or two
        decays(left, shown, distance, by_size, predicted=True)
        left.set(title=f"N = {shown[0].depth}", ylabel=r"$\|W(t) - U_r U_r^T\|_F$")
        for i, run in enumerate(two):
            later = run.t > 0
            gap = run["tie_gap"][later]
            right.loglog(run.t[later], gap, color=COLOURS[i], label=by_size(run), lw=1.5)
            right.axhline(_least_gap(run), **PREDICTED)
        right.plot([], [], label="least that its gap allows", **PREDICTED)
        right.set(title="N = 2", xlabel="flow time t", ylabel=r"$\|W_2(t) - W_1(t)^T\|_F$")
        right.legend(frameon=False, fontsize=8.5)
        return figure

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        deep, two = ([r for r in runs if (r.depth == 2) == flat] for flat in (False, True))
        found = []
        if deep:
            found.append(limit_claim("BRTW Fig. 6 left", deep, f"unbalanced, N = {deep[0].depth}"))
            found.append(rate_claim("BRTW Fig. 6 left", deep, "of the unbalanced layers"))
        ends = [r["tie_gap"][-1] for r in two]
        still = [abs(r["tie_gap"][-1] / r["tie_gap"][len(r.t) * 3 // 4] - 1) for r in two]
        found.append(
            Claim(
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
                "BRTW Lemma 2(3)",
                "(ours) the conserved gap D forbids it: ‖W_2 − W_1ᵀ‖ ≥ ‖D‖/(‖W_1‖ + ‖W_2‖)",
                ", ".join(f"{a:.3g} ≥ {b:.3g}" for a, b in floors),
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
