"""Every flow against the others, against closed forms, and against the papers' statements."""

import math

import pytest
import scipy.integrate
import torch
from plain_flow import PlainFlow
from scipy.interpolate import CubicSpline

import deeplin
from deeplin import DeepLinear, LeastSquares, exact, init
from deeplin.flows import (
    CoupledAutoencoderFlow,
    DLRAFlow,
    EndToEndFlow,
    LayerFlow,
    OjaFlow,
    PQWFlow,
    PSDDLRAFlow,
    RiccatiFlow,
    compress,
)
from deeplin.network import balancedness_gap
from deeplin.problems import MatrixApproximation

F64 = torch.float64
EYE = MatrixApproximation(torch.eye(3))


def end(flow, y0, t, rtol=1e-10):
    return flow.end_to_end(deeplin.solve(flow, y0, t, rtol=rtol).y[-1])


def close(actual, expected, tolerance):
    assert float((actual - expected).norm()) <= tolerance, float((actual - expected).norm())


@pytest.fixture
def generic(randn):
    """m = 4, n = 5, rank 2."""
    problem = LeastSquares(randn(5, 30) / 6, randn(4, 30) / 6)
    return problem, randn(4, 2) @ randn(2, 5) / 2


@pytest.mark.statement("BRTW Lemma 2(4)")
@pytest.mark.parametrize("depth", [2, 3, 5, 10])
@pytest.mark.statement("BRTW Corollary 17")
@pytest.mark.statement("BRTW (23)")
def test_four_forms_of_one_flow(generic, generator, depth, seen):
    problem, W = generic
    net = DeepLinear([5, *[3] * (depth - 1), 4], dtype=F64)
    init.balanced_(net, W, rotate=True, generator=generator)
    layers, product, pqw = LayerFlow(problem), EndToEndFlow(problem, depth), PQWFlow(problem, depth)
    small = compress(net)
    assert {W_j.shape[-2] for W_j in small[:-1]} == {2}
    reference = end(layers, layers.init_state(net), 5.0, 1e-11)
    seen.norm(end(layers, layers.init_state(small), 5.0, 1e-11), reference, 1e-11)
    seen.norm(end(product, product.init_state(W, 2), 5.0, 1e-11), reference, 1e-8)
    seen.norm(end(pqw, pqw.init_state(W, 2), 5.0, 1e-11), reference, 1e-8)


def test_they_part_when_the_start_is_not_balanced(generic, randn):
    problem, _ = generic
    net = [randn(2, 5) / 2, randn(4, 2)]
    layers, product = LayerFlow(problem), EndToEndFlow(problem, 2)
    W = layers.end_to_end(layers.init_state(net))
    ends = [end(layers, layers.init_state(net), 1.0), end(product, product.init_state(W, 2), 1.0)]
    assert float((ends[0] - ends[1]).norm()) > 1e-2


def test_thin_velocity_is_the_full_one(randn):
    problem = LeastSquares(randn(9, 30), randn(5, 30))
    layers = [randn(3, 2, 9), randn(3, 4, 2), randn(3, 5, 4)]
    weights = [w.requires_grad_() for w in layers]
    problem.loss(weights[2] @ weights[1] @ weights[0]).sum().backward()
    flow = LayerFlow(problem)
    for ours, W_j in zip(flow.velocity(0.0, flow.init_state(layers)), weights, strict=True):
        torch.testing.assert_close(ours, -W_j.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", [1, 1.5, 2, 2.5, 3, 10, 64, math.inf])
@pytest.mark.parametrize("shape", [(5, 4, 2), (3, 6, 3), (4, 4, 4), (4, 3, 1)])
def test_end_to_end_velocity_is_the_metric_operator(randn, depth, shape):
    """Against the quotients of (8) in a full SVD, written out for N = 1 and ∞."""
    m, n, k = shape
    X = randn(2, m, n)
    flow = EndToEndFlow(MatrixApproximation(X), depth)
    W = randn(2, m, k) @ randn(2, k, n)
    y = flow.init_state(W, k)
    rates = flow.velocity(0.0, y)
    _, W_dot = torch.func.jvp(lambda *z: flow.end_to_end(z), y, rates)
    U, s, Vh = torch.linalg.svd(W)
    pad_m = torch.cat([s[:, :k], s.new_zeros(2, m - k)], -1)
    pad_n = torch.cat([s[:, :k], s.new_zeros(2, n - k)], -1)
    a, b = pad_m[:, :, None].expand(2, m, n), pad_n[:, None, :].expand(2, m, n)
    if depth == 1:
        factor = ((a > 0) | (b > 0)).to(F64)
    elif depth == math.inf:
        both = (a > 0) & (b > 0)
        quotient = (a**2 - b**2) / (2 * a.log() - 2 * b.log())
        factor = torch.where(both, torch.where(a == b, a**2, quotient), 0.0)
    else:
        quotient = (a**2 - b**2) / (a ** (2 / depth) - b ** (2 / depth))
        factor = torch.where(a == b, depth * a ** (2 - 2 / depth), quotient)
    oracle = -U @ (factor * (U.mT @ (W - X) @ Vh.mT)) @ Vh
    torch.testing.assert_close(W_dot, oracle, rtol=1e-8, atol=1e-9)
    rescaled = EndToEndFlow(MatrixApproximation(X), depth, rescaled=True).velocity(0.0, y)
    for fast, slow in zip(rates, rescaled, strict=True):
        scale = s[:, k - 1].reshape(2, *[1] * (fast.ndim - 1))
        torch.testing.assert_close(slow, scale * fast, rtol=1e-10, atol=1e-12)


# -- closed forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [3, 5, 10])
def test_deep_mode_time_is_the_integral(depth):
    value, _ = scipy.integrate.quad(
        lambda u: 1 / (depth * u ** (2 - 2 / depth) * (2 - u)), 0.1, 1.5
    )
    assert float(exact.deep_mode_time(1.5, 0.1, 2.0, depth)) == pytest.approx(value, rel=1e-10)
    value, _ = scipy.integrate.quad(lambda u: 1 / (u**2 * (2 - u)), 0.1, 1.5)
    assert float(exact.infinite_mode_time(1.5, 0.1, 2.0)) == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("depth", [2, 3, 5, 10, math.inf])
def test_aligned_modes(depth, randn):
    """Saxe et al. 2014 and its generalisations, in random singular bases."""
    s, u0 = torch.tensor([2.0, 1.0], dtype=F64), torch.tensor([0.3, 0.1], dtype=F64)
    left, right = torch.linalg.qr(randn(4, 2)).Q, torch.linalg.qr(randn(3, 2)).Q
    problem = LeastSquares.from_moments(
        torch.eye(3, dtype=F64), (left * s) @ right.mT, s.square().sum()
    )
    flow = EndToEndFlow(problem, depth)
    t = 1.2 if depth in (2, math.inf) else 3 / depth
    W = end(flow, flow.init_state((left * u0) @ right.mT, 2), t, 1e-11)
    u = (left.mT @ W @ right).diagonal()
    if depth == 2:
        torch.testing.assert_close(u, exact.two_layer_mode(t, u0, s), rtol=1e-9, atol=0)
        return
    for u_i, u0_i, s_i in zip(u, u0, s, strict=True):
        time = (
            exact.infinite_mode_time(u_i, u0_i, float(s_i))
            if depth == math.inf
            else exact.deep_mode_time(u_i, u0_i, float(s_i), depth)
        )
        power, factor = (2, 1) if depth == math.inf else (2 - 2 / depth, depth)
        speed = factor * u_i**power * (s_i - u_i)
        assert abs(float((time - t) * speed)) < 1e-9


@pytest.mark.parametrize("depth", [1, 2])
def test_aligned_autoencoder_modes(depth):
    lam, u0 = torch.tensor([3.0, 1.0], dtype=F64), torch.tensor([0.2, 0.6], dtype=F64)
    problem = deeplin.autoencoder(torch.diag(lam.sqrt()))
    flow = EndToEndFlow(problem, depth)
    W = end(flow, flow.init_state(torch.diag(u0), 2), 1.5)
    torch.testing.assert_close(
        W.diagonal(), exact.autoencoder_mode(1.5, u0, lam, depth), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("gap", [0.0, 0.7, -0.2])
def test_two_layers_with_a_gap(randn, gap):
    """Braun et al. 2022 for gap 0, Dominé et al. 2024."""
    B = randn(3, 4)
    problem = LeastSquares.from_moments(torch.eye(4, dtype=F64), B, B.square().sum())
    W1 = randn(2, 4)
    values, E = torch.linalg.eigh(W1 @ W1.mT + gap * torch.eye(2, dtype=F64))
    W2 = torch.linalg.qr(randn(3, 2)).Q @ (E * values.sqrt()) @ E.mT
    flow = LayerFlow(problem)
    oracle = exact.two_layer_product(1.5, W1, W2, B, gap)
    close(end(flow, (W1, W2), 1.5, 1e-11), oracle, 1e-8)
    if gap == 0:
        product = EndToEndFlow(problem, 2)
        close(end(product, product.init_state(W2 @ W1, 2), 1.5, 1e-11), oracle, 1e-8)


def test_positive_semidefinite_depth_two(randn):
    V, X = randn(5, 2), randn(5, 5)
    X = X + X.mT
    flow = EndToEndFlow(MatrixApproximation(X), 2)
    oracle = exact.gram_flow(1.0, X, V)
    close(end(flow, flow.init_state(V @ V.mT, 2), 1.0, 1e-11), oracle, 1e-8)


@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.statement("BRTW Theorem 20(1)")
def test_oja(randn, orthonormal, seen):
    A, V = randn(5, 8) / 2, randn(5, 2) / 2
    V = torch.linalg.qr(V).Q if orthonormal else V
    flow, tied = OjaFlow(A @ A.mT), CoupledAutoencoderFlow(A @ A.mT)
    oracle = exact.oja(1.3, A @ A.mT, V)
    seen.norm(end(flow, flow.init_state(V), 1.3, 1e-11), oracle, 1e-9)
    distance = float((end(tied, tied.init_state(V), 1.3, 1e-11) - oracle).norm())
    assert distance < 1e-9 if orthonormal else distance > 1e-3


@pytest.mark.statement("BRTW Theorem 20(2)")
def test_oja_keeps_orthonormality(randn, seen):
    A, V = randn(5, 8) / 2, torch.linalg.qr(randn(5, 2)).Q
    for flow in (OjaFlow(A @ A.mT), CoupledAutoencoderFlow(A @ A.mT)):
        y = deeplin.solve(flow, flow.init_state(V), 3.0, rtol=1e-11).y[-1]
        seen.norm(flow.conserved(y)["VtV"], torch.eye(2, dtype=F64), 1e-9)


@pytest.mark.statement("BRTW (25)")
def test_coupled_velocity_is_minus_the_gradient(randn, seen):
    X, V = randn(4, 9), randn(4, 2)
    leaf = V.clone().requires_grad_()
    (0.5 * (X - leaf @ leaf.mT @ X).square().sum()).backward()
    flow = CoupledAutoencoderFlow(X @ X.mT)
    seen.norm(flow.velocity(0.0, (V,))[0], -leaf.grad, 1e-10)


@pytest.mark.statement("BRTW Remark 50")
def test_riccati_form_is_the_flow_of_two_layers(randn, seen):
    X = randn(4, 9)
    C = X @ X.mT
    W1, W2 = randn(2, 4), randn(4, 2)
    V = torch.cat([W1.mT, W2])
    zero, eye = torch.zeros(4, 4, dtype=F64), torch.eye(4, dtype=F64)

    def blocks(a, b, c, d):
        return torch.cat([torch.cat([a, b], 1), torch.cat([c, d], 1)])

    left_1, left_2 = blocks(-C, zero, zero, zero), blocks(zero, zero, zero, -eye)
    right_1 = blocks(zero, zero, torch.linalg.inv(C), zero)
    right_2 = blocks(zero, eye, zero, zero)
    G = V @ V.mT
    bracket = torch.eye(8, dtype=F64) + left_1 @ G @ right_1 + left_2 @ G @ right_2
    literal = bracket @ blocks(zero, C, C, zero) @ V
    flow = RiccatiFlow(C)
    (ours,) = flow.velocity(0.0, flow.init_state(V))
    seen.norm(ours, literal, 1e-9)
    W1_dot, W2_dot = LayerFlow(deeplin.autoencoder(X)).velocity(0.0, (W1, W2))
    seen.norm(ours, torch.cat([W1_dot.mT, W2_dot]), 1e-9)


# -- statements ------------------------------------------------------------------------------------


@pytest.mark.statement("BRTW Theorem 5")
def test_layers_stay_bounded_and_reach_a_critical_point(randn, seen):
    problem = LeastSquares(randn(4, 20) / 4, randn(3, 20) / 4)
    flow = LayerFlow(problem)
    y0 = tuple(0.8 * randn(8, b, a) for a, b in ((4, 2), (2, 3), (3, 3)))
    norm = []
    solution = deeplin.solve(flow, y0, 100.0, rtol=1e-6, save_at=[10.0, 50.0])
    for y in solution.y:
        gradient = sum(v.square().sum((-2, -1)) for v in flow.velocity(0.0, y)) ** 0.5
        norm.append(float(gradient.max()))
        assert max(float(W_j.norm(dim=(-2, -1)).max()) for W_j in y) < 5
    seen.below(norm[-1], 1e-3)
    assert norm[0] > 1e-3
    assert norm[-1] < 0.1 * norm[1]


@pytest.mark.statement("BRTW Prop. 12")
def test_rank_is_constant(generic, generator, seen):
    """Layers with room for rank 3 keep the rank 2 of a balanced W(0), and lose none of it."""
    problem, W = generic
    net = DeepLinear([5, 3, 3, 4], dtype=F64)
    init.balanced_(net, W, rotate=True, generator=generator)
    flow = LayerFlow(problem)
    for y in deeplin.solve(flow, flow.init_state(net), 20.0, rtol=1e-10, save_at=[1, 5]).y:
        s = torch.linalg.svdvals(flow.end_to_end(y))
        assert float(s[1]) > 1e-3
        seen.below(s[2], 1e-14)


@pytest.mark.statement("BRTW Remark 14")
def test_rank_changes_for_an_unbalanced_start(seen):
    """BRTW Remark 14: W_1(0) = 0, W_2(0) = 1."""
    one = torch.ones(1, 1, dtype=F64)
    flow = LayerFlow(deeplin.autoencoder(one))
    y = deeplin.solve(flow, (0 * one, one), 0.1, rtol=1e-8).y[-1]
    seen.number("W(0.1)", flow.end_to_end(y))
    assert float(flow.end_to_end(y)) > 0.05


def psd_pair(randn, smallest):
    """X of rank 3 and a start of rank 2 whose second eigenvalue is small."""
    Q = torch.linalg.qr(randn(6, 6)).Q
    X = (Q[:, :3] * torch.tensor([1.0, 0.8, 0.6], dtype=F64)) @ Q[:, :3].mT
    P = torch.linalg.qr(Q[:, [0, 3]] + 0.1 * randn(6, 2)).Q
    return X, (P * torch.tensor([0.9, smallest], dtype=F64)) @ P.mT


@pytest.mark.statement("HLZ Lemma 2.7")
@pytest.mark.statement("HLZ Lemma 3.5")
@pytest.mark.parametrize("rescaled", [False, True])
def test_smallest_eigenvalue_is_bounded_below(randn, rescaled, seen):
    X, Z = psd_pair(randn, 0.3)
    flow = PSDDLRAFlow(MatrixApproximation(X), rescaled)
    solution = deeplin.solve(
        flow, flow.init_state(Z, 2), 6.0, rtol=1e-9, save_at=[0.25 * i for i in range(1, 24)]
    )
    s = torch.stack([flow.singular_values(y)[-1] for y in solution.y])
    bound = 1 / (1 / s[0] + solution.t) if rescaled else s[0] * torch.exp(-solution.t)
    seen.at_most((1 - s / bound)[1:].max(), 1e-8)  # at t = 0 it is 0
    assert float(s.min()) < 0.9 * float(s[0])


class WithArcLength(PlainFlow):
    """A flow with the length of the path of its Z as one more part of the state."""

    def __init__(self, flow):
        self.flow = flow

    def velocity(self, t, y):
        rates = self.flow.velocity(t, y[:-1])
        _, Z_dot = torch.func.jvp(lambda *z: self.flow.end_to_end(z), y[:-1], rates)
        return (*rates, Z_dot.norm().reshape(1))


@pytest.mark.statement("HLZ Lemma 3.6")
def test_rescaling_changes_the_clock_and_not_the_path(randn, seen):
    X, Z = psd_pair(randn, 0.2)
    paths = []
    for rescaled, t1 in ((False, 4.0), (True, 16.0)):
        flow = PSDDLRAFlow(MatrixApproximation(X), rescaled)
        y0 = (*flow.init_state(Z, 2), torch.zeros(1, dtype=F64))
        times = [t1 * (i / 300) ** 2 for i in range(1, 300)]
        solution = deeplin.solve(WithArcLength(flow), y0, t1, rtol=1e-8, save_at=times)
        arc = [float(y[-1]) for y in solution.y]
        points = torch.stack([flow.end_to_end(y[:-1]) for y in solution.y])
        paths.append((arc, CubicSpline(arc, points.numpy())))
    length = min(path[0][-1] for path in paths)
    assert length > 0.5
    for i in range(1, 40):
        seen.norm(*(torch.as_tensor(spline(length * i / 40)) for _, spline in paths), 1e-5)
    limits = []
    for rescaled in (False, True):
        flow = PSDDLRAFlow(MatrixApproximation(X), rescaled)
        limits.append(end(flow, flow.init_state(Z, 2), 60.0, 1e-7))
    seen.norm(*limits, 1e-5)


@pytest.mark.statement("HLZ Lemma 2.6")
def test_dlra_forms_agree(randn, seen):
    X, W = randn(6, 5), randn(6, 2) @ randn(2, 5)
    problem = MatrixApproximation(X)
    for rescaled in (False, True):
        flow, product = DLRAFlow(problem, rescaled), EndToEndFlow(problem, 1, rescaled=rescaled)
        seen.norm(
            end(flow, flow.init_state(W, 2), 0.5, 1e-10),
            end(product, product.init_state(W, 2), 0.5, 1e-10),
            1e-8,
        )
    V = randn(5, 2)
    psd, general = (
        PSDDLRAFlow(MatrixApproximation(X.mT @ X)),
        DLRAFlow(MatrixApproximation(X.mT @ X)),
    )
    seen.norm(
        end(psd, psd.init_state(V @ V.mT, 2), 0.5, 1e-10),
        end(general, general.init_state(V @ V.mT, 2), 0.5, 1e-10),
        1e-8,
    )


# -- reduction, messages ---------------------------------------------------------------------------


def test_compress_keeps_the_product_and_the_balance(randn, generator):
    W = randn(3, 6, 2) @ randn(3, 2, 5)
    net = DeepLinear([5, 4, 7, 4, 6], batch_shape=(3,), dtype=F64)
    init.balanced_(net, W, rotate=True, generator=generator)
    small = compress(net)
    assert [tuple(w.shape) for w in small] == [(3, 2, 5), (3, 2, 2), (3, 2, 2), (3, 6, 2)]
    close(LayerFlow(LeastSquares(randn(5, 9), randn(6, 9))).end_to_end(small), W, 1e-12)
    assert max(float(gap.norm()) for gap in balancedness_gap(small)) < 1e-13


def test_compress_refuses_unbalanced_layers(randn):
    with pytest.raises(ValueError, match="compress needs balanced layers"):
        compress([randn(3, 5), randn(4, 3)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EndToEndFlow(None, 0.5), "a real number >= 1 or math.inf; got depth=0.5"),
        (lambda: PQWFlow(None, 1), "integer >= 2; got 1"),
        (lambda: OjaFlow(torch.ones(2, 3)), "square matrix"),
        (lambda: OjaFlow(torch.eye(3)).init_state(torch.ones(2, 1)), "d = 3"),
        (lambda: RiccatiFlow(torch.eye(3)).init_state(torch.ones(3, 1)), "2d = 6"),
        (lambda: DLRAFlow(EYE).init_state(torch.eye(3), 4), "min\\(m, n\\) = 3; got rank=4"),
        (lambda: DLRAFlow(EYE).init_state(torch.ones(3, 3), 2), "numerical rank is 1"),
        (lambda: PSDDLRAFlow(EYE).init_state(-torch.eye(3)), "use DLRAFlow"),
    ],
)
def test_messages(make, message):
    with pytest.raises(ValueError, match=message):
        make()
