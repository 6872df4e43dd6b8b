"""The graded SVD against mpmath's in 400 digits and more."""

import math

import mpmath
import pytest
import torch

from deeplin.linalg.graded import graded_svd


def triangular(randn, k):
    return torch.eye(k, dtype=torch.float64) + 0.3 * randn(k, k).triu()


@pytest.mark.parametrize(
    "exponents", [[0, 0.1], [0, -40], [1, 0.99, 0.98], [0, -1, -20, -132], [0, -7, -7, -8, -90]]
)
def test_every_singular_value_is_relatively_accurate(randn, exponents):
    k = len(exponents)
    A, B = triangular(randn, k), triangular(randn, k)
    log_s = torch.tensor(exponents, dtype=torch.float64) * math.log(10)
    P, log_sigma, Q = graded_svd(A, log_s, B)
    with mpmath.workdps(400):
        core = mpmath.matrix(A.tolist())
        core = core * mpmath.diag([mpmath.exp(v) for v in log_s.tolist()])
        core = core * mpmath.matrix(B.tolist()).T
        oracle = sorted((mpmath.log(v) for v in mpmath.svd_r(core, compute_uv=False)), reverse=True)
        det = mpmath.det(core)
    oracle = torch.tensor([float(v) for v in oracle], dtype=torch.float64)
    torch.testing.assert_close(log_sigma, oracle, rtol=1e-14, atol=1e-13)
    eye = torch.eye(k, dtype=torch.float64)
    torch.testing.assert_close(P.mT @ P, eye, rtol=0, atol=1e-13)
    torch.testing.assert_close(Q.mT @ Q, eye, rtol=0, atol=1e-13)
    assert float(torch.linalg.det(P) * torch.linalg.det(Q)) * float(mpmath.sign(det)) > 0
    product = P @ torch.diag(log_sigma.exp()) @ Q.mT
    torch.testing.assert_close(product, A @ torch.diag(log_s.exp()) @ B.mT, rtol=0, atol=1e-13)


def test_beyond_the_range_of_the_format(randn):
    A, B = triangular(randn, 3), triangular(randn, 3)
    log_s = torch.tensor([0.0, -900.0, -5000.0], dtype=torch.float64)
    log_sigma = graded_svd(A, log_s, B)[1]
    # For a spectrum so steep the leading minors of the triangles give σ, to first order exactly.
    assert torch.isfinite(log_sigma).all()
    assert float(log_sigma[2]) == pytest.approx(
        -5000 + float((A[2, 2] * B[2, 2]).log() - _drop(A, 2) - _drop(B, 2)), abs=1e-9
    )


def _drop(A, i):
    """log of |a_i| over its distance to the span of the columns before it, from the inverse."""
    inverse_row = torch.linalg.inv(A)[i]
    return float(A[i, i].log() + inverse_row.norm().log())


def test_batches_are_the_single_ones(randn):
    A = torch.stack([triangular(randn, 4) for _ in range(6)]).view(2, 3, 4, 4)
    log_s = (
        -torch.arange(4, dtype=torch.float64).expand(2, 3, 4) * torch.tensor([0.1, 9, 60])[:, None]
    )
    together = graded_svd(A, log_s, A)[1]
    for i in range(2):
        for j in range(3):
            alone = graded_svd(A[i, j], log_s[i, j], A[i, j])[1]
            torch.testing.assert_close(together[i, j], alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("exponents", [[0], [0, -40], [0, -1, -20, -132]])
def test_complex_ones_have_the_same_accuracy(randn, exponents):
    k = len(exponents)
    eye = torch.eye(k, dtype=torch.complex128)
    A, B = (eye + 0.3 * torch.complex(randn(k, k), randn(k, k)).triu() for _ in range(2))
    if k == 1:
        A = A * torch.tensor(1j)
    log_s = torch.tensor(exponents, dtype=torch.float64) * math.log(10)
    P, log_sigma, Q = graded_svd(A, log_s, B)
    with mpmath.workdps(400):
        core = mpmath.matrix(A.tolist())
        core = core * mpmath.diag([mpmath.exp(v) for v in log_s.tolist()])
        core = core * mpmath.matrix(B.tolist()).H
        oracle = sorted((mpmath.log(v) for v in mpmath.svd_c(core, compute_uv=False)), reverse=True)
    oracle = torch.tensor([float(v) for v in oracle], dtype=torch.float64)
    torch.testing.assert_close(log_sigma, oracle, rtol=1e-14, atol=1e-13)
    torch.testing.assert_close(P.mH @ P, eye, rtol=0, atol=1e-13)
    torch.testing.assert_close(Q.mH @ Q, eye, rtol=0, atol=1e-13)
    scaled = A * log_s.exp()
    product = (P * log_sigma.exp()) @ Q.mH
    torch.testing.assert_close(product, scaled @ B.mH, rtol=0, atol=1e-13)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_under_transforms_it_is_the_same(randn, k):
    """Spectra within the factor that plain code leaves to LAPACK, equal ones, and steep ones."""
    A, B = (torch.stack([triangular(randn, k) for _ in range(9)]) for _ in range(2))
    log_s = -torch.arange(k, dtype=torch.float64) * torch.tensor([0.0, 0.1, 40.0])[:, None]
    log_s = log_s.repeat(3, 1)
    compiled = torch.compile(graded_svd, fullgraph=True, backend="eager")
    oracle = torch.stack([graded_svd(*parts)[1] for parts in zip(A, log_s, B, strict=True)])
    for P, log_sigma, Q in (torch.func.vmap(graded_svd)(A, log_s, B), compiled(A, log_s, B)):
        torch.testing.assert_close(log_sigma, oracle, rtol=1e-13, atol=1e-13)
        product = (P * log_sigma.exp()[:, None, :]) @ Q.mT
        wanted = (A * log_s.exp()[:, None, :]) @ B.mT
        torch.testing.assert_close(product, wanted, rtol=0, atol=1e-13)
