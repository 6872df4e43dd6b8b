"""Huber's loss: outliers do not carry the answer away; planted problems of both kinds."""

import pytest
import torch

from deeplin import MatrixCompletion, MatrixSensing
from deeplin.optim import minimize
from deeplin.problems import RobustCompletion, spectral_start

F64 = torch.float64


@pytest.fixture
def outliers(generator):
    """One known entry in twenty is off by 10 or so, of a matrix of entries of size one."""
    return RobustCompletion.planted(
        (50, 40), 2, delta=0.1, outliers=0.05, oversampling=6, generator=generator, dtype=F64
    )


@pytest.mark.parametrize("method", ["cg", "trust_region"])
def test_outliers_do_not_carry_it_away(method, outliers):
    problem, (U, s, V) = outliers
    truth = (U * s) @ V.mT
    squares = MatrixCompletion(problem.rows, problem.cols, problem.values, problem.shape)
    plain = minimize(squares, spectral_start(squares, 2), max_iter=50).point.dense()
    assert (plain - truth).norm() > truth.norm(), "least squares is carried away"
    found = minimize(problem, spectral_start(problem, 2), method=method, tol=1e-7)
    assert bool(found.converged)
    # each of the outliers pulls with δ, a tenth of an entry's size, and they do so to both sides
    assert (found.point.dense() - truth).norm() < 0.03 * truth.norm()


def test_planted_outliers_are_as_many_as_were_asked_for(generator):
    def both(**options):
        generator.manual_seed(1)
        return RobustCompletion.planted(
            (20, 15), 2, delta=1.0, generator=generator, oversampling=3, dtype=F64, **options
        )

    clean, (U, s, V) = both(outliers=0.0)
    truth = (U * s) @ V.mT
    torch.testing.assert_close(clean.values, truth[clean.rows, clean.cols])
    problem, _ = both(outliers=0.25, outlier_size=100.0)
    off = problem.values - truth[problem.rows, problem.cols]
    assert int((off.abs() > 1e-9).sum()) == round(0.25 * len(off))
    assert 50 < float(off[off.abs() > 1e-9].std()) < 200
    with pytest.raises(ValueError, match="outliers must be a share from 0 to 1; got 2"):
        both(outliers=2)


@pytest.mark.parametrize("operators", ["gaussian", "rank_one"])
def test_planted_measurements_are_those_of_the_truth(operators, generator):
    problem, (U, s, V) = MatrixSensing.planted(
        (9, 8), 2, operators=operators, condition=3.0, generator=generator, dtype=F64
    )
    truth = (U * s) @ V.mT
    A = problem.operators
    A = A if isinstance(A, torch.Tensor) else A[0][:, :, None] * A[1][:, None, :]
    torch.testing.assert_close(problem.values, (A * truth).sum((-2, -1)))
    assert len(problem.values) == 4 * 2 * (9 + 8 - 2)
    assert float(s[0] / s[1]) == pytest.approx(3)
    assert float(A.square().sum((-2, -1)).mean()) == pytest.approx(72 / len(A), rel=0.3)
    found = minimize(problem, spectral_start(problem, 2), tol=1e-9)
    assert (found.point.dense() - truth).norm() < 1e-7 * truth.norm()
    with pytest.raises(ValueError, match="operators must be 'gaussian' or 'rank_one'; got 'ones'"):
        MatrixSensing.planted((9, 8), 2, operators="ones")


def test_bad_deltas():
    values = torch.ones(1, dtype=F64)
    for delta in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="delta must be a finite number > 0; got"):
            RobustCompletion([0], [0], values, (2, 2), delta=delta)
    with pytest.raises(TypeError, match=r"values must be real; got torch.complex128"):
        RobustCompletion([0], [0], values + 0j, (2, 2), delta=1.0)
