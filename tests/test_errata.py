"""Where the papers are wrong: examples that decide, with oracles written out here."""

import itertools
import math

import pytest
import torch

import deeplin
from deeplin.flows import EndToEndFlow, PSDDLRAFlow
from deeplin.landscape import local_rate
from deeplin.linalg import chain
from deeplin.network import grid_widths
from deeplin.problems import LeastSquares, MatrixApproximation

F64 = torch.float64


def orthonormal(randn, *shape):
    return torch.linalg.qr(randn(*shape)).Q


# -- E4: no bound on the step ----------------------------------------------------------------------


def slope(y):
    """h′, C¹: −y for |y| ≤ ½, y for |y| ≥ 1, a cubic between."""
    s = ((y.abs() - 0.5) / 0.5).clamp(0, 1)
    return y * (2 * s**2 * (3 - 2 * s) - 1)


@pytest.mark.statement("HLZ Theorem 2.13, E4")
def test_a_long_step_ends_at_the_strict_saddle(randn, seen):
    """f = x²/2 + h(y): its one saddle, 0, is strict; with step 1 all that is far falls onto it."""
    zero = torch.zeros(1, dtype=F64, requires_grad=True)
    curvature = float(torch.autograd.grad(slope(zero).sum(), zero)[0])
    assert curvature == -1
    seen.number("least eigenvalue of the Hessian at the saddle", curvature)
    for step, ends in ((1.0, 10_000), (0.1, 0)):
        p = randn(10_000, 2)
        for _ in range(600):
            p = p - step * torch.stack([p[:, 0], slope(p[:, 1])], 1)
        at_saddle = int((p.norm(dim=1) < 1e-12).sum())
        seen.number(f"starts of 10 000 at the saddle, step {step:g}", at_saddle)
        assert at_saddle == ends
    # The other critical points, ±0.75, are minima: there the short steps end.
    seen((p[:, 1].abs() - 0.75).abs(), 1e-9)


# -- E5: the fibre of Lemma 3.8, and two charts ----------------------------------------------------


@pytest.mark.statement("HLZ Lemma 3.8, E5")
@pytest.mark.parametrize("orthogonal", [True, False])
def test_the_rescaled_flow_near_the_larger_fibre(orthogonal, randn, seen):
    """X = 2u_1u_1ᵀ + u_2u_2ᵀ, Z_# = 2u_1u_1ᵀ, U_3 = w or (u_2 + w)/√2 with w ⊥ U_x."""
    u_1, u_2, w = orthonormal(randn, 6, 3).T[:, :, None]
    X = 2 * u_1 @ u_1.mT + u_2 @ u_2.mT
    U = torch.cat([u_1, w if orthogonal else (u_2 + w) / math.sqrt(2)], 1)
    flow = PSDDLRAFlow(MatrixApproximation(X), rescaled=True)
    for eps in (1e-2, 1e-4, 1e-6):
        S = torch.diag(torch.tensor([2.0, eps], dtype=F64))
        seen((U @ S @ U.mT - 2 * u_1 @ u_1.mT).norm() - eps, 1e-14)  # it tends to Z_#
        U_dot = (X @ U - U @ (U.mT @ X @ U)) @ torch.linalg.inv(S) * eps
        S_dot = (U.mT @ X @ U - S) * eps
        size = float(torch.cat([U_dot, S_dot]).norm())
        velocity = flow.velocity(0.0, (U, S))
        for part, formula in zip(velocity, (U_dot, S_dot), strict=True):
            seen((part - formula).norm(), 1e-12)
        if orthogonal:
            seen.number(f"‖F*‖ at ε = {eps:g} with U_3 ⊥ U_x", size)
            assert size < 3 * eps
        else:
            seen.number(f"‖F*‖ at ε = {eps:g} without", size)
            assert abs(size - 0.5) < eps


def outside_both_charts(Q_1):
    """U in St(5, 2) with det(U_1 + I) = 0 = det(U_1 + Q_1).

    U_1 = s bbᵀ − aaᵀ, a ⊥ b unit vectors, |s| ≤ 1, has the eigenvalue −1; the second determinant is
    linear in s. None if no s of an angle lies in [−1, 1].
    """
    for angle in torch.linspace(0, math.pi, 400, dtype=F64):
        a = torch.stack([angle.cos(), angle.sin()])
        b = torch.stack([-angle.sin(), angle.cos()])
        s = (torch.linalg.det(Q_1) - b @ Q_1 @ b) / (1 - a @ Q_1 @ a)
        if abs(float(s)) < 1:
            U_1 = s * torch.outer(b, b) - torch.outer(a, a)
            rest = torch.outer(b, b) * (1 - s**2).sqrt()  # its square is I − U_1ᵀU_1
            return torch.cat([U_1, rest, torch.zeros(1, 2, dtype=F64)])
    return None


@pytest.mark.statement("HLZ App. B, E5")
def test_two_charts_leave_points_of_the_stiefel_manifold(randn, seen):
    found = 0
    for _ in range(5):
        Q = orthonormal(randn, 5, 2)
        U = outside_both_charts(Q[:2])
        assert U is not None
        seen(U.mT @ U - torch.eye(2, dtype=F64), 1e-14)
        for Q_1 in (torch.eye(2, dtype=F64), Q[:2]):
            seen(torch.linalg.det(U[:2] + Q_1), 1e-13)
        found += 1
    seen.number("random Q′ of 5 with a U in neither chart", found)


# -- E9: the teacher that weakens with N -----------------------------------------------------------

DEPTHS = (2, 5, 10, 20)


def rate_by_kronecker(C, W, depth):
    """The least nonzero eigenvalue of ξ ↦ 𝒜_W(ξC), by (8) on all of R^{d×d}; labels Y = WX."""
    U, s, Vh = torch.linalg.svd(W)
    rank = int((s > 1e-9 * s[0]).sum())
    U, s, V = U[:, :rank], s[:rank], Vh[:rank].mT

    def power(frame, p):
        return torch.eye(len(frame), dtype=F64) if p == 0 else (frame * s ** (2 * p)) @ frame.mT

    A = sum(
        torch.kron(power(U, (depth - j) / depth), power(V, (j - 1) / depth))
        for j in range(1, depth + 1)
    )
    root = torch.linalg.cholesky(torch.kron(torch.eye(len(W), dtype=F64), C))
    eigenvalues = torch.linalg.eigvalsh(root.mT @ A @ root)
    return float(eigenvalues[-rank * (2 * len(W) - rank)])


@pytest.mark.statement("BRTW §7.2, E9")
def test_with_a_fixed_teacher_the_rate_rises_stays_or_falls_with_depth(randn, seen):
    """Gaussian X of §7, d = 20, five draws of X and of the teacher's frames, the same for all N.

    The rates are those of X's least eigenvalue; their ratios hardly depend on the draw.
    """
    kinds = {"(3, 2)": (3.0, 2.0), "(1, 1)": (1.0, 1.0), "(0.5, 0.3)": (0.5, 0.3)}
    for draw in range(5):
        X = randn(20, 60) / math.sqrt(20)
        U, V = orthonormal(randn, 20, 2), orthonormal(randn, 20, 2)
        for name, sigma in kinds.items():
            W = (U * torch.tensor(sigma, dtype=F64)) @ V.mT
            problem = LeastSquares(X, W @ X)
            rates = [local_rate(problem, W, depth) for depth in DEPTHS]
            seen.number(f"ρ at N = 2, σ = {name}", rates[0])
            for depth, rate in zip(DEPTHS[1:], rates[1:], strict=True):
                seen.number(f"N = {depth} over N = 2, σ = {name}", rate / rates[0])
            if draw == 0:
                seen.ratio(rates[1], rate_by_kronecker(X @ X.mT, W, 5), rel=1e-9)
            if name == "(3, 2)":
                assert rates == sorted(rates)
                assert rates[-1] > 1.3 * rates[0]
            elif name == "(0.5, 0.3)":
                assert rates == sorted(rates, reverse=True)
                assert rates[-1] < 0.7 * rates[0]
            else:
                assert max(rates) < 1.05 * min(rates)


@pytest.mark.statement("BRTW §7.2, E9")
def test_a_teacher_drawn_with_the_students_widths_weakens_with_depth(randn, seen):
    medians = []
    for depth in DEPTHS:
        widths = grid_widths(20, 20, depth, 2)
        layers = [randn(200, b, a) / math.sqrt(b) for a, b in itertools.pairwise(widths)]
        medians.append(float(torch.linalg.svdvals(chain(layers))[:, 1].median()))
        seen.number(f"median σ_r of 200 teachers, (20, 2), N = {depth}", medians[-1])
    assert medians == sorted(medians, reverse=True)
    assert medians[-1] < 0.2 * medians[0]


# -- E10 and E11: what keeps its sign --------------------------------------------------------------


@pytest.mark.statement("BRTW Conjecture 41(b), E11")
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_counterexample_inside_a_larger_space(depth, randn, seen):
    """r = 2 < d = 3: W(0) = U_rMU_rᵀ, det M < 0, (37) holds; and 20 starts beside it, N = 2."""
    C = torch.diag(torch.tensor([2.0, 1.0, 0.4], dtype=F64))
    problem = LeastSquares.from_moments(C, C, float(C.trace()))
    W = torch.zeros(3, 3, dtype=F64)
    W[:2, :2] = 0.3 * torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=F64)
    starts = W[None]
    if depth == 2:
        left = torch.eye(3, dtype=F64)[:, :2] + 1e-3 * randn(20, 3, 2)
        right = W[:2] + 1e-3 * randn(20, 2, 3)
        starts = torch.cat([starts, left @ right])
    flow = EndToEndFlow(problem, depth)
    solution = deeplin.solve(flow, flow.init_state(starts, 2), 120.0, rtol=1e-8)
    end, *beside = flow.end_to_end(solution.y[-1])
    assert float(torch.linalg.det(end[:2, :2])) < 0
    # The best rank 2 has the loss 0.2; σ_2 ~ t^{−N/(N−2)} for N > 2.
    seen.number(f"loss at t = 120, N = {depth}", problem.loss(end))
    seen(problem.loss(end) - 0.7, {2: 1e-12, 3: 1e-6, 4: 1e-4}[depth])
    if depth == 2:
        losses = problem.loss(torch.stack(beside))
        seen.number("of 20 perturbations at the optimum", (losses < 0.2 + 1e-6).sum())
        seen(losses - 0.2, 1e-6)


# -- slips of the pen ------------------------------------------------------------------------------


@pytest.mark.statement("BRTW Theorem 39, S1")
def test_a_global_minimum_has_the_rank_of_q_if_that_is_less_than_r(randn, seen):
    """q = 1, r = 2: layers of rank 1 reach the least loss that there is."""
    X = randn(4, 30)
    Y = randn(3, 1) @ randn(1, 4) @ X
    W_1, W_2 = torch.zeros(2, 4, dtype=F64), torch.zeros(3, 2, dtype=F64)
    best = torch.linalg.lstsq(X.mT, Y.mT).solution.mT
    U, s, Vh = torch.linalg.svd(best)
    W_2[:, 0], W_1[0] = U[:, 0] * s[0].sqrt(), Vh[0] * s[0].sqrt()
    seen((Y - W_2 @ W_1 @ X).square().sum() / 2, 1e-20)  # 0 is the least of all
    rank = int(torch.linalg.matrix_rank(W_2 @ W_1, rtol=1e-9))
    seen.number("rank of the global minimum, r = 2", rank)
    assert rank == LeastSquares(X, Y).rank_Q == 1


@pytest.mark.statement("BRTW Corollary 24, S1")
def test_the_stiefel_manifold_is_a_null_set_of_its_space(randn, seen):
    V = orthonormal(randn, 4, 2)
    J = torch.autograd.functional.jacobian(lambda V: V.mT @ V, V).reshape(4, 8)
    dimension = 8 - int(torch.linalg.matrix_rank(J, rtol=1e-9))
    seen.number("dimension of St(4, 2) in R^8", dimension)
    assert dimension == 5


@pytest.mark.statement("HLZ §2, S1")
def test_square_orthonormal_matrices_have_both_signs(seen):
    Q = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=F64)
    seen(Q.mT @ Q - torch.eye(3, dtype=F64), 0.0)
    seen.number("determinant of a member of St(3, 3)", torch.linalg.det(Q))
    assert float(torch.linalg.det(Q)) == -1
