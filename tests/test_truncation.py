"""Tangent steps on M_r by r×r solves, against dense decompositions."""

import math

import pytest
import torch

from deeplin.linalg.truncation import psd_tangent_step, tangent_step

F64 = torch.float64


def orthonormal(A):
    return torch.linalg.qr(A).Q


def perpendicular(U, A):
    A = A - U @ (U.mT @ A)
    return A - U @ (U.mT @ A)


def nearest(W, r):
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    return (U[..., :r] * s[..., None, :r]) @ Vh[..., :r, :]


def nearest_psd(W, r):
    values, vectors = torch.linalg.eigh(W)
    return (vectors[..., -r:] * values[..., None, -r:]) @ vectors[..., -r:].mT


def is_orthonormal(U):
    eye = torch.eye(U.shape[-1], dtype=U.dtype)
    return float((U.mT @ U - eye).abs().max()) < 1e-13


# How long the normal parts are against σ: a converged step, a usual one, one that turns the spaces.
SIZES = [0.0, 1e-9, 1e-2, 0.3, 1.0, 30.0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("m", "n", "r"), [(7, 9, 3), (9, 6, 2), (5, 5, 1)])
@pytest.mark.parametrize("batch", [(), (40,), (2, 3)])
def test_general_step_is_the_nearest_matrix(randn, size, m, n, r, batch):
    U, V = orthonormal(randn(*batch, m, r)), orthonormal(randn(*batch, n, r))
    T = randn(*batch, r, r) + torch.eye(r, dtype=F64)
    Up, Vp = (size * perpendicular(A, randn(*A.shape)) for A in (U, V))
    new_U, S, new_V = tangent_step(U, T, V, Up, Vp)
    W = U @ T @ V.mT + Up @ V.mT + U @ Vp.mT
    assert is_orthonormal(new_U)
    assert is_orthonormal(new_V)
    s = torch.linalg.svdvals(W)
    # Where σ_r = σ_{r+1} nearly, the nearest matrix itself is undetermined: compare distances.
    distance = torch.linalg.matrix_norm(W - new_U @ S @ new_V.mT)
    least = s[..., r:].square().sum(-1).sqrt()
    assert float((distance - least).max()) < 1e-13 * float(s.max())
    clear = (s[..., r - 1] - s[..., r]) > 1e-2 * s[..., 0] if s.shape[-1] > r else s[..., 0] > 0
    error = torch.linalg.matrix_norm(new_U @ S @ new_V.mT - nearest(W, r))
    assert float(torch.where(clear, error, 0.0).max()) < 1e-12 * float(s.max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("n", "r"), [(8, 3), (6, 1)])
@pytest.mark.parametrize("batch", [(), (40,), (2, 3)])
def test_semidefinite_step_is_the_nearest_semidefinite_matrix(randn, size, n, r, batch):
    U, H = orthonormal(randn(*batch, n, r)), randn(*batch, r, r)
    T = H @ H.mT + 0.1 * torch.eye(r, dtype=F64)
    Up = size * perpendicular(U, randn(*U.shape))
    new_U, S = psd_tangent_step(U, T, Up)
    W = U @ T @ U.mT + Up @ U.mT + U @ Up.mT
    assert is_orthonormal(new_U)
    assert float(torch.linalg.eigvalsh(S).min()) > 0
    torch.testing.assert_close(S, S.mT, rtol=0, atol=0)
    error = torch.linalg.matrix_norm(new_U @ S @ new_U.mT - nearest_psd(W, r))
    assert float(error.max()) < 1e-12 * float(torch.linalg.matrix_norm(W).max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [(), (40,)])
def test_complex_steps_with_a_diagonal_core(randn, size, batch):
    """The singular values, or eigenvalues, of the nearest matrix, in descending order."""

    def draw(*shape):
        return torch.complex(randn(*batch, *shape), randn(*batch, *shape))

    def normal(U):
        A = draw(*U.shape[-2:])
        A = A - U @ (U.mH @ A)
        return size * (A - U @ (U.mH @ A))

    U, V = orthonormal(draw(8, 3)), orthonormal(draw(7, 3))
    T, Up, Vp = draw(3, 3), normal(U), normal(V)
    new_U, S, new_V = tangent_step(U, T, V, Up, Vp, diagonal=True)
    W = U @ T @ V.mH + Up @ V.mH + U @ Vp.mH
    s = torch.linalg.svdvals(W)
    bound = 1e-12 * float(s.max())
    torch.testing.assert_close(S, torch.diag_embed(s[..., :3]).to(S.dtype), rtol=0, atol=bound)
    error = torch.linalg.matrix_norm(W - new_U @ S @ new_V.mH)
    torch.testing.assert_close(error, s[..., 3:].norm(dim=-1), rtol=0, atol=bound)
    T = T @ T.mH + 0.1 * torch.eye(3)
    new_U, S = psd_tangent_step(U, T, Up, diagonal=True)
    values, vectors = torch.linalg.eigh(U @ T @ U.mH + Up @ U.mH + U @ Up.mH)
    kept, bound = values[..., -3:], 1e-12 * float(values.abs().max())
    torch.testing.assert_close(S, torch.diag_embed(kept.flip(-1)).to(S.dtype), rtol=0, atol=bound)
    nearest_one = (vectors[..., -3:] * kept[..., None, :]) @ vectors[..., -3:].mH
    torch.testing.assert_close(new_U @ S @ new_U.mH, nearest_one, rtol=0, atol=10 * bound)


@pytest.mark.parametrize("diagonal", [False, True])
def test_an_overflow_is_nan_where_it_happens(randn, diagonal):
    U, V = orthonormal(randn(2, 6, 2)), orthonormal(randn(2, 5, 2))
    T, Up, Vp = randn(2, 2, 2), perpendicular(U, randn(2, 6, 2)), perpendicular(V, randn(2, 5, 2))
    Up[1] *= 1e308
    _, S, _ = tangent_step(U, T, V, Up, Vp, diagonal=diagonal)
    assert bool(S[0].isfinite().all())
    assert bool(S[1].isnan().any())
    _, S = psd_tangent_step(U, T @ T.mT, Up, diagonal=diagonal)
    assert bool(S[0].isfinite().all())
    assert bool(S[1].isnan().any())


@pytest.mark.parametrize("smallest", [1e-3, 1e-9, 1e-14])
@pytest.mark.parametrize("nearly", [1.0, 1e-8, 0.0])
def test_small_singular_values_and_dependent_columns(randn, smallest, nearly):
    """σ_r of T down to round-off, columns of U_p equal up to `nearly`, in one batch with others."""
    U, V = orthonormal(randn(6, 9, 3)), orthonormal(randn(6, 8, 3))
    s = torch.tensor([1.0, 0.5, smallest], dtype=F64)
    T = torch.diag(s).repeat(6, 1, 1)
    T[3:] = torch.diag(torch.tensor([1.0, 0.7, 0.5], dtype=F64))
    Up, Vp = 0.1 * perpendicular(U, randn(6, 9, 3)), 0.1 * perpendicular(V, randn(6, 8, 3))
    Up[..., 2] = Up[..., 1] + nearly * Up[..., 2]
    new_U, S, new_V = tangent_step(U, T, V, Up, Vp)
    W = U @ T @ V.mT + Up @ V.mT + U @ Vp.mT
    assert is_orthonormal(new_U)
    assert is_orthonormal(new_V)
    torch.testing.assert_close(new_U @ S @ new_V.mT, nearest(W, 3), rtol=0, atol=2e-13)
    new_U, S = psd_tangent_step(U, T, Up)
    W = U @ T @ U.mT + Up @ U.mT + U @ Up.mT
    assert is_orthonormal(new_U)
    torch.testing.assert_close(new_U @ S @ new_U.mT, nearest_psd(W, 3), rtol=0, atol=2e-13)


def test_rotated_spaces_are_found(randn):
    """U_p, V_p so long that the dominant spaces are no longer near the old: |Y| is large."""
    U, V = torch.eye(6, 2, dtype=F64), torch.eye(5, 2, dtype=F64)
    T = torch.diag(torch.tensor([1.0, 1e-3], dtype=F64))
    Up, Vp = torch.zeros(6, 2, dtype=F64), torch.zeros(5, 2, dtype=F64)
    Up[3, 1] = 0.5  # makes e_4 e_2ᵀ larger than the second singular value
    new_U, S, new_V = tangent_step(U, T, V, Up, Vp)
    W = U @ T @ V.mT + Up @ V.mT + U @ Vp.mT
    torch.testing.assert_close(new_U @ S @ new_V.mT, nearest(W, 2), rtol=0, atol=1e-14)
    assert math.isclose(float(torch.linalg.svdvals(S)[1]), math.hypot(0.5, 1e-3), rel_tol=1e-12)


def test_indefinite_core_falls_to_the_largest_algebraic_eigenvalues(randn):
    """T may be indefinite after a long step: the r largest eigenvalues by sign, not by size."""
    U = orthonormal(randn(7, 2))
    T = torch.diag(torch.tensor([1.0, -2.0], dtype=F64))
    Up = 0.3 * perpendicular(U, randn(7, 2))
    new_U, S = psd_tangent_step(U, T, Up)
    W = U @ T @ U.mT + Up @ U.mT + U @ Up.mT
    torch.testing.assert_close(new_U @ S @ new_U.mT, nearest_psd(W, 2), rtol=0, atol=1e-13)
    assert is_orthonormal(new_U)


@pytest.mark.parametrize("size", SIZES)
def test_under_transforms_the_steps_are_the_same_matrices(randn, size):
    U, V = orthonormal(randn(12, 8, 3)), orthonormal(randn(12, 7, 3))
    H = randn(12, 3, 3)
    T = H @ H.mT + 0.1 * torch.eye(3, dtype=F64)
    Up, Vp = (size * perpendicular(A, randn(*A.shape)) for A in (U, V))

    def general(*factors):
        new_U, S, new_V = tangent_step(*factors)
        return new_U @ S @ new_V.mT

    def semidefinite(*factors):
        new_U, S = psd_tangent_step(*factors)
        return new_U @ S @ new_U.mT

    for f, factors in ((general, (U, T, V, Up, Vp)), (semidefinite, (U, T, Up))):
        bound = 1e-12 * (1 + size)
        one_graph = torch.compile(f, fullgraph=True, backend="eager")
        torch.testing.assert_close(torch.func.vmap(f)(*factors), f(*factors), rtol=0, atol=bound)
        torch.testing.assert_close(one_graph(*factors), f(*factors), rtol=0, atol=bound)
