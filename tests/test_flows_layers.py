"""The layer flow, its integrators and closed forms."""

import itertools

import pytest
import torch

import deeplin
from deeplin import DeepLinear, LeastSquares, exact, init
from deeplin.flows import EndToEndFlow, LayerFlow, compress
from deeplin.flows.layers import curvature
from deeplin.integrators import RK4, Euler, OptimizerStepper
from deeplin.network import balancedness_gap, grid_widths


def aligned(u0, s):
    """N = 2, C = I: W(0) = diag(u0) against B = diag(s), balanced."""
    n = len(s)
    problem = LeastSquares.from_moments(
        torch.eye(n, dtype=torch.float64), torch.diag(s), s.square().sum()
    )
    net = init.balanced_(DeepLinear([n, n, n], dtype=torch.float64), torch.diag(u0))
    return LayerFlow(problem), net


def slope(errors):
    """The observed order from errors at steps halved each time."""
    ratios = [a / b for a, b in itertools.pairwise(errors)]
    return torch.tensor(ratios, dtype=torch.float64).log2()


@pytest.mark.statement("BRTW Lemma 2(1)")
def test_velocity_is_minus_the_gradient(randn, seen):
    problem = LeastSquares(randn(5, 20), randn(4, 20))
    layers = [randn(2, 3, 5).requires_grad_(), randn(2, 6, 3).requires_grad_(), randn(2, 4, 6)]
    layers[2].requires_grad_()
    loss = problem.loss(layers[2] @ layers[1] @ layers[0]).sum()
    flow = LayerFlow(problem)
    for ours, theirs in zip(
        flow.velocity(0.0, flow.init_state(layers)),
        torch.autograd.grad(loss, layers),
        strict=True,
    ):
        seen.close(ours, -theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("integrator", "order"), [(Euler(), 1), (RK4(), 4)])
def test_order_against_the_closed_form_of_an_aligned_network(integrator, order):
    u0 = torch.tensor([0.3, 0.1, 1.7], dtype=torch.float64)
    s = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    flow, net = aligned(u0, s)
    y0, t1 = flow.init_state(net), 1.0
    oracle = torch.diag(exact.two_layer_mode(t1, u0, s))
    errors = []
    for dt in (0.05, 0.025, 0.0125, 0.00625):
        solution = deeplin.solve(flow, y0, t1, integrator=integrator, dt=dt)
        errors.append(float((flow.end_to_end(solution.y[-1]) - oracle).norm()))
    tolerance = 0.1 if order == 1 else 0.2
    assert slope(errors)[-1] == pytest.approx(order, abs=tolerance)


def test_sgd_is_the_flow_to_first_order(randn):
    """Halving the step halves the distance of SGD's W from RK4's W at a fixed flow time."""
    problem = LeastSquares(randn(6, 30) / 5, randn(5, 30) / 5)
    start = init.orthogonal_balanced_(DeepLinear([6, 3, 4, 5], dtype=torch.float64))
    flow, t1 = LayerFlow(problem), 2.0
    reference = deeplin.solve(flow, flow.init_state(start), t1, dt=2e-3).y[-1]
    distances = []
    for steps in (50, 100, 200, 400):
        net = DeepLinear([6, 3, 4, 5], dtype=torch.float64)
        net.load_state_dict(start.state_dict())
        optimizer = torch.optim.SGD(net.parameters(), lr=t1 / steps)
        stepper = OptimizerStepper(
            list(net.weights), optimizer, lambda k, n=net: problem.loss(n.end_to_end()), t1 / steps
        )
        for _ in range(steps):
            stepper.advance(t1)
        assert stepper.t == pytest.approx(t1)
        W = net.end_to_end().detach()
        distances.append(float((W - flow.end_to_end(reference)).norm()))
    assert slope(distances)[-1] == pytest.approx(1.0, abs=0.1)


def test_one_sgd_step_is_one_euler_step(randn):
    problem = LeastSquares(randn(4, 9), randn(3, 9))
    net = DeepLinear([4, 2, 3], dtype=torch.float64)
    flow = LayerFlow(problem)
    y = Euler().step(flow, 0.0, flow.init_state(net), 0.01)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    problem.loss(net.end_to_end()).backward()
    optimizer.step()
    for ours, theirs in zip(y, net.weights, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.statement("BRTW Lemma 2(3)")
def test_gaps_are_conserved_to_the_order_of_rk4(randn, depth, seen):
    problem = LeastSquares(randn(4, 20) / 4, randn(3, 20) / 4)
    layers = [0.6 * randn(b, a) for a, b in zip([4] * depth, [4] * (depth - 1) + [3], strict=True)]
    flow = LayerFlow(problem)
    start = balancedness_gap(layers)
    drifts = []
    for dt in (0.02, 0.01, 0.005, 0.0025):
        end = deeplin.solve(flow, flow.init_state(layers), 0.8, dt=dt).y[-1]
        drifts.append(
            max(float((a - b).norm()) for a, b in zip(balancedness_gap(end), start, strict=True))
        )
    seen.below(drifts[-1], 1e-7)
    assert slope(drifts)[-1] == pytest.approx(4, abs=0.2)
    norms = [w.square().sum() for w in layers]
    ends = [w.square().sum() for w in end]
    torch.testing.assert_close(ends[1] - ends[0], norms[1] - norms[0], rtol=0, atol=1e-7)


@pytest.mark.statement("BRTW Lemma 2(4)")
def test_balanced_product_obeys_the_end_to_end_equation(randn, seen):
    """dW/dt from the layers equals −𝒜_W(∇L¹) by definition (8), with explicit matrix powers."""
    problem = LeastSquares(randn(5, 20), randn(4, 20))
    W = randn(4, 3) @ randn(3, 5)
    for N in (2, 3, 5):
        net = init.balanced_(DeepLinear([5, *[4] * (N - 1), 4], dtype=torch.float64), W)
        flow = LayerFlow(problem)
        layers = flow.init_state(net)
        _, W_dot = torch.func.jvp(
            lambda *y, f=flow: f.end_to_end(y), layers, flow.velocity(0.0, layers)
        )
        G = problem.egrad(W)

        def power(S, p):
            values, E = torch.linalg.eigh(S)
            keep = values > 1e-10
            return (E * torch.where(keep, values.clamp(min=1e-300) ** p, float(p == 0))) @ E.mT

        oracle = -sum(
            power(W @ W.mT, (N - j) / N) @ G @ power(W.mT @ W, (j - 1) / N) for j in range(1, N + 1)
        )
        seen.close(W_dot, oracle, rtol=1e-9, atol=1e-9)


def test_two_layer_closed_form_for_any_balanced_start(randn):
    B = randn(3, 4)
    problem = LeastSquares.from_moments(torch.eye(4, dtype=torch.float64), B, B.square().sum())
    net = init.balanced_(
        DeepLinear([4, 2, 3], dtype=torch.float64), 0.3 * randn(3, 2) @ randn(2, 4)
    )
    flow = LayerFlow(problem)
    W1, W2 = flow.init_state(net)
    solution = deeplin.solve(flow, (W1, W2), 3.0, dt=2e-3, save_at=[0.5, 1.0])
    assert solution.t.tolist() == [0.0, 0.5, 1.0, 3.0]
    for t, y in zip(solution.t, solution.y, strict=True):
        oracle = exact.two_layer_product(float(t), W1, W2, B)
        torch.testing.assert_close(flow.end_to_end(y), oracle, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("N", [1, 2])
def test_aligned_autoencoder(N):
    lam = torch.tensor([3.0, 1.0], dtype=torch.float64)
    u0 = torch.tensor([0.2, 0.6], dtype=torch.float64)
    problem = deeplin.autoencoder(torch.diag(lam.sqrt()))
    net = init.balanced_(DeepLinear([2] * (N + 1), dtype=torch.float64), torch.diag(u0))
    flow = LayerFlow(problem)
    end = deeplin.solve(flow, flow.init_state(net), 1.5, dt=1e-3).y[-1]
    torch.testing.assert_close(
        flow.end_to_end(end).diagonal(), exact.autoencoder_mode(1.5, u0, lam, N), rtol=1e-10, atol=0
    )


def test_curvature_is_the_largest_hessian_eigenvalue(randn):
    problem = LeastSquares(randn(4, 20), randn(3, 20))
    shapes = [(2, 4), (5, 2), (3, 5)]
    layers = [randn(*shape) for shape in shapes]

    def loss(flat):
        parts = flat.split([a * b for a, b in shapes])
        W1, W2, W3 = (p.view(s) for p, s in zip(parts, shapes, strict=True))
        return problem.loss(W3 @ W2 @ W1)

    H = torch.autograd.functional.hessian(loss, torch.cat([w.flatten() for w in layers]))
    largest = float(torch.linalg.eigvalsh(H).abs().max())
    assert float(curvature(problem, layers)) == pytest.approx(largest, rel=0.05)


def test_stiffness_of_an_autoencoder_is_depth_times_lambda(randn):
    problem = deeplin.autoencoder(randn(5, 30))
    for depth in (2, 4):
        net = init.orthogonal_balanced_(
            DeepLinear([5, *[3] * (depth - 1), 5], dtype=torch.float64), scale=1e-3
        )
        flow = LayerFlow(problem)
        expected = depth * float(problem.spectrum.values[0])
        assert flow.curvature(flow.init_state(net)) == pytest.approx(expected, rel=0.02)


def test_state_must_fit_the_problem(randn):
    flow = LayerFlow(deeplin.autoencoder(randn(5, 30)))
    with pytest.raises(ValueError, match="widths from 5 to 5; got 4 to 5"):
        flow.init_state([randn(2, 4), randn(5, 2)])


def test_large_batches_of_tiny_networks_are_the_same_flow(randn):
    """The layout in memory and the stepping in blocks change no shape and no number."""
    problem = LeastSquares(randn(4, 12) / 2, randn(3, 12) / 2)
    flow = LayerFlow(problem)
    layers = [randn(3000, b, a) / 2 for a, b in itertools.pairwise([4, 2, 4, 3])]
    y0 = flow.init_state(layers)
    assert y0[0].stride(0) == 1
    end = deeplin.solve(flow, y0, 0.5, integrator=RK4(), dt=0.05).y[-1]
    assert [tuple(W_j.shape) for W_j in end] == [tuple(W_j.shape) for W_j in layers]
    some = [0, 2499, 2500, 2999]
    few = flow.init_state([W_j[some] for W_j in layers])
    assert few[0].stride(0) != 1
    alone = deeplin.solve(flow, few, 0.5, integrator=RK4(), dt=0.05).y[-1]
    for a, b in zip(end, alone, strict=True):
        torch.testing.assert_close(a[some], b, rtol=1e-12, atol=1e-13)


def test_three_forms_agree_at_the_papers_sizes():
    """d = 400, r = 10, N = 20: full layers, compressed layers and the end-to-end flow."""
    generator = torch.Generator().manual_seed(3)
    problem = deeplin.autoencoder(
        torch.randn(400, 1200, dtype=torch.float64, generator=generator) / 20
    )
    net = DeepLinear(grid_widths(400, 400, 20, 10), dtype=torch.float64)
    init.orthogonal_balanced_(net, tied=True, generator=generator)
    flow, product = LayerFlow(problem), EndToEndFlow(problem, 20)
    full = flow.init_state([0.97 * W_j for W_j in net.weights])
    W0 = flow.end_to_end(full)
    t1, dt = 4e-3, 4e-4  # so short that the error of RK4 itself does not show
    ends = [
        f.end_to_end(deeplin.solve(f, y0, t1, integrator=RK4(), dt=dt).y[-1])
        for f, y0 in (
            (flow, full),
            (flow, compress(full)),
            (product, product.init_state(W0, 10)),
        )
    ]
    assert float((ends[0] - W0).norm()) > 0.03
    assert float((ends[1] - ends[0]).norm()) < 1e-10
    assert float((ends[2] - ends[0]).norm()) < 1e-10
