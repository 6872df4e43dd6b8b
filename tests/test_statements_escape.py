"""HLZ: what is connected, what decays, and what escapes, on runs and paths that can also fail."""

import itertools
import math

import pytest
import torch

import deeplin
from deeplin.flows import PSDDLRAFlow
from deeplin.landscape import hessian, spurious_points
from deeplin.problems import MatrixApproximation

F64 = torch.float64


def orthonormal(randn, *shape):
    return torch.linalg.qr(randn(*shape)).Q


def least(W, r):
    """σ_r of every matrix of a batch."""
    return torch.linalg.svdvals(W)[..., r - 1]


# -- HLZ Lemma 2.1(2) ------------------------------------------------------------------------------


def turning(A, B, t):
    """exp(t log R) for the times t, R = BAᵀ of determinant 1; and ‖log R‖_2."""
    values, E = torch.linalg.eig(B @ A.mT)
    angles = values.angle()
    paths = (E * torch.exp(1j * t[:, None, None] * angles)) @ torch.linalg.inv(E)
    return paths.real, float(angles.abs().max())


def wrong_side(A, B):
    return float(torch.linalg.det(B @ A.mT)) < 0


def joined(Z_0, Z_1, r):
    """A path from Z_0 to Z_1 of rank at most r: the frames turn, the singular values go straight.

    A frame whose determinant is wrong has a free column negated, or else its r-th; then the r-th of
    the other frame, too, if that one has a free column, or else the last value changes its sign.
    Also a bound of how far a continuous path moves from one of the 101 matrices to the next.
    """
    (U_0, s_0, Vh_0), (U_1, s_1, Vh_1) = torch.linalg.svd(Z_0), torch.linalg.svd(Z_1)
    pairs = [(U_0, U_1.clone()), (Vh_0.mT, Vh_1.mT.clone())]
    s_0, s_1 = s_0[:r], s_1[:r].clone()
    for A, B in sorted(pairs, key=lambda pair: len(pair[0]) > r):  # those without a free one first
        if len(A) > r and float(s_1[-1]) < 0:
            s_1[-1] *= -1
            B[:, r - 1] *= -1
        if wrong_side(A, B):
            B[:, -1] *= -1
            if len(A) == r:
                s_1[-1] *= -1
    t = torch.linspace(0, 1, 101, dtype=F64)
    if float(s_1[-1]) < 0:  # and where it passes 0
        t = torch.cat([t, s_0[-1:] / (s_0 - s_1)[-1:]]).sort().values
    (left, a), (right, b) = (turning(A, B, t) for A, B in pairs)
    s = (1 - t[:, None]) * s_0 + t[:, None] * s_1
    path = (left @ pairs[0][0][:, :r] * s[:, None]) @ (right @ pairs[1][0][:, :r]).mT
    return path, ((a + b) * float(s.abs().max()) + float((s_1 - s_0).abs().max())) / 100


def lowest_on_a_path(randn, m, n, r):
    """(the least σ_r on a path over that of its ends, whether the determinants differ) of 100."""
    found = []
    for _ in range(100):
        Z_0, Z_1 = randn(m, r) @ randn(r, n), randn(m, r) @ randn(r, n)
        path, step = joined(Z_0, Z_1, r)
        assert float((path[0] - Z_0).norm() + (path[-1] - Z_1).norm()) < 1e-9
        jumps = torch.linalg.matrix_norm(path.diff(dim=0), 2)
        assert float(jumps.max()) <= step * (1 + 1e-6), "no jumps"
        ends = min(float(least(Z_0, r)), float(least(Z_1, r)))
        differ = m == n and float(torch.linalg.det(Z_0) * torch.linalg.det(Z_1)) < 0
        found.append((float(least(path, r).min()) / ends, differ))
    return found


@pytest.mark.statement("HLZ Lemma 2.1(2)")
@pytest.mark.parametrize(("m", "n", "r"), [(5, 4, 2), (4, 4, 3), (4, 3, 3)])
def test_any_two_general_matrices_of_rank_r_are_joined(randn, seen, m, n, r):
    lowest = min(ratio for ratio, _ in lowest_on_a_path(randn, m, n, r))
    seen.number("least σ_r on 100 paths over that of their ends", lowest)
    seen.at_most(1 - lowest, 1e-8)


@pytest.mark.statement("HLZ Lemma 2.1(2), E3")
def test_the_same_check_fails_on_invertible_real_matrices(randn, seen):
    """On GL(3) the paths between determinants of one sign stay in it; of the others none does."""
    found = lowest_on_a_path(randn, 3, 3, 3)
    assert min(ratio for ratio, differ in found if not differ) > 1 - 1e-8
    crossing = [ratio for ratio, differ in found if differ]
    seen.number("pairs of 100 that no path joins", len(crossing))
    assert 30 < len(crossing) < 70
    assert max(crossing) < 1e-9
    assert sum(ratio < 1 - 1e-8 for ratio, _ in found) == len(crossing)


@pytest.mark.statement("HLZ Lemma 2.1(2)")
def test_hermitian_matrices_of_rank_r_have_one_branch_for_every_signature(randn, seen):
    """Joined within a signature; between two a path of Hermitian matrices meets σ_r = 0."""
    n, r = 6, 3

    def drawn(positive):
        J = torch.diag(torch.tensor([1.0] * positive + [-1.0] * (r - positive), dtype=F64))
        A = randn(n, r)
        return A @ J @ A.mT

    def frame(Z):  # the positive eigenvalues first, then the negative ones
        values, E = torch.linalg.eigh(Z)
        order = torch.cat(
            [
                values.argsort(descending=True)[: int((values > 1e-9).sum())],
                values.argsort()[: int((values < -1e-9).sum())],
            ]
        )
        rest = [j for j in range(n) if j not in order.tolist()]
        return values[order], E[:, [*order.tolist(), *rest]]

    def lowest(p, q):
        Z_0, Z_1 = drawn(p), drawn(q)
        (s_0, E_0), (s_1, E_1) = frame(Z_0), frame(Z_1)
        E_1[:, -1] *= -1 if wrong_side(E_0, E_1) else 1
        t = torch.linspace(0, 1, 101, dtype=F64)
        s, E = (1 - t[:, None]) * s_0 + t[:, None] * s_1, turning(E_0, E_1, t)[0] @ E_0[:, :r]
        path = (E * s[:, None]) @ E.mT
        assert float((path[0] - Z_0).norm() + (path[-1] - Z_1).norm()) < 1e-9
        crossed = s_0 * s_1 < 0  # at s_0/(s_0 − s_1) a value is 0
        floor = float(least(path, r).min()) / min(float(least(Z_0, r)), float(least(Z_1, r)))
        return 0.0 if bool(crossed.any()) else floor

    within = [lowest(p, p) for p in range(r + 1) for _ in range(10)]
    between = [lowest(p, q) for p, q in itertools.permutations(range(r + 1), 2)]
    seen.at_most(1 - min(within), 1e-8)
    seen.number("branches", 1 + len([p for p in range(r) if lowest(p, p + 1) < 0.5]))
    assert max(between) == 0.0
    # No path at all: the number of positive eigenvalues of r can change only where one is 0.
    for p in range(r):
        A, low, high = [drawn(p), drawn(p + 1)], 0.0, 1.0
        (s_0, E_0), (s_1, E_1) = (frame(Z) for Z in A)
        bend = randn(r, r)
        E_1[:, -1] *= -1 if wrong_side(E_0, E_1) else 1

        def core(t, s_0=s_0, s_1=s_1, bend=bend):
            return torch.diag((1 - t) * s_0 + t * s_1) + t * (1 - t) * (bend + bend.mT)

        for _ in range(60):
            middle = 0.5 * (low + high)
            inside = int((torch.linalg.eigvalsh(core(middle)) > 0).sum()) <= p
            low, high = (middle, high) if inside else (low, middle)
        E = turning(E_0, E_1, torch.tensor([low], dtype=F64))[0][0] @ E_0[:, :r]
        seen(least(E @ core(low) @ E.mT, r), 1e-13)


# -- HLZ Lemma 2.7 and Lemma 3.5 -------------------------------------------------------------------


def decay(X, Z, rescaled, t1=6.0):
    """σ_min(t)/σ_min(0)e^{−t}, or over 1/(1/σ_min(0) + t), at 24 times t > 0; the times; σ_min."""
    flow = PSDDLRAFlow(MatrixApproximation(X), rescaled)
    times = [t1 * i / 24 for i in range(24)]
    solution = deeplin.solve(flow, flow.init_state(Z, 2), t1, rtol=1e-9, save_at=times)
    s, t = torch.stack([flow.singular_values(y)[-1] for y in solution.y]), solution.t
    bound = 1 / (1 / s[0] + t) if rescaled else s[0] * torch.exp(-t)
    return (s / bound)[1:], t[1:], s


@pytest.mark.parametrize(
    "rescaled",
    [
        pytest.param(False, marks=pytest.mark.statement("HLZ Lemma 2.7")),
        pytest.param(True, marks=pytest.mark.statement("HLZ Lemma 3.5")),
    ],
)
def test_the_last_eigenvalue_keeps_its_bound_and_may_attain_it(randn, seen, rescaled):
    X = torch.diag(torch.tensor([1.0, 0.8, 0.6, 0.0, 0.0, 0.0], dtype=F64))
    sizes = torch.tensor([0.9, 0.5], dtype=F64)
    lowest = []
    for _ in range(5):
        P = orthonormal(randn, 6, 2)
        lowest.append(float(decay(X, (P * sizes) @ P.mT, rescaled)[0].min()))
    seen.number("σ_min over its bound, least over t > 0 and 5 starts", min(lowest))
    seen.at_most(1 - min(lowest), 1e-8)
    # Orthogonal to X the bound is attained: σ' = −σ, and σ' = −σ² by the other clock.
    P = torch.eye(6, dtype=F64)[:, [0, 4]]  # X is diagonal: round-off has no part in X's space
    ratio, t, s = decay(X, (P * sizes) @ P.mT, rescaled)
    seen((ratio - 1).abs(), 1e-6)
    # It can fail: a bound that falls at 0.95 of the rate, and that of the other clock, are broken.
    slower = 1 / (1 / s[0] + 0.95 * t) if rescaled else s[0] * torch.exp(-0.95 * t)
    assert float((s[1:] / slower).min()) < 0.99
    if not rescaled:
        assert float((s[1:] * (1 / s[0] + t)).min()) < 0.1


# -- HLZ Lemma 4.1 ---------------------------------------------------------------------------------


def descended(flow, Z, alpha, steps):
    """Z_k of Riemannian gradient descent with the step ασ_r(Z_k), all k, as a tensor."""
    y = flow.init_state(Z, 3)
    path = [flow.end_to_end(y)]
    for _ in range(steps):
        y = flow.gradient_step(y, alpha)
        path.append(flow.end_to_end(y))
    return torch.stack(path)


@pytest.mark.statement("HLZ Lemma 4.1")
@pytest.mark.parametrize("alpha", [0.5, 2.0, 10.0])
def test_descent_with_the_varying_step_leaves_every_point_of_rank_r_minus_1(randn, seen, alpha):
    """X is diagonal, so that starts without its missing eigenvector are without it for ever."""
    d = torch.tensor([1.0, 0.7, 0.4], dtype=F64)
    X = torch.zeros(8, 8, dtype=F64)
    X[range(3), range(3)] = d
    flow = PSDDLRAFlow(MatrixApproximation(X), rescaled=True)
    steps, ends_there = (300 if alpha < 1 else 150), 0
    for point in spurious_points(X, 2):
        missing = ({1, 2, 3} - set(point.J)).pop() - 1
        H = randn(40, 8, 3)
        noise = 1e-2 * H @ H.mT / 8
        path = descended(flow, point.dense() + noise, alpha, steps)
        distance = torch.linalg.matrix_norm(path - point.dense())
        assert float(distance[0].max()) < 0.05
        ends_there += int((distance[-30:].amax(0) < 0.1).sum())
        seen.at_most(0.1 - distance.amax(0).min(), 0.0)
        if alpha < 10:  # ασ_r(X) < 2: they settle at X
            seen(torch.linalg.matrix_norm(path[-1] - X), 1e-6)
        # One step is (2): by a dense formula.
        Z = path[0]
        values, E = torch.linalg.eigh(Z)
        P, G = E[..., -3:] @ E[..., -3:].mT, Z - X
        moved = Z - alpha * values[:, -3, None, None] * (P @ G + G @ P - P @ G @ P)
        values, E = torch.linalg.eigh(moved)
        seen((path[1] - (E[..., -3:] * values[:, None, -3:]) @ E[..., -3:].mT).abs(), 1e-12)
        # It can fail: on the null set of starts it stays, and ends in S_{r−1} like 1/k.
        u = randn(40, 8, 1)
        u[:, missing] = 0
        u[:, [j - 1 for j in point.J]] = 0
        stays = descended(flow, point.dense() + 1e-2 * u @ u.mT / 8, alpha, steps)
        stays = torch.linalg.matrix_norm(stays - point.dense())
        assert float((stays[-1] / stays[0]).max()) < 1.0
        assert float((stays[-30:].amax(0) < 0.1).sum()) == 40
    seen.number("runs of 120 that end in S_{r−1}", ends_there)
    assert ends_there == 0


# -- HLZ §1 ----------------------------------------------------------------------------------------


@pytest.mark.statement("HLZ §1")
def test_hessians_near_spurious_points_have_directions_of_minus_infinity(randn, seen):
    """ε·λ_min at Z_# + εwwᵀ tends to minus the largest eigenvalue of X that Z_# misses."""
    basis, r = orthonormal(randn, 7, 7), 3
    d = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=F64)
    X = (basis[:, :4] * d) @ basis[:, :4].mT
    problem, w = MatrixApproximation(X), basis[:, 5:6]

    def partial(J):
        return (basis[:, J] * d[J]) @ basis[:, J].mT

    def least_eigenvalue(Z):
        return float(hessian(problem, Z, 1).extreme(1).values[0])

    for J in ([0, 1], [0, 2], [1, 2]):
        missed = float(d[min({0, 1, 2, 3} - set(J))])
        values = {eps: least_eigenvalue(partial(J) + eps * w @ w.mT) for eps in (1e-2, 1e-4)}
        for eps, value in values.items():
            seen.number("ε·λ_min over the missed eigenvalue", eps * value / missed)
            seen.ratio(value, 1 - missed / eps, rel=1e-8)
        # and by second differences of f along the truncated line in that direction
        eps, t = 1e-2, 1e-4
        Z, u = partial(J) + eps * w @ w.mT, basis[:, [min({0, 1, 2, 3} - set(J))]]
        xi = (u @ w.mT + w @ u.mT) / math.sqrt(2)

        def f(h, Z=Z, xi=xi):
            U, s, Vh = torch.linalg.svd(Z + h * xi)
            return float(((U[:, :r] * s[:r]) @ Vh[:r] - X).square().sum() / 2)

        seen.ratio((f(t) - 2 * f(0.0) + f(-t)) / t**2, values[1e-2], rel=1e-3)
    # It can fail: a strict saddle, of rank r itself, has bounded Hessians around it.
    noise = randn(7, 3) @ randn(3, 7)
    for eps in (1e-2, 1e-4):
        U, s, Vh = torch.linalg.svd(partial([0, 1, 3]) + eps * noise)
        near = least_eigenvalue((U[:, :r] * s[:r]) @ Vh[:r])
        assert -3 < near < -0.5


@pytest.mark.statement("HLZ §1 [30]")
@pytest.mark.parametrize("mu", [1e-1, 1e-3])
def test_the_regularised_loss_keeps_the_rank_where_the_loss_itself_does_not(seen, mu):
    """From diag(2, 0, 1) of Example 1.1: σ_2 rests at (2μ²/(1 + 2μ²))^{1/4}, not at 0.

    g falls along its flow, so that σ_r ≥ μ/√g(Z_0); both on the diagonal, where the flow stays.
    """
    X = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=F64))

    def g(U, S, mu):
        Z, core = U @ S @ U.mT, torch.linalg.inv(S)
        return 0.5 * (Z - X).square().sum() + mu**2 * (Z.square().sum() + core.square().sum())

    def run(mu, steps=20_000, dt=0.02):
        """Riemannian gradient descent of g on S (U stands still on the diagonal)."""
        U, s = torch.eye(3, dtype=F64)[:, [0, 2]], torch.tensor([2.0, 1.0], dtype=F64)
        lowest, first = float(s.min()), float(g(U, torch.diag(s), mu))
        for _ in range(steps):
            S = torch.diag(s).requires_grad_()
            (slope,) = torch.autograd.grad(g(U, S, mu), S)
            s = s - dt * slope.diagonal().detach()
            lowest = min(lowest, float(s.min()))
        return lowest, first, float(s[1])

    lowest, first, last = run(mu, 3000)
    seen.number("least σ_r over μ/√g(Z_0)", lowest / (mu / math.sqrt(first)))
    seen.at_most(mu / math.sqrt(first) - lowest, 0.0)
    seen.ratio(last, (2 * mu**2 / (1 + 2 * mu**2)) ** 0.25, rel=1e-6)
    assert run(0.0, 1500)[0] < 1e-12, "It can fail: without the term the rank is lost."
