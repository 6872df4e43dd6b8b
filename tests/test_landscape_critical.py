"""BRTW Prop. 32 and 33 on random and degenerate data; Hessians by autograd are the oracle."""

import itertools
import math

import pytest
import torch
from landscape_oracles import CASES, F64, chart_hessian, problem_of, square_root

import deeplin
from deeplin.landscape import (
    RiemannianHessian,
    classify,
    critical_points,
    escape_direction,
    hessian,
    lift,
    local_rate,
    nearest_critical_point,
    saddle_curve,
)
from deeplin.problems import MatrixApproximation


@pytest.mark.statement("BRTW Prop. 32(1)")
@pytest.mark.statement("BRTW Prop. 32(2)")
@pytest.mark.statement("BRTW Prop. 33")
@pytest.mark.statement("BRTW Definition 27")
@pytest.mark.parametrize("name", CASES)
def test_every_critical_point_against_autograd(randn, name, seen):
    problem = problem_of(name, randn)
    sigma = problem.singular_values
    count = 0
    for k in range(1, len(sigma) + 1):
        losses = []
        for point in critical_points(problem, k):
            gradient, H = chart_hessian(problem, point.W)
            seen.below(gradient, 1e-10)  # critical
            values = torch.linalg.eigvalsh(H)
            tolerance = 1e-7 * float(values.abs().max())
            assert point.index == int((values < -tolerance).sum())
            assert point.nullity == int((values.abs() <= tolerance).sum())
            loss = float(problem.loss(point.W))
            seen(float(point.loss) - loss, max(1e-12, 1e-12 * loss))
            strict = float(values[0]) < -tolerance
            assert (point.kind == "strict saddle") == strict
            assert (point.kind == "global minimum") == (not strict and k == len(sigma))
            losses.append(float(point.loss))
            count += 1
        least = 0.5 * float(sigma[k:].square().sum())
        assert losses[0] == pytest.approx(min(losses))
        assert losses[0] - float(problem.optimal_loss(len(sigma))) == pytest.approx(least, abs=1e-9)
    distinct = 2 ** len(sigma) - 1
    assert count == distinct if name != "repeated" else count == 3 * 2 * 2 - 1


def test_no_critical_points_beyond_rank_Q_and_laziness(randn):
    problem = problem_of("q < r", randn)
    assert list(critical_points(problem, 3)) == []
    assert [p.kind for p in critical_points(problem, 0)] == ["minimum on M_k"]
    large = deeplin.autoencoder(randn(60, 100))
    first = list(itertools.islice(critical_points(large, 30), 3))  # of 1e17
    assert list(first[0].J) == list(range(1, 31))
    assert [p.index for p in first] == [0, 1, 2]


@pytest.mark.statement("BRTW Prop. 32(1)")
@pytest.mark.statement("BRTW Prop. 32(1), E7")
def test_repeated_singular_values_give_continua(randn, seen):
    """Any singular vectors of a repeated σ give critical points, not those of one SVD alone."""
    problem = problem_of("repeated", randn)
    points = {p.J: p for p in critical_points(problem, 2)}
    assert set(points) == {(1, 2), (1, 4), (2, 3), (2, 4)}
    point = points[1, 2]
    assert (point.nullity, point.is_isolated, point.kind) == (1, False, "minimum on M_k")
    assert points[2, 3].is_isolated
    U, s, V = (problem.svd_Q[0], problem.singular_values, problem.svd_Q[2].mT)
    root = torch.linalg.inv(square_root(problem.C))
    for angle in (0.3, 1.2, 2.5):  # around the continuum
        a = torch.tensor([math.cos(angle), math.sin(angle)], dtype=F64)
        u, v = U[:, 1:3] @ a, V[:, 1:3] @ a
        W = (s[0] * torch.outer(U[:, 0], V[:, 0]) + s[1] * torch.outer(u, v)) @ root
        seen.below(chart_hessian(problem, W)[0], 1e-10)
        near = nearest_critical_point(problem, W + 1e-9)
        assert near.modes.tolist() == [True, True, False, False]
        assert float(near.distance) < 1e-7
        assert classify(problem, W) == "minimum on M_k"
        layers = lift(problem, W, [4, 3, 4])
        torch.testing.assert_close(layers[1] @ layers[0], W, rtol=0, atol=1e-12)
        assert classify(problem, layers) == "strict saddle"
    direction = point.null_directions()[0]  # tangent to the continuum: the gradient stays O(t²)
    t = 1e-4
    moved = point.W + t * direction / direction.norm()
    assert float(nearest_critical_point(problem, moved).distance) < 10 * t**2


@pytest.mark.statement("BRTW Prop. 33")
@pytest.mark.parametrize("name", CASES)
def test_second_derivative_along_the_curve_of_the_proof(randn, name, seen):
    problem = problem_of(name, randn)
    s = problem.singular_values
    for k in (1, 2):
        for point in critical_points(problem, k):
            for j0, j1 in itertools.product(point.J, range(1, len(s) + 1)):
                if j1 in point.J:
                    continue
                gamma = saddle_curve(problem, point.J, j0, j1)
                problem.loss(gamma(0.0))  # fills caches that torch.func must not fill
                zero = torch.zeros((), dtype=F64)
                second = torch.func.grad(torch.func.grad(lambda t, g=gamma: problem.loss(g(t))))
                expected = 2 * float(s[j0 - 1] * (s[j0 - 1] - s[j1 - 1]))
                seen(second(zero) - expected, max(1e-9, 1e-9 * abs(expected)))
                assert int(torch.linalg.matrix_rank(gamma(0.3), rtol=1e-9)) == k
                torch.testing.assert_close(gamma(0.0), point.W)


@pytest.mark.parametrize("name", CASES)
def test_negative_directions_lower_the_loss_and_are_as_many_as_the_index(randn, name):
    problem = problem_of(name, randn)
    for point in critical_points(problem, 2):
        V = point.negative_directions()
        assert len(V) == point.index
        if point.index:
            assert int(torch.linalg.matrix_rank(V.flatten(1))) == point.index
        assert len(point.null_directions()) == point.nullity


@pytest.mark.statement("BRTW Theorem 25")
@pytest.mark.statement("BRTW Theorem 49")
def test_escape_from_principal_subspaces_of_an_autoencoder(randn, seen):
    problem = deeplin.autoencoder(randn(5, 30))
    for J in itertools.combinations(range(1, 6), 2):
        W = problem.critical_point(J)
        direction = escape_direction(problem, W)
        moved = W + 1e-4 * direction
        if J == (1, 2):  # Theorem 49 for k < r: out of M_k
            assert int(torch.linalg.matrix_rank(moved, rtol=1e-9)) == 3
        else:
            # Tangent to M_2 and symmetric: the retraction V(ε)V(ε)ᵀ of Theorem 25 has rank 2.
            U, s, Vh = torch.linalg.svd(W + 1e-2 * direction)
            moved = (U[:, :2] * s[:2]) @ Vh[:2]
            torch.testing.assert_close(direction, direction.mT)
        change = float(problem.loss(moved)) - float(problem.loss(W))
        source = "BRTW Theorem 49" if J == (1, 2) else "BRTW Theorem 25"
        seen.of("BRTW Theorem 49", source).number("change of the loss along the escape", change)
        assert change < 0
    assert escape_direction(problem, problem.minimizer(5)) is None


@pytest.mark.statement("HLZ Definition 2.9")
def test_complex_critical_points(generator, seen):
    """Index and nullity count real dimensions; finite differences of the loss are the oracle."""
    A = torch.randn(4, 3, dtype=torch.complex128, generator=generator)
    U, _, Vh = torch.linalg.svd(A, full_matrices=False)
    problem = MatrixApproximation((U * torch.tensor([2.0, 1.0, 1.0])) @ Vh)
    point = list(critical_points(problem, 1))[1]
    assert (point.J, point.index, point.nullity, point.kind) == ((2,), 2, 2, "strict saddle")
    t = 1e-3
    for direction, sign in ((point.negative_directions(), -1), (point.null_directions(), 0)):
        assert len(direction) == 2
        for V in direction:
            U, s, Vh = torch.linalg.svd(point.W + t * V)
            moved = (U[:, :1] * s[:1]) @ Vh[:1]
            change = float(problem.loss(moved) - problem.loss(point.W)) / t**2
            seen(change - sign, 0.01)  # σ_i(σ_i − σ_j) = −1 or 0
    assert classify(problem, point.W) == "strict saddle"
    U, s, Vh = torch.linalg.svd(point.W + 1e-2 * escape_direction(problem, point.W))
    assert float(problem.loss((U[:, :1] * s[:1]) @ Vh[:1])) < float(point.loss)
    values = torch.linalg.eigvalsh(hessian(problem, point.W, 1).dense())
    assert ((values < -1e-9).sum(), (values.abs() < 1e-9).sum()) == (point.index, point.nullity)


@pytest.mark.parametrize("name", ["square", "wide", "repeated"])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_extreme_eigenpairs_dense_and_by_lanczos(randn, monkeypatch, name, depth):
    problem = problem_of(name, randn)
    for J in ([1, 2], [1, 3]):
        W = problem.critical_point(J)
        H = hessian(problem, W, depth)
        lowest, highest = H.extreme(3), H.extreme(2, "largest")
        full = H @ torch.eye(H.dim, dtype=F64)
        torch.testing.assert_close(full, full.mT, rtol=0, atol=1e-10)
        values = torch.linalg.eigvalsh(full)
        torch.testing.assert_close(lowest.values, values[:3])
        torch.testing.assert_close(highest.values, values.flip(0)[:2])
        x, value = lowest.vectors[0], float(lowest.values[0])
        torch.testing.assert_close(H @ x, value * x, rtol=0, atol=1e-9)
        monkeypatch.setattr(deeplin.landscape.operators, "_DENSE_DIMENSION", 4)
        by_lanczos = H.extreme(3)
        torch.testing.assert_close(by_lanczos.values, lowest.values, rtol=1e-7, atol=1e-9)
        monkeypatch.undo()
        # The quadratic form on the tangent matrix, by finite differences along a curve in M_k:
        # g(ξ, Hess^g ξ) = value·‖x‖².
        xi, t = H.tangent(x), 1e-4

        def projected(A):  # to rank 2
            U, s, Vh = torch.linalg.svd(A)
            return (U[:, :2] * s[:2]) @ Vh[:2]

        second = sum(float(problem.loss_difference(projected(W + h * xi), W)) for h in (t, -t))
        assert second / t**2 == pytest.approx(value, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda p: critical_points(p, 5), "0 <= k <= min"),
        (lambda p: critical_points(p, -1), "0 <= k <= min"),
        (lambda p: lift(p, p.minimizer(3), [4, 2, 4]), "widths must all be >= rank W = 3"),
        (lambda p: lift(p, p.minimizer(1), [4, 2, 3]), "widths from d_x = 4 to d_y = 4"),
        (lambda p: lift(p, p.minimizer(1) + 0.1, [4, 2, 4]), "needs a critical point"),
        (lambda p: classify(p, torch.zeros(3, 4)), "must be a W of shape"),
        (lambda p: classify(p, torch.zeros(4, 4), tol=0), "0 < tol < 1"),
        (lambda p: escape_direction(p, p.minimizer(2) + 0.1), "not critical"),
        (lambda p: escape_direction(p, p.minimizer(2)[None]), "not a batch"),
        (lambda p: local_rate(p, p.minimizer(2) + 0.1, 2), "needs a critical point"),
        (lambda p: hessian(p, p.minimizer(2), 2).extreme(0), "1 <= n <= dim"),
        (lambda p: RiemannianHessian(p, p.minimizer(0), 2), "W must not be 0"),
        (lambda p: local_rate(p, p.critical_point([3]), 2), "minimum on M_k"),
        (lambda p: saddle_curve(p, (1,), 2, 3), "j0 in J"),
        (lambda p: classify(MatrixApproximation(torch.eye(4)[None]), torch.eye(4)), "one matrix"),
    ],
)
def test_bad_input_is_one_sentence(randn, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(problem_of("square", randn))
