"""Runs of problem=completion: random matrices found again, what is recorded, resumed and judged."""

import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from runner import ROOT

import deeplin
from deeplin.geometry import Point
from deeplin.landscape import FactoredHessian, RiemannianHessian
from deeplin.loop import drive
from deeplin.problems import MatrixCompletion
from deeplin.runner.build import build
from deeplin.runner.run import run

SMALL = ["problem=completion", "problem.shape=[40,30]", "network.rank=2"]
PLANTED = [*SMALL, "problem.condition=3", "problem.oversampling=4"]


@pytest.fixture(autouse=True, scope="module")
def configurations():
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        yield


def made(*words):
    return build(compose("train", list(words)))


def ended(folder, *words):
    status = run(compose("train", list(words)), folder, draw=False)
    return status, json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def runs(configurations, tmp_path_factory):
    """The same matrix by both methods."""
    folder = tmp_path_factory.mktemp("completion")
    methods = ("cg", "trust_region")
    return {m: (ended(folder / m, *PLANTED, f"method={m}"), folder / m) for m in methods}


def test_singular_values_far_apart_are_found_rank_by_rank(tmp_path):
    """From the spectral start the small ones are not seen; the last steps square the gradient."""
    words = [*SMALL, "problem.condition=1e4", "problem.oversampling=3", "network.rank=3"]
    words += ["method=trust_region", "stop.grad_norm=1e-10"]
    _, lost = ended(tmp_path / "lost", *words, "stop.max_steps=30")
    status, found = ended(tmp_path / "found", *words, "init=continuation")
    assert (status, found["result_kind"]) == (0, "converged")
    assert found["relative_error"] < 1e-8 < 1e-3 < lost["relative_error"]


def test_sweeps_of_least_squares_follow_the_spectral_start(tmp_path):
    """Without them the small singular values of this matrix are not seen, and not found."""
    words = ["problem=completion", "problem.shape=[300,250]", "network.rank=5", "method=cg"]
    words += ["problem.condition=10", "problem.oversampling=3", "stop.max_steps=150"]
    losses = []
    for sweeps in ("0", "1", "auto"):
        experiment = made(*words, f"init.sweeps={sweeps}")
        W = experiment.network.end_to_end().detach()
        losses.append(float(experiment.flow.problem.loss(W)))
    assert losses[0] > 2 * losses[1] > 4 * losses[2]
    _, lost = ended(tmp_path / "lost", *words, "init.sweeps=0")
    _, found = ended(tmp_path / "found", *words)
    assert found["relative_error"] < 1e-7 < 0.1 < lost["relative_error"]
    with pytest.raises(ValueError, match="must be 0 or auto where rows cannot be fitted"):
        made("problem=sensing", "init=spectral", "init.sweeps=2")
    made("problem=sensing", "init=spectral")


@pytest.mark.parametrize("method", ["cg", "trust_region"])
def test_a_random_matrix_is_found(method, runs):
    (status, summary), folder = runs[method]
    assert status == 0
    assert summary["result_kind"] == "converged"
    assert "is positive there: a local minimum" in summary["verdict"]
    assert "it is the planted matrix, to a relative error of" in summary["verdict"]
    loaded = deeplin.load(folder)
    problem, W = loaded.problem, loaded.W.numpy()
    U, sigma, V = (part.numpy() for part in problem.truth)
    truth = (U * sigma) @ V.T
    error = np.linalg.norm(W - truth) / np.linalg.norm(truth)
    assert summary["relative_error"] == pytest.approx(error, rel=1e-3, abs=1e-14)
    assert error < 1e-8
    known = W[problem.rows, problem.cols] - truth[problem.rows, problem.cols]
    assert loaded.history["train_rmse"][-1] == pytest.approx(
        np.sqrt(np.mean(known**2)), rel=1e-3, abs=1e-14
    )
    # exp of the entropy of sigma/sum, of the equal ratios from sigma_1 to sigma_1/3
    p = sigma / sigma.sum()
    entropy = -np.sum(p * np.log(p))
    assert loaded.history["effective_rank"][-1] == pytest.approx(np.exp(entropy), rel=1e-7)
    pairs = np.array([[3, 4], [39, 0]])
    np.testing.assert_allclose(loaded.predict(pairs), W[[3, 39], [4, 0]], rtol=1e-12)


def test_what_a_solver_knows_is_recorded(runs):
    cg, trust = (deeplin.load(runs[m][1]).history for m in ("cg", "trust_region"))
    assert (cg["step_length"][1:] > 0).all()
    assert cg["step_length"][0] == 0
    assert (trust["radius"][1:] > 0).all()
    assert trust["rho"][-1] == pytest.approx(1.0, abs=1e-2)  # the model is the loss at its end
    norms = trust["gradient_norm"][-3:]
    assert norms[2] < norms[1] ** 1.5  # quadratic: far faster than linear
    assert (np.diff(cg["loss"]) <= 0).all()


def test_nothing_is_formed(monkeypatch):
    """2000x1500 by both methods with no tensor of that many numbers."""
    words = [
        "problem=completion",
        "problem.shape=[2000,1500]",
        "network.rank=2",
        "problem.test=0.1",
    ]
    largest = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            parts = out if isinstance(out, tuple | list) else (out,)
            largest.extend(part.numel() for part in parts if isinstance(part, torch.Tensor))
            return out

    with Sizes():
        experiment = made(*words, "method=trust_region")
        for _ in range(2):
            experiment.stepper.advance(1e9)
            experiment.observe(0.0, experiment.stepper.state)
    assert max(largest) < 0.1 * 2000 * 1500


def test_the_hessian_of_factors_has_the_ends_of_the_dense_one():
    """At a point that is not critical, of an ill-conditioned matrix, real and complex."""
    for dtype in (torch.float64, torch.complex128):
        generator = torch.Generator().manual_seed(5)
        problem, (U, sigma, V) = MatrixCompletion.planted(
            (9, 8), 2, condition=5.0, oversampling=1.5, generator=generator, dtype=dtype
        )
        point = Point(U, torch.diag(0.7 * sigma).to(dtype), V)
        H = FactoredHessian(problem, point)
        values = torch.linalg.eigvalsh(RiemannianHessian(problem, point.dense(), 1).dense())
        assert H.tangent_dim == len(values)
        least, largest = H.ends()
        assert least == pytest.approx(float(values[0]), rel=0.02)
        assert largest == pytest.approx(float(values[-1]), rel=0.02)
        # all of it: the rest of the coordinates has the mean for its eigenvalue
        whole = torch.linalg.eigvalsh(H.dense())
        rest = torch.full((len(whole) - len(values),), H._mean, dtype=torch.float64)
        expected = torch.cat([values, rest]).sort().values
        torch.testing.assert_close(whole, expected, rtol=1e-9, atol=1e-9)


def test_noise_and_the_share_held_out_are_judged(tmp_path):
    words = [*SMALL, "problem.noise=0.1", "problem.test=0.2"]
    _, summary = ended(tmp_path / "run", *words)
    problem = deeplin.load(tmp_path / "run").problem
    r, (m, n) = 2, problem.shape
    p = len(problem.rows)
    assert p + len(problem.held_out[0]) == 5 * r * (m + n - r)
    expected = 0.1 * np.sqrt(r * (m + n - r) / p)  # of entries of mean square 1
    assert f"leaves about {expected:.2g}" in summary["verdict"]
    assert 0.5 < summary["relative_error"] / expected < 2
    # on fresh noisy entries: noise, and the error of W
    assert summary["test_rmse"] == pytest.approx(np.hypot(0.1, summary["relative_error"]), rel=0.3)


def test_layers_factorise_the_matrix(tmp_path):
    """Deep matrix factorisation: hidden layers of 8 find the matrix of rank 2, from a small start.

    Zeros at the unknown entries, or most matrices of rank 8 that fit, are off by about a half.
    """
    words = ["problem=completion", "problem.shape=[20,20]", "problem.rank=2", "network.rank=8"]
    words += ["problem.oversampling=4", "method=sgd", "init=gaussian", "init.std=0.1"]
    words += ["stop.max_steps=2000", "method.t1=1e9", "log.records=50"]
    experiment = made(*words)
    assert experiment.on is None
    assert experiment.network.widths == (20, 8, 8, 20)
    _, summary = ended(tmp_path / "run", *words)
    assert summary["verdict"].startswith("Nothing is predicted for this loss")
    assert summary["relative_error"] < 0.03
    seen = deeplin.load(tmp_path / "run").history["effective_rank"]  # of the truth: 2
    assert seen[0] > 4
    assert 1.9 < seen[-1] < 2.3


def test_rows_that_the_entries_do_not_determine_are_told():
    words = ["problem=completion", "problem.shape=[30,20]", "problem.rank=2", "network.rank=2"]
    experiment = made(*words, "problem.oversampling=1.05")
    problem = experiment.data.problem
    few = [
        np.bincount(i, minlength=d)
        for i, d in zip((problem.rows, problem.cols), (30, 20), strict=True)
    ]
    rows, cols = (int((count < 2).sum()) for count in few)
    assert rows or cols
    named = [f"{rows} row{'s' * (rows > 1)}"] * (rows > 0)
    named += [f"{cols} column{'s' * (cols > 1)}"] * (cols > 0)
    assert f"{' and '.join(named)} with fewer than 2 known entries" in " ".join(experiment.notes)
    assert "fewer than" not in " ".join(made(*SMALL).notes)


def test_a_rank_that_the_entries_cannot_hold_is_refused():
    words = ["problem=completion", "problem.shape=[20,20]", "problem.rank=2", "network.rank=9"]
    with pytest.raises(ValueError, match=r"152 known .* rank 9: .* 279 dim.*rank=4 or") as refusal:
        made(*words, "problem.oversampling=2")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("method", ["cg", "trust_region"])
def test_steps_go_on_after_a_resumption_to_the_same_bytes(method, runs, tmp_path):
    """A run cut after 3 steps and continued shows what one that went through did."""
    words = [*PLANTED, f"method={method}"]
    ended(tmp_path / "run", *words, "stop.max_steps=3")
    ended(tmp_path / "run", *words)
    whole, part = deeplin.load(runs[method][1]), deeplin.load(tmp_path / "run")
    assert all(map(torch.equal, whole.factors, part.factors))
    for name, values in whole.history.items():
        assert np.array_equal(values, part.history[name]), name


def test_a_run_ends_where_no_step_decreases_the_loss():
    experiment = made(*SMALL, "problem.shape=[12,10]", "problem.oversampling=2", "method=cg")
    result, _ = drive(
        experiment.stepper,
        1000.0,
        observe=experiment.observe,
        stop=experiment.stops,
        record_at=range(20, 1000, 20),
    )
    assert result.kind == "stagnated"
    assert "no step of ConjugateGradient decreases the loss" in result.sentence


NOISY = ["problem=completion", "problem.shape=[40,30]", "problem.rank=1", "network.rank=3"]
NOISY += ["problem.noise=1", "problem.oversampling=7", "problem.test=0.2", "stop.held_out=4"]
NOISY += ["init=orthogonal"]


def test_an_early_stop_gives_what_predicts_best(tmp_path):
    """By hand: the record of the least test error, four before the end; also when it was cut."""
    _, summary = ended(tmp_path / "run", *NOISY)
    run = deeplin.load(tmp_path / "run")
    errors = run.history["test_rmse"]
    best = int(errors.argmin())
    assert summary["result_kind"] == "past_best"
    assert best == len(errors) - 5
    assert 0 < best == summary["best_step"]
    assert summary["best_test_rmse"] == errors[best]
    assert "is predicted worse again" in summary["verdict"]
    i, j, values, _ = run.problem.held_out
    predicted = run.predict(torch.stack([i, j], 1))
    assert np.sqrt(np.mean((predicted - values.numpy()) ** 2)) == pytest.approx(errors[best])
    ended(tmp_path / "cut", *NOISY, f"stop.max_steps={best + 2}")
    ended(tmp_path / "cut", *NOISY)
    again = deeplin.load(tmp_path / "cut")
    assert all(map(torch.equal, run.factors, again.factors))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["stop.held_out=3"], r"held out: add problem.test=0.1"),
        (["stop.held_out=3", "problem.test=0.1", "repeats=2"], "got repeats=2: use repeats=1"),
    ],
)
def test_an_early_stop_says_what_it_goes_by(words, told):
    with pytest.raises(ValueError, match=told):
        made(*SMALL, *words)


def test_the_rank_of_a_run_is_found_by_the_gap(tmp_path):
    words = ["problem=completion", "problem.shape=[60,50]", "problem.rank=2", "network.rank=gap"]
    experiment = made(*words)
    assert experiment.network.widths == (50, 2, 2, 60)
    (told,) = [note for note in experiment.notes if "network.rank=gap takes 2" in note]
    assert "of the known entries are above" in told
    status, summary = ended(tmp_path / "run", *words)
    assert (status, summary["rank"]) == (0, 2)
    loaded = deeplin.load(tmp_path / "run")
    torch.testing.assert_close(loaded.network.end_to_end(), loaded.W, check_dtype=True)
    random = words[:2]
    for wrong, sentence in (
        ([*random, "network.rank=gap"], "problem.rank must be an integer >= 1, for the matrix"),
        ([*words, "problem.noise=40"], "network.rank=gap: no gap: the largest singular value"),
        (["problem=gaussian", "network.rank=gap"], "network.rank=gap looks at the known entries"),
    ):
        with pytest.raises(ValueError, match=sentence):
            made(*wrong)
