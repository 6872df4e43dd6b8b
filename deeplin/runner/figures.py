"""The figure of a run, with its predictions drawn in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deeplin.landscape import Plateau
from deeplin.loop import History
from deeplin.prediction import Prediction
from deeplin.runner.drawing import COLOURS, PREDICTED, draw_predicted_decay

__all__ = ["convergence", "rendered", "saddle_to_saddle"]

BLUE, ORANGE, GREEN = COLOURS[:3]
GREY = "#555555"


def convergence(
    history: History, prediction: Prediction, title: str, *, time: str = "flow time t"
) -> Figure:
    """Four panels over `time`: loss, distance to the limit, singular values, conservation."""
    figure = Figure(figsize=(10, 7), dpi=130, layout="constrained")
    axes = figure.subplots(2, 2)
    t = history.t.numpy()
    _loss(axes[0, 0], t, history, prediction)
    _distance(axes[0, 1], t, history, prediction)
    _singular_values(axes[1, 0], t, history, prediction)
    _conservation(axes[1, 1], t, history)
    for ax in axes.flat:
        ax.set_xlabel(time)
        ax.margins(x=0.01)
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    return figure


def saddle_to_saddle(
    history: History, report: Sequence[Plateau], title: str, *, repeat: int = 0
) -> Figure:
    """Loss over flow time with the levels of the critical points passed, and how near they were."""
    figure = Figure(figsize=(9, 7), dpi=130, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    t = history.t.numpy()
    later = t > 0  # a logarithmic axis: later plateaus last longer
    loss = _flat(history, "loss")[:, repeat].numpy()
    distance = _flat(history, "nearest_distance")[:, repeat].numpy()
    top.semilogx(t[later], loss[later], color=BLUE, label="loss $L^N$")
    for n, plateau in enumerate(report):
        label = None if n else "critical levels"
        top.axhline(plateau.loss, label=label, **PREDICTED)
        top.annotate(
            plateau.label,
            (1.0, plateau.loss),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=8,
            color=GREY,
            verticalalignment="center",
        )
        for ax in (top, bottom):
            ax.axvspan(
                max(plateau.t_in, t[later][0]),
                plateau.t_out,
                color=ORANGE,
                alpha=0.07 + 0.07 * (n % 2),
                linewidth=0,
            )
    top.set_ylabel("loss")
    top.legend(frameon=False, loc="upper right")
    # The first rest, at the start, would take most of a logarithmic axis.
    top.set_xlim(left=max(t[later][0], 0.2 * report[0].t_out))
    bottom.loglog(t[later], np.maximum(distance[later], 1e-300), color=GREEN)
    bottom.set_ylabel(r"$\min_J \|(W - W_J)C^{1/2}\|_F$")
    bottom.set_xlabel("flow time t")
    for ax in (top, bottom):
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    return figure


def rendered(figure: Figure) -> np.ndarray:
    """The pixels (height, width, 3) of a figure, drawn once for the file and for TensorBoard."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _flat(history: History, name: str) -> torch.Tensor:
    """Records × repeats (× singular values)."""
    column = history.column(name).double()
    tail = column.shape[-1:] if name == "singular_values" else ()
    return column.reshape(len(column), -1, *tail)


def _band(ax: Axes, t: np.ndarray, history: History, name: str, color: str, label: str) -> None:
    """The median over repeats as a line, their range as a band."""
    values = _flat(history, name).abs().numpy()
    values = np.where(values > 0, values, np.nan)  # an exact 0 has no place on a log axis
    shown = np.nan_to_num(values, nan=0.0)
    median = np.median(shown, axis=1)
    ax.plot(t, np.where(median > 0, median, np.nan), color=color, label=label)
    if values.shape[1] > 1:
        ax.fill_between(t, values.min(1), values.max(1), color=color, alpha=0.2, linewidth=0)


def _loss(ax: Axes, t: np.ndarray, history: History, prediction: Prediction) -> None:
    ax.set_yscale("log")
    _band(ax, t, history, "loss", BLUE, "loss $L^N$")
    if prediction.limit is not None:
        _band(ax, t, history, "excess_loss", ORANGE, "excess over the optimum")
    if prediction.loss:
        ax.axhline(
            prediction.loss,
            label=f"predicted optimum {prediction.loss:.6g}",
            **PREDICTED,
        )
    ax.set_ylabel("loss")
    ax.legend(frameon=False)


def _distance(ax: Axes, t: np.ndarray, history: History, prediction: Prediction) -> None:
    ax.set_yscale("log")
    if prediction.limit is not None:
        _band(ax, t, history, "distance_to_limit", BLUE, r"$\|W(t) - W^*\|_F$")
    _band(ax, t, history, "gradient_norm", GREEN, r"gradient norm $\|\nabla L^N\|$")
    for name, color in (("relative_error", BLUE), ("train_rmse", GREY), ("test_rmse", ORANGE)):
        if name in history.records[0].observed:
            _band(ax, t, history, name, color, name.replace("_", " "))
    if prediction.rate:
        distance = _flat(history, "distance_to_limit").median(1).values.numpy()
        label = rf"predicted $e^{{-\rho t}}$, $\rho$ = {prediction.rate:.4g}"
        draw_predicted_decay(ax, t, distance, prediction.rate, label=label)
    ax.set_ylabel("distance")
    ax.legend(frameon=False)


def _shade(i: int, values: np.ndarray) -> tuple[float, float, float]:
    """Blue for the first singular value, lighter for each later one."""
    mix = 0.75 * i / max(values.shape[-1] - 1, 1)
    return tuple((1 - mix) * c + mix for c in (0.0, 0.27, 0.5))  # type: ignore[return-value]


def _limits(prediction: Prediction) -> np.ndarray:
    if prediction.limit is None:
        return np.empty(0)
    values = torch.linalg.svdvals(prediction.limit)[: prediction.rank].double()
    return np.unique(np.round(values.cpu().numpy(), 6))


def _singular_values(ax: Axes, t: np.ndarray, history: History, prediction: Prediction) -> None:
    values = _flat(history, "singular_values").numpy()
    later = t > 0  # a logarithmic axis shows the fast start and the slow end
    for i, sigma in enumerate(np.median(values, axis=1).T):
        ax.semilogx(t[later], sigma[later], color=_shade(i, values), linewidth=1.2)
    for n, level in enumerate(_limits(prediction)):
        ax.axhline(
            level,
            label=None if n else "predicted limits",
            **PREDICTED,
        )
    ax.set_ylabel(r"singular values of $W(t)$")
    ax.set_ylim(bottom=0)
    if len(_limits(prediction)):
        ax.legend(frameon=False)


def _conservation(ax: Axes, t: np.ndarray, history: History) -> None:
    ax.set_yscale("log")
    layers = "balancedness_gap" in history.records[0].observed
    name = "balancedness_gap" if layers else "largest_drift"
    label = "balancedness gap" if layers else "drift of what is conserved"
    _band(ax, t, history, name, ORANGE, label)
    ax.set_ylabel(label)
    lower, upper = ax.get_ylim()
    ax.set_ylim(min(lower, 1e-17), max(upper, 1e-12))
    right = ax.twinx()
    right.plot(t, _flat(history, "rank").median(1).values, color=BLUE, label="rank of W(t)")
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_ylim(0, 1.25 * max(right.get_ylim()[1], 1))
    right.set_ylabel("numerical rank")
    right.spines[["top"]].set_visible(False)
    handles = [*ax.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    ax.legend(handles, [str(h.get_label()) for h in handles], frameon=False, loc="center right")
