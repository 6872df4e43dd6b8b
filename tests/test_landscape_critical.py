"""BRTW Prop. 32 to 38 on random and degenerate data; Hessians by autograd are the oracle."""

import itertools
import math

import pytest
import torch

import deeplin
from deeplin import LeastSquares
from deeplin.approximation import MatrixApproximation
from deeplin.landscape import (
    LayerHessian,
    RiemannianHessian,
    classify,
    critical_points,
    escape_direction,
    hessian,
    is_critical,
    lift,
    nearest_critical_point,
    saddle_curve,
)

F64 = torch.float64


def problem_of(name, randn):
    """Random and degenerate data, all with XXᵀ of full rank."""
    if name == "square":
        return LeastSquares(randn(4, 20), randn(4, 20))
    if name == "wide":  # d_y > d_x
        return LeastSquares(randn(3, 20), randn(5, 20))
    if name == "q < r":  # rank Q = 2
        X = randn(4, 20)
        return LeastSquares(X, randn(4, 2) @ randn(2, 4) @ X)
    if name == "repeated":
        U, V = (torch.linalg.qr(randn(4, 4)).Q for _ in range(2))
        C_root = torch.eye(4, dtype=F64) + 0.2 * randn(4, 4)
        s = torch.tensor([2.0, 1.0, 1.0, 0.5], dtype=F64)
        C = C_root @ C_root.mT
        root = deeplin.linalg.psd_power(C, 0.5)
        return LeastSquares.from_moments(C, (U * s) @ V.mT @ root, s.square().sum() + 1)
    if name == "autoencoder":
        return deeplin.autoencoder(randn(4, 20))
    return MatrixApproximation(randn(4, 3))


CASES = ["square", "wide", "q < r", "repeated", "autoencoder", "approximation"]


def chart_hessian(problem, W):
    """Hess of L¹ at W in the chart (M, A, B) of M_k: (U + U_⊥A)(Σ + M)(V + V_⊥B)ᵀ, by autograd."""
    k = int(torch.linalg.matrix_rank(W, rtol=1e-9))
    U, s, Vh = torch.linalg.svd(W)
    U1, U2, V1, V2 = U[:, :k], U[:, k:], Vh[:k].mT, Vh[k:].mT
    shapes = [(k, k), (U2.shape[1], k), (V2.shape[1], k)]

    def loss(x):
        M, A, B = (
            p.view(shape)
            for p, shape in zip(x.split([a * b for a, b in shapes]), shapes, strict=True)
        )
        return problem.loss((U1 + U2 @ A) @ (torch.diag(s[:k]) + M) @ (V1 + V2 @ B).mT)

    zero = torch.zeros(sum(a * b for a, b in shapes), dtype=W.dtype)
    gradient = torch.func.grad(loss)(zero)
    return gradient, torch.autograd.functional.hessian(loss, zero)


def layers_gradient(problem, layers):
    """∇L^N at layers, by autograd."""
    leaves = [W.detach().clone().requires_grad_() for W in layers]
    W = leaves[0]
    for leaf in leaves[1:]:
        W = leaf @ W
    problem.loss(W).backward()
    return torch.cat([leaf.grad.flatten() for leaf in leaves])


def layers_hessian(problem, layers):
    """Hess L^N at layers, by autograd."""
    shapes = [tuple(W.shape) for W in layers]

    def loss(x):
        W = None
        for part, shape in zip(x.split([a * b for a, b in shapes]), shapes, strict=True):
            W = part.view(shape) if W is None else part.view(shape) @ W
        return problem.loss(W)

    x = torch.cat([W.flatten() for W in layers])
    return torch.autograd.functional.hessian(loss, x)


@pytest.mark.statement("BRTW Prop. 32")
@pytest.mark.statement("BRTW Prop. 33")
@pytest.mark.parametrize("name", CASES)
def test_every_critical_point_against_autograd(randn, name):
    problem = problem_of(name, randn)
    sigma = problem.singular_values
    seen = 0
    for k in range(1, len(sigma) + 1):
        losses = []
        for point in critical_points(problem, k):
            gradient, H = chart_hessian(problem, point.W)
            assert float(gradient.abs().max()) < 1e-10, "critical"
            values = torch.linalg.eigvalsh(H)
            tolerance = 1e-7 * float(values.abs().max())
            assert point.index == int((values < -tolerance).sum())
            assert point.nullity == int((values.abs() <= tolerance).sum())
            assert float(point.loss) == pytest.approx(float(problem.loss(point.W)), rel=1e-12)
            strict = float(values[0]) < -tolerance
            assert (point.kind == "strict saddle") == strict
            assert (point.kind == "global minimum") == (not strict and k == len(sigma))
            losses.append(float(point.loss))
            seen += 1
        least = 0.5 * float(sigma[k:].square().sum())
        assert losses[0] == pytest.approx(min(losses))
        assert losses[0] - float(problem.optimal_loss(len(sigma))) == pytest.approx(least, abs=1e-9)
    distinct = 2 ** len(sigma) - 1
    assert seen == distinct if name != "repeated" else seen == 3 * 2 * 2 - 1


@pytest.mark.statement("BRTW Prop. 32")
def test_no_critical_points_beyond_rank_Q_and_laziness(randn):
    problem = problem_of("q < r", randn)
    assert list(critical_points(problem, 3)) == []
    assert [p.kind for p in critical_points(problem, 0)] == ["minimum on M_k"]
    large = deeplin.autoencoder(randn(60, 100))
    first = list(itertools.islice(critical_points(large, 30), 3))  # of 1e17
    assert list(first[0].J) == list(range(1, 31))
    assert [p.index for p in first] == [0, 1, 2]


@pytest.mark.statement("BRTW Prop. 32(1)")
def test_repeated_singular_values_give_continua(randn):
    """Any singular vectors of a repeated σ give critical points, not those of one SVD alone."""
    problem = problem_of("repeated", randn)
    points = {p.J: p for p in critical_points(problem, 2)}
    assert set(points) == {(1, 2), (1, 4), (2, 3), (2, 4)}
    point = points[1, 2]
    assert (point.nullity, point.is_isolated, point.kind) == (1, False, "minimum on M_k")
    assert points[2, 3].is_isolated
    U, s, V = (problem._svd_Q[0], problem.singular_values, problem._svd_Q[2].mT)
    root = torch.linalg.inv(deeplin.linalg.psd_power(problem.C, 0.5))
    for angle in (0.3, 1.2, 2.5):  # around the continuum
        a = torch.tensor([math.cos(angle), math.sin(angle)], dtype=F64)
        u, v = U[:, 1:3] @ a, V[:, 1:3] @ a
        W = (s[0] * torch.outer(U[:, 0], V[:, 0]) + s[1] * torch.outer(u, v)) @ root
        assert float(chart_hessian(problem, W)[0].abs().max()) < 1e-10
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
def test_second_derivative_along_the_curve_of_the_proof(randn, name):
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
                expected = 2 * s[j0 - 1] * (s[j0 - 1] - s[j1 - 1])
                assert float(second(zero)) == pytest.approx(float(expected), rel=1e-9, abs=1e-9)
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


@pytest.mark.statement("BRTW Prop. 34(b)")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("balanced", [False, True])
def test_lifts_are_critical_and_have_the_product(randn, name, balanced):
    problem = problem_of(name, randn)
    d_y, d_x = next(critical_points(problem, 1)).W.shape
    for widths in ([d_x, 2, d_y], [d_x, 5, 2, d_y], [d_x, 3, 3, 4, d_y]):
        for k in range(3):
            for point in critical_points(problem, k):
                layers = lift(problem, point.W, widths, balanced=balanced)
                assert [tuple(A.shape) for A in layers] == list(
                    zip(widths[1:], widths[:-1], strict=True)
                )
                W = layers[0]
                for A in layers[1:]:
                    W = A @ W
                torch.testing.assert_close(W, point.W, rtol=0, atol=1e-12)
                assert float(layers_gradient(problem, layers).abs().max()) < 1e-10
                assert bool(is_critical(problem, layers))
                assert not bool(is_critical(problem, [A + 0.01 for A in layers]))
                if balanced:
                    gaps = deeplin.network.balancedness_gap(layers)
                    assert max(float(g.abs().max()) for g in gaps) < 1e-12


@pytest.mark.statement("BRTW Prop. 35")
@pytest.mark.statement("BRTW Prop. 36")
@pytest.mark.statement("BRTW Prop. 38")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("depth", [2, 3])
def test_kinds_of_lifts_against_autograd(randn, name, depth):
    problem = problem_of(name, randn)
    d_y, d_x = next(critical_points(problem, 1)).W.shape
    widths = [d_x, *[2] * (depth - 1), d_y]
    reachable = min(2, len(problem.singular_values))
    for k in range(reachable + 1):
        for point in critical_points(problem, k):
            for balanced in (False, True):
                layers = lift(problem, point.W, widths, balanced=balanced)
                values = torch.linalg.eigvalsh(layers_hessian(problem, layers))
                strict = float(values[0]) < -1e-7 * max(1.0, float(values.abs().max()))
                kind = classify(problem, layers)
                assert (kind == "strict saddle") == strict
                if point.kind == "strict saddle" or (depth == 2 and k < reachable):
                    assert kind == "strict saddle"  # Prop. 35, 38
                assert (kind == "global minimum") == (
                    k == reachable and point.kind != "strict saddle"
                )
                check_escape(problem, layers, kind)


def check_escape(problem, layers, kind, t=1e-3):
    direction = escape_direction(problem, layers)
    if kind == "global minimum":
        assert direction is None
        return
    W = deeplin.network.end_to_end(layers)
    steps = [t]
    if kind == "non-strict saddle":  # the loss falls at order t^N, or at the docstring's radius
        steps = [0.1, 0.1 * max(float(A.norm()) for A in layers)]
    changes = []
    for t in steps:
        moved = deeplin.network.end_to_end(
            [A + t * V for A, V in zip(layers, direction, strict=True)]
        )
        if isinstance(problem, LeastSquares):  # to the last digit
            changes.append(float(problem.loss_difference(moved, W)))
        else:
            changes.append(float(problem.loss(moved) - problem.loss(W)))
    assert min(changes) < 0
    assert sum(float(V.square().sum()) for V in direction) == pytest.approx(1)


@pytest.mark.statement("BRTW Prop. 36")
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_zero_is_a_saddle_strict_for_two_layers_alone(randn, depth):
    problem = problem_of("square", randn)
    zero = [torch.zeros(4, 4, dtype=F64) for _ in range(depth)]
    kind = "strict saddle" if depth == 2 else "non-strict saddle"
    assert classify(problem, zero) == kind
    assert (float(layers_hessian(problem, zero).abs().max()) > 1e-9) == (depth == 2)
    check_escape(problem, zero, kind)
    flat = LeastSquares.from_moments(problem.C, torch.zeros(4, 4, dtype=F64), 1.0)
    assert classify(flat, zero) == "global minimum", "Remark 37"


def structured_tuples(problem, widths, k, generator):
    """A tuple whose product is the minimum on M_k, with random other entries that multiply to 0."""
    U, s, Vh = torch.linalg.svd(problem.Q)
    inner = torch.linalg.inv(deeplin.linalg.psd_power(problem.C, 0.5))
    bases = [torch.linalg.qr(torch.randn(d, d, dtype=F64, generator=generator)).Q for d in widths]
    out, product = [], None
    for n, (cols, rows) in enumerate(itertools.pairwise(widths), start=1):
        A = torch.zeros(rows, cols, dtype=F64)
        A[range(k), range(k)] = s[:k] if n == len(widths) - 1 else torch.ones(k, dtype=F64)
        free = torch.randperm(rows - k, generator=generator) + k
        for a, b in zip(free.tolist(), range(k, cols), strict=False):
            if float(torch.rand((), generator=generator)) < 0.5:
                A[a, b] = 0.5 + float(torch.rand((), generator=generator))
        product = A[k:, k:] if product is None else A[k:, k:] @ product
        left = U if n == len(widths) - 1 else bases[n]
        out.append(left @ A @ (Vh @ inner if n == 1 else bases[n - 1].mT))
    return out if float(product.abs().max()) == 0 else None


@pytest.mark.statement("BRTW Prop. 36")
def test_rank_condition_for_strictness_against_autograd(randn, generator):
    """Rank-deficient minima on M_k for N >= 3, strict or not: lifts with any other entries."""
    problem = LeastSquares(randn(3, 12), randn(3, 12))
    counts = {"strict saddle": 0, "non-strict saddle": 0}
    for n in range(150):
        widths = [[3, 2, 3, 3], [3, 4, 4, 3], [3, 3, 2, 3, 3], [3, 2, 3, 4, 2, 3]][n % 4]
        layers = structured_tuples(problem, widths, n % 2, generator)
        if layers is None or not bool(is_critical(problem, layers, 1e-9)):
            continue
        least = float(torch.linalg.eigvalsh(layers_hessian(problem, layers))[0])
        kind = classify(problem, layers)
        assert (kind == "strict saddle") == (least < -1e-8)
        if n % 4 == n // 4 % 4:  # all widths, a quarter of the draws
            check_escape(problem, layers, kind, t=1e-4)
        counts[kind] += 1
    assert min(counts.values()) > 15


@pytest.mark.statement("BRTW Theorem 25")
@pytest.mark.statement("BRTW Theorem 49")
def test_escape_from_principal_subspaces_of_an_autoencoder(randn):
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
        assert float(problem.loss(moved)) < float(problem.loss(W))
    assert escape_direction(problem, problem.minimizer(5)) is None


def test_complex_critical_points(generator):
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
            assert change == pytest.approx(sign * 1.0, abs=0.01)  # σ_i(σ_i − σ_j) = −1 or 0
    assert classify(problem, point.W) == "strict saddle"
    U, s, Vh = torch.linalg.svd(point.W + 1e-2 * escape_direction(problem, point.W))
    assert float(problem.loss((U[:, :1] * s[:1]) @ Vh[:1])) < float(point.loss)
    with pytest.raises(TypeError, match="real problems"):
        hessian(problem, point.W, 1)


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
        monkeypatch.setattr(deeplin.landscape.curvature, "_DENSE_DIMENSION", 4)
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


def test_hessian_of_the_layers_against_autograd(randn):
    problem = problem_of("wide", randn)
    layers = [randn(2, 3), randn(4, 2), randn(5, 4)]
    H = LayerHessian(problem, layers)
    dense = layers_hessian(problem, layers)
    torch.testing.assert_close(H @ torch.eye(H.dim, dtype=F64), dense)
    pair = H.extreme(2)
    torch.testing.assert_close(pair.values, torch.linalg.eigvalsh(dense)[:2])
    assert [tuple(V.shape) for V in H.directions(pair.vectors[0])] == [(2, 3), (4, 2), (5, 4)]


def test_batches_are_classified_element_by_element(randn):
    problem = problem_of("square", randn)
    points = [p.W for k in range(5) for p in critical_points(problem, k)]
    stacked = torch.stack([*points, points[3] + 0.1])
    assert classify(problem, stacked) == [classify(problem, W) for W in stacked]
    assert classify(problem, stacked)[-1] == "not critical"
    assert classify(problem, stacked[None]) == [classify(problem, stacked)]
    lifts = [lift(problem, W, [4, 4, 4, 4], balanced=True) for W in points]
    batch = [torch.stack(layers) for layers in zip(*lifts, strict=True)]
    assert classify(problem, batch) == [classify(problem, layers) for layers in lifts]
    net = deeplin.DeepLinear([4, 4, 4, 4], dtype=F64)
    assert classify(problem, net) == "not critical"


def test_complex_layers_are_refused():
    with pytest.raises(TypeError, match="real layers"):
        classify(MatrixApproximation(torch.eye(2)), [torch.eye(2, dtype=torch.complex64)] * 2)


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
        (lambda p: hessian(p, p.minimizer(2) + 0.1, 2), "needs a critical point"),
        (lambda p: hessian(p, p.minimizer(2), 2).extreme(0), "1 <= n <= dim"),
        (lambda p: RiemannianHessian(p, p.minimizer(0), 2), "W must not be 0"),
        (lambda p: deeplin.landscape.local_rate(p, p.critical_point([3]), 2), "minimum on M_k"),
        (lambda p: saddle_curve(p, (1,), 2, 3), "j0 in J"),
        (lambda p: classify(MatrixApproximation(torch.eye(4)[None]), torch.eye(4)), "one matrix"),
    ],
)
def test_bad_input_is_one_sentence(randn, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(problem_of("square", randn))
