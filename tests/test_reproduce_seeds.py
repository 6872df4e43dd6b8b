"""What is made of several seeds: rates along the slowest mode, medians, ranges, configurations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from reproduction import modes
from reproduction.panels import canvas, decays, over_seeds
from reproduction.pictures import drawn
from reproduction.report import work_of
from reproduction.runs import CONF, compositions, left_out

from deeplin.loop import History
from deeplin.loop.records import Record
from deeplin.problems import LeastSquares, autoencoder
from deeplin.runner.verdict import fitted_rate


class Linear:
    """A run whose W(t) − W is a sum of decaying modes, as those of the linearised flow."""

    depth = 2

    def __init__(self, problem, rank, parts):
        self.rank, self.noise = rank, 1e-12
        self.problem = problem
        self.cfg = SimpleNamespace(init=SimpleNamespace(name="orthogonal"))
        t = torch.linspace(0, parts["T"], 300, dtype=torch.float64)
        terms = [torch.exp(-rho * t)[:, None, None] * mode for rho, mode in parts["modes"]]
        W = problem.minimizer(rank) + sum(terms)
        self.history = History()
        for time, matrix in zip(t.tolist(), W, strict=True):
            observed = {"left": matrix, "right": torch.eye(len(matrix)).double()}
            self.history.records.append(Record(0, time, 0.0, observed))


def autoencoder_modes(values, a, b):
    """The two modes of u_a and u_b, 𝒜 = 1 there: eigenvectors of [[λ_a, −λ_b], [−λ_b, λ_b]]."""
    block = torch.tensor([[values[a], -values[b]], [-values[b], values[b]]], dtype=torch.float64)
    rates, vectors = torch.linalg.eigh(block)
    found = []
    for rate, (x, y) in zip(rates.tolist(), vectors.mT.tolist(), strict=True):
        mode = torch.zeros(len(values), len(values), dtype=torch.float64)
        mode[b, a], mode[a, b] = x, y
        found.append((rate, mode))
    return found


def test_the_rate_is_that_of_the_slowest_mode_however_near_the_others_are():
    """λ_3 and λ_4 near each other, the slowest mode a thousand times weaker than the next."""
    values = torch.tensor([3.0, 2.0, 1.0, 0.8], dtype=torch.float64)
    problem = autoencoder(torch.diag(values.sqrt()))
    ordered = sorted([autoencoder_modes(values, 1, b)[0] for b in (2, 3)], key=lambda m: m[0])
    (slow, first), (next_, second) = ordered
    assert 1 < next_ / slow < 1.1
    parts = {"T": 20 / slow, "modes": [(slow, 1e-3 * first), (next_, second)]}
    run = Linear(problem, 2, parts)
    distance = torch.linalg.matrix_norm(run.history.column("left") - problem.minimizer(2))
    of_distance = fitted_rate(run.history.t, distance, 1e-12)
    assert of_distance is not None
    assert of_distance > 1.03 * slow
    assert modes.mode_rate(run) == pytest.approx(slow, rel=1e-6)


def test_without_the_factors_there_is_no_mode():
    problem = LeastSquares(torch.eye(3).double(), torch.eye(3).double())
    run = Linear(problem, 2, {"T": 1.0, "modes": [(1.0, torch.eye(3).double())]})
    for record in run.history.records:
        record.observed.clear()
    assert modes.mode_rate(run) is None


class Curve:
    predicted_rate = 1.0

    def __init__(self, t, y, rate=1.0):
        self.t, self.y, self.predicted_rate = np.array(t, float), np.array(y, float), rate


def test_median_and_range_over_runs_that_end_at_different_times():
    runs = [Curve([0, 1], [1, 1e-4]), Curve([0, 2], [1, 1e-4]), Curve([0, 4], [1, 1e-4])]
    t, least, median, most = over_seeds(runs, lambda run: run.y, floor=1e-6)
    np.testing.assert_array_equal(t, [0, 1, 2, 4])
    np.testing.assert_allclose(least, [1, 1e-4, 1e-6, 1e-6])  # ended: at the floor
    np.testing.assert_allclose(median, [1, 1e-2, 1e-4, 1e-6])
    np.testing.assert_allclose(most, [1, 1e-1, 1e-2, 1e-4])
    t, least, median, most = over_seeds(runs, lambda run: run.y)  # held, and linear between
    np.testing.assert_allclose(median[2], 1e-4)
    np.testing.assert_allclose(most[2], 0.5 * (1 + 1e-4))


def test_the_median_is_drawn_in_the_band_of_all_seeds():
    t = np.linspace(0, 5, 60)
    runs = [Curve(t, scale * np.exp(-t), scale) for scale in (4, 1, 2)]
    _, (ax,) = canvas(1)
    decays(ax, runs, lambda run: run.y, lambda run: "N = 2", True, floor=1e-9)
    lines = {str(line.get_label()): line.get_xydata() for line in ax.get_lines()}
    np.testing.assert_allclose(lines["N = 2"], np.stack([t, 2 * np.exp(-t)], 1))
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    np.testing.assert_allclose([corners[:, 1].min(), corners[:, 1].max()], [np.exp(-5), 4])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["N = 2", "predicted rate"]


@pytest.mark.parametrize("name", ["brtw/teacher", "brtw/fig03", "brtw/fig11", "hlz/example11"])
def test_runs_are_composed_as_hydra_composes_them(name):
    """A sweep is composed from one reading of the files; its last run is Hydra's own.

    As it is of the words that a launcher gets.
    """
    planned = compositions(name)[-1]
    run = planned.cfg
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        chosen = [f"experiment={name}"]
        params = compose("train", chosen, return_hydra_config=True).hydra.sweeper.params or {}
        groups = [key for key in params if (CONF / key).is_dir()]
        values = [key for key in params if key not in groups]
        chosen += [f"{key}={run[key].name}" for key in groups]
        for key in values:
            value = OmegaConf.select(run, key)
            text = str(OmegaConf.to_container(value)) if OmegaConf.is_config(value) else value
            chosen.append(f"{key}={text}")
        for words in (chosen, list(planned.words)):
            whole = OmegaConf.to_container(compose("train", words), resolve=True)
            assert run == OmegaConf.create(whole), words


def test_the_data_of_a_figure_hold_its_bands():
    t = np.linspace(0, 5, 60)
    runs = [Curve(t, scale * np.exp(-t), scale) for scale in (4, 1, 2)]
    figure, (ax,) = canvas(1)
    decays(ax, runs, lambda run: run.y, lambda run: "N = 2", floor=1e-9)
    bands = [values for name, values in drawn(figure).items() if "band" in name]
    assert len(bands) == 1
    assert bands[0][:, 1].max() == pytest.approx(4)


def test_the_report_names_what_is_left_out_and_its_cost():
    assert left_out("brtw/fig01").startswith("Left out, N = 20, d = 400: five seeds would take")
    assert left_out("brtw/fig10").endswith("more than 4 hours (size=[20,200] seed=8).")
    assert left_out("brtw/fig07") == ""
    assert "Left out, N = 20" in work_of("brtw/fig01", [])
