"""Orders as slopes, adaptive steps by trajectory, dense output, resumption."""

import functools
import itertools
import math

import pytest
import torch
from plain_flow import PlainFlow

import deeplin
from deeplin import LeastSquares
from deeplin.flows import DLRAFlow, EndToEndFlow, LayerFlow, OjaFlow, PSDDLRAFlow
from deeplin.integrators import RK4, DormandPrince, Euler, ProjectedRungeKutta
from deeplin.integrators.adaptive import AdaptiveStepper
from deeplin.loop import GradientNormBelow, LossBelow, SingularValueBelow
from deeplin.problems import MatrixApproximation

F64 = torch.float64


def slope(flow, y0, t1, integrator, counts, reference):
    errors = [
        float(
            (
                flow.end_to_end(deeplin.solve(flow, y0, t1, integrator=integrator, dt=t1 / n).y[-1])
                - reference
            ).norm()
        )
        for n in counts
    ]
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)][-1]


class Oscillator(PlainFlow):
    """ẍ = −x."""

    def velocity(self, t, y):
        return (torch.stack([y[0][1], -y[0][0]]),)

    def end_to_end(self, y):
        return y[0][:, None]


@pytest.mark.parametrize("integrator", [Euler(), RK4(), DormandPrince()])
def test_orders_on_a_linear_equation(integrator):
    y0 = (torch.tensor([0.0, 1.0], dtype=F64),)
    oracle = torch.tensor([math.sin(2.0), math.cos(2.0)], dtype=F64)[:, None]
    observed = slope(Oscillator(), y0, 2.0, integrator, (32, 64), oracle)
    assert observed == pytest.approx(integrator.order, abs=0.2)


@pytest.mark.parametrize(
    ("integrator", "counts"),
    [(Euler(), (80, 160)), (RK4(), (20, 40)), (DormandPrince(), (10, 20))],
)
@pytest.mark.parametrize("depth", [1, 2, 3, math.inf])
def test_every_method_keeps_its_order_in_multiplicative_form(randn, integrator, counts, depth):
    problem = LeastSquares(randn(5, 30) / 10, randn(4, 30) / 10)
    W = torch.linalg.qr(randn(4, 2)).Q @ torch.linalg.qr(randn(5, 2)).Q.mT
    W = W @ torch.diag(torch.linspace(0.8, 1.2, 5, dtype=F64))
    flow = EndToEndFlow(problem, depth)
    y0, t1 = flow.init_state(W, 2), 2.0 if integrator.order == 5 else 1.0
    reference = flow.end_to_end(
        deeplin.solve(flow, y0, t1, integrator=DormandPrince(), dt=t1 / 100).y[-1]
    )
    observed = slope(flow, y0, t1, integrator, counts, reference)
    if integrator.order == 5:  # where the flow contracts, the term of the next order shows
        assert observed > 4.8
    else:
        assert observed == pytest.approx(integrator.order, abs=0.2)


@pytest.mark.parametrize(
    ("depth", "scale", "t1", "counts"),
    [(1, 0.3, 1.0, (32, 64)), (2, 0.01, 2.0, (16, 32)), (3, 0.01, 4.0, (16, 32))],
)
def test_dormand_prince_is_of_order_five(randn, depth, scale, t1, counts):
    """From small starts, which grow: there h is small enough for order 5 long before round-off.

    A step errs by z⁶/3600 − z⁷/5040 + … on ẏ = λy, z = λh: for z < 0 the two terms add up.
    """
    problem = LeastSquares(randn(5, 30) / 5, randn(4, 30) / 5)
    flow = EndToEndFlow(problem, depth)
    y0 = flow.init_state(scale * randn(4, 2) @ randn(2, 5), 2)
    reference = flow.end_to_end(
        deeplin.solve(flow, y0, t1, integrator=DormandPrince(), dt=t1 / 256).y[-1]
    )
    observed = slope(flow, y0, t1, DormandPrince(), counts, reference)
    assert observed == pytest.approx(5, abs=0.2)


@pytest.mark.parametrize(("depth", "t1"), [(2, 1.0), (3, 2.0)])
def test_dormand_prince_is_of_order_five_on_layers(randn, depth, t1):
    problem = LeastSquares(randn(5, 30) / 5, randn(4, 30) / 5)
    flow = LayerFlow(problem)
    shapes = [(3, 5), *[(3, 3)] * (depth - 2), (4, 3)]
    y0 = tuple(0.1 * (depth - 1.0) * randn(*shape) for shape in shapes)
    reference = flow.end_to_end(
        deeplin.solve(flow, y0, t1, integrator=DormandPrince(), dt=t1 / 256).y[-1]
    )
    observed = slope(flow, y0, t1, DormandPrince(), (16, 32), reference)
    assert observed == pytest.approx(5, abs=0.2)


@functools.cache
def approximated(rescaled):
    """(a problem, a start of rank 2, where the flow of matrices from there is at t = 1)."""
    generator = torch.Generator().manual_seed(20201015)
    H, V = (torch.randn(6, k, dtype=F64, generator=generator) for k in (3, 2))
    problem, W = MatrixApproximation(H @ H.mT / 4), V @ V.mT / 2
    exact = EndToEndFlow(problem, 1, rescaled=rescaled)
    end = deeplin.solve(exact, exact.init_state(W, 2), 1.0, rtol=1e-12).y[-1]
    return problem, W, exact.end_to_end(end)


@pytest.mark.parametrize("kind", [DLRAFlow, PSDDLRAFlow])
@pytest.mark.parametrize(
    "integrator", [Euler(), RK4(), *(ProjectedRungeKutta(order) for order in (1, 2, 4))]
)
@pytest.mark.parametrize("rescaled", [False, True])
def test_orders_on_fixed_rank_factors(kind, integrator, rescaled):
    problem, W, reference = approximated(rescaled)
    flow = kind(problem, rescaled)
    y0 = flow.init_state(W, 2)
    counts = (80, 160) if integrator.order == 1 else (32, 64)
    observed = slope(flow, y0, 1.0, integrator, counts, reference)
    assert observed == pytest.approx(integrator.order, abs=0.2)


def test_one_projected_step_is_the_nearest_matrix_of_rank_r(randn):
    """HLZ (2), dense: R(Z − α σ_r P_T(Z − X)) with P_T and R by full SVDs."""
    X, W = randn(5, 4), randn(5, 2) @ randn(2, 4)
    U, s, Vh = torch.linalg.svd(W)
    P, Q = U[:, :2] @ U[:, :2].mT, Vh[:2].mT @ Vh[:2]
    G = W - X
    for rescaled in (False, True):
        alpha = 0.3 * (float(s[1]) if rescaled else 1.0)
        Z = W - alpha * (P @ G + G @ Q - P @ G @ Q)
        a, b, c = torch.linalg.svd(Z, full_matrices=False)
        oracle = (a[:, :2] * b[:2]) @ c[:2]
        flow = DLRAFlow(MatrixApproximation(X), rescaled)
        y = deeplin.solve(
            flow, flow.init_state(W, 2), 0.3, dt=0.3, integrator=ProjectedRungeKutta(1)
        ).y[-1]
        assert float((flow.end_to_end(y) - oracle).norm()) < 1e-12


@pytest.mark.statement("HLZ Example 1.1")
@pytest.mark.parametrize("alpha", [0.2, 0.5])
def test_example_1_1(alpha, seen):
    X = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=F64))
    flow = PSDDLRAFlow(MatrixApproximation(X))
    for epsilon, limit in ((0.0, torch.diag(torch.tensor([2.0, 0, 0], dtype=F64))), (1e-6, X)):
        Z = torch.diag(torch.tensor([2.0, 0.0, 1.0], dtype=F64))
        p = torch.tensor([0.0, math.sin(epsilon), math.cos(epsilon)], dtype=F64)
        Z = Z - torch.diag(torch.tensor([0.0, 0.0, 1.0], dtype=F64)) + p[:, None] * p
        y0 = flow.init_state(Z, 2)
        y = deeplin.solve(flow, y0, 200 * alpha, dt=alpha, integrator=ProjectedRungeKutta(1)).y[-1]
        seen.below((flow.end_to_end(y) - limit).norm(), 1e-6)


# -- adaptive --------------------------------------------------------------------------------------


def test_tolerance_sets_the_error(randn):
    A, V = randn(5, 8) / 2, torch.linalg.qr(randn(5, 2)).Q
    flow = OjaFlow(A @ A.mT)
    oracle = deeplin.exact.oja(1.0, A @ A.mT, V)
    for rtol in (1e-4, 1e-7, 1e-10):
        W = flow.end_to_end(deeplin.solve(flow, flow.init_state(V), 1.0, rtol=rtol).y[-1])
        assert 1e-3 * rtol < float((W - oracle).norm()) < 30 * rtol


def test_every_trajectory_of_a_batch_takes_its_own_steps(randn):
    """The same steps and states as alone, although the speeds differ by 100."""
    problem = LeastSquares(randn(4, 20) / 4, randn(3, 20) / 4)
    flow = LayerFlow(problem)
    scales = torch.tensor([0.05, 1.0, 4.0], dtype=F64)[:, None, None]
    y0 = (scales * randn(3, 2, 4), scales * randn(3, 3, 2))
    together = AdaptiveStepper(flow, y0, rtol=1e-7)
    together.advance(2.0)
    taken = together.steps_taken.tolist()
    assert taken[2] > 2 * taken[0]
    for i in range(3):
        alone = AdaptiveStepper(flow, tuple(part[i] for part in y0), rtol=1e-7)
        alone.advance(2.0)
        assert int(alone.steps_taken) == pytest.approx(taken[i], abs=1)
        for a, b in zip(alone.state, together.state, strict=True):
            torch.testing.assert_close(a, b[i], rtol=1e-6, atol=1e-6)


def test_dense_output_is_accurate_between_steps(randn):
    A, V = randn(5, 8) / 2, randn(5, 2)
    flow = OjaFlow(A @ A.mT)
    times = [0.01 * i for i in range(1, 100)]
    solution = deeplin.solve(flow, flow.init_state(V), 1.0, rtol=1e-8, save_at=times)
    for t, y in zip(solution.t, solution.y, strict=True):
        oracle = deeplin.exact.oja(float(t), A @ A.mT, V)
        assert float((flow.end_to_end(y) - oracle).norm()) < 1e-5
    assert solution.result.kind == "time"


def test_dense_output_has_order_four():
    y0 = (torch.tensor([0.0, 1.0], dtype=F64),)
    method, errors = DormandPrince(), []
    for h in (0.4, 0.2, 0.1):
        _, _, stages = method.stages(Oscillator(), 0.0, y0, torch.tensor(h, dtype=F64))
        (middle,) = method.dense(
            y0, torch.tensor(h, dtype=F64), stages, torch.tensor(0.37, dtype=F64)
        )
        errors.append(abs(float(middle[0]) - math.sin(0.37 * h)))
    assert math.log2(errors[1] / errors[2]) == pytest.approx(5, abs=0.2)


def test_adaptive_runs_resume_bit_for_bit(randn):
    problem = LeastSquares(randn(5, 30) / 6, randn(4, 30) / 6)
    flow = EndToEndFlow(problem, 3)
    y0 = flow.init_state(randn(2, 4, 2) @ randn(2, 2, 5), 2)
    whole, first, second = (AdaptiveStepper(flow, y0, stretch=0.3) for _ in range(3))
    for _ in range(6):
        whole.advance(9.0)
    for _ in range(3):
        first.advance(9.0)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        second.advance(9.0)
    assert second.t == whole.t
    for a, b in zip(second.state, whole.state, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_blow_up_is_a_sentence():
    class Blowup(PlainFlow):
        def velocity(self, t, y):
            return (y[0] ** 2,)

    solution = deeplin.solve(Blowup(), (torch.ones(1, dtype=F64),), 2.0, rtol=1e-6)
    assert solution.result.kind == "fault"
    assert "take a larger rtol" in solution.result.sentence
    assert float(solution.t[-1]) == pytest.approx(1.0, abs=1e-3)


def test_stops(randn):
    problem = MatrixApproximation(torch.diag(torch.tensor([1.0, 0.5, 0.0], dtype=F64)))
    flow = DLRAFlow(problem)
    y0 = flow.init_state(torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=F64)), 2)

    def observe(t, y):
        return {
            "loss": problem.loss(flow.end_to_end(y)),
            "gradient_norm": flow.gradient_norm(y),
            "singular_values": flow.singular_values(y),
        }

    times = [0.1 * i for i in range(1, 200)]
    for stop, kind, check in (
        (LossBelow(1e-3), "converged", lambda r: r.observed["loss"][-1] <= 1e-3),
        (GradientNormBelow(1e-3), "converged", lambda r: r.observed["gradient_norm"][-1] <= 1e-3),
        (
            SingularValueBelow(0.6),
            "near_lower_rank",
            lambda r: r.observed["singular_values"][-1, -1] <= 0.6,
        ),
    ):
        solution = deeplin.solve(
            flow, y0, 20.0, rtol=1e-6, save_at=times, observe=observe, stop=stop
        )
        assert solution.result.kind == kind
        assert check(solution)
        assert float(solution.t[-1]) < 10


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rtol": -1.0}, ValueError, "rtol must be >= 0"),
        ({"rtol": 1e-6, "dt": 0.1}, ValueError, "either dt or rtol"),
        ({"rtol": 1e-6, "integrator": RK4()}, ValueError, "need an integrator with an error"),
        ({"dt": 0.1, "integrator": ProjectedRungeKutta(1)}, TypeError, "got OjaFlow"),
    ],
)
def test_messages(options, error, message):
    flow = OjaFlow(torch.eye(3, dtype=F64))
    with pytest.raises(error, match=message):
        deeplin.solve(flow, flow.init_state(torch.ones(3, 1, dtype=F64)), 1.0, **options)
    with pytest.raises(ValueError, match="1, 2 or 4; got 3"):
        ProjectedRungeKutta(3)
