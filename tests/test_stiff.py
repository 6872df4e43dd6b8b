"""Methods for stiff flows: orders, stability, rates, steps, against independent oracles."""

import itertools
import math

import pytest
import torch
from plain_flow import PlainFlow

import deeplin
from deeplin import LeastSquares, exact, landscape
from deeplin.flows import EndToEndFlow, LayerFlow, OjaFlow
from deeplin.integrators import DormandPrince, Packing
from deeplin.integrators.adaptive import AdaptiveStepper
from deeplin.integrators.chebyshev import RKC
from deeplin.integrators.rosenbrock import Rosenbrock, jacobian

F64 = torch.float64


class Linear(PlainFlow):
    """ẏ = Ay."""

    def __init__(self, A):
        self.A = A

    def velocity(self, t, y):
        return (y[0] @ self.A.mT,)

    def end_to_end(self, y):
        return y[0][..., None]


class Counted:
    """A flow and the number of times that its field was asked for."""

    def __init__(self, flow):
        self.flow, self.count = flow, 0

    def __getattr__(self, name):
        return getattr(self.flow, name)

    def velocity(self, t, y):
        self.count += 1
        return self.flow.velocity(t, y)


def cases(randn):
    """Flows and states that are not balanced, batched, and of all kinds of coordinates."""
    problem = LeastSquares(randn(5, 30) / 8, randn(4, 30) / 8)
    layers = LayerFlow(problem)
    yield layers, (0.6 * randn(2, 3, 5), 0.6 * randn(2, 3, 3), 0.6 * randn(2, 4, 3))
    product = EndToEndFlow(problem, 3)
    yield product, product.init_state(randn(2, 4, 2) @ randn(2, 2, 5) / 4, 2)
    yield product, product.init_state(randn(2, 4, 1) @ randn(2, 1, 5) / 4, 1)
    A = randn(5, 8) / 3
    oja = OjaFlow(A @ A.mT)
    yield oja, oja.init_state(torch.linalg.qr(randn(2, 5, 2)).Q)


def observed_order(flow, y0, t1, integrator, counts, reference):
    errors = []
    for n in counts:
        W = flow.end_to_end(deeplin.solve(flow, y0, t1, integrator=integrator, dt=t1 / n).y[-1])
        errors.append(float((W - reference).norm()))
    return math.log2(errors[-2] / errors[-1])


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize(("integrator", "counts"), [(RKC(), (20, 40)), (Rosenbrock(), (16, 32))])
def test_orders_are_two_and_five_on_every_kind_of_flow(randn, integrator, counts, case):
    flow, y0 = list(cases(randn))[case]
    reference = flow.end_to_end(deeplin.solve(flow, y0, 0.5, rtol=1e-13).y[-1])
    observed = observed_order(flow, y0, 0.5, integrator, counts, reference)
    assert observed == pytest.approx(integrator.order, abs=0.2)


@pytest.mark.parametrize("integrator", [RKC(), Rosenbrock()])
def test_dense_output_loses_one_order_at_most(integrator, randn):
    problem = LeastSquares(randn(5, 30) / 8, randn(4, 30) / 8)
    flow = LayerFlow(problem)
    y0 = (0.6 * randn(3, 5), 0.6 * randn(3, 3), 0.6 * randn(4, 3))
    errors = []
    for h in (0.05, 0.025, 0.0125):
        dt = torch.tensor(h, dtype=F64)
        _, _, stages = integrator.stages(flow, 0.0, y0, dt)
        middle = integrator.dense(y0, dt, stages, torch.tensor(0.37, dtype=F64))
        oracle = deeplin.solve(flow, y0, 0.37 * h, rtol=1e-13).y[-1]
        errors.append(max(float((a - b).norm()) for a, b in zip(middle, oracle, strict=True)))
    assert math.log2(errors[1] / errors[2]) > integrator.order - 0.2


@pytest.mark.parametrize("stages", [2, 3, 7, 40, 300])
def test_stability_polynomial_of_rkc(stages):
    """|R(z)| <= 1 on [−0.65 s², 0] and R(z) = e^z to second order at 0."""
    longest = ((stages - 1) ** 2 - 1) / 1.54 if stages > 2 else 1.9
    rates = torch.cat([torch.linspace(0, 1, 2001, dtype=F64) ** 2, torch.tensor([1e-3], dtype=F64)])
    rates[-1] /= longest
    flow = Linear(-torch.diag(rates * longest))
    method = RKC(motion_tol=0.0)
    method.memory = {
        "radius": torch.tensor(longest, dtype=F64),
        "vector": torch.zeros(len(rates), dtype=F64),
        "age": 0,
    }
    end, _, _ = method.stages(flow, 0.0, (torch.ones_like(rates),), torch.tensor(1.0, dtype=F64))
    assert float(end[0].abs().max()) <= 1 + 1e-12
    assert float(end[0][-1]) == pytest.approx(math.exp(-1e-3), abs=2e-10)
    assert float(end[0][1001:-1].abs().max()) < 1  # damped inside


def test_spectral_radius_by_trajectory(randn):
    Q = torch.linalg.qr(randn(6, 6)).Q
    A = -Q @ torch.diag(torch.tensor([50.0, 20, 7, 2, 1, 0.1], dtype=F64)) @ Q.mT
    method = RKC()
    y0 = (randn(3, 6),)
    method.stages(Linear(A), 0.0, y0, torch.full((3,), 0.1, dtype=F64))
    radius = method.memory["radius"]
    torch.testing.assert_close(radius, torch.full((3,), 60.0, dtype=F64), rtol=0.03, atol=0)


def test_jacobian_by_differences_is_autograds(randn):
    flow, y0 = next(cases(randn))
    packing = Packing(y0, 1)

    def field(vector):
        return packing.packed(flow.velocity(0.0, packing.unpacked(vector)))

    y = packing.packed(y0)
    F, J = jacobian(field, y, torch.ones_like(y))
    torch.testing.assert_close(F, field(y))
    for i in range(2):
        oracle = torch.func.jacrev(lambda v: field(v[None])[0])(y[i])
        torch.testing.assert_close(J[i], oracle, rtol=0, atol=3e-7)


@pytest.mark.parametrize("integrator", [RKC(), Rosenbrock()])
def test_stiff_autoencoder_follows_its_closed_form(integrator):
    """u̇ = Nλu^{2−2/N}(1 − u), N = 20, where explicit steps would need h < 3.3/(Nλ_1)."""
    depth, lam = 20, torch.tensor([40.0, 3.0, 1.0], dtype=F64)
    C = torch.diag(lam)
    flow = Counted(EndToEndFlow(LeastSquares.from_moments(C, C, lam.sum()), depth))
    W = torch.diag(torch.tensor([1e-2, 0.0, 0.0], dtype=F64))
    solution = deeplin.solve(
        flow, flow.init_state(W, 1), 20.0, rtol=1e-7, integrator=integrator, save_at=[0.03, 0.07]
    )
    for t, y in zip(solution.t[1:3], solution.y[1:3], strict=True):
        u = float(flow.end_to_end(y)[0, 0])
        passed = float(exact.deep_mode_time(u, 1e-2, 1.0, depth))
        assert passed == pytest.approx(40.0 * float(t), rel=1e-4)
    assert float(flow.end_to_end(solution.y[-1])[0, 0]) == pytest.approx(1.0, abs=1e-6)
    assert flow.count < 20.0 * depth * 40.0 / 3.3 * 6 / 5  # a fifth of what Dormand-Prince takes


def test_late_rate_of_decay_is_right_far_below_the_tolerance(randn):
    """A supervised problem with σ_r(W̃) = 0.1: rtol = 1e-5, distances to 1e-5."""
    U, V = torch.linalg.qr(randn(5, 2)).Q, torch.linalg.qr(randn(6, 2)).Q
    teacher = (U * torch.tensor([2.0, 0.1], dtype=F64)) @ V.mT
    X = randn(6, 18) / 6**0.5
    problem, depth = LeastSquares(X, teacher @ X), 10
    flow = EndToEndFlow(problem, depth)
    rate = landscape.local_rate(problem, teacher, depth)
    assert flow.curvature(flow.init_state(teacher, 2)) > 5e3 * rate
    times = [n / rate for n in (8.0, 10.0, 12.0)]
    y0 = flow.init_state(0.5 * teacher + 0.01 * randn(5, 6), 2)
    y = deeplin.solve(flow, y0, times[-1], rtol=1e-5, integrator=RKC(), save_at=times[:2]).y[1:]
    distances = [float((flow.end_to_end(state) - teacher).norm()) for state in y]
    assert distances[-1] < 1e-5
    for a, b in itertools.pairwise(distances):
        assert math.log(a / b) / 2 == pytest.approx(1.0, abs=0.01)


def test_unbalanced_layers(randn):
    """Stiff layers: both methods reach a tight reference in fewer fields than it took."""
    A = torch.diag(torch.tensor([3.0, 1.0, 0.5, 0.2], dtype=F64))
    flow = Counted(LayerFlow(deeplin.autoencoder(A)))
    shapes = [(2, 4), (2, 2), (3, 2), (4, 3)]
    y0 = tuple(0.6 * randn(*shape) for shape in shapes)
    reference = deeplin.solve(flow, y0, 5.0, rtol=1e-8).y[-1]
    explicit, flow.count = flow.count, 0
    for integrator in (RKC(), Rosenbrock()):
        y = deeplin.solve(flow, y0, 5.0, rtol=1e-5, integrator=integrator).y[-1]
        for a, b in zip(y, reference, strict=True):
            assert float((a - b).norm()) < 3e-4 * float(b.norm())
        assert flow.count < explicit / 3
        flow.count = 0


@pytest.mark.parametrize("integrator", [RKC(), Rosenbrock()])
def test_trajectories_of_a_batch_keep_their_own_steps(randn, integrator):
    problem = LeastSquares(randn(4, 20) / 4, randn(3, 20) / 4)
    flow = LayerFlow(problem)
    scales = torch.tensor([0.05, 1.0, 3.0], dtype=F64)[:, None, None]
    y0 = (scales * randn(3, 2, 4), scales * randn(3, 3, 2))
    together = AdaptiveStepper(flow, y0, rtol=1e-6, integrator=integrator)
    together.advance(2.0)
    taken = together.steps_taken.tolist()
    for i in range(3):
        alone = AdaptiveStepper(
            flow, tuple(part[i] for part in y0), rtol=1e-6, integrator=integrator
        )
        alone.advance(2.0)
        # RKC's error depends on the number of stages, which is the batch's.
        assert int(alone.steps_taken) == pytest.approx(taken[i], abs=2, rel=0.2)
        for a, b in zip(alone.state, together.state, strict=True):
            torch.testing.assert_close(a, b[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("integrator", [RKC(), Rosenbrock()])
def test_runs_resume_bit_for_bit(randn, integrator):
    problem = LeastSquares(randn(5, 30) / 6, randn(4, 30) / 6)
    flow = EndToEndFlow(problem, 3)
    y0 = flow.init_state(randn(2, 4, 2) @ randn(2, 2, 5), 2)
    whole, first, second = (
        AdaptiveStepper(flow, y0, stretch=0.3, rtol=1e-5, integrator=integrator) for _ in range(3)
    )
    for _ in range(6):
        whole.advance(9.0)
    for _ in range(3):
        first.advance(9.0)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        second.advance(9.0)
    for a, b in zip(second.state, whole.state, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert integrator.memory is None  # what is remembered belongs to the run


def test_without_tolerance_or_step_the_tolerance_is_1e_6(randn):
    A, V = randn(5, 8) / 2, torch.linalg.qr(randn(5, 2)).Q
    flow = OjaFlow(A @ A.mT)
    oracle = exact.oja(1.0, A @ A.mT, V)
    for integrator in (RKC(), Rosenbrock()):
        y = deeplin.solve(flow, flow.init_state(V), 1.0, integrator=integrator).y[-1]
        assert float((flow.end_to_end(y) - oracle).norm()) < 1e-4


def test_rkc_cuts_steps_that_need_too_many_stages():
    flow = Counted(Linear(torch.diag(torch.tensor([-1e4, -1e-3], dtype=F64))))
    y0 = (torch.tensor([0.0, 1.0], dtype=F64),)
    solution = deeplin.solve(flow, y0, 10.0, rtol=1e-3, integrator=RKC(max_stages=30))
    assert float(solution.y[-1][0][1]) == pytest.approx(math.exp(-1e-2), abs=1e-6)
    assert flow.count > 10.0 * 1.54e4 / 30**2 * 29


def test_float32_and_messages():
    flow = EndToEndFlow(deeplin.autoencoder(torch.diag(torch.tensor([3.0, 1.0]))), 5)
    y0 = flow.init_state(torch.tensor([[0.5, 0.1], [0.1, 0.2]]), 1)
    for integrator in (RKC(), Rosenbrock()):
        y = deeplin.solve(flow, y0, 6.0, rtol=1e-4, integrator=integrator).y[-1]
        assert y[0].dtype == torch.float32
        target = torch.diag(torch.tensor([1.0, 0.0]))
        assert float((flow.end_to_end(y) - target).norm()) < 1e-2
    with pytest.raises(ValueError, match=r"at most max_size = 4 entries .* got 5: take RKC"):
        deeplin.solve(flow, y0, 1.0, integrator=Rosenbrock(max_size=4))
    with pytest.raises(ValueError, match="must be >= 2; got 1"):
        RKC(max_stages=1)
    with pytest.raises(ValueError, match="must be >= 0; got -1"):
        RKC(motion_tol=-1)


@pytest.mark.slow
def test_the_benchmarks_answer_is_better_than_its_peers(randn):
    """N = 20, d = 20, r = 1 at 1e-6: W(30) against a tight reference, and torchdiffeq's on it."""
    from torchdiffeq import odeint

    problem = deeplin.autoencoder(randn(20, 60) / 20**0.5)
    net = deeplin.DeepLinear(deeplin.network.grid_widths(20, 20, 20, 1), dtype=F64)
    generator = torch.Generator().manual_seed(2)
    deeplin.init.orthogonal_balanced_(net, tied=True, generator=generator)
    layers, flow = LayerFlow(problem), EndToEndFlow(problem, 20)
    start = layers.init_state(net)
    y0 = flow.init_state(net.end_to_end().detach(), 1)
    reference = flow.end_to_end(
        deeplin.solve(flow, y0, 30.0, rtol=1e-11, integrator=DormandPrince()).y[-1]
    )
    ours = deeplin.solve(flow, y0, 30.0, rtol=1e-6, atol=1e-6, integrator=Rosenbrock()).y[-1]
    t = torch.tensor([0.0, 30.0], dtype=F64)
    path = odeint(layers.velocity, start, t, rtol=1e-6, atol=1e-6, method="dopri5")
    theirs = layers.end_to_end(tuple(part[-1] for part in path))
    error = float((flow.end_to_end(ours) - reference).norm())
    assert error <= float((theirs - reference).norm())
    assert error < 1e-6
