"""The second derivative along a step, with what the manifold bends, and what it is good for."""

import pytest
import torch

from deeplin.manifolds import FixedRankFactored
from deeplin.optim import ConjugateGradient, minimize
from deeplin.optim.objectives import ProblemObjective
from deeplin.optim.space import Space
from deeplin.problems import MatrixCompletion, MatrixSensing, Ridge, spectral_start

F64 = torch.float64


def completion(*, weighted=False, rank=5, shape=(60, 50), noise=0.0, dtype=F64):
    generator = torch.Generator().manual_seed(4)
    known, _ = MatrixCompletion.planted(
        shape, rank, oversampling=3, noise=noise, generator=generator, dtype=dtype
    )
    if not weighted:
        return known
    weights = torch.rand(len(known.values), dtype=F64, generator=generator)
    return MatrixCompletion(known.rows, known.cols, known.values, shape, weights=weights)


def drawn(manifold, dtype=F64):
    x = manifold.random(dtype=dtype, generator=torch.Generator().manual_seed(0))
    return x.as_subclass(torch.Tensor)


def sensing(randn):
    A = randn(40, 7, 6)
    return MatrixSensing(A, randn(40))


@pytest.mark.parametrize("retraction", ["svd", "orthographic", "splitting"])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("kind", ["plain", "weighted", "ridge", "complex", "sensing"])
def test_second_derivative_along_a_retraction(kind, depth, retraction, randn):
    """Against differences of f(R(tξ)), where nothing fits; the metric has no part in it."""
    dtype = torch.complex128 if kind == "complex" else F64
    problem = completion(weighted=kind == "weighted", dtype=dtype)
    problem = sensing(randn) if kind == "sensing" else problem
    problem = Ridge(problem, 0.3) if kind == "ridge" else problem
    manifold = FixedRankFactored(*problem.shape, 2, depth, retraction)
    x = drawn(manifold, dtype)
    u = manifold.proju(x, randn(*x.shape).to(dtype) * (1 + 2j if kind == "complex" else 1))
    objective = ProblemObjective(Space([manifold.parameter(x)]), problem)

    def value(t):
        U, S, V = manifold.unpack_tensor(manifold.retr(x, t * u))
        return problem.pair_loss(U @ S, V)

    h = 5e-4
    sides = [value(k * h) + value(-k * h) for k in (1, 2)]
    want = (16 * sides[0] - sides[1] - 30 * value(0.0)) / (12 * h**2)
    plain, bend = objective.quadratic([x], [u]), objective.bend([x], [u])
    torch.testing.assert_close(plain + bend, want, rtol=1e-6, atol=0)
    assert abs(float(bend)) > 0.01 * float(plain)


def test_the_layers_retraction_bends_otherwise(randn):
    problem = completion()
    manifold = FixedRankFactored(*problem.shape, 2, 2, "layers")
    x = drawn(manifold)
    objective = ProblemObjective(Space([manifold.parameter(x)]), problem)
    assert objective.bend([x], [manifold.proju(x, randn(*x.shape))]) is None


@pytest.mark.parametrize("reg", [0.0, 0.5])
def test_steps_are_exact_where_the_residual_stays(reg, monkeypatch):
    """Of two of five equal singular values: without the bend CG hardly arrives."""
    problem = Ridge(completion(), reg)
    start = spectral_start(problem, 2)
    asked = []
    bend = ProblemObjective.bend
    monkeypatch.setattr(ProblemObjective, "bend", lambda *a: asked.append(1) or bend(*a))
    bent = minimize(problem, start, tol=1e-8, max_iter=400)
    best = minimize(problem, start, tol=1e-10, method="trust_region")
    assert bool(bent.converged)
    assert bent.evaluations <= 1.1 * bent.iterations + 1
    torch.testing.assert_close(bent.loss, best.loss, rtol=1e-12, atol=0)
    assert len(asked) > bent.iterations // 2
    monkeypatch.setattr(ProblemObjective, "bend", lambda *a: None)
    plain = minimize(problem, start, tol=1e-8, max_iter=400)
    assert plain.iterations > 2 * bent.iterations


def test_what_vanishes_is_not_asked_again(monkeypatch):
    problem, asked = completion(), []
    bend = ProblemObjective.bend
    monkeypatch.setattr(ProblemObjective, "bend", lambda *a: asked.append(1) or bend(*a))
    found = minimize(problem, spectral_start(problem, 5), tol=1e-9, preconditioner=None)
    assert bool(found.converged)
    assert len(asked) < found.iterations // 2


def test_each_matrix_of_a_batch_bends_by_itself():
    """One whose residual stays, one of rank 2, which is soon asked no more."""
    rest = completion()
    generator = torch.Generator().manual_seed(1)
    A, B = (torch.randn(d, 2, dtype=F64, generator=generator) for d in rest.shape)
    W = (A @ B.mT)[rest.rows, rest.cols]
    values = torch.stack([rest.values, W])
    alone = [rest.with_values(v) for v in values]
    manifold = FixedRankFactored(*rest.shape, 2, 1, "splitting")
    points = [
        manifold.parameter(manifold.pack_point(s.U, s.S, s.V))
        for s in (spectral_start(problem, 2) for problem in alone)
    ]
    x = manifold.parameter(torch.stack([p.detach().as_subclass(torch.Tensor) for p in points]))
    together = ConjugateGradient([x], problem=rest.with_values(values))
    solvers = [
        ConjugateGradient([p], problem=problem, preconditioner=None)
        for p, problem in zip(points, alone, strict=True)
    ]
    for _ in range(8):
        together.step()
        for solver in solvers:
            solver.step()
    for i, (p, solver) in enumerate(zip(points, solvers, strict=True)):
        torch.testing.assert_close(x[i].data, p.data, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(
            together.state[x]["bent"][i], solver.state[p]["bent"], rtol=1e-6, atol=0
        )
        assert float(together.state[x]["bent_ago"][i]) == float(solver.state[p]["bent_ago"])
    assert float(together.state[x]["bent_ago"][0]) < float(together.state[x]["bent_ago"][1])


def test_a_solver_goes_on_to_the_bit():
    problem = completion(noise=0.3)
    start = spectral_start(problem, 2)
    manifold = FixedRankFactored(*problem.shape, 2, 1, "splitting")

    def begun():
        x = manifold.parameter(manifold.pack_point(start.U, start.S, start.V))
        return x, ConjugateGradient([x], problem=problem)

    x, solver = begun()
    for _ in range(15):
        solver.step()
    y, other = begun()
    with torch.no_grad():
        y.copy_(x)
    other.load_state_dict(solver.state_dict())
    for _ in range(15):
        solver.step()
        other.step()
    assert torch.equal(x, y)


def test_where_the_loss_bends_down_the_step_is_that_of_the_plain_quadratic():
    problem = completion()
    manifold = FixedRankFactored(*problem.shape, 2, 1, "splitting")
    U, _, V = manifold.unpack_tensor(drawn(manifold))
    x = manifold.parameter(manifold.pack_point(U, -0.02 * torch.eye(2, dtype=F64), V))
    at = [x.detach().as_subclass(torch.Tensor).clone()]
    solver = ConjugateGradient([x], problem=problem, preconditioner=None)
    objective = ProblemObjective(Space([x]), problem)
    d = [-objective.evaluate(at)[1][0]]
    plain = objective.quadratic(at, d)
    assert float(plain + objective.bend(at, d)) < 0
    solver.step()
    halvings = torch.log2(d[0].square().sum() / plain / solver.length)
    assert float(halvings) == pytest.approx(round(float(halvings)), abs=1e-9)
    assert solver.evaluations <= 10


def test_moved_parameters_are_asked_anew(monkeypatch):
    problem, asked = completion(), []
    bend = ProblemObjective.bend
    monkeypatch.setattr(ProblemObjective, "bend", lambda *a: asked.append(1) or bend(*a))
    start = spectral_start(problem, 2)
    manifold = FixedRankFactored(*problem.shape, 2, 1, "splitting")
    x = manifold.parameter(manifold.pack_point(start.U, start.S, start.V))
    solver = ConjugateGradient([x], problem=problem)
    for _ in range(2):
        solver.step()
    asked_first = len(asked)
    for before in (0, 1):
        for name in ("bent", "bent_ago"):
            solver.state[x][name].zero_()
        solver.step()
        assert len(asked) == asked_first + before
        with torch.no_grad():
            x.copy_(drawn(manifold))
