"""Observables and the verdict on a run."""

import math

import pytest
import torch

import deeplin
from deeplin import DeepLinear, LeastSquares, init
from deeplin.loop import History, Kind, Record, Result
from deeplin.runner.observables import layer_observables
from deeplin.runner.verdict import fitted_rate, judge


def test_observables_against_dense_formulas(randn):
    X, Y = randn(5, 20), randn(4, 20)
    problem = LeastSquares(X, Y)
    layers = [randn(2, 3, 5), randn(2, 6, 3), randn(2, 4, 6)]
    limit = problem.minimizer(3)
    seen = layer_observables(problem, limit)(0.0, layers)
    W = layers[2] @ layers[1] @ layers[0]
    loss = 0.5 * (Y - W @ X).square().sum((-2, -1))
    torch.testing.assert_close(seen["loss"], loss)
    torch.testing.assert_close(
        seen["excess_loss"], loss - 0.5 * (Y - limit @ X).square().sum(), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(seen["distance_to_limit"], (W - limit).flatten(1).norm(dim=1))
    torch.testing.assert_close(seen["singular_values"], torch.linalg.svdvals(W)[:, :3])
    assert seen["rank"].tolist() == [3, 3]
    gaps = [layers[1].mT @ layers[1] - layers[0] @ layers[0].mT]
    gaps.append(layers[2].mT @ layers[2] - layers[1] @ layers[1].mT)
    torch.testing.assert_close(
        seen["balancedness_gap"], torch.stack([g.flatten(1).norm(dim=1) for g in gaps]).amax(0)
    )
    leaves = [w.clone().requires_grad_() for w in layers]
    product = leaves[2] @ leaves[1] @ leaves[0]
    (0.5 * (Y - product @ X).square().sum()).backward()
    norms = sum(w.grad.square().sum((-2, -1)) for w in leaves).sqrt()
    torch.testing.assert_close(seen["gradient_norm"], norms)


def test_distance_counts_only_where_W_is_determined(randn):
    X = randn(4, 2) @ randn(2, 9)
    problem = deeplin.autoencoder(X)
    null = torch.eye(4, dtype=torch.float64) - problem.range_basis() @ problem.range_basis().mT
    W = problem.minimizer(1) + randn(4, 4) @ null
    seen = layer_observables(problem, problem.minimizer(1))(0.0, [torch.eye(4).double(), W])
    assert float(seen["distance_to_limit"]) < 1e-13


def test_fitted_rate_sees_the_last_decades():
    t = torch.linspace(0, 100, 400, dtype=torch.float64)
    slow_start = 1 / (1 + torch.exp(0.3 * (t - 40)))
    assert fitted_rate(t, slow_start, 1e-13) == pytest.approx(0.3, rel=1e-3)
    floored = torch.exp(-0.5 * t) + 1e-14
    assert fitted_rate(t, floored, 1e-12) == pytest.approx(0.5, rel=1e-2)
    noisy = torch.exp(-0.5 * t) + 1e-10 * (1 + t / 100)  # the integrator's own noise, above it
    assert fitted_rate(t, noisy, 1e-12) == pytest.approx(0.5, rel=1e-2)


def test_no_rate_without_exponential_decay():
    t = torch.linspace(0, 100, 400, dtype=torch.float64)
    assert fitted_rate(t, torch.ones_like(t), 1e-13) is None
    assert fitted_rate(t, 1 / (1 + t) ** 4, 1e-13) is None
    assert fitted_rate(t[:5], torch.exp(-t[:5]), 1e-13) is None


def history_of(problem, limit, distances, rate=0.5):
    """Records of an exact exponential decay of W to the limit."""
    observe = layer_observables(problem, limit)
    direction = limit @ torch.full_like(problem.C, 0.1)
    records = []
    for i, t in enumerate(torch.linspace(0, 40, 200).tolist()):
        W = limit + distances * math.exp(-rate * t) * direction
        records.append(Record(i, t, 0.2, observe(t, [W])))
    return History(records)


@pytest.fixture
def problem(randn):
    return deeplin.autoencoder(randn(4, 20))


def verdict(problem, history, prediction, kind="converged", **options):
    result = Result(Kind(kind), "it ended.")
    return judge(problem, prediction, history, result, seconds=1.0, **options).summary["verdict"]


def test_prediction(problem, randn):
    prediction = deeplin.predict(problem, 3, problem.minimizer(2))
    assert prediction.rank == 2
    torch.testing.assert_close(prediction.limit, problem.minimizer(2))
    assert prediction.rate == pytest.approx(
        deeplin.landscape.local_rate(problem, prediction.limit, 3)
    )
    layers = [randn(2, 4), randn(3, 2), randn(4, 3)]
    unbalanced = deeplin.predict(problem, 3, layers)
    assert unbalanced.rate is None
    assert "a rate of their own" in unbalanced.rate_missing
    assert unbalanced.pace == prediction.rate
    tied = deeplin.predict(deeplin.autoencoder(torch.eye(3).double()), 3, randn(3, 2) @ randn(2, 3))
    assert not tied.unique
    assert "σ_2 = σ_3" in tied.rate_missing
    assert "stays 0" in deeplin.predict(problem, 3, randn(4, 4) * 0).rate_missing


def test_sentences(problem):
    true = deeplin.predict(problem, 1, problem.minimizer(2))
    rate = true.rate
    assert rate is not None
    good = history_of(problem, true.limit, 1.0, rate)
    assert verdict(problem, good, true).startswith("Theory and run agree: W reached")
    slower = history_of(problem, true.limit, 1.0, 0.7 * rate)
    assert "disagree" in verdict(problem, slower, true)
    assert "its distance decayed at the rate" in verdict(problem, slower, true)
    # Modes near the slowest make the distance fall faster for long; the slowest alone never does.
    faster = history_of(problem, true.limit, 1.0, 1.3 * rate)
    assert verdict(problem, faster, true).startswith("Theory and run agree: W reached")
    assert "at the rate" not in verdict(problem, faster, true)
    for record in faster.records:
        record.observed["along_slowest_mode"] = record.observed["distance_to_limit"]
    assert "disagree" in verdict(problem, faster, true)
    assert "its slowest mode decayed at the rate" in verdict(problem, faster, true)
    saddle = history_of(problem, problem.critical_point([1, 3]), 1e-9)
    records = [
        Record(
            r.step,
            r.t,
            r.dt,
            layer_observables(problem, true.limit)(r.t, [problem.critical_point([1, 3])]),
        )
        for r in saddle.records
    ]
    saddle = History(records)
    assert "came to rest at the critical point {1,3}" in verdict(problem, saddle, true)
    elsewhere = history_of(problem, true.limit + 1, 1e-9)
    assert "came to rest away" in verdict(problem, elsewhere, true, kind="stagnated")
    assert verdict(problem, elsewhere, true).startswith("Stopped early: the gradient norm, ")
    long = verdict(problem, elsewhere, true, kind="time", unstable="the step is above 2.")
    assert long.startswith("No verdict (")
    assert long.endswith("): the step is above 2.")
    last = history_of(problem, true.limit + 2, 1e-9).records[-1]
    risen = verdict(problem, History([elsewhere.records[0], last]), true, kind="time")
    assert risen.startswith("No verdict: the loss rose from ")
    assert verdict(problem, saddle, true, kind="time").startswith("Unfinished")
    assert "mini-batch noise" in verdict(problem, saddle, true, kind="time", stochastic=True)
    assert verdict(problem, saddle, true, kind="diverged").startswith("No verdict")


def test_summary_of_repeats_names_the_worst(problem):
    limit = problem.minimizer(2)
    observe = layer_observables(problem, limit)
    W = torch.stack([limit, problem.minimizer(1), limit])
    history = History(
        [Record(0, 0.0, 0.1, observe(0.0, [W])), Record(9, 1.0, 0.1, observe(1.0, [W]))]
    )
    prediction = deeplin.predict(problem, 2, problem.minimizer(2))
    summary = judge(problem, prediction, history, Result(Kind.TIME, "end."), seconds=2.0).summary
    assert summary["rank"] == 1
    assert summary["repeats"]["rank"] == [2, 1, 2]
    assert summary["loss"] == pytest.approx(float(problem.optimal_loss(1)))
    assert summary["distance_to_limit"] == pytest.approx(1.0)


def test_default_network_start_reports_balanced_rank(generator):
    net = init.orthogonal_balanced_(
        DeepLinear([5, 3, 5], batch_shape=(4,), dtype=torch.float64), rank=2, generator=generator
    )
    problem = deeplin.autoencoder(torch.eye(5, dtype=torch.float64))
    seen = layer_observables(problem, problem.minimizer(2))(0.0, [w.detach() for w in net.weights])
    assert seen["rank"].tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("kind", "word"),
    [(Kind.TIME, "unfinished"), (Kind.STEPS, "unfinished"), (Kind.STAGNATED, "NO")],
)
def test_rows_of_an_unfinished_run_say_so(problem, kind, word):
    true = deeplin.predict(problem, 1, problem.minimizer(2))
    history = history_of(problem, true.limit, 1.0, rate=0.01)

    def judged(kind, **options):
        return judge(problem, true, history, Result(kind, "."), seconds=1.0, **options)

    marks = [row[3].split()[0] for row in judged(kind).table[1:] if row[3]]
    assert marks[:2] == [word, word]
    assert "unfinished" not in str(judged(kind, stochastic=True))
    stopped = judged(Kind.INTERRUPTED, stochastic=True)
    assert "NO" not in str(stopped)
    assert stopped.sentence.startswith("Unfinished")
