"""HLZ Example 1.1 and §5: Riemannian gradient descent leaves spurious critical points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from reproduction import Claim, Others, subject
from reproduction.panels import COLOURS, PREDICTED, STYLES, band, canvas
from reproduction.runs import Run

FIXED = math.log10(1 - 0.2)
VARYING = math.log10(abs(1 - 2 * 0.2))


def distances(run: Run) -> np.ndarray:
    """‖Z_k − X‖_F: (records, repeats)."""
    values = run.to_optimum
    return values.reshape(len(values), -1)


def least_values(run: Run) -> np.ndarray:
    """σ_r(Z_k): (records, repeats)."""
    values = run["singular_values"][..., -1]
    return values.reshape(len(values), -1)


def slopes(values: np.ndarray, steps: np.ndarray, floor: float) -> np.ndarray:
    """log10 per iteration over the last e³ of each decay that lies above a floor."""
    found = []
    for column in values.T:
        end = int(np.argmax(column < floor)) if (column < floor).any() else len(column)
        start = int(np.argmax(column[:end] < 20 * column[end - 1]))
        found.append(np.polyfit(steps[start:end], np.log10(column[start:end]), 1)[0])
    return np.array(found)


@subject("hlz/example11", "Example 1.1: from the spurious sequence and from near it")
class Example11:
    @staticmethod
    def draw(runs: Sequence[Run]) -> Figure:
        figure, (left, right) = canvas(2)
        for i, run in enumerate(runs):
            eps = _eps(run)
            label = "ε = 0" if not eps else f"ε = {eps:g}"
            style = {"color": COLOURS[i], "ls": STYLES[i], "lw": 1.5, "label": label}
            left.semilogy(run.steps, np.maximum(distances(run)[:, 0], 1e-13), **style)
            right.semilogy(run.steps, np.maximum(least_values(run)[:, 0], 1e-13), **style)
        k = runs[0].steps
        right.semilogy(k, 0.8**k, label=r"$(1 - \alpha)^k$", **PREDICTED)
        left.set(xlabel="iteration k", ylabel=r"$\|Z_k - X\|_F$", title="X = diag(2, 1, 0)")
        right.set(xlabel="iteration k", ylabel=r"$\sigma_2(Z_k)$", title=r"$\alpha = 0.2$")
        for ax in (left, right):
            ax.legend(frameon=False, fontsize=8.5)
        return figure

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        exact = [r for r in runs if not _eps(r)]
        near = [r for r in runs if _eps(r)]
        found = []
        for run in exact:
            seen = least_values(run)[:, 0]
            error = float(np.abs(seen / 0.8**run.steps - 1)[seen > 1e-11].max())
            found.append(
                Claim(
                    "paper",
                    "HLZ Example 1.1",
                    "from diag(2, 0, 1): Z_k = diag(2, 0, (1 − α)^k), towards the spurious point",
                    f"σ_2(Z_k) is (1 − α)^k to {error:.1e}; ‖Z_k − X‖ ends at "
                    f"{distances(run)[-1, 0]:.6f} = d_2",
                    "1e-4 relative, at values down to 1e-11",
                    error <= 1e-4 and abs(distances(run)[-1, 0] - 1) < 1e-9,
                )
            )
        ends = {_eps(r): int(r.steps[-1]) for r in near}
        found.append(
            Claim(
                "paper",
                "HLZ Example 1.1",
                "from the ε-perturbed start with any ε > 0 the limit is X",
                ", ".join(f"ε = {e:g}: {n} iterations to 1e-12" for e, n in ends.items()),
                "distance to X below 1e-11",
                all(distances(r)[-1, 0] < 1e-11 for r in near),
            )
        )
        return found


def _eps(run: Run) -> float:
    return float(run.cfg.init.matrix[1][2])


def gradient_norm(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """‖P_T(Z − X)‖_F at Z = diag(2, 0, 0) + vvᵀ/‖v‖, v = x e_3 + y e_2, X = diag(2, 1, 0)."""
    s = np.hypot(x, y)
    c, b = x / s, y / s  # v/‖v‖ = c e_3 + b e_2
    # In the span of e_1 and v/‖v‖ the error is diag(0, s − b²), across it X v/‖v‖ − b² v/‖v‖ = bc.
    return np.sqrt((s - b**2) ** 2 + 2 * (b * c) ** 2)


@subject("hlz/fig1", "The gradient around a spurious critical point", quick={"repeats": "7"})
class Fig1:
    @staticmethod
    def draw(runs: Sequence[Run]) -> Figure:
        figure, axes = canvas(2, height=4.2)
        axes[0].remove()
        space = figure.add_subplot(1, 2, 1, projection="3d")
        assert isinstance(space, Axes3D)
        radius, theta = np.meshgrid(np.linspace(1e-3, 0.5, 60), np.linspace(0, 2 * np.pi, 181))
        x, y = radius * np.cos(theta), radius * np.sin(theta)
        z = gradient_norm(x, y)
        space.plot_surface(x, y, z, cmap="cividis", linewidth=0, rcount=90, ccount=40)
        space.set(xlabel="$x$ (along $e_3$)", ylabel="$y$ (along $e_2$)")
        space.set_zlabel(r"$\|P_T(Z - X)\|_F$")
        space.view_init(elev=32, azim=-58)
        flat = axes[1]
        drawn = flat.contourf(x, y, z, levels=16, cmap="cividis")
        figure.colorbar(drawn, ax=flat, label=r"$\|P_T(Z - X)\|_F$")
        style: dict[str, Any] = PREDICTED | {"color": "white"}
        flat.axhline(0, **style)
        flat.annotate("the one direction in", (0.12, 0.015), color="white", fontsize=9)
        flat.set(xlabel="$x$ (along $e_3$)", ylabel="$y$ (along $e_2$)", aspect="equal")
        flat.set_title(r"$Z = Z_\# + \|v\|^{-1} v v^T$, $v = x e_3 + y e_2$", fontsize=10)
        return figure

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        run = runs[0]
        ends = distances(run)[-1]
        reached = int((ends < 1e-9).sum())
        small = float(gradient_norm(np.array(1e-3), np.array(0.0)))
        angles = np.linspace(np.pi / 18, np.pi / 2, 200)
        large = float(gradient_norm(1e-3 * np.cos(angles), 1e-3 * np.sin(angles)).min())
        first = run["gradient_norm"][0].ravel()
        told = gradient_norm(*_fan(run))
        return [
            Claim(
                "paper",
                "HLZ Fig. 1",
                "one direction comes in, along all others the gradient remains large",
                f"at distance 1e-3: {small:.0e} along e_3, {large:.3f} or more from 10° off it",
                "a factor of 100",
                large > 100 * small,
            ),
            Claim(
                "ours",
                "HLZ Fig. 1",
                "the drawn formula is the gradient that descent sees",
                f"largest difference at the starts {np.abs(first - told).max():.1e}",
                "1e-9",
                bool(np.abs(first - told).max() < 1e-9),
            ),
            Claim(
                "paper",
                "HLZ §1",
                "descent converges to Z_# from that direction only",
                f"{reached} of {len(ends) - 1} other starts reach X; the one along e_3 ends at "
                f"‖Z − X‖ = {ends[0]:.6f} = d_2",
                "all of them",
                reached == len(ends) - 1 and abs(ends[0] - 1) < 1e-9,
            ),
        ]


def _fan(run: Run) -> tuple[np.ndarray, np.ndarray]:
    theta = np.linspace(0, np.pi / 2, run.cfg.repeats)
    return run.cfg.init.radius * np.cos(theta), run.cfg.init.radius * np.sin(theta)


def escape_figure(runs: Sequence[Run]) -> Figure:
    figure, (ax,) = canvas(1)
    run = runs[0]
    band(ax, run, np.log10(distances(run)), COLOURS[0], "range and median")
    _tangent(ax, run, FIXED, r"slope $\log_{10}(1 - \alpha)$")
    ax.set(ylabel=r"$\log_{10} \|Z_k - X\|_F$", title=_start(run))
    ax.legend(frameon=False)
    return figure


def _start(run: Run) -> str:
    s = len(run.cfg.init.keep)
    return rf"near $Z_\# \in S_{{r-{run.rank - s}}}$, $\alpha = 0.2$, {run.cfg.repeats} repeats"


def _tangent(ax, run: Run, slope: float, label: str) -> None:
    """A line of a slope a little above the last half of the median decay."""
    median = np.median(np.log10(distances(run)), 1)
    k = run.steps[len(run.steps) // 2 :]
    ax.plot(k, median[len(run.steps) // 2] + 1.0 + slope * (k - k[0]), label=label, **PREDICTED)


def reaches(source: str, run: Run) -> Claim:
    ends = distances(run)[-1]
    reached = int((ends < 1e-9).sum())
    middle = float(np.median([run.steps[np.argmax(c < 1e-9)] for c in distances(run).T]))
    return Claim(
        "paper",
        source,
        "the sequence always escapes the spurious critical points and converges to X",
        f"{reached} of {len(ends)} reach X; median {middle:.0f} iterations to 1e-9",
        "all, to 1e-9",
        reached == len(ends),
    )


def slope_claim(source: str, run: Run, slope: float, statement: str) -> Claim:
    seen = slopes(distances(run), run.steps, 1e-10)
    return Claim(
        "ours",
        source,
        statement,
        f"{np.median(seen):.5f} in the median, {seen.min():.5f} to {seen.max():.5f}",
        f"{slope:.5f} ± 1e-3",
        bool(abs(np.median(seen) - slope) <= 1e-3),
    )


def escape_claims(source: str):
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        run = runs[0]
        first = float(distances(run)[0].min())
        least = math.sqrt(sum(run.cfg.problem.spectrum[i] ** 2 for i in _missing(run)))
        return [
            reaches(source, run),
            Claim(
                "ours",
                source,
                "the starts lie near Z_#",
                f"‖Z_0 − X‖ is within {abs(first / least - 1):.1e} of ‖Z_# − X‖ or less",
                "1 %",
                abs(first / least - 1) < 0.01,
            ),
            slope_claim(source, run, FIXED, "it arrives at log10(1 − α) per iteration"),
        ]

    return claims


def _missing(run: Run) -> list[int]:
    return [i for i in range(run.rank) if i + 1 not in run.cfg.init.keep]


@subject("hlz/fig2a", "Escape near S_(r−1)", quick={"repeats": "10", "problem.n": "20"})
class Fig2a:
    draw = staticmethod(escape_figure)
    claims = staticmethod(escape_claims("HLZ Fig. 2a"))


@subject("hlz/fig2b", "Escape near S_(r−2)", quick={"repeats": "10", "problem.n": "20"})
class Fig2b:
    draw = staticmethod(escape_figure)
    claims = staticmethod(escape_claims("HLZ Fig. 2b"))


def random_figure(slope: float, label: str):
    def draw(runs: Sequence[Run]) -> Figure:
        figure, (left, right) = canvas(2)
        run = runs[0]
        band(left, run, np.log10(distances(run)), COLOURS[0], "range and median")
        _tangent(left, run, slope, label)
        left.set_ylabel(r"$\log_{10} \|Z_k - X\|_F$")
        band(right, run, np.log10(least_values(run)), COLOURS[1], "range and median")
        least = run.cfg.problem.spectrum[-1]
        right.axhline(math.log10(least), label=r"$\log_{10} \sigma_r(X)$", **PREDICTED)
        right.set_ylabel(r"$\log_{10} \sigma_r(Z_k)$")
        step = r"$\alpha_k = 0.2$" if slope == FIXED else r"$\alpha_k = 2 \sigma_r(Z_k)$"
        for ax in (left, right):
            ax.set_title(f"random starts, {step}, {run.cfg.repeats} repeats", fontsize=10)
            ax.legend(frameon=False)
        return figure

    return draw


def settling(source: str, run: Run) -> Claim:
    """When σ_r(Z_k) is within 10 % of σ_r(X) for good, in the median."""
    target = run.cfg.problem.spectrum[-1]
    off = np.abs(least_values(run) / target - 1) > 0.1
    last = [int(run.steps[np.flatnonzero(c)[-1]]) if c.any() else 0 for c in off.T]
    ends = np.abs(least_values(run)[-1] / target - 1).max()
    return Claim(
        "paper",
        source,
        "σ_r(Z_k) soon converges to σ_r(X)",
        f"within 10 % for good after {np.median(last):.0f} iterations in the median, "
        f"{max(last)} at most, of {run.steps[-1]}; final error {ends:.0e}",
        "in the first half of the run, in the median",
        bool(np.median(last) < run.steps[-1] / 2 and ends < 1e-8),
    )


@subject("hlz/fig3ab", "Random starts, fixed step", quick={"repeats": "10", "problem.n": "20"})
class Fig3ab:
    draw = staticmethod(random_figure(FIXED, r"slope $\log_{10}(1 - \alpha)$"))

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        run = runs[0]
        least = float(least_values(run).min())
        return [
            reaches("HLZ Fig. 3a", run),
            slope_claim("HLZ Fig. 3a", run, FIXED, "the local slope is log10(1 − α)"),
            Claim(
                "paper",
                "HLZ Fig. 3b",
                "σ_r(Z_k) is never too small",
                f"least value {least:.1e}",
                "1e-4: escape is doubly exponential, σ_r ≥ about 1/ln(1/angle)",
                least > 1e-4,
            ),
            settling("HLZ Fig. 3b", run),
        ]


@subject("hlz/fig3cd", "Random starts, varying step", quick={"repeats": "10", "problem.n": "20"})
class Fig3cd:
    draw = staticmethod(random_figure(VARYING, r"slope $\log_{10}|1 - 2 \sigma_r(X)|$"))

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        run = runs[0]
        steps = 2 * least_values(run).min(0)
        low = 2 * least_values(run) < run.cfg.problem.spectrum[-1]
        least, back = float(steps.min()), int(run.steps[np.flatnonzero(low.any(1))[-1]])
        return [
            reaches("HLZ Fig. 3c", run),
            slope_claim("HLZ Fig. 3c", run, VARYING, "the local slope is log10|1 − 2σ_r(X)|"),
            Claim(
                "paper",
                "HLZ Fig. 3d",
                "α σ_r(Z_k) is not a diminishing step but always above a certain value",
                f"least step {least:.1e}, {np.median(steps):.1e} in the median of {steps.size}; "
                f"every one is back above σ_r(X) after {back} iterations at most",
                "back within 60 iterations, where a diminishing step would not be",
                back <= 60,
            ),
            settling("HLZ Fig. 3d", run),
        ]
