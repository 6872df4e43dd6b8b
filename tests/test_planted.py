"""Matrices made up to be found, the places where they are known, and biases of rows and columns."""

import numpy as np
import pytest
import torch

from deeplin import MatrixCompletion
from deeplin.problems.biases import fit_biases
from deeplin.problems.planted import distinct_places, planted_factors


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_a_planted_matrix_is_what_it_was_asked_to_be(dtype):
    problem, (U, sigma, V) = MatrixCompletion.planted(
        (30, 20), 3, condition=100.0, oversampling=2.0, generator=seeded(), dtype=dtype
    )
    W = (U * sigma) @ V.mH
    singular = np.linalg.svd(W.numpy(), compute_uv=False)
    eps = torch.finfo(dtype).eps
    assert singular[0] / singular[2] == pytest.approx(100.0, rel=1e3 * eps)
    assert singular[1] ** 2 == pytest.approx(singular[0] * singular[2], rel=1e3 * eps)
    assert singular[3] < 1e2 * eps * singular[0]
    assert np.mean(np.abs(W.numpy()) ** 2) == pytest.approx(1.0, rel=100 * eps)
    assert problem.shape == (30, 20)
    assert len(problem.values) == 2 * (30 + 20 - 3) * 3
    assert float(problem.loss(W)) < 1e-6 * eps**0.5
    assert problem.values.dtype == dtype
    places = {*zip(problem.rows.tolist(), problem.cols.tolist(), strict=True)}
    assert len(places) == len(problem.values)


def test_a_planted_spectrum_and_its_noise():
    told = {"spectrum": [2.0, 5.0], "oversampling": 4.0}
    exact, (U, sigma, V) = MatrixCompletion.planted(
        (200, 90), 2, **told, generator=seeded(), dtype=torch.float64
    )
    noisy, truth = MatrixCompletion.planted(
        (200, 90), 2, **told, noise=0.1, generator=seeded(), dtype=torch.float64
    )
    assert sigma.tolist() == [5.0, 2.0]
    assert torch.equal(truth[0], U)
    assert torch.equal(truth[2], V)
    errors = (noisy.values - exact.values).numpy()
    # The deviation of a sample of p is within 5/√(2p) of the truth, relative.
    assert np.std(errors) == pytest.approx(0.1, rel=5 / np.sqrt(2 * len(errors)))


@pytest.mark.parametrize("count", [0, 5, 20, 34, 35])
def test_places_are_distinct_and_each_is_as_likely(count):
    seen = np.zeros(35)
    generator = seeded(1)
    for _ in range(400):
        rows, cols = distinct_places((5, 7), count, generator=generator)
        assert bool((rows < 5).all())
        assert bool((cols < 7).all())
        assert len(rows) == len({*zip(rows.tolist(), cols.tolist(), strict=True)}) == count
        np.add.at(seen, (7 * rows + cols).numpy(), 1)
    share = count / 35
    # Binomial: 6 standard deviations of 400 draws, for all 35 places.
    assert np.abs(seen / 400 - share).max() <= 6 * np.sqrt(share * (1 - share) / 400)


def test_places_of_a_matrix_that_is_never_formed():
    rows, cols = distinct_places((10**9, 3 * 10**9), 1000, generator=seeded())
    assert int(rows.max()) > 5 * 10**8
    assert int(cols.max()) > 2 * 10**9
    assert int(rows.min()) >= 0


def test_a_planted_problem_says_what_it_cannot_be():
    make = MatrixCompletion.planted
    for told, sentence in (
        ({"rank": 0}, "rank must satisfy 1 <= rank <= min\\(m, n\\) = 8; got 0"),
        ({"rank": 9}, "got 9, for a matrix of shape 10×8"),
        ({"condition": 0.5}, "condition must be σ_1/σ_r"),
        ({"spectrum": [1.0]}, "spectrum must be rank = 2 positive numbers"),
        ({"oversampling": 0.9}, "oversampling must be 1 to 2.5, .* the 32 dimensions .*got 0.9"),
        ({"oversampling": 2.6}, "oversampling must be 1 to 2.5"),
        ({"oversampling": float("nan")}, "oversampling must be 1 to 2.5"),
        ({"noise": -1.0}, "noise must be a standard deviation"),
    ):
        options = {"rank": 2, "oversampling": 2.0, **told}
        with pytest.raises(ValueError, match=sentence):
            make((10, 8), **options, generator=seeded())
    with pytest.raises(ValueError, match="count must be 0 to mn = 80"):
        distinct_places((10, 8), 81)


def entries(seed=0, p=120, shape=(9, 7)):
    rng = np.random.default_rng(seed)
    rows, cols = rng.integers(shape[0] - 1, size=p), rng.integers(shape[1], size=p)
    return rows, cols, rng.normal(3.0, 1.0, p), rng.uniform(0.1, 2.0, p)


@pytest.mark.parametrize("ridge", [0.0, 0.3, 10.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_biases_are_the_ridge_fit(ridge, weighted):
    """Against a dense least-squares solution of the design matrix."""
    rows, cols, values, w = entries()
    weights = w if weighted else np.ones_like(w)
    mean = np.average(values, weights=weights)
    design = np.concatenate([np.eye(9)[rows], np.eye(7)[cols]], 1)
    root = np.sqrt(weights)[:, None]
    stacked = np.concatenate([root * design, np.sqrt(ridge) * np.eye(16)])
    right = np.concatenate([root[:, 0] * (values - mean), np.zeros(16)])
    expected = np.linalg.lstsq(stacked, right, rcond=None)[0]
    of = [torch.from_numpy(v) for v in (rows, cols, values)]
    given = torch.from_numpy(w) if weighted else None
    found = fit_biases(*of, (9, 7), given, ridge=ridge)
    assert float(found.mean) == pytest.approx(mean, rel=1e-14)
    fitted = found.at(of[0], of[1]).numpy()
    np.testing.assert_allclose(fitted, mean + design @ expected, atol=1e-9)
    if ridge:
        np.testing.assert_allclose(torch.cat([found.rows, found.cols]), expected, atol=1e-9)
    assert float(found.rows[8]) == 0.0  # no entry, no bias


def test_biases_need_entries():
    nothing = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="got 0 entries of total weight 0"):
        fit_biases(nothing, nothing, torch.zeros(0), (2, 2))
    with pytest.raises(ValueError, match="ridge must be a finite number >= 0; got -1"):
        fit_biases(*(torch.zeros(1, dtype=torch.int64),) * 2, torch.ones(1), (2, 2), ridge=-1)


def test_one_factor_has_one_singular_value():
    U, sigma, V = planted_factors((4, 5), 1, condition=7.0, generator=seeded())
    assert sigma.tolist() == pytest.approx([20**0.5])
    assert U.shape == (4, 1)
    assert V.shape == (5, 1)
