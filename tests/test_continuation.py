"""A problem solved by one call; continuation over the rank, against dense decompositions."""

import pytest
import torch

from deeplin import MatrixApproximation, MatrixCompletion, MatrixSensing
from deeplin.geometry.points import nearest_point
from deeplin.optim import continuation, continuation_start, minimize, with_next_pair
from deeplin.problems import spectral_start

F64 = torch.float64


@pytest.fixture
def planted(generator):
    """A completion whose singular values fall by 30 each, three of them."""
    problem, (U, s, V) = MatrixCompletion.planted(
        (60, 50), 3, condition=900.0, oversampling=4, generator=generator, dtype=F64
    )
    return problem, (U * s) @ V.mT


def all_known(X):
    i, j = torch.meshgrid(*map(torch.arange, X.shape), indexing="ij")
    return MatrixCompletion(i.flatten(), j.flatten(), X.flatten(), tuple(X.shape))


@pytest.mark.parametrize("method", ["cg", "trust_region"])
def test_a_problem_is_solved_by_one_call(method, randn):
    X = randn(12, 9)
    problem = MatrixApproximation(X)
    start = nearest_point(X + 0.3 * randn(12, 9), 3)
    found = minimize(problem, start, method=method, tol=1e-10)
    U, s, Vh = torch.linalg.svd(X)
    torch.testing.assert_close(found.point.dense(), (U[:, :3] * s[:3]) @ Vh[:3])
    assert bool(found.converged)
    assert float(found.gradient_norm) <= 1e-10
    assert float(found.loss) == pytest.approx(0.5 * float(s[3:].square().sum()))
    assert found.iterations <= found.evaluations < 200
    early = minimize(problem, start, method=method, max_iter=2)
    assert early.iterations == 2
    assert not bool(early.converged)
    seen = []
    minimize(problem, start, after_each=lambda solver, point: seen.append(point) or len(seen) == 3)
    assert len(seen) == 3
    losses = [float(problem.loss(point.dense())) for point in seen]
    assert losses == sorted(losses, reverse=True)


def test_where_all_is_known_each_rank_is_the_svd(randn):
    X = randn(12, 9)
    U, s, Vh = torch.linalg.svd(X)
    for k, found in enumerate(continuation(all_known(X), 4, tol=1e-9, share=0.0), 1):
        best = (U[:, :k] * s[:k]) @ Vh[:k]
        torch.testing.assert_close(found.point.dense(), best, rtol=0, atol=1e-8)
        assert bool(found.converged)
    assert k == 4


@pytest.mark.parametrize("rank", [1, 3])
def test_the_start_of_the_last_rank(rank, randn):
    """W_{r-1} to a share of what is missing, and the pair that is missing most."""
    X = randn(12, 9)
    U, s, Vh = torch.linalg.svd(X)
    point = continuation_start(all_known(X), rank, share=1e-8)
    best = (U[:, :rank] * s[:rank]) @ Vh[:rank]
    assert point.S.shape == (rank, rank)
    # A singular value of the last pair is exact to 1e-2, and it alone is not solved for.
    assert float((point.dense() - best).norm()) < 0.05 * float(s[rank - 1])
    with pytest.raises(ValueError, match=r"no further pair betters; got rank = 4: take 3\."):
        continuation_start(all_known(best if rank == 3 else (U[:, :3] * s[:3]) @ Vh[:3]), 4)


@pytest.mark.parametrize("kind", ["completion", "not known to be quadratic"])
def test_the_next_pair_is_the_top_one_of_the_residual(kind, randn, monkeypatch):
    X = randn(12, 9)
    U, s, Vh = torch.linalg.svd(X)
    problem, point = all_known(X), nearest_point(X, 2)
    if kind != "completion":
        monkeypatch.setattr(type(problem), "quadratic_along", lambda *_: None)
    grown, missing = with_next_pair(problem, point)
    # the third singular value is found to a hundredth, its vectors to a tenth
    assert missing == pytest.approx(float(s[2]), rel=1e-2)
    assert (grown.dense() - (U[:, :3] * s[:3]) @ Vh[:3]).norm() < 0.3 * s[2]
    loss = problem.loss(grown.dense())
    residual = grown.dense() - point.dense()
    for t in (0.99, 1.01):
        assert problem.loss(point.dense() + t * residual) > loss, "the best weight"


def test_ill_conditioned_matrices_are_found_value_by_value(planted):
    problem, truth = planted
    tol = 1e-9 * float(problem.values.norm())
    *_, found = continuation(problem, 3, method="trust_region", tol=tol)
    assert (found.point.dense() - truth).norm() < 1e-6 * truth.norm()
    assert torch.linalg.matrix_rank(found.point.dense()) == 3


def test_it_ends_where_nothing_is_missing(planted):
    problem, truth = planted
    tol = 1e-8 * float(problem.values.norm())
    found = list(continuation(problem, 6, method="trust_region", tol=tol))
    assert len(found) == 3
    assert (found[-1].point.dense() - truth).norm() < 1e-5 * truth.norm()


def test_sensing_has_exact_steps(randn):
    """One evaluation a step: the parabola's minimum is taken."""
    truth = randn(8, 2) @ randn(2, 7)
    A = randn(150, 8, 7)
    problem = MatrixSensing(A, (A * truth).sum((-2, -1)))
    found = minimize(problem, spectral_start(problem, 2), tol=1e-9)
    assert (found.point.dense() - truth).norm() < 1e-9 * truth.norm()
    assert found.evaluations <= found.iterations + 3
    left, right = randn(8, 2), randn(7, 2)
    xi = left @ right.mT
    curved = problem.loss(xi) + problem.loss(-xi) - 2 * problem.loss(0 * xi)
    torch.testing.assert_close(problem.quadratic_along(left, right), curved)


def test_refusals(planted):
    problem, _ = planted
    with pytest.raises(ValueError, match="method must be one of 'cg', 'trust_region'; got 'sgd'"):
        minimize(problem, spectral_start(problem, 2), method="sgd")
    with pytest.raises(ValueError, match=r"rank must lie in \[1, 50\]; got 51"):
        next(continuation(problem, 51))
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\]; got 2"):
        next(continuation(problem, 2, share=2))
    with pytest.raises(ValueError, match=r"max_iter must lie in \[1, "):
        minimize(problem, spectral_start(problem, 2), max_iter=0)
