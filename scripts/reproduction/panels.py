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
    "by_label",
    "canvas",
    "decays",
    "median_run",
    "over_seeds",
    "panel_per",
    "split",
    "spread",
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


def by_label(runs: Sequence[Run], label: Callable[[Run], str]) -> dict[str, list[Run]]:
    """Runs that share a label, as those of all seeds of one curve do, in the order given."""
    return {text: [r for r in runs if label(r) == text] for text in dict.fromkeys(map(label, runs))}


def over_seeds(
    runs: Sequence[Run], values: Callable[[Run], np.ndarray], *, floor: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """t, and the least, the median and the largest of a quantity over runs at these times.

    Between records a run is interpolated, with a `floor` logarithmically. After its end it counts
    as at the floor, below which nothing is told apart, and without one as at its last value.
    """
    t = np.unique(np.concatenate([run.t for run in runs]))
    each = []
    for run in runs:
        y = values(run)
        if floor is None:
            each.append(np.interp(t, run.t, y))
        else:
            log = np.interp(t, run.t, np.log(np.maximum(y, floor)), right=math.log(floor))
            each.append(np.exp(log))
    return t, np.min(each, 0), np.median(each, 0), np.max(each, 0)


def spread(
    ax: Axes,
    runs: Sequence[Run],
    values: Callable[[Run], np.ndarray],
    label: Callable[[Run], str],
    *,
    floor: float | None = None,
) -> None:
    """A curve for each label, the median over its runs, in a band, their range."""
    for i, (text, members) in enumerate(by_label(runs, label).items()):
        t, least, median, most = over_seeds(members, values, floor=floor)
        shown = slice(None) if floor is None else slice(0, len(t) - int((median <= floor).sum()))
        colour = COLOURS[i % 6]
        if len(members) > 1:
            ax.fill_between(t, least, most, color=colour, alpha=0.13, linewidth=0)
        ax.plot(t[shown], median[shown], color=colour, ls=STYLES[i % 6], lw=1.5, label=text)


def decays(
    ax: Axes,
    runs: Sequence[Run],
    values: Callable[[Run], np.ndarray],
    label: Callable[[Run], str],
    predicted: bool = False,
    *,
    floor: float = 1e-13,
    times: float = 1.0,
) -> None:
    """Curves over flow time on a logarithmic axis, each with its predicted e^{−ρt} dotted.

    Of runs with one label, the seeds, the median is drawn in the band of their range, and the
    prediction is that of the run with the median ρ; `times` multiplies it, 2 for a loss. Time is
    logarithmic, too, where one run takes far longer than another.
    """
    ax.set_yscale("log")
    spread(ax, runs, values, label, floor=floor)
    for members in by_label(runs, label).values():
        if predicted and (run := median_run(members)) is not None and run.predicted_rate:
            y = values(run)
            seen = np.where(y > floor, y, np.nan)
            draw_predicted_decay(ax, run.t, seen, times * run.predicted_rate)
    if predicted:
        ax.plot([], [], label="predicted rate", **PREDICTED)
    ends = [float(run.t[-1]) for run in runs]
    if max(ends) > 20 * min(ends):
        ax.set(xscale="log", xlim=(0.02 * min(ends), 1.5 * max(ends)))
    ax.set_ylim(bottom=floor)
    ax.set_xlabel("flow time t")
    ax.legend(frameon=False, fontsize=8.5)


def median_run(runs: Sequence[Run]) -> Run | None:
    """The run with the median of the predicted rates, of an even number the slower of the two in
    the middle, which governs the median curve; None if none has one."""
    known = sorted((r for r in runs if r.predicted_rate), key=lambda r: r.predicted_rate or 0.0)
    return known[(len(known) - 1) // 2] if known else None


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
