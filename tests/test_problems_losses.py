"""What each loss promises of its own: complex least squares, sensing, classification, curvature."""

import itertools

import pytest
import torch
from problem_cases import C128, F64, draw

import deeplin
from deeplin import LeastSquares, LogisticRegression, MatrixCompletion, MatrixSensing
from deeplin.linalg import largest_modulus, random_orthogonal
from deeplin.problems.data import gaussian

# -- least squares of complex data -----------------------------------------------------------------


def test_constructors_agree_on_complex_samples():
    """A sample per row, not conjugated: W x_i ≈ y_i."""
    x, W = draw(40, 5, seed=1, dtype=C128), draw(3, 5, seed=2, dtype=C128)
    y = torch.stack([W @ row for row in x])
    exact = LeastSquares.from_samples(x, y)
    assert float(exact.loss(W)) < 1e-24
    torch.testing.assert_close(exact.solution, W)
    noisy = y + draw(40, 3, seed=3, dtype=C128)
    problems = [
        LeastSquares.from_samples(x, noisy),
        LeastSquares(x.mT, noisy.mT),
        LeastSquares.from_batches((x[i : i + 7], noisy[i : i + 7]) for i in range(0, 40, 7)),
        LeastSquares.from_moments(
            x.mT @ x.conj(), noisy.mT @ x.conj(), float(noisy.abs().square().sum()), 40
        ),
    ]
    direct = 0.5 * sum((W @ a - b).abs().square().sum() for a, b in zip(x, noisy, strict=True))
    for problem in problems:
        assert problem.field == "complex"
        assert problem.loss(W).dtype == F64
        torch.testing.assert_close(problem.loss(W), direct, rtol=1e-12, atol=0)
        torch.testing.assert_close(problem.minimizer(2), problems[0].minimizer(2))
        torch.testing.assert_close(problem.optimal_loss(2), problems[0].optimal_loss(2))
    stream = LeastSquares.from_batches(x[i : i + 8] for i in range(0, 40, 8))
    assert stream.is_autoencoder
    torch.testing.assert_close(stream.C, deeplin.autoencoder(x.mT).C)


@pytest.mark.parametrize("auto", [False, True])
def test_optimum_of_complex_samples_is_critical_and_best(auto):
    X, Y = draw(4, 20, seed=1, dtype=C128), draw(5, 20, seed=2, dtype=C128)
    Y = X if auto else Y
    problem = LeastSquares(X, Y)
    for k in (1, 2, 3):
        for J, W in problem.optimum.critical_points(k):
            G = (W @ X - Y) @ X.mH  # from the samples
            assert int(torch.linalg.matrix_rank(W, rtol=1e-9)) == k
            assert float((W.mH @ G).norm() + (G @ W.mH).norm()) < 1e-10
            value = 0.5 * (W @ X - Y).abs().square().sum()
            torch.testing.assert_close(problem.loss(W), value)
            assert problem.optimal_loss(k) <= value * (1 + 1e-12), J
        noise = torch.eye(4) + 0.1 * draw(200, 4, 4, seed=3, dtype=C128)
        assert bool((problem.loss(problem.minimizer(k) @ noise) > problem.optimal_loss(k)).all())


def test_singular_complex_data_are_projected_and_whitened():
    X = draw(6, 3, seed=1, dtype=C128) @ draw(3, 20, seed=2, dtype=C128)
    for Y in (X, draw(4, 20, seed=3, dtype=C128)):
        problem = LeastSquares(X, Y)
        T, E = problem.whitening(), problem.range_basis()
        torch.testing.assert_close(T @ X @ (T @ X).mH, torch.eye(3, dtype=C128))
        W = draw(len(Y), 3, seed=4, dtype=C128)
        torch.testing.assert_close(problem.whitened().loss(W), problem.loss(W @ T))
        inner = W if Y is not X else E.mH @ W  # an autoencoder's labels are projected, too
        outer = W @ E.mH if Y is not X else E @ inner @ E.mH
        torch.testing.assert_close(problem.projected().loss(inner), problem.loss(outer))


def test_real_inputs_with_complex_labels():
    X, Y, W = draw(3, 9, seed=1), draw(2, 9, seed=2, dtype=C128), draw(2, 3, seed=3, dtype=C128)
    direct = 0.5 * (Y - W @ X.to(C128)).abs().square().sum()
    torch.testing.assert_close(LeastSquares(X, Y).loss(W), direct)


def test_moments_that_are_not_hermitian():
    C = torch.eye(2, dtype=C128)
    C[0, 1] = C[1, 0] = 0.5j
    with pytest.raises(ValueError, match="must be Hermitian"):
        LeastSquares.from_moments(C, torch.ones(1, 2, dtype=C128), 1.0)


def test_moving_decomposes_only_what_changes(monkeypatch):
    data = gaussian(6, 20, generator=torch.Generator().manual_seed(0))
    calls = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda *a, **k: calls.append(1) or eigh(*a, **k))
    assert data.to("cpu").problem is data.problem
    assert not calls
    moved = data.problem.to(torch.float32)
    assert len(calls) == 1
    assert moved.B is moved.C  # still known as an autoencoder
    W = draw(6, 6, seed=1)
    torch.testing.assert_close(
        moved.loss(W.float()).double(), data.problem.loss(W), rtol=1e-5, atol=0
    )


# -- curvature -------------------------------------------------------------------------------------


def test_largest_modulus_of_batches_with_and_without_breakdown():
    """Spectra by hand: a lone outlier, a negative one, all equal, all zero, one dimension."""
    d = 60
    spectra = torch.stack(
        [
            torch.cat([torch.linspace(0, 1, d - 1, dtype=F64), torch.tensor([1.7], dtype=F64)]),
            torch.cat([torch.linspace(0, 1, d - 1, dtype=F64), torch.tensor([-3.0], dtype=F64)]),
            torch.full((d,), 2.5, dtype=F64),
            torch.zeros(d, dtype=F64),
            torch.eye(d, dtype=F64)[7],
        ]
    )
    Q = random_orthogonal(d, d, dtype=F64, generator=torch.Generator().manual_seed(1))
    H = (Q * spectra[:, None, :]) @ Q.mT
    found = largest_modulus(lambda v: H @ v, draw(5, d, 1, seed=2))
    exact = spectra.abs().amax(-1)
    assert bool((found <= exact * (1 + 1e-10)).all())
    assert bool((found >= 0.99 * exact).all())
    assert bool(torch.isnan(largest_modulus(lambda v: v / 0, draw(1, d, 1, seed=2))).all())


def test_sensing_of_many_operators_measures_their_gram_matrix():
    """p > 1000 goes another way, and by blocks; against all p² inner products."""
    p = 1100
    a, b = draw(p, 3, seed=1, dtype=C128), draw(p, 2, seed=2, dtype=C128)
    dense = a[:, :, None] * b.conj()[:, None, :]
    flat = dense.flatten(1)
    exact = float(torch.linalg.svdvals(flat)[0] ** 2)
    for operators in ((a, b), dense):
        problem = MatrixSensing(operators, torch.zeros(p, dtype=C128))
        measured = problem.curvature(torch.zeros(3, 2, dtype=C128))
        assert measured == pytest.approx(exact, rel=1e-3)
        assert measured <= exact * (1 + 1e-9)
    assert MatrixSensing(dense[:0], torch.zeros(0, dtype=C128)).curvature(dense[0]) == 0


def test_completion_without_entries_and_with_repeated_ones():
    W = torch.zeros(2, 2)
    assert MatrixCompletion([], [], torch.zeros(0), (2, 2)).curvature(W) == 0
    assert MatrixCompletion([0, 0, 1], [1, 1, 1], torch.zeros(3), (2, 2)).curvature(W) == 2


# -- classification --------------------------------------------------------------------------------


def test_the_bound_on_the_curvature_of_classes_holds_and_is_met():
    x = draw(30, 4, seed=1)
    two = LogisticRegression(x, torch.arange(30) % 2)
    W = torch.zeros(2, 4, dtype=F64)
    met = deeplin.Problem.curvature(two, W)
    assert met == pytest.approx(two.curvature(W), rel=1e-2)
    three = LogisticRegression(x, torch.arange(30) % 3)
    for scale in (0.0, 0.3, 3.0):
        W = scale * draw(20, 3, 4, seed=2)
        assert deeplin.Problem.curvature(three, W) <= three.curvature(W)


def test_accuracy_counts_right_classes():
    x = torch.eye(4, dtype=F64)
    problem = LogisticRegression(x, torch.tensor([0, 1, 2, 2]), classes=5)
    assert problem.shape == (5, 4)
    W = torch.zeros(2, 5, 4, dtype=F64)
    W[0, [0, 1, 2, 2], [0, 1, 2, 3]] = 1.0
    W[1, [0, 0, 2, 4], [0, 1, 2, 3]] = 1.0
    assert problem.report(W)["accuracy"].tolist() == [1.0, 0.5]


def test_large_logits_do_not_overflow():
    problem = LogisticRegression(torch.eye(2, dtype=F64), torch.tensor([0, 1]))
    W = 1e4 * torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=F64)
    assert float(problem.loss(W)) == 5e3
    assert bool(torch.isfinite(problem.egrad(W)).all())


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (
            lambda: LogisticRegression(torch.ones(2, 3).long(), torch.ones(2).long()),
            TypeError,
            "x must",
        ),
        (
            lambda: LogisticRegression(torch.ones(2, 3), torch.ones(2)),
            TypeError,
            "labels must be int",
        ),
        (lambda: LogisticRegression(torch.ones(2, 3), torch.ones(3).long()), ValueError, r"\(3,\)"),
        (
            lambda: LogisticRegression(torch.ones(2, 3), torch.tensor([0, -1])),
            ValueError,
            r"-1\.\.0",
        ),
        (
            lambda: LogisticRegression(torch.ones(2, 3), torch.tensor([0, 3]), classes=3),
            ValueError,
            r"0\.\.2; got values in 0\.\.3",
        ),
        (
            lambda: LogisticRegression(torch.ones(1, 1) / 0, torch.zeros(1).long()),
            ValueError,
            "finite",
        ),
        (lambda: MatrixSensing(torch.ones(3, 2), torch.ones(3)), ValueError, r"got \(3, 2\)"),
        (lambda: MatrixSensing(torch.ones(3, 2, 2), torch.ones(2)), ValueError, "one value per"),
        (
            lambda: MatrixSensing((torch.ones(3, 2), torch.ones(2, 2)), torch.ones(3)),
            ValueError,
            "one value per operator",
        ),
        (lambda: MatrixSensing([[1.0]], torch.ones(1)), TypeError, "got list"),
        (
            lambda: MatrixSensing(torch.ones(3, 2, 2), torch.ones(3, dtype=F64)),
            TypeError,
            "one dtype; got torch.float32, torch.float64",
        ),
        (lambda: MatrixCompletion([0], [0], torch.ones(1).long(), (2, 2)), TypeError, "int64"),
        (lambda: MatrixCompletion([0], [0], [1.0], (2, 2)), TypeError, "got list"),
        (lambda: MatrixCompletion([0], [0], torch.ones(1), (2, 0)), ValueError, "two positive"),
        (lambda: deeplin.MatrixApproximation(torch.ones(2, 2).long()), TypeError, "int64"),
        (lambda: deeplin.MatrixApproximation(torch.ones(2)), ValueError, "needs a matrix X"),
    ],
)
def test_bad_input(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


def test_loss_and_products_of_every_rank_one_pair():
    """Operators of rank one and the same in full give the same numbers."""
    a, b = draw(6, 4, seed=1, dtype=C128), draw(6, 3, seed=2, dtype=C128)
    y, W = draw(6, seed=3, dtype=C128), draw(2, 4, 3, seed=4, dtype=C128)
    pair = MatrixSensing((a, b), y)
    full = MatrixSensing(a[:, :, None] * b.conj()[:, None, :], y)
    for law in ("loss", "egrad", "measure"):
        torch.testing.assert_close(getattr(pair, law)(W), getattr(full, law)(W))
    weights = draw(2, 6, seed=5, dtype=C128)
    for problem, other in itertools.permutations((pair, full)):
        left = (problem.measure(W).conj() * weights).sum(-1)
        right = (W.conj() * other.adjoint(weights)).sum((-2, -1))
        torch.testing.assert_close(left, right)
