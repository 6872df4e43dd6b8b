"""BRTW's section 6 and appendices on examples, and its errata, with oracles written out here."""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import torch
from landscape_oracles import EIGENVALUES, F64, covariance, layers_hessian, random_layers
from manifold_oracles import Case
from metric_oracles import MetricGeodesic, depth_operator, second_derivative

import deeplin
from deeplin import DeepLinear, LeastSquares, init
from deeplin.flows import EndToEndFlow, LayerFlow
from deeplin.landscape import classify, critical_points, escape_direction, lift
from deeplin.manifolds import FixedRank
from deeplin.network import end_to_end

# -- saddles ---------------------------------------------------------------------------------------


@pytest.mark.statement("BRTW (28)")
@pytest.mark.parametrize(
    ("depth", "m", "n"), [(1, 3, 4), (2, 3, 3), (3, 3, 3), (2.5, 4, 3), (10, 3, 3)]
)
def test_second_derivative_along_curves_that_are_no_geodesics(randn, seen, depth, m, n):
    """θ(t) = vt + ½at² in a chart of M_2: Dγ̇/dt is a less the geodesic's θ'' along v.

    g by matrices of 𝒜_W in the chart and its geodesics by differences; Hess^g f from the code.
    """
    case, target = Case.build(m, n, r=2), randn(m, n)
    chart = MetricGeodesic(case, depth_operator(depth, 2))
    v, a = (randn(chart.dim).numpy() / 3 for _ in range(2))
    zero = np.zeros(chart.dim)
    J = chart.jacobian(zero)

    def f(W):
        return 0.5 * (W - target).square().sum() + W.pow(3).sum() / 6

    def along(t):
        return float(f(torch.tensor(chart.chart(v * t + 0.5 * a * t * t))))

    oracle, W = second_derivative(along, 0.01), case.W
    speed = torch.from_numpy(J @ v).view(m, n)
    G = W - target + 0.5 * W**2
    t = 1e-3
    geodesic = chart.parabola(speed)
    bend = (geodesic(t) + geodesic(-t) - 2 * W) / t**2
    straight = (chart.chart(v * t) + chart.chart(-v * t) - 2 * chart.chart(zero)) / t**2
    turned = torch.from_numpy((J @ a).reshape(m, n)) + torch.from_numpy(straight) - bend

    def right_side(depth, turned=turned):
        manifold = FixedRank(2, depth)
        hessian = manifold.ehess2rhess(W, G, speed + W * speed, speed)
        gradient = manifold.egrad2rgrad(W, G)
        return manifold.inner(W, speed, hessian) + manifold.inner(
            W, manifold.proju(W, turned), gradient
        )

    seen.ratio(right_side(depth), oracle, rel=1e-6)
    # It can fail: with the Hessian of another metric, or without the curve's own bend.
    other, geodesics_only = right_side(depth + 1), right_side(depth, 0 * turned)
    for wrong in (other, geodesics_only):
        assert abs(float(wrong / oracle) - 1) > 1e-2


@pytest.mark.statement("BRTW Theorem 28")
def test_flow_near_a_strict_saddle_and_from_random_starts(randn, seen):
    X = randn(3, 12)
    X = torch.linalg.qr(X.mT).Q.mT  # C = I: the flow is not stiff
    U, V = torch.linalg.qr(randn(3, 3)).Q, torch.linalg.qr(randn(3, 3)).Q
    problem = LeastSquares(X, (U * torch.tensor([3.0, 2.0, 1.0])) @ V.mT @ X)
    flow, T = LayerFlow(problem), 0.3
    saddle = lift(problem, problem.critical_point([2]), [3, 2, 3])
    x, h = torch.cat([W.flatten() for W in saddle]), 1e-5
    n = len(x)

    def psi(y):
        y = flow.init_state([y[:, : n // 2].view(-1, 2, 3), y[:, n // 2 :].view(-1, 3, 2)])
        end = deeplin.solve(flow, y, T, rtol=1e-12, atol=1e-14).y[-1]
        return torch.cat([W.flatten(1) for W in end], 1)

    steps = h * torch.eye(n, dtype=F64)
    D = (psi(x + steps) - psi(x - steps)).mT / (2 * h)
    H = layers_hessian(problem, saddle)
    seen((D - torch.matrix_exp(-T * H)).abs(), 1e-7)
    assert float(torch.linalg.eigvals(D).abs().max()) > 1.5
    y = random_layers(randn, [3, 2, 3], 200)
    end = deeplin.solve(flow, y, 80.0, rtol=1e-7).y[-1]
    names = classify(problem, [*end], 1e-4)
    seen.number("strict saddles among 200 limits", names.count("strict saddle"))
    assert names == ["global minimum"] * 200


def double_well(x):
    """½x² + ¼y⁴ − ½y²: a strict saddle at 0 whose stable set is the line y = 0."""
    return torch.stack([x[:, 0], x[:, 1] ** 3 - x[:, 1]], 1)


def double_torus(x):
    """½(ρ − 1)² + ¼z⁴ − ½z²: a circle of strict saddles at ρ = 1, z = 0."""
    rho = x[:, :2].norm(dim=1, keepdim=True)
    return torch.cat([(1 - 1 / rho) * x[:, :2], x[:, 2:] ** 3 - x[:, 2:]], 1)


@pytest.mark.statement("BRTW Theorem 29")
@pytest.mark.statement("HLZ Theorem 2.10")
@pytest.mark.statement("HLZ Theorem 2.13")
@pytest.mark.parametrize(("gradient", "d"), [(double_well, 2), (double_torus, 3)])
def test_gradient_descent_avoids_strict_saddles(generator, seen, gradient, d):
    x = 4 * torch.rand(10_000, d, dtype=F64, generator=generator) - 2
    on_it = x.clone()
    on_it[:, -1] = 0
    for _ in range(400):
        x, on_it = x - 0.1 * gradient(x), on_it - 0.1 * gradient(on_it)
    assert bool((on_it[:, -1] == 0).all()), "the stable set is invariant"
    assert float(gradient(on_it).abs().max()) < 1e-9
    seen.number("starts of 10 000 that end at a saddle", (x[:, -1].abs() < 0.5).sum())
    seen((x[:, -1].abs() - 1).abs(), 1e-9)


@pytest.mark.statement("BRTW Theorem 31(1)")
@pytest.mark.statement("BRTW Theorem 31(4)")
@pytest.mark.parametrize("widths", [[3, 2, 2], [3, 2, 2, 2], [3, 2, 3, 2, 2]])
def test_kawaguchi_on_data_within_its_hypotheses(randn, seen, widths):
    problem = LeastSquares(randn(3, 20), randn(2, 20))
    anywhere = torch.linalg.eigvalsh(layers_hessian(problem, random_layers(randn, widths)))
    for value in (anywhere[0], anywhere[-1]):
        seen.of("BRTW Theorem 31(1)").number("extreme eigenvalues at random layers", value)
    assert float(anywhere[0]) < -1e-3 < 1e-3 < float(anywhere[-1]), "neither convex nor concave"
    saddles = 0
    for k in range(2):
        for point in critical_points(problem, k):
            layers = lift(problem, point.W, widths)
            direction = escape_direction(problem, layers)
            loss, t = float(problem.loss(point.W)), 0.1
            for sign in (1, -1):
                wild = [A + sign * 0.01 * randn(*A.shape) for A in layers]
                saddles += float(problem.loss(end_to_end(wild))) > loss
            moved = [A + t * D for A, D in zip(layers, direction, strict=True)]
            lower = float(problem.loss(end_to_end(moved)))
            assert lower < loss
            if len(widths) == 3:
                continue
            # The same product with W_{N−1}···W_2 of rank r: ones in the free diagonal entries.
            for A in layers[1:-1]:
                A[range(k, 2), range(k, 2)] = 1
            torch.testing.assert_close(end_to_end(layers), point.W)
            least = torch.linalg.eigvalsh(layers_hessian(problem, layers))[0]
            seen.of("BRTW Theorem 31(4)").number("least eigenvalues of Hess L^N", least)
            assert float(least) < -1e-3
            assert classify(problem, layers) == "strict saddle"
    assert saddles > 0, "higher points nearby as well"


# -- limits ----------------------------------------------------------------------------------------


@pytest.mark.statement("BRTW Conjecture 41(b)")
@pytest.mark.parametrize("depth", [2, 3])
def test_starts_of_rank_one_with_condition_37_find_the_first_eigenvector(randn, seen, depth):
    E, C = covariance(randn)
    u = E[:, :1]
    a, b = randn(100, 4, 1), randn(100, 4, 1)
    b = b * torch.sign((a.mT @ u) * (b.mT @ u))
    W = a @ b.mT / 4
    assert bool((u.mT @ W @ u > 0).all())
    flow = EndToEndFlow(LeastSquares.from_moments(C, C, C.trace()), depth)
    end = deeplin.solve(flow, flow.init_state(W, 1), 60.0, rtol=1e-7).y[-1]
    seen((flow.end_to_end(end) - u @ u.mT).norm(dim=(1, 2)), 1e-5)


@pytest.mark.statement("BRTW Theorem 40")
@pytest.mark.statement("BRTW Conjecture 41(c)")
@pytest.mark.parametrize("depth", [2, 3])
def test_random_starts_of_rank_two_find_the_minimum_of_their_manifold(randn, seen, depth):
    E, U, V = (torch.linalg.qr(randn(3, 3)).Q for _ in range(3))
    s, lam = torch.tensor([2.4, 1.4, 0.6], dtype=F64), torch.tensor([1.4, 1.0, 0.6], dtype=F64)
    root = (E * lam.sqrt()) @ E.mT
    problem = LeastSquares.from_moments(root @ root, (U * s) @ V.mT @ root, s.square().sum())
    flow = EndToEndFlow(problem, depth)
    y0 = flow.init_state(randn(200, 3, 2) @ randn(200, 2, 3) / 2, 2)
    end = flow.end_to_end(deeplin.solve(flow, y0, 100.0, rtol=1e-5).y[-1])
    best = (U[:, :2] * s[:2]) @ V[:, :2].mT @ torch.linalg.inv(root)
    distance = (end - best).norm(dim=(1, 2))
    seen.number("runs at the minimum of M_2 of 200", (distance < 1e-4).sum())
    seen(distance, 1e-4)


# -- appendices ------------------------------------------------------------------------------------


@pytest.mark.statement("BRTW Lemma 43")
@pytest.mark.parametrize("p", [2, 3, 5])
def test_integrals_solve_the_power_equation(randn, seen, p):
    A, B = (M @ M.mT / 3 + torch.eye(len(M)) / 2 for M in (randn(3, 3), randn(2, 2)))
    A, B, Y = (A.numpy(), B.numpy(), randn(3, 2).numpy())
    power = np.linalg.matrix_power
    terms = [np.kron(power(A, p - j), power(B, j - 1)) for j in range(1, p + 1)]
    X = np.linalg.solve(sum(terms), Y.ravel()).reshape(3, 2)
    Ap, Bp = power(A, p), power(B, p)

    def resolvents(s):
        t = math.exp(s)
        left, right = np.linalg.inv(t * np.eye(3) + Ap), np.linalg.inv(t * np.eye(2) + Bp)
        return left @ Y @ right * t ** (1 / p + 1)

    first, _ = scipy.integrate.quad_vec(resolvents, -40, 40 * p / (p - 1), epsrel=1e-11)
    seen(np.abs(math.sin(math.pi / p) / math.pi * first - X).max(), 1e-9)
    block = np.block([[-Ap, Y], [np.zeros((2, 3)), -Bp]])

    def exponentials(s):  # the inner integral is a block of one exponential (Van Loan)
        t = math.exp(s)
        return scipy.linalg.expm(block * t)[:3, 3:] * t ** (-1 / p)

    second, _ = scipy.integrate.quad_vec(exponentials, -40 * p / (p - 1), 8, epsrel=1e-11)
    seen(np.abs(second / (p * math.gamma(1 - 1 / p)) - X).max(), 1e-9)


def sums(E, most):
    """Σ_{j∈J} e_je_jᵀ for all |J| ≤ most."""
    sets = [J for k in range(most + 1) for J in itertools.combinations(range(len(E)), k)]
    return torch.stack([E[:, list(J)] @ E[:, list(J)].mT for J in sets])


@pytest.mark.statement("BRTW Lemma 46")
@pytest.mark.statement("BRTW Remark 47")
def test_balanced_equilibria_of_two_layers(randn, seen):
    E, C = covariance(randn)
    flow = LayerFlow(LeastSquares.from_moments(C, C, C.trace()))
    for k in range(3):
        for J in itertools.combinations(range(4), k):
            V = torch.linalg.qr(randn(2, 2)).Q[:, :k]
            W_2 = E[:, list(J)] @ V.mT
            seen(max(v.norm() for v in flow.velocity(0.0, (W_2.mT, W_2))), 1e-13)
    # Other balanced layers move: scaled, of no eigenvectors, or with another sign.
    V, F = torch.linalg.qr(randn(2, 2)).Q, torch.linalg.qr(randn(4, 2)).Q
    for W_1, W_2 in (
        (0.9 * V @ E[:, :2].mT, 0.9 * E[:, :2] @ V.mT),
        (V @ F.mT, F @ V.mT),
        (V @ E[:, :2].mT, -E[:, :2] @ V.mT),
    ):
        assert max(float(v.norm()) for v in flow.velocity(0.0, (W_1, W_2))) > 1e-2


@pytest.mark.statement("BRTW Corollary 48(1)")
@pytest.mark.statement("BRTW Corollary 48(2)")
def test_balanced_autoencoders_of_two_layers_end_at_projections(randn, generator, seen):
    """C is diagonal, so that the starts which miss u_1 or u_2 miss it for ever."""
    C = torch.diag(EIGENVALUES)
    net = DeepLinear([4, 2, 4], batch_shape=(200,), dtype=F64)
    init.balanced_(net, randn(200, 4, 2) @ randn(200, 2, 4) / 3, rotate=True, generator=generator)
    W_1, W_2 = (W.detach().clone() for W in net.weights)
    for i in (0, 1):  # both layers in the span of the other coordinates, and balanced again
        few = DeepLinear([3, 2, 3], batch_shape=(50,), dtype=F64)
        init.balanced_(few, randn(50, 3, 2) @ randn(50, 2, 3) / 3)
        rest = [j for j in range(4) if j != i]
        for W, small in ((W_1, few.weights[0]), (W_2.mT, few.weights[1].mT)):
            W[50 * i : 50 * i + 50, :, i] = 0
            W[50 * i : 50 * i + 50][:, :, rest] = small.detach()
    flow = LayerFlow(LeastSquares.from_moments(C, C, C.trace()))
    W_1, W_2 = deeplin.solve(flow, (W_1, W_2), 80.0, rtol=1e-8).y[-1]
    distance = (W_2 @ W_1)[:, None] - sums(torch.eye(4, dtype=F64), 2)
    least = distance.norm(dim=(2, 3)).min(1)
    seen.of("BRTW Corollary 48(1)")(least.values, 1e-5)
    assert len(set(least.indices.tolist())) >= 3
    seen.of("BRTW Corollary 48(2)")((W_1.mT - W_2).norm(dim=(1, 2)), 1e-5)


@pytest.mark.statement("BRTW Corollary 48(3)")
@pytest.mark.statement("BRTW Corollary 48(4)")
def test_starts_below_the_best_saddle_find_the_optimum(randn, generator, seen):
    E, C = covariance(randn)
    problem = LeastSquares.from_moments(C, C, C.trace())
    P = E[:, :2] @ E[:, :2].mT
    bound = 0.5 * float(EIGENVALUES[1] + EIGENVALUES[3])
    losses = sorted(problem.loss(sums(E, 2)).tolist())
    assert losses[1] == pytest.approx(bound), "the loss of the best saddle"
    size = torch.logspace(-2, 0, 400, dtype=F64)[:, None, None]
    noise = randn(400, 4, 4)
    U, s, Vh = torch.linalg.svd(P + size * noise / noise.norm(dim=(1, 2), keepdim=True))
    W = (U[..., :2] * s[:, None, :2]) @ Vh[:, :2]
    start = W[problem.loss(W) < bound]
    assert len(start) >= 200
    assert int(((start - P).norm(dim=(1, 2)) < 0.05).sum()) >= 20
    net = DeepLinear([4, 2, 4], batch_shape=(len(start),), dtype=F64)
    init.balanced_(net, start, rotate=True, generator=generator)
    flow = LayerFlow(problem)
    end = flow.end_to_end(deeplin.solve(flow, flow.init_state(net), 60.0, rtol=1e-7).y[-1])
    close, distance = (start - P).norm(dim=(1, 2)) < 0.05, (end - P).norm(dim=(1, 2))
    seen.of("BRTW Corollary 48(3)").number("starts below the bound, all at the optimum", len(start))
    seen.of("BRTW Corollary 48(4)").number("starts within 0.05, all at the optimum", close.sum())
    seen.of("BRTW Corollary 48(3)")(distance, 1e-5)
    seen.of("BRTW Corollary 48(4)")(distance[close], 1e-5)


# -- errata ----------------------------------------------------------------------------------------


@pytest.mark.statement("BRTW Prop. 32(1), E7")
def test_a_critical_point_of_no_singular_vectors_at_hand(seen):
    """Q = I_2 and k = 1: any uuᵀ is critical, but e_1e_1ᵀ and e_2e_2ᵀ are those of one SVD."""
    eye, u = torch.eye(2, dtype=F64), torch.tensor([[1.0], [1.0]], dtype=F64) / math.sqrt(2)
    W = u @ u.mT
    G = W - eye
    seen(torch.stack([G @ W, W @ G]).norm(), 1e-14)
    listed = [torch.diag(row) for row in eye]
    seen.number("distance from the listed points", min((W - L).norm() for L in listed))
    assert min(float((W - L).norm()) for L in listed) > 0.9


@pytest.mark.statement("BRTW §5, C2")
@pytest.mark.statement("BRTW §7.3, S1")
def test_untied_layers_lose_their_symmetry_and_regain_it(randn, seen):
    _, C = covariance(randn)
    flow = LayerFlow(LeastSquares.from_moments(C, C, C.trace()))
    V = torch.linalg.qr(randn(4, 2)).Q
    solution = deeplin.solve(flow, (V.mT.clone(), V), 100.0, rtol=1e-11, save_at=[0.5])
    start, early, end = (float((W_1.mT - W_2).norm()) for W_1, W_2 in solution.y)
    assert start == 0
    seen.number("‖W_1 − W_2ᵀ‖ at t = 0.5", early)
    assert early > 0.1
    seen(end, 1e-8)


@pytest.mark.statement("BRTW §7.1.1, S1")
def test_which_of_the_two_losses_tends_to_the_root_of_the_tail(randn, seen):
    X = randn(4, 30)
    problem = deeplin.autoencoder(X)
    tail = float(torch.linalg.eigvalsh(X @ X.mT)[:2].sum())
    W = problem.minimizer(2)
    seen.ratio((X - W @ X).norm(), math.sqrt(tail), rel=1e-12)
    seen.ratio(problem.loss(W), tail / 2, rel=1e-12)
    seen.number("L¹ at the optimum over √Σλ_i", problem.loss(W) / math.sqrt(tail))
    assert abs(float(problem.loss(W)) / math.sqrt(tail) - 1) > 0.5
