"""Approximation and completion: gradients by autograd, optima by enumeration, the factored path."""

import itertools

import geoopt
import pytest
import torch
from manifold_oracles import generator, randn, relative

from deeplin.manifolds import FixedRankFactored
from deeplin.problems import MatrixApproximation, MatrixCompletion

ROWS, COLS = [0, 2, 1, 4, 2], [3, 0, 1, 3, 0]  # the entry (2, 0) twice


def problems(dtype):
    return [
        MatrixApproximation(randn(5, 4, seed=1, dtype=dtype)),
        MatrixCompletion(ROWS, COLS, randn(5, seed=2, dtype=dtype), (5, 4)),
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradients_and_pairs(dtype):
    A, B = randn(5, 2, seed=3, dtype=dtype), randn(4, 2, seed=4, dtype=dtype)
    for problem in problems(dtype):
        W = (A @ B.mH).requires_grad_()
        (wanted,) = torch.autograd.grad(problem.loss(W), W)
        assert relative(problem.egrad(W.detach()), wanted) < 1e-14
        assert problem.pair_loss(A, B).item() == pytest.approx(problem.loss(W).item(), rel=1e-13)


def test_batches():
    W = randn(3, 5, 4, seed=3)
    for problem in problems(torch.float64):
        assert problem.loss(W).shape == (3,)
        single = torch.stack([problem.egrad(one) for one in W])
        assert relative(problem.egrad(W), single) < 1e-15


def test_the_optimum_of_the_approximation():
    problem = MatrixApproximation(randn(5, 4, seed=1))
    U, S, Vh = torch.linalg.svd(problem.X, full_matrices=False)
    for k in range(1, 5):
        best = min(
            problem.loss((U[:, list(J)] * S[list(J)]) @ Vh[list(J)]).item()
            for J in itertools.combinations(range(4), k)
        )
        assert problem.optimal_loss(k).item() == pytest.approx(best, abs=1e-14)
        assert problem.loss(problem.minimizer(k)).item() == pytest.approx(best, abs=1e-14)


def test_taped_completion_finds_the_matrix():
    manifold = FixedRankFactored(40, 30, 2, depth=1, gradient="taped")
    g = generator(0)
    truth = manifold.to_dense(manifold.random(dtype=torch.float64, generator=g)).detach()
    rows = torch.randint(40, (700,), generator=g)
    cols = torch.randint(30, (700,), generator=g)
    problem = MatrixCompletion(rows, cols, truth[rows, cols], (40, 30))
    p = geoopt.ManifoldParameter(manifold.random(dtype=torch.float64, generator=g))
    optimizer = geoopt.optim.RiemannianSGD([p], lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        problem.pair_loss(*manifold.factor_pair(p)).backward()
        optimizer.step()
    assert relative(manifold.to_dense(p.detach()), truth) < 1e-8


def test_errors_say_what_to_type():
    with pytest.raises(ValueError, match="one row and one column per value"):
        MatrixCompletion([0], [0, 1], torch.ones(2), (2, 2))
    with pytest.raises(ValueError, match=r"cols must lie in 0\.\.1"):
        MatrixCompletion([0, 1], [0, 2], torch.ones(2), (2, 2))
    with pytest.raises(ValueError, match="needs a matrix X"):
        MatrixApproximation(torch.ones(3))
