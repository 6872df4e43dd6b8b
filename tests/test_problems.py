import numpy as np
import pytest
import torch

import deeplin
from deeplin import LeastSquares, autoencoder
from deeplin.problems import MatrixApproximation


@pytest.fixture
def problem(randn):
    return LeastSquares(randn(5, 30), randn(4, 30))


def degenerate_cases(randn):
    """(name, X, Y): generic and every corner that the theory or the rank allows."""
    low = randn(6, 3)
    return [
        ("generic", randn(5, 30), randn(4, 30)),
        ("d_y > d_x", randn(3, 20), randn(7, 20)),
        ("rank Q = 2", X := randn(5, 20), randn(4, 2) @ randn(2, 5) @ X),
        ("singular XXᵀ", low @ randn(3, 20), randn(4, 20)),
        ("fewer samples than dimensions", randn(6, 4), randn(3, 4)),
    ]


def test_loss_and_gradient_are_those_of_the_samples(randn):
    for name, X, Y in degenerate_cases(randn):
        problem = LeastSquares(X, Y)
        W = randn(3, len(Y), len(X)).requires_grad_()
        direct = 0.5 * (Y - W @ X).square().sum((-2, -1))
        torch.testing.assert_close(problem.loss(W), direct, rtol=1e-12, atol=1e-12, msg=name)
        (gradient,) = torch.autograd.grad(direct.sum(), W)
        torch.testing.assert_close(problem.egrad(W), gradient, rtol=1e-11, atol=1e-11, msg=name)


def test_loss_keeps_its_digits_near_a_perfect_fit(randn):
    X, W = randn(4, 20), randn(3, 4)
    problem = LeastSquares(X, W @ X)
    shift = 1e-9 * randn(3, 4)
    exact = 0.5 * (shift @ X).square().sum()
    assert float(problem.loss(W + shift)) == pytest.approx(float(exact), rel=1e-5)


def test_loss_difference_has_relative_accuracy(problem, randn):
    W = problem.minimizer(2)
    D = 1e-8 * randn(4, 5)
    exact = 0.5 * (D @ problem.C * D).sum() + (problem.egrad(W) * D).sum()
    assert float(problem.loss_difference(W + D, W)) == pytest.approx(float(exact), rel=1e-7)
    V = randn(4, 5)
    torch.testing.assert_close(problem.loss_difference(V, W), problem.loss(V) - problem.loss(W))


def test_four_constructors_agree(randn):
    x, y = randn(40, 5), randn(40, 3)
    problems = [
        LeastSquares(x.mT, y.mT),
        LeastSquares.from_samples(x, y),
        LeastSquares.from_moments(x.mT @ x, y.mT @ x, float(y.square().sum()), 40),
        LeastSquares.from_batches((x[i : i + 7], y[i : i + 7]) for i in range(0, 40, 7)),
    ]
    W = randn(3, 5)
    for other in problems[1:]:
        torch.testing.assert_close(other.loss(W), problems[0].loss(W), rtol=1e-12, atol=0)
        torch.testing.assert_close(other.minimizer(2), problems[0].minimizer(2))
        assert other.m == 40
    stream = LeastSquares.from_batches(x[i : i + 8] for i in range(0, 40, 8))
    assert stream.is_autoencoder
    torch.testing.assert_close(stream.minimizer(2), deeplin.autoencoder(x.mT).minimizer(2))


def test_every_kind_of_stream_gives_the_same_problem(randn, tmp_path):
    """A DataLoader, and blocks of memory maps, which nobody reads as a whole."""
    x, y = randn(40, 5), randn(40, 3)
    for name, part in (("x", x), ("y", y)):
        np.save(tmp_path / f"{name}.npy", part.numpy())
    maps = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "xy"]
    dataset = torch.utils.data.TensorDataset
    loader = torch.utils.data.DataLoader
    both = LeastSquares.from_samples(x, y)
    for stream in (
        loader(dataset(x, y), batch_size=7, shuffle=True),
        zip(*(np.array_split(part, 6) for part in maps), strict=True),
    ):
        problem = LeastSquares.from_batches(stream)
        torch.testing.assert_close(problem.C, both.C, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(problem.B, both.B, rtol=1e-13, atol=1e-13)
        assert float(problem.yy) == pytest.approx(float(both.yy), rel=1e-13)
    for stream in (loader(dataset(x), batch_size=7), np.array_split(maps[0], 6)):
        alone = LeastSquares.from_batches(stream)
        assert alone.is_autoencoder
        torch.testing.assert_close(alone.C, both.C, rtol=1e-13, atol=1e-13)
        assert float(alone.yy) == pytest.approx(float(both.C.trace()), rel=1e-13)


def test_a_stream_that_is_tied_only_at_first_is_none_of_an_autoencoder(randn):
    x, y = randn(20, 4), randn(20, 4)
    y[:10] = x[:10]
    problem = LeastSquares.from_batches([(x[:10], y[:10].clone()), (x[10:], y[10:])])
    assert not problem.is_autoencoder
    torch.testing.assert_close(problem.B, y.mT @ x, rtol=1e-13, atol=1e-13)
    assert float(problem.yy) == pytest.approx(float(y.square().sum()), rel=1e-13)


def test_from_batches_sums_in_double_precision(generator):
    x = 1e3 + torch.randn(20000, 2, generator=generator)
    stream = LeastSquares.from_batches(x[i : i + 10] for i in range(0, 20000, 10))
    exact = x.double().mT @ x.double()
    assert stream.C.dtype == torch.float32
    torch.testing.assert_close(stream.C, exact.float(), rtol=1e-6, atol=0)


@pytest.mark.statement("BRTW Prop. 32(1)")
@pytest.mark.statement("BRTW Prop. 32(2)")
def test_critical_points_are_critical_on_the_manifold(randn, seen):
    for name, X, Y in degenerate_cases(randn):
        problem = LeastSquares(X, Y)
        for k in range(1, problem.rank_Q + 1):
            for J, W in problem.optimum.critical_points(k):
                assert int(torch.linalg.matrix_rank(W, rtol=1e-9)) == k, name
                # P_W(G) = 0, with G from the samples: G is orthogonal to row and column space.
                G = (W @ X - Y) @ X.mT
                seen.below((W.mT @ G).norm() + (G @ W.mT).norm(), 1e-9)
                value = 0.5 * (
                    Y.square().sum() - sum(problem.singular_values[j - 1] ** 2 for j in J)
                )
                direct = 0.5 * (Y - W @ X).square().sum()
                seen.close(direct, value, rtol=1e-10, atol=1e-10)


@pytest.mark.statement("BRTW Prop. 32(2)")
def test_minimizer_beats_every_other_critical_point_and_random_matrices(problem, randn):
    for k in (1, 2, 3):
        best = problem.loss(problem.minimizer(k))
        torch.testing.assert_close(best, problem.optimal_loss(k))
        others = [problem.loss(W) for J, W in problem.optimum.critical_points(k) if max(J) > k]
        assert all(best < other for other in others)
        noise = problem.minimizer(k) @ (torch.eye(5) + 0.1 * randn(200, 5, 5))
        assert bool((problem.loss(noise) > best).all())


def test_no_minimizer_beyond_the_rank_of_Q(randn):
    X = randn(5, 20)
    problem = LeastSquares(X, randn(4, 2) @ randn(2, 5) @ X)
    assert problem.rank_Q == 2
    with pytest.raises(ValueError, match="rank Q = 2"):
        problem.minimizer(3)
    assert list(problem.optimum.critical_points(3)) == []
    assert float(problem.optimal_loss(3)) == pytest.approx(float(problem.optimal_loss(2)))


def test_autoencoder_is_pca(randn):
    X = randn(6, 50)
    problem = deeplin.autoencoder(X)
    values, vectors = torch.linalg.eigh(X @ X.mT)
    U = vectors[:, -2:]
    torch.testing.assert_close(problem.minimizer(2), U @ U.mT)
    torch.testing.assert_close(problem.optimal_loss(2), 0.5 * values[:-2].sum())
    torch.testing.assert_close(problem.singular_values, values.flip(0).sqrt())
    assert not problem.rank_warning()
    assert problem.has_unique_minimizer(2)
    assert not deeplin.autoencoder(torch.eye(3)).has_unique_minimizer(1)


def test_singular_data_are_named_projected_and_whitened(randn):
    X = randn(6, 3) @ randn(3, 20)
    for problem in (LeastSquares(X, randn(4, 20)), deeplin.autoencoder(X)):
        assert "rank 3 of 6" in problem.rank_warning()
        for other in (problem.projected(), problem.whitened()):
            assert other.d_x == 3
            assert other.rank_warning() is None
            torch.testing.assert_close(other.singular_values, problem.singular_values)
            torch.testing.assert_close(other.optimal_loss(2), problem.optimal_loss(2))
        torch.testing.assert_close(problem.whitened().C, torch.eye(3, dtype=torch.float64))
        W, T = randn(problem.d_y, 3), problem.whitening()
        torch.testing.assert_close(problem.whitened().loss(W), problem.loss(W @ T))
    E = problem.range_basis()
    W = randn(3, 3)
    torch.testing.assert_close(problem.projected().loss(W), problem.loss(E @ W @ E.mT))


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: LeastSquares([1.0], torch.ones(1, 1)), TypeError, "X must be a floating"),
        (lambda: LeastSquares(torch.ones(2, 3).long(), torch.ones(1, 3)), TypeError, "int64"),
        (lambda: LeastSquares(torch.ones(3), torch.ones(1, 3)), ValueError, "non-empty matrix"),
        (lambda: LeastSquares(torch.ones(3, 2), torch.ones(2, 3)), ValueError, "from_samples"),
        (
            lambda: LeastSquares(torch.tensor([[1.0, torch.nan]]), torch.ones(1, 2)),
            ValueError,
            "1 of 2 entries are NaN",
        ),
        (lambda: LeastSquares.from_batches([]), ValueError, "stream was empty"),
        (
            lambda: LeastSquares.from_batches([torch.ones(2, 3), torch.ones(2, 4)]),
            ValueError,
            r"got \(d_x, d_y\) = \(4, 4\) after \(3, 3\)",
        ),
        (
            lambda: LeastSquares.from_batches([(torch.ones(2, 3), torch.ones(2, 1), 0)]),
            ValueError,
            "a batch must be .* got 3 parts",
        ),
        (
            lambda: LeastSquares.from_batches(
                [(torch.ones(2, 3), torch.tensor([[1.0], [torch.inf]]))]
            ),
            ValueError,
            "y of a batch must be finite; 1 of 2 entries",
        ),
        (
            lambda: LeastSquares.from_moments(torch.ones(2, 3), torch.ones(1, 2), 1.0),
            ValueError,
            r"C must be \(d_x, d_x\)",
        ),
        (
            lambda: LeastSquares.from_moments(-torch.eye(2), torch.ones(1, 2), 1.0),
            ValueError,
            "positive semidefinite",
        ),
        (
            lambda: LeastSquares.from_moments(
                torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.ones(1, 2), 1.0
            ),
            ValueError,
            "symmetric",
        ),
        (
            lambda: deeplin.autoencoder(torch.eye(3)).critical_point([0]),
            ValueError,
            "from 1 to rank Q = 3",
        ),
        (lambda: deeplin.autoencoder(torch.eye(3)).optimal_loss(4), ValueError, "0 <= k <="),
    ],
)
def test_bad_input(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("kind", ["least squares", "autoencoder", "approximation"])
def test_products_with_the_gradient_are_those_of_the_formed_one(randn, batch, kind):
    """In factors with few columns, at a core that is a matrix or given by its diagonal."""
    d_y = 4 if kind == "least squares" else 6
    X = randn(6, 20)
    problem = {
        "least squares": LeastSquares(X, randn(4, 20)),
        "autoencoder": autoencoder(X),
        "approximation": MatrixApproximation(randn(6, 6)),
    }[kind]
    U, V = torch.linalg.qr(randn(*batch, d_y, 2)).Q, torch.linalg.qr(randn(*batch, 6, 2)).Q
    s = randn(*batch, 2)
    for given, S in ((s, torch.diag_embed(s)), (T := randn(*batch, 2, 2), T)):
        G = problem.egrad(U @ S @ V.mT)
        GV, GtU = problem.egrad_products(U, given, V)
        torch.testing.assert_close(GV, G @ V, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(GtU, G.mT @ U, rtol=1e-11, atol=1e-11)
    K, N = problem.egrad_split(T, V)
    torch.testing.assert_close(U @ K - N, G @ V, rtol=1e-11, atol=1e-11)
    if kind != "approximation":
        for k in (1, 5):  # thin, and so wide that G is formed
            L, R = randn(*batch, d_y, k), randn(*batch, k, 6)
            G = problem.egrad(L @ R)
            GRt, LtG = problem.egrad_pair(L, R)
            torch.testing.assert_close(GRt, G @ R.mT, rtol=1e-11, atol=1e-10)
            torch.testing.assert_close(LtG, L.mT @ G, rtol=1e-11, atol=1e-10)


def test_an_autoencoder_is_known_as_one_whatever_the_alignment(generator):
    """Two products of the same matrices can differ in their last bits."""
    for d in range(2, 40):
        buffer = torch.randn(3 * d * d + 1, dtype=torch.float64, generator=generator)
        x = buffer[1:].view(3 * d, d)
        assert LeastSquares.from_samples(x, x.clone()).to("cpu").is_autoencoder
        assert LeastSquares.from_batches([(x, x.clone()), x.clone()]).is_autoencoder
