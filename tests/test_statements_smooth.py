"""BRTW's C¹ statements and the integrals of their proof, where singular values are equal."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch
from landscape_oracles import F64
from manifold_oracles import dot, gauss_panels
from metric_oracles import shifted_operator

import deeplin
from deeplin import LeastSquares
from deeplin.flows import EndToEndFlow
from deeplin.geometry import Metric
from deeplin.integrators import RK4
from deeplin.manifolds import FixedRank

# -- of class C¹ -----------------------------------------------------------------------------------


class Kinked(Metric):
    """c_ij = 2 max(σ_i, σ_j): a continuous metric with a kink where two singular values cross."""

    def core(self, sigma):
        return 2 * torch.maximum(sigma[..., :, None], sigma[..., None, :])

    def side(self, sigma):
        return sigma


class Bundle:
    """Curves t ↦ (U + tA)(S + tM)(V + tB)ᵀ through one point, in three directions and their sum.

    The singular values at t = 0 are `sigma`.
    """

    def __init__(self, randn, m, n, sigma):
        self.sigma = torch.tensor(sigma, dtype=F64)
        k = len(sigma)
        self.U, self.V = torch.linalg.qr(randn(m, k)).Q, torch.linalg.qr(randn(n, k)).Q
        self.parts = [[randn(m, k), randn(k, k), randn(n, k)] for _ in range(3)]
        self.parts.append([sum(p) for p in zip(*self.parts, strict=True)])

    def __call__(self, t, direction):
        A, M, B = self.parts[direction]
        return (self.U + t * A) @ (torch.diag(self.sigma) + t * M) @ (self.V + t * B).mT


def defects(f, bundle, h):
    """How far f, a function of batches of W, is from C¹ along a bundle, relative to its slopes.

    One-sided slopes that differ; a slope along the sum of directions that is not the sum of slopes;
    slopes at the point in direction 1 and at distance h in direction 2 that differ. All are O(h)
    for a C¹ function with Lipschitz slopes, and O(1) for a kink.
    """
    ahead, here, behind = (f(torch.stack([bundle(s, n) for n in range(4)])) for s in (h, 0.0, -h))
    slopes = (ahead - here).reshape(4, -1) / h
    scale = slopes.norm(dim=1).max()
    jumps = (ahead - 2 * here + behind).reshape(4, -1) / h
    addition = slopes[3] - slopes[:3].sum(0)
    A, M, B = bundle.parts[0]
    C, K, D = bundle.parts[1]
    S = torch.diag(bundle.sigma)
    small = h / 100  # beside the point: both directions at once
    moved = [
        (bundle.U + h * C + s * A) @ (S + h * K + s * M) @ (bundle.V + h * D + s * B).mT
        for s in (small, -small)
    ]
    ends = f(torch.stack(moved)).reshape(2, -1)
    beside = (ends[0] - ends[1]) / (2 * small) - slopes[0]
    return torch.stack([jumps.norm(dim=1).max(), addition.norm(), beside.norm()]) / scale


def held(seen, f, kinked, bundle):
    """f is C¹ at the point of the bundle, and `kinked`, the same of another metric, is not."""
    coarse, fine = defects(f, bundle, 1e-4), defects(f, bundle, 1e-5)
    seen(fine, 5e-4)
    assert bool((fine < 0.3 * coarse + 1e-6).all()), "and they close with h"
    wrong = defects(kinked, bundle, 1e-5)[:2]  # the third may be small beside a double value
    seen.number("defects for a metric with a kink", wrong.min())
    assert float(wrong.min()) > 5e-3, "It can fail."


SPECTRA = [[1.3, 1.3, 1.3], [1.3, 0.7, 0.7]]


@pytest.mark.statement("BRTW Prop. 11")
@pytest.mark.parametrize("sigma", SPECTRA)
@pytest.mark.parametrize("depth", [2, 2.5, 3, 10])
def test_metric_is_c1_at_double_and_triple_singular_values(randn, seen, depth, sigma):
    bundle, (G, H) = Bundle(randn, 5, 4, sigma), randn(2, 5, 4)

    def value(depth):
        manifold = FixedRank(3, depth)
        return lambda W: manifold.inner(W, manifold.proju(W, G), manifold.proju(W, H))

    held(seen, value(depth), value(Kinked()), bundle)


@pytest.mark.statement("BRTW Lemma 15")
@pytest.mark.parametrize("sigma", SPECTRA)
@pytest.mark.parametrize("depth", [2, 2.5, 3, 10])
def test_gradient_field_is_c1_at_double_and_triple_singular_values(randn, seen, depth, sigma):
    bundle, problem = Bundle(randn, 5, 4, sigma), LeastSquares(randn(4, 20), randn(5, 20))

    def field(depth):
        manifold = FixedRank(3, depth)
        return lambda W: manifold.egrad2rgrad(W, problem.egrad(W))

    held(seen, field(depth), field(Kinked()), bundle)


def end_of_flow(problem, metric, rank, t1=0.2, dt=0.02):
    """ψ_{t1} of (24)."""
    flow = EndToEndFlow(problem, metric)

    def psi(W):
        y = deeplin.solve(flow, flow.init_state(W, rank), t1, dt=dt, integrator=RK4()).y[-1]
        return flow.end_to_end(y)

    return psi


def toward(bundle, core):
    """C = I and Q = U·core·Vᵀ."""
    B = bundle.U @ core @ bundle.V.mT
    return LeastSquares.from_moments(torch.eye(4, dtype=F64), B, B.square().sum())


# Multiplication by the quaternion i: as the quarter turn in the plane, aI + bJ is a multiple of an
# orthogonal matrix for all a and b. There is no such J in odd dimension.
TURNS = {
    2: [[0, 1], [-1, 0]],
    4: [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]],
}


@pytest.mark.statement("BRTW Theorem 45(1)")
@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("k", [2, 4])
def test_flow_is_c1_around_a_path_of_equal_singular_values(randn, seen, depth, k):
    """C = I, Q = U(2I + 1.5J)Vᵀ: from 1.3·UVᵀ W stays U(aI + bJ)Vᵀ, all singular values equal."""
    bundle = Bundle(randn, 5, 4, [1.3] * k)
    core = 2 * torch.eye(k, dtype=F64) + 1.5 * torch.tensor(TURNS[k], dtype=F64)
    problem = toward(bundle, core)
    W = end_of_flow(problem, depth, k)(bundle(0.0, 0))
    seen(torch.linalg.svdvals(W)[:k].diff(), 1e-12)
    assert float((W - bundle(0.0, 0)).norm()) > 0.1
    held(seen, end_of_flow(problem, depth, k), end_of_flow(problem, Kinked(), k), bundle)


MEETING, TARGETS = 0.1, [2.4, 1.5, 0.5]


def before_they_meet(depth):
    """The values at t = 0 of modes u̇ = Nu^{2−2/N}(s − u) that are all 1.1 at t = 0.1, by SciPy."""
    s = np.array(TARGETS)
    solution = scipy.integrate.solve_ivp(
        lambda _, u: -depth * u ** (2 - 2 / depth) * (s - u),
        (0.0, MEETING),
        [1.1] * 3,
        rtol=1e-12,
        atol=1e-14,
    )
    return solution.y[:, -1].tolist()


def slopes_through_layers(problem, bundle, depth, h=1e-4):
    """The slopes of ψ_{0.2} along a bundle: (5), a polynomial field, of balanced layers by RK4."""
    U, s, Vh = torch.linalg.svd(torch.stack([bundle(t, n) for n in range(4) for t in (h, -h)]))
    U, root, Vh = U[..., :3], torch.diag_embed(s[:, :3] ** (1 / depth)), Vh[:, :3]
    y = [root @ Vh, *[root] * (depth - 2), U @ root]

    def product(y):
        W = y[0]
        for W_j in y[1:]:
            W = W_j @ W
        return W

    def velocity(y):
        G = product(y) - problem.B
        found = []
        for j in range(depth):
            before, after = torch.eye(4, dtype=F64), torch.eye(5, dtype=F64)
            for W_j in y[:j]:
                before = W_j @ before
            for W_j in reversed(y[j + 1 :]):
                after = after @ W_j
            found.append(-after.mT @ G @ before.mT)
        return found

    dt = 0.01
    for _ in range(20):
        slopes = [velocity(y)]
        for c in (0.5, 0.5, 1.0):
            slopes.append(velocity([a + c * dt * b for a, b in zip(y, slopes[-1], strict=True)]))
        y = [
            W_j + dt / 6 * (p + 2 * q + 2 * r + s)
            for W_j, p, q, r, s in zip(y, *slopes, strict=True)
        ]
    W = product(y)
    return (W[::2] - W[1::2]) / (2 * h)


@pytest.mark.statement("BRTW Theorem 45(1)")
@pytest.mark.parametrize("depth", [2, 3])
def test_flow_is_c1_where_three_singular_values_cross(randn, seen, depth):
    """At t = 0.1 all three are 1.1; after it they are in the other order. Along, ψ is smooth."""
    bundle = Bundle(randn, 5, 4, before_they_meet(depth))
    problem = toward(bundle, torch.diag(torch.tensor(TARGETS, dtype=F64)))
    start, dt = bundle(0.0, 0), 0.01  # where frames are sorted anew the steps' errors jump
    meeting = torch.linalg.svdvals(end_of_flow(problem, depth, 3, MEETING, dt)(start))[:3]
    seen(meeting - 1.1, 1e-5)
    psi = end_of_flow(problem, depth, 3, 2 * MEETING, dt)
    modes = (bundle.U.mT @ psi(start) @ bundle.V).diagonal()
    assert bool((bundle.sigma.diff() > 0.1).all())
    assert bool((modes.diff() < -0.1).all())
    coarse, fine = defects(psi, bundle, 1e-4), defects(psi, bundle, 1e-5)
    seen(fine, 5e-4)
    assert bool((fine < 0.3 * coarse + 1e-6).all())
    exact, h = slopes_through_layers(problem, bundle, depth), 1e-5
    here = psi(start)
    for step in (h, -h):
        slopes = (psi(torch.stack([bundle(step, n) for n in range(4)])) - here) / step
        worst = ((slopes - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2))).max()
        seen.number("one-sided slopes against those of the layers", worst)
        seen(worst, 5e-4)
    # It can fail: the slopes of another depth are far away.
    other = slopes_through_layers(problem, bundle, 5 - depth)
    assert float(((other - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2))).min()) > 1e-2


# -- the integrals of the proofs -------------------------------------------------------------------


def resolvent(A, t):
    """(t + A)^{-1} for t of any shape."""
    return torch.linalg.inv(t[..., None, None] * torch.eye(len(A), dtype=F64) + A)


def over_log_t(N, low=-45.0, high=45.0, panels=200):
    """Nodes t and weights of ∫_0^∞ · t^{1/N} dt, by log t."""
    s, w = (torch.as_tensor(a) for a in gauss_panels(low * N, high * N / (N - 1), panels))
    return s.exp(), w * (s * (1 / N + 1)).exp() * math.sin(math.pi / N) / math.pi


@pytest.mark.statement("BRTW (43)")
@pytest.mark.parametrize("N", [2, 3, 5])
def test_inverse_of_the_regularised_operator_is_integral_43(randn, seen, N):
    W = randn(4, 2) @ randn(2, 3)
    Z, tangent = randn(4, 3), FixedRank(2, N).proju(W, randn(4, 3))
    for u in (1.0, 1e-2):
        t, weights = over_log_t(N)
        integrand = resolvent(W @ W.mT, t + u) @ Z @ resolvent(W.mT @ W, t + u)
        found = (weights[:, None, None] * integrand).sum(0)
        wanted = torch.linalg.solve(shifted_operator(N, u)(W), Z.flatten()).view(4, 3)
        seen((found - wanted).norm() / wanted.norm(), 1e-9)
        other = torch.linalg.solve(shifted_operator(N + 1, u)(W), Z.flatten()).view(4, 3)
        assert float((found - other).norm() / other.norm()) > 1e-2, "It can fail."
    # As u → 0 it becomes the inverse of 𝒜_W on tangent vectors, and on those alone.
    limit, distances, sizes = FixedRank(2, N).metric_inverse(W, tangent), [], []
    for u in (1e-4, 1e-6, 1e-8):
        matrix = shifted_operator(N, u)(W)
        near = torch.linalg.solve(matrix, tangent.flatten()).view(4, 3)
        distances.append(float((near - limit).norm() / limit.norm()))
        sizes.append(
            float(torch.linalg.solve(matrix, (Z - FixedRank(2, N).proju(W, Z)).flatten()).norm())
        )
    seen.number("distance from the inverse at u = 1e-8", distances[-1])
    assert distances[2] < 0.2 * distances[0]
    assert sizes[2] > 10 * sizes[0]


class Family:
    """W(s) = A(s)B(s)ᵀ with two fields of tangent vectors, P_W(G) and P_W(H), and d/ds of it all.

    At s = 0 W is [Σ 0; 0 0] exactly: what is 0 in the proof is 0 in the resolvents' products.
    """

    def __init__(self, randn, m, n, sigma):
        k = len(sigma)
        root = torch.tensor(sigma, dtype=F64).sqrt()
        self.A, self.B = (torch.zeros(size, k, dtype=F64) for size in (m, n))
        self.A[range(k), range(k)] = self.B[range(k), range(k)] = root
        self.moves, self.fields = (randn(m, k), randn(n, k)), randn(2, m, n)
        self.sigma_k = min(sigma)
        zero = torch.zeros((), dtype=F64)
        self.here, self.rates = torch.func.jvp(self, (zero,), (torch.ones_like(zero),))

    def __call__(self, s):
        A, B = self.A + s * self.moves[0], self.B + s * self.moves[1]
        PA, PB = (M @ torch.linalg.inv(M.mT @ M) @ M.mT for M in (A, B))
        xi = [PA @ Z + Z @ PB - PA @ Z @ PB for Z in self.fields]
        return A @ B.mT, xi[0], xi[1]

    def terms(self, t):
        """The four terms of (44) and (45), and K_{i,j,t} itself."""
        (W, xi, eta), (Y, xi_dot, eta_dot) = self.here, self.rates
        phi, psi = resolvent(W @ W.mT, t), resolvent(W.mT @ W, t)
        D_phi = -phi @ (W @ Y.mT + Y @ W.mT) @ phi
        D_psi = -psi @ (W.mT @ Y + Y.mT @ W) @ psi

        def trace(a, b, c, d):
            return (a @ b @ c * d).sum((-2, -1))

        first, second = trace(D_phi, xi, psi, eta), trace(phi, xi_dot, psi, eta)
        third, fourth = trace(phi, xi, D_psi, eta), trace(phi, xi, psi, eta_dot)
        return torch.stack([first, second, third, fourth]), trace(phi, xi, psi, eta)


@pytest.mark.statement("BRTW (44)")
@pytest.mark.statement("BRTW (45)")
@pytest.mark.parametrize("N", [2, 3, 5])
@pytest.mark.parametrize(
    ("m", "n", "sigma"), [(4, 4, [1.3] * 3), (5, 4, [1.3] * 3), (4, 3, [2.0, 0.5])]
)
def test_derivative_of_the_metric_is_the_integral_of_44_and_45(randn, seen, N, m, n, sigma):
    """(sin(π/N)/π)∫DK t^{1/N}dt against differences of g along the curve."""
    family, manifold = Family(randn, m, n, sigma), FixedRank(len(sigma), N)
    t, weights = over_log_t(N)
    terms = (weights * family.terms(t)[0]).sum(1)

    def g(s):
        return float(manifold.inner(*family(torch.tensor(s, dtype=F64))))

    h = 1e-3
    slope = (8 * (g(h) - g(-h)) - (g(2 * h) - g(-2 * h))) / (12 * h)
    seen.ratio(terms.sum(), slope, rel=1e-7)
    for left_out in terms:  # It can fail: without any one of the terms it is another number.
        assert abs(float(terms.sum() - left_out) / slope - 1) > 1e-3


@pytest.mark.statement("BRTW (46)")
@pytest.mark.statement("BRTW (47)")
def test_bounds_of_the_integrands(randn, seen):
    """The two bounds of each term, with their constants, for t from 1e-8 to 1e8."""
    t = torch.logspace(-8, 8, 161, dtype=F64)
    largest = {"t^-1": 0.0, "t^-3": 0.0}
    for m, n, sigma in ((4, 4, [1.3] * 3), (5, 4, [1.0, 0.1]), (5, 4, [2.0, 1.0, 0.3])):
        for _ in range(20):
            family = Family(randn, m, n, sigma)
            (W, xi, eta), (Y, xi_dot, _) = family.here, family.rates
            (first, second, _, _), _ = family.terms(t)
            norms, k = xi.norm() * eta.norm(), len(sigma)
            P = torch.zeros(n, n, dtype=F64)
            P[range(k), range(k)] = 1
            zeta = torch.zeros(m, n, dtype=F64), xi @ P
            zeta[0][:k] = (xi @ (torch.eye(n, dtype=F64) - P))[:k]
            seen.of("BRTW (46)")((zeta[0] + zeta[1] - xi).norm(), 1e-13)
            assert float((zeta[0] + zeta[1] - family.fields[0]).norm()) > 1e-3
            # Twice four terms tr(QE_ℓ) for Dφ_t; (47) for large t.
            small = first.abs() * t * family.sigma_k**3 / (8 * Y.norm() * norms)
            large = first.abs() * t**3 / (2 * (W @ Y.mT).norm() * norms)
            largest["t^-1"] = max(largest["t^-1"], float(small.max()))
            largest["t^-3"] = max(largest["t^-3"], float(large.max()))
            norms = xi_dot.norm() * eta.norm()
            seen.of("BRTW (47)").at_most((second.abs() * t**2 / norms).max() - 1, 1e-9)
            small = second.abs() * t * family.sigma_k**2 / (2 * norms)
            seen.of("BRTW (47)").at_most(small.max() - 1, 1e-9)
            # They can fail: one power of t more or less, and they grow beyond every constant.
            assert float((first.abs() * t**4).max()) > 1e3 * float((first.abs() * t**3).max())
    for name, ratio in largest.items():
        seen.of("BRTW (47)").number(f"first term over its bound {name}, largest", ratio)
        seen.of("BRTW (47)").at_most(ratio - 1, 1e-9)


def test_the_kinked_metric_is_a_metric(randn):
    """Else the checks above would reject it for another reason."""
    W, manifold = randn(5, 3) @ randn(3, 4), FixedRank(3, Kinked())
    u = manifold.proju(W, randn(5, 4))
    assert float(manifold.inner(W, u, u)) > 0
    back = manifold.metric_operator(W, manifold.metric_inverse(W, u))
    assert float((back - u).norm()) < 1e-12
    assert float(dot(u, manifold.metric_inverse(W, u))) > 0
