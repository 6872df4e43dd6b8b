"""The figure of an experiment, drawn from its runs: for the report and for train.py alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from deeplin.runner.experiments import Picture
from deeplin.runner.observables import KEPT_ASIDE
from reproduction import (
    SUBJECTS,
    bridge,
    brtw_limits,
    brtw_rates,
    brtw_special,
    brtw_teacher,
    hlz,
)
from reproduction.runs import Run, finished_runs

__all__ = ["PAPERS", "drawn", "drawn_from", "picture"]

# Imported, so registered.
PAPERS = (brtw_limits, brtw_special, brtw_rates, brtw_teacher, hlz, bridge)


def drawn_from(name: str, folders: Sequence[Path], into: Path) -> Picture | None:
    """The figure of an experiment from those runs that are finished.

    None where no figure has that name, or no run is finished.
    """
    runs = finished_runs(folders) if name in SUBJECTS else []
    if not runs:
        return None
    return Picture(SUBJECTS[name].title, picture(name, runs, into), len(runs))


def picture(name: str, runs: Sequence[Run], into: Path) -> Path:
    """figures/<name>.png in a folder, with the PDF, and the data as .npz, beside it."""
    stem = into / "figures" / name.replace("/", "-")
    return _save(SUBJECTS[name].draw(runs), runs, stem)


def _save(figure: Figure, runs: Sequence[Run], stem: Path) -> Path:
    """PNG, PDF and, beside them, what is drawn and the recorded scalars of the runs as .npz."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png = stem.with_suffix(".png")
    figure.savefig(png)
    figure.savefig(stem.with_suffix(".pdf"), metadata={"CreationDate": None})
    np.savez_compressed(
        stem.with_suffix(".npz"), allow_pickle=False, **drawn(figure), **_seen(runs)
    )
    return png


def drawn(figure: Figure) -> dict[str, np.ndarray]:
    """The points of all lines and bands, by panel and label."""
    data = {}
    for i, ax in enumerate(figure.axes):
        for j, line in enumerate(ax.get_lines()):
            label = str(line.get_label()).lstrip("_") or f"line {j}"
            data[f"panel {i}/{j} {label}".replace("/", "|")] = np.asarray(line.get_xydata())
        for j, band in enumerate(c for c in ax.collections if _is_band(c)):
            data[f"panel {i}|band {j}"] = np.asarray(band.get_paths()[0].vertices)
    return data


def _is_band(drawn: Artist) -> bool:
    return isinstance(drawn, PolyCollection) and not isinstance(drawn, Poly3DCollection)


def _seen(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    data: dict[str, np.ndarray] = {}
    for i, run in enumerate(runs):
        options = json.dumps({"problem": dict(run.cfg.problem)}, default=str)
        data[f"run {i}|options"] = np.array(options)
        data[f"run {i}|t"], data[f"run {i}|step"] = run.t, run.steps
        for name in run.history.records[0].observed:
            if name not in KEPT_ASIDE:
                data[f"run {i}|{name}"] = run[name]
    return data
