"""HLZ's spurious points: finite differences of the fields near them are the oracle."""

import itertools

import pytest
import torch

from deeplin.landscape import dlra_jacobian, fibre_point, iteration_jacobian, spurious_points

F64, C128 = torch.float64, torch.complex128
DTYPES = [F64, C128]


def draw(*shape, dtype, generator):
    return torch.randn(*shape, dtype=dtype, generator=generator)


def target(n, eigenvalues, dtype, generator):
    U = torch.linalg.qr(draw(n, len(eigenvalues), dtype=dtype, generator=generator)).Q
    d = torch.tensor(eigenvalues, dtype=F64)
    X = (U * d) @ U.mH
    return 0.5 * (X + X.mH)


def projected(Z, M):
    """P_T of M at Z, by the column and row spaces of Z."""
    U, s, Vh = torch.linalg.svd(Z, full_matrices=False)
    k = int((s > 1e-9 * s.max().clamp(min=1e-9)).sum())
    P, R = U[:, :k] @ U[:, :k].mH, Vh[:k].mH @ Vh[:k]
    return P @ M + M @ R - P @ M @ R


@pytest.mark.statement("HLZ Definition 2.5")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.statement("HLZ Lemma 2.4(1)")
@pytest.mark.statement("HLZ Lemma 2.4(2)")
def test_all_partial_sums_are_critical(generator, dtype, seen):
    X = target(6, [4.0, 3.0, 2.0, 1.0], dtype, generator)
    points = list(spurious_points(X))
    assert len(points) == 2**4 - 1
    assert [p.rank for p in points] == sorted((p.rank for p in points), reverse=True)
    for point in points:
        Z = point.dense()
        torch.testing.assert_close(Z, Z.mH, rtol=0, atol=1e-14)
        seen.below(torch.linalg.matrix_norm(projected(Z, Z - X)), 1e-12)
        assert int(torch.linalg.matrix_rank(Z, rtol=1e-9)) == point.rank
        # J names the eigenvalues that it keeps: 4, 3, 2, 1 are the first to the fourth.
        seen.close(point.d, torch.tensor([5.0 - j for j in point.J], dtype=F64), 0, 1e-12)
        rest = (point.U_missing * point.missing) @ point.V_missing.mH
        seen.close(Z + rest, X, rtol=0, atol=1e-12)
    for s in range(4):
        sets = [p.J for p in spurious_points(X, s)]
        assert sets == list(itertools.combinations(range(1, 5), s))


@pytest.mark.parametrize("dtype", DTYPES)
def test_general_targets_and_repeated_values(generator, dtype):
    X = draw(5, 3, dtype=dtype, generator=generator)
    for point in spurious_points(X):
        assert float(torch.linalg.matrix_norm(projected(point.dense(), point.dense() - X))) < 1e-12
    X = target(5, [2.0, 1.0, 1.0], dtype, generator)
    found = {p.J: p.continuum for p in spurious_points(X)}
    assert found == {(1, 2): 1, (2, 3): 0, (1,): 0, (2,): 1, (): 0}


def dlra_star(X, U, S):
    """HLZ (DLRA*), as printed."""
    sigma = torch.linalg.eigvalsh(S)[0]
    F = (X @ U - U @ (U.mH @ X @ U)) @ torch.linalg.inv(S) * sigma
    return F, (-S + U.mH @ X @ U) * sigma


@pytest.mark.statement("HLZ Lemma 3.7")
@pytest.mark.statement("HLZ Lemma 3.8")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.statement("HLZ Lemma 3.8, C1")
def test_jacobian_of_the_rescaled_flow_by_finite_differences(generator, dtype, seen):
    X = target(6, [3.0, 2.0, 1.0], dtype, generator)
    for point in spurious_points(X, 2):
        U, S = fibre_point(X, point, generator=generator)
        torch.testing.assert_close(U @ S @ U.mH, point.dense(), rtol=0, atol=1e-13)
        torch.testing.assert_close(U.mH @ U, torch.eye(3, dtype=dtype), rtol=0, atol=1e-13)
        J = dlra_jacobian(X, U, S)
        missing = ({1, 2, 3} - set(point.J)).pop()
        assert J.eigenvalue == pytest.approx(4.0 - missing), "the eigenvalue of X that Z_# misses"
        seen.number(f"eigenvalue where Z_# misses d_{missing} = {4 - missing}", J.eigenvalue)
        values, P = torch.linalg.eigh(S)
        p = P[:, values.abs().argmin()]
        errors = []
        for eps in (1e-3, 1e-4):
            near, h, error = S + eps * torch.outer(p, p.conj()), 1e-7, 0.0
            for _ in range(4):
                xi_1 = draw(6, 3, dtype=dtype, generator=generator)
                xi_2 = draw(3, 3, dtype=dtype, generator=generator)
                xi_2 = xi_2 + xi_2.mH
                ahead = dlra_star(X, U + h * xi_1, near + h * xi_2)
                behind = dlra_star(X, U - h * xi_1, near - h * xi_2)
                for a, b, exact in zip(ahead, behind, J.apply(xi_1, xi_2), strict=True):
                    error = max(error, float(((a - b) / (2 * h) - exact).abs().max()))
            errors.append(error)
        seen.below(errors[1], 0.02)
        assert errors[1] < 0.2 * errors[0], "linear in the distance to the fibre"
        applied = J.apply(*J.eigenvector)
        for a, v in zip(applied, J.eigenvector, strict=True):
            seen.close(a, J.eigenvalue * v, rtol=0, atol=1e-12)


@pytest.mark.statement("HLZ Lemma 3.8")
def test_all_eigenvalues_of_the_rescaled_flow(generator, seen):
    X = target(5, [3.0, 1.0], F64, generator)
    point = next(spurious_points(X, 1))
    U, S = fibre_point(X, point, generator=generator)
    J = dlra_jacobian(X, U, S)
    columns = []
    for i in range(14):  # 5·2 entries of U, 2·2 of S
        e = torch.zeros(14, dtype=F64)
        e[i] = 1
        columns.append(
            torch.cat([v.flatten() for v in J.apply(e[:10].view(5, 2), e[10:].view(2, 2))])
        )
    eigenvalues = torch.linalg.eigvals(torch.stack(columns, 1)).real.sort().values
    seen.close(eigenvalues, J.eigenvalues(14), rtol=0, atol=1e-10)
    assert float(eigenvalues[-1]) == pytest.approx(1.0), "X's smaller eigenvalue, which Z_# misses"


def iterate(Z, X, alpha, r):
    """Z ↦ R(Z − ασ_r(Z)P_T(Z − X)), R the r largest algebraic eigenvalues."""
    values, E = torch.linalg.eigh(Z)
    U = E[:, -r:]
    G = Z - X
    P = U @ U.mH
    Z = Z - alpha * values[-r] * (P @ G + G @ P - P @ G @ P)
    values, E = torch.linalg.eigh(0.5 * (Z + Z.mH))
    return (E[:, -r:] * values[-r:]) @ E[:, -r:].mH


@pytest.mark.statement("HLZ Lemma 4.1, E1")
def test_the_stretch_is_one_plus_alpha_d(seen):
    """1.69993 at ε = 1e-4 for α = 0.7, D_2 = 1; the lemma's first display has 1 + 2αD_2 = 2.4."""
    X = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=F64))
    xi = torch.zeros(3, 3, dtype=F64)
    xi[1, 2] = xi[2, 1] = 1
    Z = torch.diag(torch.tensor([2.0, 0.0, 1e-4], dtype=F64))
    h = 1e-8
    moved = (iterate(Z + h * xi, X, 0.7, 2) - iterate(Z - h * xi, X, 0.7, 2)) / (2 * h)
    stretch = float((moved * xi).sum() / 2)
    seen.number("stretch at ε = 1e-4, α = 0.7, D_2 = 1", stretch)
    seen(stretch - 1.69993, 1e-5)
    point = next(p for p in spurious_points(X, 1) if p.J == (1,))
    U = torch.eye(3, dtype=F64)[:, [0, 2]]
    J = iteration_jacobian(X, U, torch.diag(point.d.new_tensor([2.0, 0.0])), 0.7)
    assert J.eigenvalue == pytest.approx(1.7)
    torch.testing.assert_close(J.apply(xi)[0], 1.7 * xi)


@pytest.mark.statement("HLZ Lemma 4.1")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.statement("HLZ Remark 4.2(2)")
def test_jacobian_of_the_varying_step_by_finite_differences(generator, dtype, seen):
    X = target(6, [3.0, 2.0, 1.0], dtype, generator)
    for point in spurious_points(X, 2):
        U, S = fibre_point(X, point, generator=generator)
        J = iteration_jacobian(X, U, S, 0.4)
        missing = ({1, 2, 3} - set(point.J)).pop()
        assert J.eigenvalue == pytest.approx(1 + 0.4 * (4.0 - missing))
        values, P = torch.linalg.eigh(S)
        u_3 = U @ P[:, values.abs().argmin()]
        errors = []
        for eps in (1e-3, 1e-4):
            Z, h, error = point.dense() + eps * torch.outer(u_3, u_3.conj()), 1e-8, 0.0
            for _ in range(4):
                A = draw(6, 6, dtype=dtype, generator=generator)
                xi = projected(Z, A + A.mH)
                moved = (iterate(Z + h * xi, X, 0.4, 3) - iterate(Z - h * xi, X, 0.4, 3)) / (2 * h)
                error = max(error, float((moved - J.apply(xi)[0]).abs().max()))
            errors.append(error)
        seen.below(errors[1], 0.01)
        assert errors[1] < 0.2 * errors[0]
        image = J.apply(*J.eigenvector)[0]
        seen.close(image, J.eigenvalue * J.eigenvector[0], rtol=0, atol=1e-12)
    assert J.eigenvalues(15).tolist()[:13] == [1.0] * 13


def test_no_extension_below_rank_r_minus_one(generator):
    """σ_min(S)S^{-1} has different limits from different directions: the error says so."""
    X = target(8, [3.0, 2.0, 1.0], F64, generator)
    point = next(spurious_points(X, 1))
    U, S = fibre_point(X, point, generator=generator)
    for call in (lambda: dlra_jacobian(X, U, S), lambda: iteration_jacobian(X, U, S, 0.1)):
        with pytest.raises(ValueError, match=r"rank s = r - 1 = 2 alone .* got S of rank s = 1"):
            call()
    kernel = torch.linalg.eigh(S).eigenvectors[:, :2]  # S >= 0 of rank 1
    limits = []
    for weights in ([1.0, 2.0], [2.0, 1.0]):
        near = S + 1e-8 * (kernel * torch.tensor(weights, dtype=F64)) @ kernel.mT
        limits.append(torch.linalg.inv(near) * torch.linalg.eigvalsh(near)[0])
    assert float((limits[0] - limits[1]).abs().max()) > 0.1


def test_bad_input_is_one_sentence(generator):
    X = target(4, [3.0, 2.0, 1.0], F64, generator)
    for s in (3, -1):
        with pytest.raises(ValueError, match="0 <= s <= r - 1 = 2"):
            spurious_points(X, s)
    point = next(spurious_points(X, 1))
    with pytest.raises(ValueError, match="n - r >= r - s"):
        fibre_point(X, point)
    point = next(spurious_points(X, 2))
    U, S = fibre_point(X, point, generator=generator)
    with pytest.raises(ValueError, match="smooth there"):
        dlra_jacobian(X, U, torch.eye(3, dtype=F64))
    with pytest.raises(ValueError, match="must lie over a spurious point"):
        dlra_jacobian(X, U, 1.1 * S)
    with pytest.raises(ValueError, match=r"needs U \(4, 3\)"):
        dlra_jacobian(X, U[:, :2], S)
    with pytest.raises(ValueError, match="alpha must be positive"):
        iteration_jacobian(X, U, S, 0.0)
    with pytest.raises(ValueError, match="positive semidefinite"):
        dlra_jacobian(X - 5 * torch.eye(4, dtype=F64), U, S)
