"""Spectral starts and gaps in the spectrum against dense singular value decompositions."""

import contextlib

import numpy as np
import pytest
import torch
from optim_cases import completion
from problem_cases import CASES

from deeplin import MatrixApproximation, MatrixCompletion
from deeplin.linalg import leading_svd
from deeplin.problems import Ridge, rank_by_gap, spectral_start
from deeplin.problems.planted import distinct_places, entries_at

F64 = torch.float64


def evened(problem):
    """The known entries, zeros elsewhere, squares of rows and columns at most twice the mean."""
    X, squares = (np.zeros((*problem.values.shape[:-1], *problem.shape)) for _ in range(2))
    weights = np.ones(len(problem.rows)) if problem.weights is None else problem.weights.numpy()
    for k, (i, j) in enumerate(zip(problem.rows, problem.cols, strict=True)):
        entry = weights[k] * problem.values[..., k].numpy()
        X[..., i, j] += entry
        squares[..., i, j] += entry**2
    for axis in (-1, -2):
        of_each = squares.sum(axis, keepdims=True)
        mean = of_each.mean((-2, -1), keepdims=True)
        X = X / np.sqrt(np.maximum(1, of_each / (2 * mean)))
    return X


def dense_start(X, problem, rank):
    """The best approximation of rank r, and of all its multiples the one of least loss."""
    U, s, Vh = np.linalg.svd(X, full_matrices=False)
    W = torch.from_numpy((U[..., :rank] * s[..., None, :rank]) @ Vh[..., :rank, :])
    at = [problem.loss(t * W) for t in (-1.0, 0.0, 1.0)]  # a parabola in t
    t = (at[0] - at[2]) / (2 * (at[0] + at[2] - 2 * at[1]))
    return t[..., None, None] * W


def uneven(randn, *batch, weighted=False):
    """Half of the entries in three rows and two columns, some of them twice."""
    rows = torch.cat([torch.arange(120) % 3, torch.arange(150) * 7 % 30, torch.arange(90) % 30])
    cols = torch.cat([torch.arange(120) % 25, torch.arange(150) * 11 % 25, torch.arange(90) % 2])
    values = randn(*batch, 360)
    weights = randn(360).abs() if weighted else None
    return MatrixCompletion(rows, cols, values, (30, 25), weights=weights)


@pytest.mark.parametrize("kind", ["even", "uneven", "weighted", "batch"])
def test_starts_are_those_of_dense_matrices(kind, randn):
    problem = {
        "even": lambda: completion(randn)[1],
        "uneven": lambda: uneven(randn),
        "weighted": lambda: uneven(randn, weighted=True),
        "batch": lambda: uneven(randn, 2),
    }[kind]()
    point = spectral_start(problem, 3, rtol=0.0)
    oracle = dense_start(evened(problem), problem, 3)
    torch.testing.assert_close(point.dense(), oracle, rtol=0, atol=1e-5 * float(oracle.norm()))
    eye = torch.eye(3, dtype=F64).expand(*problem.values.shape[:-1], 3, 3)
    for Q in (point.U, point.V):
        torch.testing.assert_close(Q.mT @ Q, eye)
    assert bool((point.S.diagonal(dim1=-2, dim2=-1).diff() < 0).all())


@pytest.mark.parametrize("size", [1.0, 6.0])
def test_a_large_column_hides_nothing(size, generator):
    """Nor do those that are large by chance: some rows of normal numbers are."""
    A, B = (torch.randn(500, 3, dtype=F64, generator=generator) for _ in range(2))
    B[7] *= size
    rows, cols = distinct_places((500, 500), 9000, generator=generator)
    problem = MatrixCompletion(rows, cols, entries_at(rows, cols, A, B), (500, 500))
    cosines = torch.linalg.svdvals(spectral_start(problem, 3).U.mT @ torch.linalg.qr(A).Q)
    assert float(cosines.min()) > 0.75  # 0.5 to 0.7, and 0.1 to 0.5, were nothing evened out


@pytest.mark.parametrize("name", ["least squares", "sensing, rank one, complex", "own class"])
def test_other_losses_start_from_their_gradient(name):
    case = CASES[name]
    zero = torch.zeros(case.problem.shape, dtype=case.dtype)
    X = -torch.func.grad(lambda W: case.plain(W))(zero)
    if name == "own class":  # −∇f(0) = 0: nothing is said
        with pytest.raises(ValueError, match="the data must hold rank 1; −∇f\\(0\\) has rank 0"):
            spectral_start(case.problem, 1, dtype=case.dtype)
        return
    found = spectral_start(case.problem, 2, rtol=0.0).dense()
    oracle = dense_start(X.resolve_conj().numpy(), case.problem, 2)
    torch.testing.assert_close(found, oracle, rtol=0, atol=1e-6 * float(oracle.norm()))


def test_planted_matrices_are_near(randn, generator):
    """Nine entries in ten are known, and through them the truth is seen."""
    truth = randn(30, 2) @ randn(2, 25)
    known = torch.randperm(750, generator=generator)[:675]
    problem = MatrixCompletion(known // 25, known % 25, truth.flatten()[known], (30, 25))
    point = spectral_start(problem, 2, generator=generator)
    assert (point.dense() - truth).norm() < 0.3 * truth.norm()
    again = spectral_start(problem, 2, generator=generator)
    assert not torch.equal(point.V, again.V), "the generator goes on"
    first, second = (spectral_start(problem, 2) for _ in range(2))
    assert torch.equal(first.dense(), second.dense())


def test_leading_values_are_those_of_lapack(randn):
    A = randn(2, 40, 30)
    U, s, V = leading_svd(
        lambda P: A @ P, lambda Q: A.mT @ Q, randn(30, 8), 3, rtol=0, iterations=99
    )
    torch.testing.assert_close(s, torch.linalg.svdvals(A)[..., :3])
    torch.testing.assert_close((U.mT @ A @ V).diagonal(dim1=-2, dim2=-1), s)


def test_refusals(randn):
    _, problem = completion(randn)
    with pytest.raises(ValueError, match=r"1 <= rank <= min\(m, n\) = 25; got 26"):
        spectral_start(problem, 26)
    few = MatrixCompletion([0, 1], [0, 1], torch.ones(2, dtype=F64), (5, 5))
    with pytest.raises(ValueError, match=r"must hold rank 3; −∇f\(0\) has rank 2: take rank=2"):
        spectral_start(few, 3)


# -- the rank by the gap ---------------------------------------------------------------------------


def entries_of(W, rows, cols):
    return MatrixCompletion(rows, cols, W[rows, cols], tuple(W.shape))


def dense_and_scaled(problem, values):
    """The entries, zeros elsewhere, rows and columns to equal sums of squares by 20 passes."""
    X = np.zeros(problem.shape)
    np.add.at(X, (problem.rows.numpy(), problem.cols.numpy()), values.numpy())
    squares = np.zeros(problem.shape)
    np.add.at(squares, (problem.rows.numpy(), problem.cols.numpy()), values.numpy() ** 2)
    b = np.ones(problem.shape[1])
    for _ in range(20):
        a = 1 / (squares @ b)
        b = 1 / (a @ squares)
    scaled = a[:, None] * squares * b
    return np.sqrt(a[:, None] * b * squares.sum() / scaled.sum()) * X


def test_the_gap_is_that_of_dense_matrices(randn):
    """The same signs on dense matrices, scaled alike; entries that are listed twice have one."""
    places = uneven(randn)
    problem = entries_of(randn(30, 1) @ randn(1, 25), places.rows, places.cols)
    gap = rank_by_gap(problem, generator=torch.Generator().manual_seed(5))
    signs = torch.randint(2, (19, 360), generator=torch.Generator().manual_seed(5)) * 2 - 1
    where, which = torch.unique(problem.rows * 25 + problem.cols, return_inverse=True)
    assert len(where) < 360
    draws = [dense_and_scaled(problem, problem.values * row[which]) for row in signs]
    edge = max(np.linalg.norm(draw, 2) for draw in draws)
    sigma = np.linalg.svd(dense_and_scaled(problem, problem.values), compute_uv=False)
    assert gap.edge == pytest.approx(edge, rel=1e-3)
    assert gap.rank == (sigma > edge).sum() == 1
    np.testing.assert_allclose(gap.sigma, sigma[:2], atol=0.02 * sigma[0])
    assert f"above {gap.edge:.4g}" in str(gap)
    assert rank_by_gap(Ridge(problem, 0.1)).rank == rank_by_gap(problem).rank == 1


SEEDS = range(5)


@pytest.mark.parametrize(("rank", "noise"), [(1, 0.0), (3, 0.0), (3, 0.5), (7, 0.0)])
def test_planted_ranks_have_a_gap(rank, noise):
    """Oversampling 5, equal singular values; errors of half the size of the entries."""
    found = []
    for seed in SEEDS:
        problem, _ = MatrixCompletion.planted(
            (200, 150),
            rank,
            oversampling=5,
            noise=noise,
            generator=torch.Generator().manual_seed(seed),
            dtype=F64,
        )
        found.append(rank_by_gap(problem).rank)
    assert found == [rank] * len(SEEDS)


@pytest.mark.parametrize(("times", "rank"), [(2.0, 3), (0.5, 2)])
def test_small_values_beside_large_ones_are_seen_as_far_as_is_said(times, rank):
    """σ_3 twice, and half of, ‖X‖_F (mn)^{1/4}/√p."""
    shape, oversampling = (300, 300), 5
    p = oversampling * 3 * (600 - 3)
    least = times * 300**0.5 / p**0.5
    third = least * (2 / (1 - least**2)) ** 0.5  # of the spectrum 1, 1, σ_3
    for seed in SEEDS:
        problem, _ = MatrixCompletion.planted(
            shape,
            3,
            spectrum=[1.0, 1.0, third],
            oversampling=oversampling,
            generator=torch.Generator().manual_seed(seed),
            dtype=F64,
        )
        assert rank_by_gap(problem).rank == rank


def test_entries_without_a_matrix_behind_them_have_none(generator):
    """Of 20 draws of Gaussian entries at most 4 have one: of binomial(20, 1/20) 0.997."""
    places, refused = torch.randperm(750, generator=generator)[:250], 0
    for _ in range(20):
        values = torch.randn(250, dtype=F64, generator=generator)
        problem = MatrixCompletion(places // 25, places % 25, values, (30, 25))
        with contextlib.suppress(ValueError):
            rank_by_gap(problem)
            continue
        refused += 1
    assert refused >= 16
    with pytest.raises(ValueError, match=r"no gap: .* signs at random: give a rank"):
        rank_by_gap(problem)


def test_the_gap_is_asked_of_entries_alone(randn):
    with pytest.raises(TypeError, match="a MatrixCompletion; got MatrixApproximation"):
        rank_by_gap(MatrixApproximation(randn(4, 4)))
    with pytest.raises(ValueError, match=r"got a batch .*2"):
        rank_by_gap(uneven(randn, 2))
