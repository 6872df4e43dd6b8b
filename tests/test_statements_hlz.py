"""HLZ's statements and errata on examples, with oracles written out here."""

import itertools
import math

import pytest
import torch

import deeplin
from deeplin.flows import PSDDLRAFlow
from deeplin.landscape import dlra_jacobian, fibre_point, spurious_points
from deeplin.problems import MatrixApproximation

F64 = torch.float64


def orthonormal(randn, *shape):
    return torch.linalg.qr(randn(*shape)).Q


def target(randn, n, eigenvalues):
    U, d = orthonormal(randn, n, len(eigenvalues)), torch.tensor(eigenvalues, dtype=F64)
    return U, (U * d) @ U.mT


def least(W, r):
    """σ_r of every matrix of a batch."""
    return torch.linalg.svdvals(W)[..., r - 1]


# -- the manifold ----------------------------------------------------------------------------------


@pytest.mark.statement("HLZ Lemma 2.1(1)")
@pytest.mark.statement("HLZ Lemma 2.1(4)")
def test_lower_ranks_are_the_boundary(randn, seen):
    U, V = orthonormal(randn, 6, 3), orthonormal(randn, 5, 3)
    Z = (U[:, :1] * 2.0) @ V[:, :1].mT  # rank 1, in the closure of M_3
    for eps in (1e-1, 1e-6, 1e-12):
        near = Z + eps * U[:, 1:] @ V[:, 1:].mT
        assert int(torch.linalg.matrix_rank(near, rtol=1e-14)) == 3
        seen.of("HLZ Lemma 2.1(1)")((near - Z).norm() - math.sqrt(2) * eps, 1e-14)
    W = (U * torch.tensor([2.0, 1.0, 0.3], dtype=F64)) @ V.mT  # in M_3, off its boundary by σ_3
    E = randn(1000, 6, 5)
    E[0] = -U[:, 2:] @ V[:, 2:].mT  # the worst of them
    E *= 0.299 / torch.linalg.matrix_norm(E, 2)[:, None, None]
    assert float(least(W + E, 3).min()) > 1e-4
    nearest = W - 0.3 * U[:, 2:] @ V[:, 2:].mT
    seen.of("HLZ Lemma 2.1(4)")(least(nearest, 3), 1e-14)


@pytest.mark.statement("HLZ Lemma 2.1(2), E3")
def test_invertible_real_matrices_have_two_branches(randn, seen):
    """On any path from det > 0 to det < 0 lies a singular matrix: found by bisection."""
    for _ in range(100):
        start, bend, end = randn(3, 3), randn(3, 3), randn(3, 3)
        start[:, 0] *= torch.sign(torch.linalg.det(start))
        end[:, 0] *= -torch.sign(torch.linalg.det(end))

        def curve(t, a=start, b=bend, c=end):
            return (1 - t) * a + t * (1 - t) * b + t * c

        low, high = 0.0, 1.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            positive = float(torch.linalg.det(curve(middle))) > 0
            low, high = (middle, high) if positive else (low, middle)
        seen(least(curve(low), 3), 1e-14)
        seen.number("least σ_3 on each of 100 paths", least(curve(low), 3))


# -- gradient flows --------------------------------------------------------------------------------


@pytest.mark.statement("HLZ Theorem 3.1")
@pytest.mark.parametrize("near", [True, False])
def test_gradient_flows_reach_the_target(randn, seen, near):
    U, X = target(randn, 6, [1.0, 0.8, 0.6])
    H = randn(100, 6, 3)
    Z = H @ H.mT / 6
    if near:  # Z_# without one of the three, plus something small
        missing = [U[:, [j for j in range(3) if j != i]] for i in range(3)]
        d = torch.tensor([[0.8, 0.6], [1.0, 0.6], [1.0, 0.8]], dtype=F64)
        V = orthonormal(randn, 100, 6, 1) * 0.1
        spurious = torch.stack(
            [(missing[n % 3] * d[n % 3]) @ missing[n % 3].mT for n in range(100)]
        )
        Z = spurious + V @ V.mT
    flow = PSDDLRAFlow(MatrixApproximation(X))
    y0 = flow.init_state(Z, 3)
    end = flow.end_to_end(deeplin.solve(flow, y0, 40.0, rtol=1e-6).y[-1])
    distance = torch.linalg.matrix_norm(end - X)
    seen.number("runs at X of 100", (distance < 1e-5).sum())
    seen(distance, 1e-5)


def fibre(randn, n=8, eigenvalues=(4.0, 3.0, 2.0, 1.0), s=2):
    """(P_1, U_3) ↦ (U, S) of N_{Z#}, Z_# of rank s, in coordinates around a random point."""
    r = len(eigenvalues)
    basis = orthonormal(randn, n, n)
    U_1, D_1 = basis[:, :s], torch.diag(torch.tensor(eigenvalues[:s], dtype=F64))
    P_0 = orthonormal(randn, r, r)
    rows, columns = torch.triu_indices(r, r, 1), torch.triu_indices(n - r, n - r, 1)

    def skew(x, index, size):
        A = torch.zeros(size, size, dtype=F64).index_put((index[0], index[1]), x)
        return A - A.mT

    def chart(x):
        P = P_0 @ torch.matrix_exp(skew(x[: rows.shape[1]], rows, r))
        turn = torch.matrix_exp(skew(x[rows.shape[1] :], columns, n - r))
        U_3 = basis[:, r:] @ turn[:, : r - s]  # orthogonal to all eigenvectors of X
        U = torch.cat([U_1, U_3], 1) @ P.mT
        return torch.cat([U.flatten(), (P[:, :s] @ D_1 @ P[:, :s].mT).flatten()])

    return chart, rows.shape[1] + columns.shape[1]


@pytest.mark.statement("HLZ Lemma 3.2")
@pytest.mark.parametrize(("n", "s"), [(8, 3), (8, 2), (9, 1)])
def test_dimension_of_the_fibre(randn, seen, n, s):
    r, q = 4, 4 - s
    chart, size = fibre(randn, n, s=s)
    proof = s * (s - 1) // 2 + q * s + q * (q - 1) // 2 + (n - 2 * r + s) * q
    for scale in (0.0, 0.5, 2.0):
        J = torch.func.jacfwd(chart)(scale * randn(size))
        sigma = torch.linalg.svdvals(J)
        seen(int((sigma > 1e-9).sum()) - proof, 0)
        assert float(sigma[proof - 1]) > 1e-2, "and no direction is nearly lost"
    seen.number("dimensions", proof)


def rescaled_field(X, U, S):
    """HLZ (DLRA*), as printed."""
    sigma = torch.linalg.eigvalsh(S)[0]
    XU = X @ U
    return (XU - U @ (U.mT @ XU)) @ torch.linalg.inv(S) * sigma, (-S + U.mT @ XU) * sigma


@pytest.mark.statement("HLZ Lemma 3.3")
def test_rescaled_field_is_continuous_where_the_least_eigenvalue_is_double(randn, seen):
    """S(h) has eigenvalues 2, ½ + h, ½ − h: the least one has a kink, the field no jump."""
    _, X = target(randn, 6, [3.0, 2.0, 1.0])
    U, P = orthonormal(randn, 6, 3), orthonormal(randn, 3, 3)
    flow = PSDDLRAFlow(MatrixApproximation(X), True)

    def field(h):
        S = (P * torch.tensor([2.0, 0.5 + h, 0.5 - h], dtype=F64)) @ P.mT
        ours = flow.velocity(0.0, (U, S))
        for a, b in zip(ours, rescaled_field(X, U, S), strict=True):
            seen((a - b).norm() / b.norm(), 1e-12)
        return torch.cat([part.flatten() for part in ours])

    for h in (1e-2, 1e-4, 1e-6):
        seen((field(h) - field(0.0)).norm() / h, 30.0)
        seen((field(-h) - field(h)).norm() / h, 30.0)


@pytest.mark.statement("HLZ Lemma 3.4")
@pytest.mark.statement("HLZ Definition 2.11")
@pytest.mark.statement("HLZ Definition 2.12")
def test_rescaled_field_vanishes_on_the_fibre_with_one_escaping_eigenvalue(randn, generator, seen):
    U_x, X = target(randn, 7, [3.0, 2.0, 1.0])
    for point, _ in itertools.product(list(spurious_points(X, 2)), range(5)):
        U, S = fibre_point(X, point, generator=generator)
        p = torch.linalg.eigh(S).eigenvectors[:, :1]
        tangent, core = randn(7, 3), randn(3, 3)
        norms = []
        for eps in (1e-2, 1e-4, 1e-6):
            V = torch.linalg.qr(U + eps * tangent).Q
            V = V * torch.sign((V * U).sum(0))
            near = S + eps * (p @ p.mT) + 0.1 * eps * (core @ core.mT)
            norms.append(torch.cat([x.flatten() for x in rescaled_field(X, V, near)]).norm() / eps)
        seen.of("HLZ Lemma 3.4", "HLZ Definition 2.11")(torch.stack(norms), 100.0)
        missing = ({1, 2, 3} - set(point.J)).pop()
        xi = U_x[:, missing - 1 : missing] @ p.mT
        image = dlra_jacobian(X, U, S).apply(xi, torch.zeros(3, 3, dtype=F64))
        strict = seen.of("HLZ Definition 2.12")
        strict((image[0] - (4.0 - missing) * xi).norm() + image[1].norm(), 1e-11)
        strict.number("escaping eigenvalues", (image[0] * xi).sum())


@pytest.mark.statement("HLZ Lemma 3.5, C1")
def test_the_last_eigenvalue_decays_algebraically(seen):
    """From diag(2, 0, 1) towards diag(2, 0, 0): σ' = −σ², the bound is attained."""
    X = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=F64))
    flow = PSDDLRAFlow(MatrixApproximation(X), True)
    y0 = (torch.eye(3, dtype=F64)[:, [0, 2]], torch.diag(torch.tensor([2.0, 1.0], dtype=F64)))
    times = [10.0, 100.0, 1000.0]
    solution = deeplin.solve(flow, y0, 1e4, rtol=1e-9, save_at=times)
    for t, y in zip(solution.t.tolist(), solution.y, strict=True):
        seen.ratio(flow.singular_values(y)[-1], 1 / (1 + t), rel=2e-5)
    seen.number("t·σ_min at t = 1e4", 1e4 * float(flow.singular_values(solution.y[-1])[-1]))
    seen.number("e^{0.01 t}·σ_min at t = 1e4", math.exp(100) / (1 + 1e4))


@pytest.mark.statement("HLZ Lemma 3.7, E3")
def test_limit_of_the_derivative_has_a_minus(randn, seen):
    """ψ(S, η) = ∇(S^{-1}σ_min)[η], η = p_ip_rᵀ + p_rp_iᵀ (S stays symmetric), near S_#."""
    P, d = orthonormal(randn, 3, 3), [3.0, 2.0]

    def phi(S):
        return torch.linalg.inv(S) * torch.linalg.eigvalsh(S)[0]

    sigma, h = 1e-5, 1e-7
    S = (P * torch.tensor([*d, sigma], dtype=F64)) @ P.mT
    for i in (0, 1):
        pair = P[:, i : i + 1] @ P[:, 2:].mT
        eta = pair + pair.mT
        psi = (phi(S + h * eta) - phi(S - h * eta)) / (2 * h)
        entry = float((psi * pair).sum())
        seen.number(f"ψ along p_ip_rᵀ, d_i = {d[i]:g}", entry)
        seen.ratio(entry, -1 / d[i], rel=1e-4)
        seen((psi + eta / d[i]).norm(), 1e-3)  # linear in σ_min


# -- gradient descent ------------------------------------------------------------------------------


@pytest.mark.statement("HLZ (4)")
@pytest.mark.statement("HLZ (4), E2")
def test_hessian_of_the_distance_by_second_differences(randn, seen):
    """⟨ξ, Hess f[ξ]⟩ = d²/dt² f(R(Z + tξ)): R, the nearest matrix, is of second order."""
    n, r = 6, 2
    _, X = target(randn, n, [3.0, 2.0, 1.0])
    basis = orthonormal(randn, n, n)
    U, rest = basis[:, :r], basis[:, r:]
    sigma = torch.tensor([1.5, 0.7], dtype=F64)
    Z, inverse = (U * sigma) @ U.mT, torch.diag(1 / sigma)
    M, N = randn(r, r), randn(r, n - r)
    xi = U @ (M + M.mT) @ U.mT + U @ N @ rest.mT + rest @ N.mT @ U.mT
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        rest @ N @ inverse  # as printed: n×(n−r) times r×(n−r)
    P = rest @ rest.mT
    bend = P @ (Z - X) @ rest @ N.mT @ inverse @ U.mT
    forms = {sign: float((xi * (xi + sign * (bend + bend.mT))).sum()) for sign in (1, -1)}

    def f(t):
        values, E = torch.linalg.eigh(Z + t * xi)
        E, values = E[:, -r:], values[-r:]
        return float(((E * values) @ E.mT - X).square().sum() / 2)

    h = 1e-3
    fourth_order = (-f(2 * h) + 16 * f(h) - 30 * f(0) + 16 * f(-h) - f(-2 * h)) / (12 * h**2)
    seen.number("second difference", fourth_order)
    seen.number("formula with a plus", forms[1])
    seen.number("formula with a minus", forms[-1])
    seen.ratio(forms[1], fourth_order, rel=1e-6)
    assert abs(forms[-1] / fourth_order - 1) > 0.1


def descend(Z, X, r, alpha, steps, watch):
    """HLZ (2) with the r largest algebraic eigenvalues; watch(Z_k, σ_r(Z_k)) after every step."""
    for _ in range(steps):
        values, E = torch.linalg.eigh(Z)
        U, sigma = E[..., -r:], values[..., -r, None, None]
        G, P = Z - X, U @ U.mT
        values, E = torch.linalg.eigh(Z - alpha * sigma * (P @ G + G @ P - P @ G @ P))
        E, values = E[..., -r:], values[..., -r:]
        Z = (E * values[..., None, :].clamp(min=1e-300)) @ E.mT
        watch(Z, values[..., 0])
    return Z


@pytest.mark.statement("HLZ Remark 4.2(1)")
def test_varying_steps_do_not_vanish_and_any_alpha_escapes(randn, seen):
    U, X = target(randn, 8, [1.0, 0.7, 0.4])
    H, smallest = randn(100, 8, 3), []
    Z = descend(H @ H.mT / 8, X, 3, 2.0, 150, lambda _, s: smallest.append(float(s.min())))
    seen(torch.linalg.matrix_norm(Z - X), 1e-9)
    seen.number("least step α·σ_r over 100 runs", 2 * min(smallest))
    assert 2 * min(smallest) > 1e-4
    seen(abs(smallest[-1] - 0.4), 1e-9)  # it settles at σ_r(X)
    near, farthest = (U[:, :2] * torch.tensor([1.0, 0.7], dtype=F64)) @ U[:, :2].mT, []
    u = orthonormal(randn, 100, 8, 1)
    descend(
        near + 1e-3 * u @ u.mT,
        X,
        3,
        10.0,  # far beyond 2/σ_r(X) = 5: it leaves Z_#, whether or not it ever settles
        60,
        lambda Z, _: farthest.append(torch.linalg.matrix_norm(Z - near)),
    )
    assert float(torch.stack(farthest).amax(0).min()) > 0.1


@pytest.mark.statement("HLZ Lemma 4.1, C1")
@pytest.mark.parametrize(("alpha", "reaches"), [(1.98, True), (2.02, False)])
def test_convergence_to_the_target_bounds_alpha(alpha, reaches, randn, seen):
    """σ_r(X) = 1, X = diag(2, 1, 0): the iteration's multiplier at X is 1 − ασ_r(X)."""
    X = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=F64))
    H = randn(20, 3, 2) / 3
    tail = []
    Z = descend(
        H @ H.mT, X, 2, alpha, 1500, lambda Z, _: tail.append(torch.linalg.matrix_norm(Z - X))
    )
    distance = torch.linalg.matrix_norm(Z - X)
    seen.number(f"runs at X of 20, ασ_r = {alpha}", (distance < 1e-6).sum())
    if reaches:
        seen(distance, 1e-6)
    else:
        assert float(torch.stack(tail[-50:]).amax(0).min()) > 1e-2


# -- appendices ------------------------------------------------------------------------------------


@pytest.mark.statement("HLZ Lemma A.1")
@pytest.mark.parametrize("order", [2, "fro"])
def test_sin_theta(randn, seen, order):
    checked, largest = 0, 0.0
    for _ in range(300):
        A, k = randn(6, 6), 2
        A = A + A.mT
        D = randn(6, 6)
        B = A + 0.2 * (D + D.mT)
        (a, E), (b, F) = torch.linalg.eigh(A), torch.linalg.eigh(B)
        E_0, A_0 = E[:, -k:], torch.diag(a[-k:])
        delta = float(a[-k] - b[-k - 1])  # B_1 has the other eigenvalues, all below
        if delta <= 0:
            continue
        sine = F[:, :-k].mT @ E_0
        residual = torch.linalg.matrix_norm(B @ E_0 - E_0 @ A_0, order)
        largest = max(largest, float(delta * torch.linalg.matrix_norm(sine, order) / residual))
        checked += 1
    assert checked > 200
    seen(largest, 1.0)


@pytest.mark.statement("HLZ Lemma B.2")
def test_chart_of_the_stiefel_manifold(randn, seen):
    n, k = 6, 3
    Q, U = orthonormal(randn, n, k), orthonormal(randn, n, k)
    index = torch.triu_indices(n, n, 1)

    def chart(x, Q=Q):
        A = torch.zeros(n, n, dtype=F64).index_put((index[0], index[1]), x)
        V = torch.matrix_exp(A - A.mT) @ U
        (V1, V2), (Q1, Q2) = (V[:k], V[k:]), (Q[:k], Q[k:])
        inner = Q1.mT @ V1 + V2.mT @ Q2 - V1.mT @ Q1 - Q2.mT @ V2
        corner = torch.linalg.inv(V1 + Q1)
        return torch.cat([corner.mT @ inner @ corner, (V2 - Q2) @ corner])

    zero = torch.zeros(index.shape[1], dtype=F64)
    omega = chart(zero)[:k]
    seen((omega + omega.mT).norm() / omega.norm(), 1e-13)
    J = torch.func.jacfwd(chart)(zero).reshape(n * k, -1)
    sigma = torch.linalg.svdvals(J)
    seen(int((sigma > 1e-9 * sigma[0]).sum()) - (n * k - k * (k + 1) // 2), 0)
