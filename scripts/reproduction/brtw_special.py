"""BRTW Fig. 4 and Remark 42: the start that violates condition (37)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from reproduction import Claim, Others, subject
from reproduction.brtw_limits import AUTOENCODER, by_size, distance, limit_claim
from reproduction.panels import COLOURS, PREDICTED, canvas, decays, split, spread
from reproduction.runs import Run


def norm_of(run: Run) -> np.ndarray:
    return _norm(run["singular_values"])


def _norm(values: np.ndarray) -> np.ndarray:
    """The Euclidean norms of rows whose squares are below the number format."""
    largest = values.max(-1, keepdims=True)
    return largest[..., 0] * np.sqrt(((values / largest) ** 2).sum(-1))


@subject(
    "brtw/fig04",
    "The special start that violates condition (37)",
    quick={"problem.d": "20", "length": "[2,100],[3,100]", "seed": "4"},
)
class Fig04:
    @staticmethod
    def draw(runs: Sequence[Run]) -> Figure:
        depths = split(runs, lambda r: r.depth)
        figure, axes = canvas(1 + len(depths))
        for ax, (depth, members) in zip(axes, depths.items(), strict=False):
            ax.set_yscale("log")
            spread(ax, members, norm_of, by_size, floor=1e-30)
            if depth == 2:
                ax.set_xlim(0, 30)
                smallest = [r for r in members if r.d == members[0].d]
                time = float(np.median([_escape_time(r) for r in smallest]))
                shown = rf"$\log(1/\epsilon)/\lambda_1$, d = {members[0].d}"
                ax.axvline(time, label=shown, **PREDICTED)
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
                "paper",
                "BRTW Fig. 4 left",
                "W(t) approaches 0 in a first phase: the dip",
                f"‖W‖ falls to {max(d for d, _ in dips):.0e} of its start or less, "
                f"at t = {min(t for _, t in dips):.2f} to {max(t for _, t in dips):.2f}",
                "1e-3",
                all(d <= 1e-3 for d, _ in dips),
            ),
            Claim(
                "ours",
                "BRTW Fig. 4 left",
                "a plain integrator leaves 0, the limit of Remark 42 and a strict saddle, as the "
                "paper suspects (C3); brtw/remark42 shows the flow itself",
                f"‖W‖ at the end {min(norm_of(r)[-1] for r in two):.3g} or more",
                "0.5, half of what the first mode alone brings",
                all(norm_of(r)[-1] > 0.5 for r in two),
            ),
            Claim(
                "ours",
                "BRTW Fig. 4 left",
                "it escapes when round-off ε has grown at the rate λ_1: t = log(1/ε)/λ_1",
                f"largest deviation {off:.0%} (t = "
                f"{min(seen for seen, _ in times):.1f} to {max(seen for seen, _ in times):.1f} for "
                f"{min(told for _, told in times):.1f} to {max(told for _, told in times):.1f})",
                "25 %: ε is known up to a factor of 100",
                off <= 0.25,
            ),
            limit_claim("BRTW Fig. 4 right", two, f"{AUTOENCODER}, slowly, after the escape"),
        ]
        slopes = [_slope(r) for r in three]
        if slopes:
            error = max(abs(s + 3) for s in slopes)
            found.append(
                Claim(
                    "ours",
                    "BRTW Fig. 4, N = 3",
                    "for N = 3 the approach to 0 is algebraic, ‖W‖ ~ t^-3, and stays",
                    f"slopes {min(slopes):.3f} to {max(slopes):.3f}",
                    "-3 ± 0.1",
                    error <= 0.1,
                )
            )
        return found


def _escape_time(run: Run) -> float:
    """log(1/ε)/λ_1: the linearisation at 0 has the rates ±λ_i, N = 2."""
    problem = run.problem
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
                "paper",
                "BRTW Remark 42",
                "W(t) = −Σ u_iu_iᵀ/(2e^(2λ_i t) − 1) → 0",
                f"‖W({run.t[-1]:.0f})‖ = {norm[-1]:.2e}, largest relative error {error:.1e}",
                "1e-6, relative to a norm below 1e-40",
                error <= 1e-6 and bool(norm[-1] < 1e-40),
            ),
        ]


def _closed_form(run: Run) -> np.ndarray:
    values = run.problem.spectrum.values[: run.rank]
    rows = torch.from_numpy(run.t)[:, None] * values
    return _norm((1 / (2 * torch.exp(2 * rows) - 1)).numpy())
