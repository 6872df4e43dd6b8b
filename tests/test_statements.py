"""BRTW's sections 2 to 5 on examples, with oracles written out here."""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import torch
from landscape_oracles import EIGENVALUES, F64, covariance, random_layers
from manifold_oracles import relative

import deeplin
from deeplin import LeastSquares
from deeplin.flows import CoupledAutoencoderFlow, EndToEndFlow, LayerFlow, OjaFlow
from deeplin.runner.verdict import fitted_rate


def product(matrices, size):
    """M_n···M_1, the identity if there is none."""
    W = torch.eye(size, dtype=F64)
    for M in matrices:
        W = M @ W
    return W


# -- the layers' flow ------------------------------------------------------------------------------


@pytest.mark.statement("BRTW Lemma 2(2)")
@pytest.mark.parametrize("widths", [[5, 2, 4], [4, 3, 5, 3], [3, 3, 3, 3, 3]])
def test_product_of_unbalanced_layers_obeys_equation_6(randn, seen, widths):
    X, Y = randn(widths[0], 20), randn(widths[-1], 20)
    layers = random_layers(randn, widths)
    flow = LayerFlow(LeastSquares(X, Y))
    _, W_dot = torch.func.jvp(lambda *y: flow.end_to_end(y), layers, flow.velocity(0.0, layers))
    G = (product(layers, widths[0]) @ X - Y) @ X.mT
    oracle = torch.zeros_like(G)
    for j in range(len(layers)):
        after, before = product(layers[j + 1 :], widths[j + 1]), product(layers[:j], widths[0])
        oracle -= after @ after.mT @ G @ before.mT @ before
    seen(relative(W_dot, oracle), 1e-12)


@pytest.mark.statement("BRTW Theorem 4")
def test_bounded_gradient_flows_have_paths_of_finite_length(randn, seen):
    U, V = torch.linalg.qr(randn(3, 3)).Q, torch.linalg.qr(randn(4, 3)).Q
    B = (U * torch.tensor([3.0, 2.0, 1.0])) @ V.mT
    flow = LayerFlow(LeastSquares.from_moments(torch.eye(4, dtype=F64), B, 15.0))
    y0 = random_layers(randn, [4, 2, 3])
    times = [0.1 * i for i in range(1, 600)]
    states = deeplin.solve(flow, y0, 60.0, rtol=1e-10, save_at=times).y
    path = [torch.cat([W.flatten() for W in y]) for y in states]
    steps = torch.stack([(b - a).norm() for a, b in itertools.pairwise(path)])
    assert float(steps[:300].sum()) > 0.1
    seen(steps[300:].sum() / steps[:300].sum(), 1e-5)  # the steps' errors add up
    seen(max(v.norm() for v in flow.velocity(0.0, states[-1])), 1e-6)


# -- the Riemannian flow ---------------------------------------------------------------------------


def dense_field(problem, depth):
    """−𝒜_W(∇L¹(W)) by definition (8), for W of full rank."""

    def field(_, w):
        W = torch.as_tensor(w).reshape(problem.d_y, problem.d_x)
        G, total = problem.egrad(W), torch.zeros_like(W)
        left, right = (torch.linalg.eigh(M) for M in (W @ W.mT, W.mT @ W))
        for j in range(1, depth + 1):
            L = (left[1] * left[0] ** ((depth - j) / depth)) @ left[1].mT
            R = (right[1] * right[0] ** ((j - 1) / depth)) @ right[1].mT
            total -= L @ G @ R
        return total.flatten().numpy()

    return field


def integrated(field, w, t):
    options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-13}
    return scipy.integrate.solve_ivp(field, (0.0, t), w, **options).y[:, -1]


@pytest.mark.statement("BRTW Corollary 16")
@pytest.mark.statement("BRTW Theorem 44")
@pytest.mark.statement("BRTW Theorem 45(2)")
def test_flow_is_unique_and_invertible(randn, seen):
    problem = LeastSquares(randn(3, 12) / 3, randn(3, 12) / 3)
    W, field, t = randn(3, 3) / 2, dense_field(problem, 3), 1.0
    w = W.flatten().numpy()
    end = integrated(field, w, t)
    back = integrated(lambda s, v: -field(s, v), end, t)
    seen(np.abs(back - w).max(), 1e-9)
    factored = EndToEndFlow(problem, 3)
    other = deeplin.solve(factored, factored.init_state(W, 3), t, rtol=1e-11).y[-1]
    seen((factored.end_to_end(other).flatten() - torch.as_tensor(end)).abs(), 1e-8)

    def divergence(v, h=1e-5):
        steps = h * np.eye(9)
        return sum((field(0, v + e)[i] - field(0, v - e)[i]) / (2 * h) for i, e in enumerate(steps))

    extended = integrated(lambda s, v: np.append(field(s, v[:9]), divergence(v[:9])), [*w, 0.0], t)
    h = 1e-5
    columns = [
        (integrated(field, w + e, t) - integrated(field, w - e, t)) / (2 * h) for e in h * np.eye(9)
    ]
    determinant = np.linalg.det(np.stack(columns, 1))
    assert determinant > 0
    seen.ratio(determinant, math.exp(extended[-1]), rel=1e-5)  # Liouville's formula


def factored(W, hidden, Q, tilt=1.0):
    """Layers of W with the given hidden widths, balanced for tilt = 1, from the SVD of W.

    `Q` turns the hidden bases; with another tilt the first layer is larger, the last smaller.
    """
    k, N = int(torch.linalg.matrix_rank(W, rtol=1e-9)), len(hidden) + 1
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    root = torch.diag(s[:k] ** (1 / N))
    bases = [Q[:d, :d] for d in hidden]
    bases = [torch.linalg.qr(basis).Q[:, :k] for basis in bases]
    layers = [tilt * bases[0] @ root @ Vh[:k]]
    layers += [b @ root @ a.mT for a, b in itertools.pairwise(bases)]
    return [*layers, U[:, :k] @ root @ bases[-1].mT / tilt]


def layers_by_scipy(X, Y, layers, times):
    """The products along (5), written out in numpy and integrated by DOP853."""
    shapes = [tuple(W.shape) for W in layers]
    cuts = np.cumsum([a * b for a, b in shapes])[:-1]
    C, B = (X @ X.mT).numpy(), (Y @ X.mT).numpy()

    def split(y):
        return [part.reshape(s) for part, s in zip(np.split(y, cuts), shapes, strict=True)]

    def chained(parts, size):
        W = np.eye(size)
        for M in parts:
            W = M @ W
        return W

    def field(_, y):
        W = split(y)
        G = chained(W, len(C)) @ C - B
        rates = [
            chained(W[j + 1 :], shapes[j][0]).T @ G @ chained(W[:j], len(C)).T
            for j in range(len(W))
        ]
        return -np.concatenate([rate.ravel() for rate in rates])

    y0 = torch.cat([W.flatten() for W in layers]).numpy()
    options = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12}
    solved = scipy.integrate.solve_ivp(field, (0.0, times[-1]), y0, t_eval=times, **options)
    assert solved.success
    return torch.from_numpy(np.stack([chained(split(y), len(C)) for y in solved.y.T]))


@pytest.mark.statement("BRTW Theorem 18")
@pytest.mark.parametrize(("N", "hidden"), [(2, [[2], [4]]), (3, [[2, 2], [3, 5]])])
def test_one_flow_on_the_manifold_for_all_times(randn, seen, N, hidden):
    """Every balanced factorisation of W(0), of any widths, by scipy, and the flow on M_2 itself."""
    X, W, Q = torch.linalg.qr(randn(12, 4)).Q.mT, randn(5, 2) @ randn(2, 4) / 3, randn(6, 6)
    Y, times = randn(5, 4) @ X / 2, [0.1, 0.5, 1.0, 2.0, 5.0]
    narrow = layers_by_scipy(X, Y, factored(W, hidden[0], Q), times)
    # Where there is room round-off grows at N = 2, like e^{σ_3t}: up to t = 2.
    wide = layers_by_scipy(X, Y, factored(W, hidden[1], Q), times[:4])
    # It exists: the rank is 2, no more and no less, also where the widths have room.
    for path in (narrow, wide):
        s = torch.linalg.svdvals(path)
        seen(s[:, 2] / s[:, 0], 1e-10)
        assert float(s[:, 1].min()) > 1e-2
    # It is unique, and it solves (24).
    seen((narrow[:4] - wide).abs(), 1e-8)
    flow = EndToEndFlow(LeastSquares(X, Y), N)
    solution = deeplin.solve(flow, flow.init_state(W, 2), 5.0, rtol=1e-11, save_at=times[:-1])
    ours = torch.stack([flow.end_to_end(y) for y in solution.y[-len(times) :]])
    seen((ours - narrow).abs(), 1e-8)
    # It can fail: layers of the same W(0) that are not balanced follow another path,
    tilted = layers_by_scipy(X, Y, factored(W, hidden[0], Q, tilt=1.5), times[:4])
    assert float((tilted - wide).abs().max()) > 1e-2
    if N > 2:
        return
    # and leave M_2 if the first has a part that the second does not see.
    first, last = factored(W, hidden[1], Q)
    unseen = torch.eye(len(first), dtype=F64) - torch.linalg.pinv(last) @ last
    first = first + 0.1 * unseen @ randn(*first.shape)
    torch.testing.assert_close(last @ first, W)
    s = torch.linalg.svdvals(layers_by_scipy(X, Y, (first, last), times[:4]))
    seen.number("largest σ_3/σ_1 of layers that are not balanced", (s[:, 2] / s[:, 0]).max())
    assert float((s[:, 2] / s[:, 0]).max()) > 1e-3


# -- the tied autoencoder --------------------------------------------------------------------------


@pytest.mark.statement("BRTW Theorem 20(3)")
@pytest.mark.statement("BRTW Theorem 20(4)")
@pytest.mark.parametrize("kind", [OjaFlow, CoupledAutoencoderFlow])
def test_tied_flow_converges_at_the_rate_of_the_eigengap(randn, seen, kind):
    E, C = covariance(randn)
    flow = kind(C)
    y0 = flow.init_state(torch.linalg.qr(randn(4, 2)).Q)
    times = [0.2 * i for i in range(1, 150)]
    solution = deeplin.solve(flow, y0, 60.0, rtol=1e-12, save_at=times)
    P = E[:, :2] @ E[:, :2].mT
    distance = torch.stack([(flow.end_to_end(y) - P).norm() for y in solution.y])
    limit = seen.of("BRTW Theorem 20(3)")
    limit((solution.y[-1][0] - solution.y[-2][0]).norm(), 1e-8)
    limit(flow.velocity(0.0, solution.y[-1])[0].norm(), 1e-8)
    rate = fitted_rate(solution.t, distance, 1e-9)
    seen.of("BRTW Theorem 20(4)").ratio(rate, EIGENVALUES[1] - EIGENVALUES[2], rel=0.02)


@pytest.mark.statement("BRTW Theorem 20(5)")
def test_equilibria_of_the_tied_flow_are_eigenspaces(randn, seen):
    E, C = covariance(randn)
    for J in itertools.combinations(range(4), 2):
        V = E[:, J] @ torch.linalg.qr(randn(2, 2)).Q
        for flow in (OjaFlow(C), CoupledAutoencoderFlow(C)):
            seen(flow.velocity(0.0, (V,))[0].norm(), 1e-13)
    for _ in range(50):  # elsewhere it moves: an orthonormal V that spans no eigenvectors
        V = torch.linalg.qr(randn(4, 2)).Q
        assert float(CoupledAutoencoderFlow(C).velocity(0.0, (V,))[0].norm()) > 1e-3


@pytest.mark.statement("BRTW Remark 21")
@pytest.mark.statement("BRTW Theorem 22")
def test_limits_of_the_tied_flow_solve_pca(randn, seen):
    X = randn(4, 30) * torch.tensor([2.0, 1.5, 1.0, 0.5])[:, None]
    m = X.shape[1]
    values = torch.linalg.eigvalsh(X @ X.mT).flip(0)

    def objective(V, H):
        return float((X - V @ H).square().sum() / m)

    flow = CoupledAutoencoderFlow(X @ X.mT / m)
    for _ in range(3):
        V = torch.linalg.qr(randn(4, 2)).Q
        V = deeplin.solve(flow, flow.init_state(V), 40.0, rtol=1e-10).y[-1][0]
        best = objective(V, V.mT @ X)
        seen.ratio(best, values[2:].sum() / m, rel=1e-9)
    for _ in range(200):
        other = torch.linalg.qr(randn(4, 2)).Q
        assert objective(other, other.mT @ X) > best
        assert objective(V, V.mT @ X + 0.1 * randn(2, m)) > best


@pytest.mark.statement("BRTW Theorem 23")
@pytest.mark.statement("BRTW Corollary 24")
def test_tied_flow_reaches_the_optimum_unless_it_misses_a_direction(randn, seen):
    C = torch.diag(EIGENVALUES)
    flow = CoupledAutoencoderFlow(C)
    V = torch.linalg.qr(randn(200, 4, 2)).Q
    end = flow.end_to_end(deeplin.solve(flow, flow.init_state(V), 40.0, rtol=1e-8).y[-1])
    distance = (end - torch.diag(torch.tensor([1.0, 1, 0, 0], dtype=F64))).norm(dim=(1, 2))
    seen.number("runs at the optimum of 200", (distance < 1e-6).sum())
    seen(distance, 1e-6)
    V[:, 0] = 0  # V_0ᵀ(v_1|v_2) has rank 1; C is diagonal: the zeros stay
    V = torch.linalg.qr(V).Q
    V[:, 0] = 0
    end = flow.end_to_end(deeplin.solve(flow, flow.init_state(V), 60.0, rtol=1e-8).y[-1])
    seen((end - torch.diag(torch.tensor([0.0, 1, 1, 0], dtype=F64))).norm(dim=(1, 2)), 1e-6)
