"""The landscape of every kind of problem: against autograd in charts, and against flows."""

import math

import pytest
import torch
from landscape_problems import CLOSED, OPEN, Chart, ScaledGD, critical_point, problem_of

import deeplin
from deeplin.flows import EndToEndFlow
from deeplin.integrators import RK4
from deeplin.landscape import (
    LayerHessian,
    classify,
    critical_points,
    escape_direction,
    hessian,
    is_critical,
    layer_rate,
    lift,
    local_rate,
    nearest_critical_point,
    plateaus,
    saddle_curve,
)
from deeplin.linalg import chain

F64 = torch.float64


@pytest.mark.parametrize("name", OPEN + CLOSED)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_hessian_against_autograd_in_a_chart(name, depth, randn):
    problem = problem_of(name, randn)
    W = critical_point(problem, 2, randn)
    chart = Chart(W, 2)
    gradient, H = chart.derivatives(problem)
    assert float(gradient.norm()) < 1e-10
    embedded = chart.embedded(H)
    exact = torch.linalg.eigvals(chart.operator(depth) @ embedded).real.sort().values
    values = torch.linalg.eigvalsh(hessian(problem, W, depth).dense())
    torch.testing.assert_close(values, exact, rtol=1e-8, atol=1e-8 * float(exact.abs().max()))


@pytest.mark.parametrize("name", OPEN + CLOSED)
def test_embedded_hessian_off_critical_points(name, randn):
    """In the chart the second derivative differs by that of the chart, a normal vector at M = 0."""
    problem = problem_of(name, randn)
    dtype = torch.complex128 if problem.field == "complex" else F64
    W = randn(4, 2).to(dtype) @ randn(2, 3).to(dtype)
    H = hessian(problem, W, 1)
    x, t = randn(H.dim), 1e-4
    xi = H.tangent(x)

    def retracted(s):
        U, sigma, Vh = torch.linalg.svd(W + s * xi)
        return (U[:, :2] * sigma[:2]) @ Vh[:2]

    ahead, here, behind = (problem.loss(retracted(s)) for s in (t, 0.0, -t))
    second = float(ahead + behind - 2 * here) / t**2
    assert float(x @ (H @ x)) == pytest.approx(second, rel=1e-4, abs=1e-4)
    torch.testing.assert_close(H.dense(), H @ torch.eye(H.dim, dtype=F64), rtol=0, atol=1e-10)


def test_hessian_off_critical_points_for_another_metric(randn):
    """On square matrices of full rank: the Levi-Civita connection of g by autograd of its matrix.

    The metric matrix is (√(WWᵀ) ⊗ I + I ⊗ √(WᵀW))^{-1} for depth 2.
    """
    problem = deeplin.LeastSquares(randn(2, 9), randn(2, 9))
    W = randn(2, 2) + 2 * torch.eye(2, dtype=F64)

    def root(A):  # of a 2×2 positive definite matrix, by Cayley and Hamilton
        determinant = torch.linalg.det(A).sqrt()
        trace = (A.trace() + 2 * determinant).sqrt()
        return (A + determinant * torch.eye(2, dtype=F64)) / trace

    def metric(w):
        A, eye = w.view(2, 2), torch.eye(2, dtype=F64)
        return torch.linalg.inv(torch.kron(root(A @ A.mT), eye) + torch.kron(eye, root(A.mT @ A)))

    w = W.flatten()
    G, dG = metric(w), torch.autograd.functional.jacobian(metric, w)  # dG[i, j, l] = ∂_l g_ij
    gradient = problem.egrad(W).flatten()
    second = torch.kron(torch.eye(2, dtype=F64), problem.C)
    # Γ_{l,ij} = ½(∂_i g_jl + ∂_j g_il − ∂_l g_ij)
    lower = 0.5 * (torch.einsum("jli->ijl", dG) + torch.einsum("ilj->ijl", dG) - dG)
    form = second - torch.einsum("ijl,lk,k->ij", lower, torch.linalg.inv(G), gradient)
    exact = torch.linalg.eigvals(torch.linalg.inv(G) @ form).real.sort().values
    values = torch.linalg.eigvalsh(hessian(problem, W, 2).dense())
    torch.testing.assert_close(values, exact, rtol=1e-9, atol=1e-9)
    without = torch.linalg.eigvals(torch.linalg.inv(G) @ second).real.sort().values
    assert float((without - exact).abs().max()) > 0.1, "a point where the derivative matters"


@pytest.mark.parametrize("name", [*OPEN, *CLOSED])
def test_classification_against_dense_hessians(name, randn):
    problem = problem_of(name, randn)
    for k in (1, 2, 2, 3):
        W = critical_point(problem, k, randn)
        values = torch.linalg.eigvalsh(Chart(W, k).derivatives(problem)[1])
        kind = classify(problem, W)
        if values[0] < -1e-6 * values[-1]:
            assert kind == "strict saddle"
        elif values[0] > 1e-6 * values[-1]:
            assert kind in ("local minimum", "minimum on M_k", "global minimum")
        else:  # logistic losses do not change along W + 1vᵀ; at full rank an entry may be free
            assert kind == "degenerate"
        assert bool(is_critical(problem, W))
        assert classify(problem, W + 0.01 * randn(4, 3)) == "not critical"
    batch = torch.stack([W, W + 0.01 * randn(4, 3)])
    assert classify(problem, batch) == [classify(problem, A) for A in batch]


@pytest.mark.parametrize("name", ["completion", "sensing", "user"])
def test_a_saddle_without_a_closed_form(name, randn):
    """At a minimum W of rank 1 layers of rank 2 have a saddle, which the gradient leaves open."""
    problem = problem_of(name, randn)
    W = critical_point(problem, 1, randn)
    U, s, Vh = torch.linalg.svd(W)
    pad = torch.zeros(4, 1, dtype=F64)
    layers = [torch.cat([s[:1, None] * Vh[:1], pad[:3].mT]), torch.cat([U[:, :1], pad], 1)]
    torch.testing.assert_close(chain(layers), W)
    assert classify(problem, layers) == "strict saddle"
    least = LayerHessian(problem, layers).smallest_eigenvalue()
    G = problem.egrad(W)
    assert least == pytest.approx(-float(torch.linalg.matrix_norm(G, 2)), rel=1e-6)
    tight = [layers[0][:1], layers[1][:, :1]]
    assert classify(problem, tight) == "local minimum"
    assert classify(problem, [tight[0], 1.01 * tight[1]]) == "not critical"


@pytest.mark.parametrize("name", ["sensing", "complex sensing", "complex approximation"])
def test_hessian_of_layers_against_autograd(name, randn):
    problem = problem_of(name, randn)
    dtype = torch.complex128 if problem.field == "complex" else F64
    layers = [randn(*shape).to(dtype) + 0.1j * randn(*shape) for shape in ((2, 3), (3, 2), (4, 3))]
    layers = layers if dtype.is_complex else [W.real for W in layers]
    H = LayerHessian(problem, layers)

    def loss(x):
        return problem.loss(chain([W + V for W, V in zip(layers, H.directions(x), strict=True)]))

    dense = torch.autograd.functional.hessian(loss, torch.zeros(H.dim, dtype=F64))
    torch.testing.assert_close(H.dense(), dense, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["completion", "complex sensing", "user"])
@pytest.mark.parametrize("metric", [1, math.pi, ScaledGD()], ids=str)
def test_rate_against_the_flow(name, metric, randn):
    """The decay of ‖W(t) − W‖ from a start along the slowest direction; 1e-4 off it is linear."""
    problem = problem_of(name, randn)
    W = critical_point(problem, 2, randn)
    rho = local_rate(problem, W, metric)
    H, flow = hessian(problem, W, metric), EndToEndFlow(problem, metric)
    slowest = H.tangent(H.extreme(1).vectors[0])
    y0 = flow.init_state(W + 1e-4 * slowest / slowest.norm(), rank=2)
    times = [0.5 / rho, 1.5 / rho]
    dt = 1 / H.bounds()[1]  # RK4 is stable to 2.8
    solution = deeplin.solve(flow, y0, times[-1], save_at=times, integrator=RK4(), dt=dt)
    early, late = (float(torch.linalg.matrix_norm(flow.end_to_end(y) - W)) for y in solution.y[-2:])
    assert math.log(early / late) / (times[1] - times[0]) == pytest.approx(rho, rel=2e-3)


@pytest.mark.parametrize("name", [*CLOSED, "completion", "sensing", "user"])
def test_rate_is_refused_beside_a_minimum(name, randn):
    problem = problem_of(name, randn)
    W = critical_point(problem, 2, randn)
    assert local_rate(problem, W, 2) > 0
    U, s, Vh = torch.linalg.svd(W)
    beside = (U[:, :2] * (s[:2] + 0.05)) @ Vh[:2]
    with pytest.raises(ValueError, match="needs a critical point"):
        local_rate(problem, beside, 2)


def test_rate_is_refused_where_there_is_none(randn):
    logistic = problem_of("logistic", randn)
    with pytest.raises(ValueError, match="no strict minimum"):
        local_rate(logistic, critical_point(logistic, 2, randn), 2)
    saddle = deeplin.problems.from_loss(
        lambda W: (W - torch.diag(torch.tensor([2.0, 1.0], dtype=F64))).square().sum((-2, -1)),
        (2, 2),
    )
    W = torch.diag(torch.tensor([0.0, 1.0], dtype=F64))
    assert classify(saddle, W) == "strict saddle"
    with pytest.raises(ValueError, match="it is a saddle"):
        local_rate(saddle, W, 2)


@pytest.mark.parametrize("name", ["completion", "complex sensing", "user"])
def test_layers_of_any_problem_arrive_at_the_local_rate(name, randn):
    """Balanced layers by the local rate, others by the dense Jacobian of their flow."""
    problem = problem_of(name, randn)
    W = critical_point(problem, 2, randn)
    U, s, Vh = torch.linalg.svd(W)
    root = torch.diag(s[:2] ** (1 / 3)).to(W)
    balanced = [root @ Vh[:2], root, U[:, :2] @ root]
    assert layer_rate(problem, balanced) == pytest.approx(local_rate(problem, W, 3), rel=1e-7)
    gauge = (torch.eye(2, dtype=F64) + 0.3 * randn(2, 2)).to(W)
    layers = [balanced[0], gauge @ balanced[1], balanced[2] @ torch.linalg.inv(gauge)]
    values = torch.linalg.eigvalsh(LayerHessian(problem, layers).dense())
    positive = values[values > 1e-6 * values[-1]]
    assert layer_rate(problem, layers) == pytest.approx(float(positive[0]), rel=1e-6)
    assert layer_rate(problem, layers) != pytest.approx(layer_rate(problem, balanced), rel=1e-2)


@pytest.mark.parametrize(
    "call",
    [
        lambda p, W: critical_points(p, 1),
        nearest_critical_point,
        lambda p, W: lift(p, W, [3, 2, 4]),
        escape_direction,
        lambda p, W: saddle_curve(p, (1,), 1, 2),
        lambda p, W: plateaus(p, [0.0], W[None]),
    ],
)
def test_what_needs_a_closed_form_names_the_problem(call, randn):
    problem = problem_of("completion", randn)
    with pytest.raises(TypeError, match="MatrixCompletion knows none: use is_critical"):
        call(problem, torch.zeros(4, 3, dtype=F64))


@pytest.mark.parametrize("name", ["complex least squares", "complex approximation"])
@pytest.mark.parametrize("widths", [[3, 2, 4], [3, 3, 4], [3, 2, 3, 4]])
def test_complex_layers_against_their_dense_hessian(name, widths, randn):
    """Lifts of critical points, tight and padded by zeros: kinds, and directions of escape."""
    problem = problem_of(name, randn)
    kinds = set()
    for k in range(min(widths) + 1):
        for point in critical_points(problem, k):
            for balanced in (False, True):
                layers = lift(problem, point.W, widths, balanced=balanced)
                for j in range(len(layers) - 1):  # null spaces of complex vectors
                    d = len(layers[j])
                    Q = torch.linalg.qr(torch.complex(randn(d, d), randn(d, d))).Q
                    layers[j], layers[j + 1] = Q @ layers[j], layers[j + 1] @ Q.mH
                torch.testing.assert_close(chain(layers), point.W)
                H = LayerHessian(problem, layers)
                kind = classify(problem, layers)
                kinds.add(kind)
                assert (kind == "strict saddle") == (H.smallest_eigenvalue() < -1e-8)
                assert (kind == "global minimum") == (tuple(range(1, min(widths) + 1)) == point.J)
                direction = escape_direction(problem, layers)
                if direction is None:
                    assert kind == "global minimum"
                    continue
                t = 1e-3 if kind == "strict saddle" else 0.1
                moved = chain([W + t * V for W, V in zip(layers, direction, strict=True)])
                assert float(problem.loss(moved)) < float(point.loss) - 1e-9
    assert kinds == {"strict saddle", "global minimum"} | (
        {"non-strict saddle"} if len(widths) > 3 else set()
    )


@pytest.mark.parametrize("name", ["complex least squares", "complex approximation"])
def test_complex_critical_points_against_charts(name, randn):
    problem = problem_of(name, randn)
    for k in (1, 2):
        for point in critical_points(problem, k):
            gradient, H = Chart(point.W, k).derivatives(problem)
            values = torch.linalg.eigvalsh(H)
            assert float(gradient.norm()) < 1e-9
            assert int((values < -1e-7).sum()) == point.index
            assert float(problem.loss(point.W)) == pytest.approx(float(point.loss), rel=1e-10)
            assert len(point.negative_directions()) == point.index
            for V in point.negative_directions():
                U, s, Vh = torch.linalg.svd(point.W + 1e-3 * V / V.norm())
                assert float(problem.loss((U[:, :k] * s[:k]) @ Vh[:k])) < float(point.loss)
            if point.index:
                V = escape_direction(problem, point.W)
                U, s, Vh = torch.linalg.svd(point.W + 1e-3 * V)
                assert float(problem.loss((U[:, :k] * s[:k]) @ Vh[:k])) < float(point.loss)
