"""What all figures share: the colours, the style of what is predicted, a predicted decay."""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np
from matplotlib.axes import Axes

__all__ = ["COLOURS", "PREDICTED", "draw_predicted_decay", "predicted_decay"]


class Style(TypedDict):
    """How a line is drawn."""

    linestyle: tuple[float, tuple[float, ...]]
    color: str
    linewidth: float


# Okabe and Ito's colours, distinct for every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
PREDICTED: Style = {"linestyle": (0, (1, 1.6)), "color": "#333333", "linewidth": 1.3}


def predicted_decay(t: np.ndarray, y: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """(t, e^{−ρt}) a little above the last e⁶ of a decay, where it has become exponential.

    Both empty for a decay of which nothing is known.
    """
    known = np.isfinite(y)
    t, y = t[known], y[known]
    if not len(y):
        return t, y
    floor = float(np.median(y[-max(len(y) // 10, 1) :]))
    end = int(np.argmax(y <= 2 * floor))  # what comes after may be round-off
    above = np.flatnonzero(y[:end] > math.exp(6) * y[end])
    anchor = above[-1] if len(above) else 0
    shown = t[anchor : end + 1]
    return shown, 2.5 * y[anchor] * np.exp(-rate * (shown - t[anchor]))


def draw_predicted_decay(
    ax: Axes, t: np.ndarray, y: np.ndarray, rate: float, label: str | None = None
) -> None:
    """`predicted_decay` as a line."""
    shown, line = predicted_decay(t, y, rate)
    if len(shown):
        ax.semilogy(shown, line, label=label, **PREDICTED)
