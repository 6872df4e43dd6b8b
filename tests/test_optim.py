"""Optimizers of both kinds: closed-form optima, batches, restarts, conditions; line searches."""

import copy

import geoopt
import pytest
import torch
from optim_cases import closure_of, completion, run

from deeplin import MatrixApproximation, MatrixCompletion
from deeplin.geometry import DepthMetric
from deeplin.manifolds import FixedRankFactored, PSDFixedRankFactored
from deeplin.optim import (
    ConjugateGradient,
    Products,
    TrustRegion,
    fletcher_reeves,
    hestenes_stiefel,
    polak_ribiere_plus,
)
from deeplin.optim.fixed_rank import TangentFixedRank

F64 = torch.float64
SOLVERS = [ConjugateGradient, TrustRegion]
RULES = [polak_ribiere_plus, hestenes_stiefel, fletcher_reeves]


def spd(randn, n):
    A = randn(n, n)
    return A @ A.mT / n + torch.eye(n, dtype=F64)


def root(A, power=0.5):
    values, vectors = torch.linalg.eigh(A)
    return (vectors * values**power) @ vectors.mT


# Each gives parameters, a loss, and what the parameters must be at the end, in closed form.


def sphere(randn):
    A = spd(randn, 6)
    x = geoopt.ManifoldParameter(
        torch.nn.functional.normalize(randn(6), dim=0), manifold=geoopt.Sphere()
    )
    v = torch.linalg.eigh(A).eigenvectors[:, 0]
    return [x], lambda: x @ A @ x, lambda: [(v @ x.detach()).sign() * v]


def stiefel(randn, *, canonical, scale=None):
    A = randn(6, 3)
    U, _, Vh = torch.linalg.svd(A, full_matrices=False)
    start = torch.linalg.qr(randn(6, 3)).Q
    # Start on the right side: the loss has saddles.
    start = torch.linalg.qr(A + 0.5 * start).Q
    manifold = geoopt.Stiefel(canonical=canonical)
    manifold = manifold if scale is None else geoopt.Scaled(manifold, scale)
    x = geoopt.ManifoldParameter(start, manifold=manifold)
    return [x], lambda: 0.5 * (x - A).square().sum(), lambda: [U @ Vh]


def karcher(randn):
    """The mean of two matrices is A #_½ B."""
    A, B = spd(randn, 4), spd(randn, 4)
    manifold = geoopt.SymmetricPositiveDefinite()
    x = geoopt.ManifoldParameter(torch.eye(4, dtype=F64), manifold=manifold)

    def squared(C):
        R = torch.linalg.cholesky(C)
        inner = torch.linalg.solve_triangular(R, x, upper=False)
        inner = torch.linalg.solve_triangular(R, inner.mT, upper=False)
        return torch.linalg.eigvalsh((inner + inner.mT) / 2).log().square().sum()

    half, inverse = root(A), root(A, -0.5)
    mean = half @ root(inverse @ B @ inverse) @ half
    return [x], lambda: 0.5 * (squared(A) + squared(B)), lambda: [mean]


def product(randn):
    A, b = spd(randn, 5), randn(3)
    manifold = geoopt.ProductManifold((geoopt.Sphere(), 5), (geoopt.Euclidean(), 3))
    x = geoopt.ManifoldParameter(
        torch.cat([torch.nn.functional.normalize(randn(5), dim=0), randn(3)]), manifold=manifold
    )
    v = torch.linalg.eigh(A).eigenvectors[:, 0]

    def loss():
        u, y = x[:5], x[5:]
        return u @ A @ u + 0.5 * (y - b).square().sum()

    return [x], loss, lambda: [torch.cat([(v @ x.detach()[:5]).sign() * v, b])]


def several(randn):
    """A point of a sphere and a plain vector at once: the minimum is at s = v, y = A⁻¹b."""
    (s,), rayleigh, best = sphere(randn)
    A, b = spd(randn, 4), randn(4)
    y = torch.nn.Parameter(torch.zeros(4, dtype=F64))
    solution = torch.linalg.solve(A, b)
    return [s, y], lambda: rayleigh() + 0.5 * y @ A @ y - b @ y, lambda: [*best(), solution]


def low_rank(randn, *, depth, kind="partials"):
    X = randn(7, 2) @ randn(2, 5) + 0.1 * randn(7, 5)
    problem = MatrixApproximation(X)
    manifold = FixedRankFactored(7, 5, 2, depth=depth, gradient=kind)
    x = manifold.parameter(manifold.from_dense(X + 0.3 * randn(7, 5)))
    best = problem.minimizer(2)

    def gap():
        return (manifold.to_dense(x) - best).norm().detach()

    return [x], lambda: problem.pair_loss(*manifold.factor_pair(x)), gap


def psd(randn):
    A = randn(6, 2)
    X = A @ A.mT
    manifold = PSDFixedRankFactored(6, 2, depth=1)
    x = manifold.parameter(manifold.from_dense(X + 0.3 * torch.eye(6, dtype=F64)))
    loss = lambda: 0.5 * (manifold.to_dense(x) - X).square().sum()  # noqa: E731
    return [x], loss, lambda: (manifold.to_dense(x) - X).norm().detach()


CASES = {
    "sphere": sphere,
    "stiefel": lambda randn: stiefel(randn, canonical=False),
    "canonical stiefel": lambda randn: stiefel(randn, canonical=True),
    "scaled": lambda randn: stiefel(randn, canonical=False, scale=3.0),
    "spd": karcher,
    "product": product,
    "several": several,
    "fixed rank": lambda randn: low_rank(randn, depth=1),
    "fixed rank, depth 3": lambda randn: low_rank(randn, depth=3, kind="taped"),
    "semidefinite": psd,
}


def distance(parameters, end):
    found = end()
    if isinstance(found, torch.Tensor):
        return float(found)
    return max(float((p.detach() - best).norm()) for p, best in zip(parameters, found, strict=True))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__)
@pytest.mark.parametrize("name", CASES)
def test_the_optimum_is_that_in_closed_form(name, solver, randn):
    parameters, loss, end = CASES[name](randn)
    assert distance(parameters, end) > 1e-2
    optimizer = run(solver(parameters, tol=1e-10), loss, 400)
    assert float(optimizer.gradient_norm) <= 1e-10
    assert distance(parameters, end) < 1e-8


@pytest.mark.parametrize("rule", RULES, ids=lambda f: f.__name__)
def test_every_rule_solves_a_linear_system_in_as_many_steps_as_it_has_unknowns(rule, randn):
    A, b = spd(randn, 6), randn(6)
    y = torch.nn.Parameter(torch.zeros(6, dtype=F64))
    # On a quadratic all rules are linear CG when steps are exact, as they nearly are here.
    optimizer = ConjugateGradient([y], beta=rule, decrease=1e-6, curvature=1e-6)
    run(optimizer, lambda: 0.5 * y @ A @ y - b @ y, 6)
    assert (A @ y.detach() - b).norm() < 1e-4 * b.norm()
    run(optimizer, lambda: 0.5 * y @ A @ y - b @ y, 20)
    assert (A @ y.detach() - b).norm() < 1e-10 * b.norm()


def test_rules_are_their_formulas():
    g, d, new, old, moved = torch.tensor(
        [[1.0, 2.0], [-3.0, 1.0], [0.5, -1.0], [1.0, 1.5], [-2.0, 1.0]], dtype=F64
    )
    p = Products(new @ new, g @ g, old @ new, g @ d, new @ moved)
    assert float(fletcher_reeves(p)) == pytest.approx(1.25 / 5)
    assert float(polak_ribiere_plus(p)) == pytest.approx((1.25 + 1.0) / 5)
    # ⟨g⁺, T(d)⟩ = −2 is below ⟨g, d⟩ = −1: no rise, so that nothing is kept
    assert float(hestenes_stiefel(p)) == 0
    rising = Products(new @ new, g @ g, old @ new, g @ d, torch.tensor(0.5, dtype=F64))
    assert float(hestenes_stiefel(rising)) == pytest.approx(2.25 / 1.5)
    falling = Products(new @ new, g @ g, torch.tensor(2.0, dtype=F64), g @ d, new @ moved)
    assert float(polak_ribiere_plus(falling)) == 0


def test_steps_meet_the_wolfe_conditions(randn):
    """On Rosenbrock's valley, where a full step is rarely right; from the definition."""
    y = torch.nn.Parameter(torch.tensor([-1.2, 1.0], dtype=F64))

    def f(z):
        return (1 - z[0]) ** 2 + 100 * (z[1] - z[0] ** 2) ** 2

    optimizer = ConjugateGradient([y], decrease=1e-4, curvature=0.2)
    for k in range(25):
        before = y.detach().clone()
        optimizer.step(closure_of(optimizer, lambda: f(y)))
        moved = y.detach() - before
        slope, after = (float(torch.func.grad(f)(z) @ moved) for z in (before, y.detach()))
        assert slope < 0
        assert float(f(y.detach())) <= float(f(before)) + 1e-4 * slope, k
        assert abs(after) <= -0.2 * slope, k
    assert float(f(y.detach())) < 1e-6


@pytest.mark.parametrize("depth", [1, 2])
def test_exact_steps_find_the_matrix(depth, randn, generator):
    truth, problem = completion(randn)
    manifold = FixedRankFactored(30, 25, 2, depth=depth)
    x = manifold.parameter(manifold.from_dense(truth + 0.5 * randn(30, 25)))
    optimizer = ConjugateGradient([x], problem=problem, tol=1e-11)
    for _ in range(300):
        before = manifold.to_dense(x.detach())
        optimizer.step()
        if bool(optimizer.finished):
            break
    assert (manifold.to_dense(x.detach()) - truth).norm() < 1e-8 * truth.norm()
    # One evaluation a step, but for the few that the retraction bends too far.
    assert optimizer.evaluations < 1.3 * 300
    assert before.isfinite().all()


def test_a_step_is_the_exact_one_along_the_tangent(randn, generator):
    _, problem = completion(randn)
    manifold = FixedRankFactored(30, 25, 2, depth=1)
    x = manifold.parameter(manifold.random(dtype=F64, generator=generator))
    W = manifold.to_dense(x.detach())
    optimizer = ConjugateGradient([x], problem=problem, preconditioner=None)
    optimizer.step()
    # The first direction is −P_W(∇f); the loss along W + tξ is a parabola through three points.
    U, _, Vh = torch.linalg.svd(W)
    U, V, G = U[:, :2], Vh[:2].mT, problem.egrad(W)
    xi = -(U @ U.mT @ G + G @ V @ V.mT - U @ U.mT @ G @ V @ V.mT)
    losses = [float(problem.loss(W + t * xi)) for t in (-1.0, 0.0, 1.0)]
    a, b = (losses[0] + losses[2]) / 2 - losses[1], (losses[2] - losses[0]) / 2
    assert float(optimizer.length) == pytest.approx(-b / (2 * a), rel=1e-10)


@pytest.mark.parametrize("dtype", [F64, torch.complex128])
@pytest.mark.parametrize("depth", [1, 2])
def test_what_is_left_of_a_vector_elsewhere_is_measured_without_moving_it(depth, dtype, generator):
    """g_Y(P_Y(u), v), of a batch: by dense matrices in the embedded metric, by transport else."""
    manifold = FixedRankFactored(9, 7, 2, depth=depth, gradient="taped")
    x, y = (manifold.random(3, 18, 2, dtype=dtype, generator=generator) for _ in range(2))
    drawn = [torch.randn(3, 18, 2, dtype=dtype, generator=generator) for _ in range(2)]
    u, v = manifold.proju(x, drawn[0]), manifold.proju(y, drawn[1])
    found = TangentFixedRank(manifold).across(x, u, y, v)
    torch.testing.assert_close(found, manifold.inner(y, manifold.transp(x, y, u), v))
    if depth == 1:
        dense = manifold.tangent_to_dense(x, u).conj() * manifold.tangent_to_dense(y, v)
        torch.testing.assert_close(found, dense.real.sum((-2, -1)))


@pytest.mark.parametrize(("depth", "alone"), [(1, True), (1, False), (2, True)])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__)
def test_matrices_that_have_one_loss_go_one_way(solver, depth, alone, generator):
    """Its sum is that of one point of a product, also beside a parameter of another kind."""
    manifold = FixedRankFactored(9, 7, 2, depth=depth, gradient="taped")
    truths = manifold.to_dense(manifold.random(3, 18, 2, dtype=F64, generator=generator))
    x = manifold.parameter(manifold.from_dense(truths + 0.1 * truths.flip(0)))
    b = torch.nn.Parameter(torch.ones(4, dtype=F64))
    optimizer = solver([x] if alone else [x, b], tol=1e-10)

    def loss():
        A, B = manifold.factor_pair(x)
        return 0.5 * (A @ B.mT - truths).square().sum() + 0.5 * (b - 2).square().sum()

    run(optimizer, loss, 300)
    assert optimizer.loss.shape == ()
    torch.testing.assert_close(manifold.to_dense(x.detach()), truths, rtol=0, atol=1e-8)
    torch.testing.assert_close(b.detach(), torch.full_like(b, 1 if alone else 2))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__)
@pytest.mark.parametrize("taped", [False, True])
def test_each_matrix_of_a_batch_goes_its_own_way(solver, taped, randn):
    truth, problem = completion(randn, 3)
    manifold = FixedRankFactored(30, 25, 2, depth=1)
    start = manifold.from_dense(
        truth + torch.tensor([0.01, 0.3, 1.0], dtype=F64)[:, None, None] * randn(3, 30, 25)
    )

    def optimizer_of(x, problem):
        known = {} if taped else {"problem": problem, "preconditioner": None}
        return solver([x], tol=1e-8, **known)

    def advance(optimizer, x, problem):
        if taped:
            loss = lambda: problem.pair_loss(*manifold.factor_pair(x))  # noqa: E731
            return optimizer.step(closure_of(optimizer, loss))
        return optimizer.step()

    x = manifold.parameter(start.clone())
    together = optimizer_of(x, problem)
    singles = []
    for i in range(3):
        own = MatrixCompletion(problem.rows, problem.cols, problem.values[i], problem.shape)
        p = manifold.parameter(start[i].clone())
        singles.append((optimizer_of(p, own), p, own))
    # Differences of gradients have 2^14 times their round-off, and more with every step.
    tolerance = 1e-3 if taped and solver is TrustRegion else 1e-6
    for _ in range(4):
        losses = advance(together, x, problem)
        alone = torch.stack([advance(*single) for single in singles])
        torch.testing.assert_close(losses, alone, rtol=tolerance, atol=1e-14)
    stopped = None
    for _ in range(300):
        advance(together, x, problem)
        if stopped is None and bool(together.finished[0]) and not bool(together.finished.all()):
            stopped = x.detach()[0].clone()
        if bool(together.finished.all()):
            break
    assert bool((together.gradient_norm <= 1e-8).all())
    assert (manifold.to_dense(x.detach()) - truth).norm() < 1e-6 * truth.norm()
    assert stopped is not None
    assert torch.equal(x.detach()[0], stopped), "who has arrived stays, to the bit"


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__)
@pytest.mark.parametrize("name", ["sphere", "several", "fixed rank, depth 3"])
def test_a_state_goes_on_to_the_same_bits(solver, name, randn, tmp_path):
    parameters, loss, _ = CASES[name](randn)
    optimizer = run(solver(parameters), loss, 3)
    torch.save(
        [copy.deepcopy(optimizer.state_dict()), *(p.data for p in parameters)], tmp_path / "a"
    )
    run(optimizer, loss, 3)
    straight = [p.detach().clone() for p in parameters]
    state, *points = torch.load(tmp_path / "a", weights_only=True)
    for p, x in zip(parameters, points, strict=True):
        p.data.copy_(x)
    other = solver(parameters)
    other.load_state_dict(state)
    run(other, loss, 3)
    assert all(torch.equal(p.detach(), x) for p, x in zip(parameters, straight, strict=True))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__)
def test_a_preconditioner_and_a_moved_parameter(solver, randn):
    scales = torch.logspace(0, 4, 8, dtype=F64)
    y = torch.nn.Parameter(torch.ones(8, dtype=F64))
    loss = lambda: 0.25 * (scales * y.square()).sum().square() + (scales * y.square()).sum()  # noqa: E731
    inverse = lambda x, g: [g[0] / scales]  # noqa: E731
    optimizer = run(solver([y], tol=1e-9, preconditioner=inverse), loss, 30)
    assert bool(optimizer.finished), "all directions are alike once preconditioned"
    with torch.no_grad():
        y.fill_(2.0)
    before = float(loss().detach())
    assert float(optimizer.step(closure_of(optimizer, loss))) < before
    assert float(y.detach().abs().max()) < 2.1


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__)
def test_bad_input_is_one_sentence(solver, randn):
    y = torch.nn.Parameter(torch.ones(3, dtype=F64))
    name = solver.__name__
    with pytest.raises(ValueError, match=rf"{name}: tol must lie in \[0, inf\]; got -1"):
        solver([y], tol=-1)
    with pytest.raises(TypeError, match=rf"{name}.step needs a closure"):
        solver([y]).step()
    with pytest.raises(TypeError, match=r"must return the loss as a real tensor.*got float"):
        solver([y]).step(lambda: 1.0)
    with pytest.raises(ValueError, match=r"one for each matrix .* got losses of shape \(2,\)"):
        solver([y]).step(lambda: torch.ones(2))
    with pytest.raises(TypeError, match="needs a Problem and one parameter on FixedRankFactored"):
        solver([y], problem=MatrixApproximation(randn(3, 3)))
    manifold = FixedRankFactored(4, 3, 1, depth=DepthMetric(1))
    x = manifold.parameter(manifold.origin(dtype=F64))
    with pytest.raises(ValueError, match=r"must have one shape; got \(3, 3\) and \(4, 3\)"):
        solver([x], problem=MatrixApproximation(randn(3, 3)))
    groups = [{"params": [y]}, {"params": [torch.nn.Parameter(y.detach().clone())], "tol": 1.0}]
    with pytest.raises(ValueError, match="moves all groups together: tol must be the same"):
        run(solver(groups), lambda: y.square().sum(), 1)
    with pytest.raises(RuntimeError, match="after the first step alone"):
        _ = solver([y]).gradient_norm


def test_bad_rules():
    y = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(TypeError, match="beta must be a function of Products; got 'PR'"):
        ConjugateGradient([y], beta="PR")
    with pytest.raises(ValueError, match=r"curvature must lie in \[0.3, 1\]; got 0.1"):
        ConjugateGradient([y], decrease=0.3)
