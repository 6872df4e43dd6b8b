"""Both papers on one picture: SGD on balanced layers, Riemannian gradient descent on matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from reproduction import Claim, Others, subject
from reproduction.brtw_limits import distance
from reproduction.panels import COLOURS, STYLES, canvas, decays
from reproduction.runs import Run

SIDES = {"sgd": "SGD on balanced layers", "riemannian_sgd": "Riemannian gradient descent"}


def _step(run: Run) -> float:
    return float(run.cfg.method.dt)


def _side(run: Run) -> str:
    return SIDES[run.cfg.method.name]


def products(run: Run) -> np.ndarray:
    """W at every record, (records, d_y, d_x)."""
    return run["left"] @ run["right"]


def apart(pair: tuple[Run, Run]) -> np.ndarray:
    """‖W − W'‖_F/‖W'‖_F at the records of both."""
    layers, point = map(products, pair)
    records = min(len(layers), len(point))
    size = np.linalg.norm(point[:records], axis=(1, 2))
    return np.linalg.norm(layers[:records] - point[:records], axis=(1, 2)) / size


def pairs(runs: Sequence[Run]) -> dict[float, tuple[Run, Run]]:
    """(SGD, Riemannian gradient descent) for each step, the longest first."""
    found = {}
    for dt in sorted({_step(run) for run in runs}, reverse=True):
        of = {run.cfg.method.name: run for run in runs if _step(run) == dt}
        if of.keys() == SIDES.keys():
            found[dt] = (of["sgd"], of["riemannian_sgd"])
    return found


@subject(
    "bridge",
    "Balanced layers and the manifold, step by step",
    quick={"method.dt": "0.04,0.02", "problem.d": "4"},
)
class Bridge:
    @staticmethod
    def draw(runs: Sequence[Run]) -> Figure:
        figure, (left, right) = canvas(2)
        longest = max(map(_step, runs))
        shown = [run for run in runs if _step(run) == longest]
        decays(left, shown, distance, _side, predicted=True, floor=1e-9)
        left.set(title=f"dt = {longest:g}", ylabel=r"$\|W(t) - \tilde{W}\|_F$")
        for i, (dt, pair) in enumerate(pairs(runs).items()):
            values = apart(pair)
            t = pair[0].t[: len(values)]
            right.plot(t[1:], values[1:], color=COLOURS[i], ls=STYLES[i], label=f"dt = {dt:g}")
        right.set(
            xscale="log",
            yscale="log",
            ylim=(1e-17, 1),
            xlabel="flow time t",
            ylabel="apart, relative to W",
            title="from round-off in the first step to O(dt)",
        )
        right.legend(frameon=False, fontsize=8.5)
        return figure

    @staticmethod
    def claims(runs: Sequence[Run], others: Others) -> list[Claim]:
        curves = {dt: apart(pair) for dt, pair in pairs(runs).items()}
        if len(curves) < 2:
            return []
        ends = max(float(distance(run)[-1]) / run.size for run in runs)
        first = max(values[1] for values in curves.values())
        largest = [float(values.max()) for values in curves.values()]
        steps = list(curves)
        orders = np.diff(np.log(largest)) / np.diff(np.log(steps))
        return [
            Claim(
                "ours",
                "BRTW Theorem 39",
                "both sides converge to the teacher",
                f"largest final distance {ends:.1e}, relative to the limit",
                "1e-5: far below the distance of any other critical point",
                ends <= 1e-5,
            ),
            Claim(
                "ours",
                "BRTW (9), HLZ (2)",
                "a step of SGD from balanced layers is one of Riemannian gradient descent in the "
                "metric of their depth, by the retraction of the layers",
                f"after one step {first:.0e} apart, relative to W",
                "1e-13",
                first <= 1e-13,
            ),
            Claim(
                "ours",
                "BRTW (9), HLZ (2)",
                "SGD's layers are then balanced to O(dt²) a step, and the two part by O(dt)",
                f"at most {', '.join(f'{value:.1e}' for value in largest)} apart for dt = "
                f"{', '.join(f'{dt:g}' for dt in steps)}: order "
                f"{min(orders):.2f} to {max(orders):.2f}",
                "order 1 ± 0.2",
                bool((np.abs(orders - 1) <= 0.2).all()),
            ),
        ]
