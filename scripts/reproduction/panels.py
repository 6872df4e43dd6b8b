"""What the figures share: colours, a decay with its prediction, a band over repeats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deeplin.runner.drawing import COLOURS, PREDICTED, draw_predicted_decay
from reproduction.runs import Run

__all__ = [
    "COLOURS",
    "PREDICTED",
    "STYLES",
    "band",
    "canvas",
    "decays",
    "panel_per",
    "split",
    "time_to",
]

# A line style for each colour, so that the curves differ in grey too.
STYLES = ("-", (0, (7, 1.5)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)), "-", "-")


def canvas(columns: int, rows: int = 1, *, height: float = 3.6) -> tuple[Figure, Sequence[Axes]]:
    """A figure of panels with room for their legends."""
    figure = Figure(figsize=(5.2 * columns, height * rows), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for ax in axes:
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def split(runs: Sequence[Run], key: Callable[[Run], Any]) -> dict[Any, list[Run]]:
    """Runs by a key, in the order of the keys."""
    return {value: [r for r in runs if key(r) == value] for value in sorted({*map(key, runs)})}


def panel_per(
    runs: Sequence[Run],
    key: Callable[[Run], Any],
    draw: Callable[[Axes, Any, list[Run]], None],
    *,
    columns: int | None = None,
) -> Figure:
    """A panel for each value of a key, drawn by `draw(ax, value, members)`, in one row or more."""
    groups = split(runs, key)
    width = min(len(groups), columns or len(groups))
    figure, axes = canvas(width, math.ceil(len(groups) / width))
    for ax, (value, members) in zip(axes, groups.items(), strict=False):
        draw(ax, value, members)
    return figure


def decays(
    ax: Axes,
    runs: Sequence[Run],
    values: Callable[[Run], np.ndarray],
    label: Callable[[Run], str],
    predicted: bool = False,
    *,
    floor: float = 1e-13,
) -> None:
    """Curves over flow time on a logarithmic axis, each with its predicted e^{−ρt} dotted.

    Time is logarithmic, too, where one run takes far longer than another.
    """
    for i, run in enumerate(runs):
        y = values(run)
        seen = np.where(y > floor, y, np.nan)
        ax.semilogy(run.t, seen, color=COLOURS[i % 6], ls=STYLES[i % 6], lw=1.5, label=label(run))
        if predicted and run.predicted_rate:
            draw_predicted_decay(ax, run.t, seen, run.predicted_rate)
    if predicted:
        ax.plot([], [], label="predicted rate", **PREDICTED)
    ends = [float(run.t[-1]) for run in runs]
    if max(ends) > 20 * min(ends):
        ax.set(xscale="log", xlim=(0.02 * min(ends), 1.5 * max(ends)))
    ax.set_xlabel("flow time t")
    ax.legend(frameon=False, fontsize=8.5)


def band(ax: Axes, run: Run, values: np.ndarray, colour: str, label: str) -> None:
    """Range over repeats as a band, median as a line, over the number of iterations."""
    ax.fill_between(run.steps, values.min(1), values.max(1), color=colour, alpha=0.22, linewidth=0)
    ax.plot(run.steps, np.median(values, 1), color=colour, linewidth=1.6, label=label)
    ax.set_xlabel("iteration k")


def time_to(run: Run, factor: float, column: str = "distance_to_limit") -> float:
    """When a quantity is first below a factor of its first value; ∞ if never."""
    values = run[column]
    below = np.flatnonzero(values <= factor * values[0])
    return float(run.t[below[0]]) if len(below) else float("inf")
