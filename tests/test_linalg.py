import itertools
import math

import mpmath
import pytest
import torch

from deeplin.linalg import (
    batch_last,
    chain,
    expm1_ratio,
    matmul,
    orthonormal_factor,
    plus_tall_times,
    power_divided_difference,
    product_svdvals,
    random_orthogonal,
    tall_times,
)

PAIRS = [(1.0, 1.0), (1.0, 1 + 1e-12), (1.0, 1 + 1e-5), (2.0, 1.0), (1e-9, 1.0), (1e-140, 3.0)]


@pytest.mark.parametrize("z", [0.0, 1e-300, -1e-9, 0.1, -0.2499, 0.25, -0.2501, -3.0, -700.0, 5.0])
def test_expm1_ratio_and_its_derivative(z):
    def oracle(x):
        return mpmath.expm1(x) / x if x != 0 else mpmath.mpf(1)

    point = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    value = expm1_ratio(point)
    (derivative,) = torch.autograd.grad(value, point)
    with mpmath.workdps(60):
        x = mpmath.mpf(z)
        slope = (mpmath.e**x * (x - 1) + 1) / x**2 if abs(z) > 1e-20 else mpmath.mpf(0.5)
        assert float(value.detach()) == pytest.approx(float(oracle(x)), rel=1e-15)
        assert float(derivative) == pytest.approx(float(slope), rel=1e-13)


@pytest.mark.parametrize("depth", [1, 2, 3, 10, 64])
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_divided_difference_is_the_sum_over_layers(a, b, depth):
    with mpmath.workdps(50):
        x, y, N = mpmath.mpf(a), mpmath.mpf(b), mpmath.mpf(depth)
        oracle = sum(x ** (2 * (N - j) / N) * y ** (2 * (j - 1) / N) for j in range(1, depth + 1))
    given = torch.tensor([a, b], dtype=torch.float64)
    c = power_divided_difference(given, given.flip(0), depth)
    assert c[0] == c[1]
    assert float(c[0]) == pytest.approx(float(oracle), rel=1e-14)


@pytest.mark.parametrize(("a", "b"), [(2.0, 1.0), (1.0, 1e-9), (3.0, 3 + 3e-7)])
@pytest.mark.statement("BRTW Remark 19")
def test_infinite_depth_is_the_logarithmic_mean(a, b, seen):
    with mpmath.workdps(50):
        x, y = mpmath.mpf(a) ** 2, mpmath.mpf(b) ** 2
        oracle = (x - y) / (mpmath.log(x) - mpmath.log(y))
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    seen.ratio(power_divided_difference(a, b, math.inf), oracle, rel=1e-14)
    large = 1e9
    seen.ratio(power_divided_difference(a, b, large) / large, oracle, rel=1e-7)


@pytest.mark.parametrize("depth", [1.5, 2.0, 2.5, 7.0, math.inf])
def test_divided_difference_is_differentiable_at_equal_arguments(depth):
    def c(x):
        return power_divided_difference(x[0], x[1], depth)

    for point in ([1.3, 1.3], [1.3, 1.3 * (1 + 1e-10)], [0.4, 2.0]):
        x = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(c(x), x)
        for i in range(2):
            h = torch.zeros(2, dtype=torch.float64)
            h[i] = 1e-5
            difference = (c(x + h) - c(x - h)) / 2e-5
            assert float(slope[i]) == pytest.approx(float(difference.detach()), rel=1e-8)


@pytest.mark.parametrize("depth", [1, 2, 3, math.inf])
def test_divided_difference_at_zero(depth):
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    assert power_divided_difference(one, zero, depth) == (0 if depth == math.inf else 1)
    assert power_divided_difference(zero, zero, depth) == (1 if depth == 1 else 0)


@pytest.mark.parametrize("widths", [[4, 3], [4, 2, 5], [3, 5, 2, 6], [2, 6, 5, 4], [6, 5, 4, 2]])
def test_products_of_chains(randn, widths):
    matrices = [randn(7, b, a) for a, b in itertools.pairwise(widths)]
    product = matrices[0]
    for M in matrices[1:]:
        product = M @ product
    torch.testing.assert_close(chain(matrices), product)
    k = min(widths)
    torch.testing.assert_close(
        product_svdvals(matrices), torch.linalg.svdvals(product)[..., :k], rtol=1e-11, atol=1e-12
    )


def test_random_orthogonal_is_haar(generator):
    Q = random_orthogonal(4, 2, batch_shape=(20000,), dtype=torch.float64, generator=generator)
    torch.testing.assert_close(
        Q.mT @ Q, torch.eye(2, dtype=torch.float64).expand(20000, 2, 2), rtol=0, atol=1e-13
    )
    # Under the Haar measure the first entry has mean 0 and variance 1/4: no sign is preferred.
    assert abs(float(Q[:, 0, 0].mean())) < 0.02
    assert float(Q[:, 0, 0].square().mean()) == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("batch", [(300,), (20, 15), (3000,)])
@pytest.mark.parametrize(("m", "k", "n"), [(4, 4, 4), (2, 5, 3), (1, 8, 1)])
def test_products_of_tiny_matrices_keep_shape_and_layout(randn, batch, m, k, n):
    A, B, C = randn(*batch, m, k), randn(*batch, k, n), randn(*batch, m, n)
    a, b, c = batch_last(A), batch_last(B), batch_last(C)
    torch.testing.assert_close(a, A, rtol=0, atol=0)
    assert a[..., 0, 0].is_contiguous()
    products = [(a, b, A @ B), (a.mT, c, A.mT @ C), (c, b.mT, C @ B.mT)]
    for left, right, oracle in products:
        ours = matmul(left, right)
        torch.testing.assert_close(ours, oracle, rtol=1e-13, atol=1e-13)
        assert ours[..., 0, 0].is_contiguous()
    one = randn(k, n)
    torch.testing.assert_close(matmul(a, one), A @ one, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(matmul(a, B), A @ B, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_products_of_tall_matrices(randn, batch):
    A, B, C = randn(*batch, 7, 3), randn(*batch, 3, 2), randn(*batch, 7, 2)
    torch.testing.assert_close(tall_times(A, B), A @ B, rtol=1e-13, atol=1e-13)
    for scales in ({}, {"beta": 0.5, "alpha": -2.0}):
        oracle = scales.get("beta", 1.0) * C + scales.get("alpha", 1.0) * (A @ B)
        ours = plus_tall_times(C, A, B, **scales)
        torch.testing.assert_close(ours, oracle, rtol=1e-13, atol=1e-13)


def test_only_large_batches_of_tiny_matrices_are_laid_out_anew(randn):
    for shape in ((4, 4), (10, 4, 4), (300, 9, 4)):
        A = randn(*shape)
        assert batch_last(A) is A


@pytest.mark.parametrize("batch", [(3,), (2, 3)])
def test_one_matrix_times_a_batch(randn, batch):
    A, B = randn(5, 4), randn(*batch, 4, 3)
    torch.testing.assert_close(matmul(A, B), A @ B, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(matmul(A, B.mT.contiguous().mT), A @ B, rtol=1e-13, atol=1e-13)


def test_orthonormal_factors_under_vmap_are_the_same(randn):
    """Cholesky QR looks at its pivots, which a transform hides: Householder's takes its place."""
    A = randn(6, 7, 3)
    oracle = orthonormal_factor(A)
    for ours in (
        torch.func.vmap(lambda B: orthonormal_factor(B, cholesky=True))(A),
        orthonormal_factor(A, cholesky=True),
    ):
        for part, wanted in zip(ours, oracle, strict=True):
            torch.testing.assert_close(part, wanted, rtol=0, atol=1e-13)
