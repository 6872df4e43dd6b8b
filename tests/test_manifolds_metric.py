"""The metric family against its definition (8), its integrals and its finite differences."""

import math

import pytest
import torch
from manifold_oracles import (
    PSD_SHAPES,
    SHAPES,
    SPECTRA,
    Case,
    dot,
    integral_19,
    integral_20,
    integral_21,
    randn,
    relative,
)

from deeplin.geometry.coordinates import Point, project_matrix
from deeplin.geometry.metric import (
    DepthMetric,
    metric_inner,
    metric_inverse,
    metric_operator,
)
from deeplin.manifolds import FixedRank, FixedRankFactored, PSDFixedRank

INTEGER_DEPTHS = [1, 2, 3, 10, 64]


def exact_point(case):
    return Point(case.U, case.S, case.U if case.left is case.right else case.V)


@pytest.mark.statement("BRTW Definition 3")
@pytest.mark.parametrize("depth", INTEGER_DEPTHS)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
def test_closed_form_is_definition_8(m, n, r, spectrum, depth, seen):
    case = Case.build(m, n, spectrum, r=r)
    Z = randn(m, n, seed=5)
    point = exact_point(case)
    found = metric_operator(point, project_matrix(point, Z), DepthMetric(depth)).dense(point)
    # Depth 1 of definition (8) is the identity; the family's member is its tangential part.
    wanted = case.project(Z) if depth == 1 else case.definition(Z, depth)
    seen.below(relative(found, wanted), 1e-12)


@pytest.mark.statement("BRTW Definition 3")
@pytest.mark.parametrize("depth", [2, 3, 10])
@pytest.mark.parametrize(("n", "r"), PSD_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_closed_form_is_definition_8_on_hermitian_matrices(n, r, depth, dtype, seen):
    case = Case.build(n, n, r=r, dtype=dtype, psd=True)
    Z = randn(n, n, seed=5, dtype=dtype)
    found = PSDFixedRank(r, depth).metric_operator(case.W, Z)
    seen.below(relative(found, case.definition((Z + Z.mH) / 2, depth)), 1e-12)


@pytest.mark.statement("BRTW Definition 3")
@pytest.mark.parametrize("depth", [2, 3, 10])
def test_complex_closed_form(depth, seen):
    case = Case.build(6, 5, r=3, dtype=torch.complex128)
    Z = randn(6, 5, seed=5, dtype=torch.complex128)
    found = FixedRank(3, depth).metric_operator(case.W, Z)
    seen.below(relative(found, case.definition(Z, depth)), 1e-12)


@pytest.mark.statement("BRTW Prop. 10")
@pytest.mark.parametrize("depth", [2, 2.5, 3, 10])
@pytest.mark.parametrize(("m", "n", "r"), [(5, 4, 2), (3, 3, 3)])
def test_inverse_is_integral_19(m, n, r, depth, seen):
    case = Case.build(m, n, r=r)
    u, v = (case.project(randn(m, n, seed=s)) for s in (5, 6))
    found = FixedRank(r, depth).inner(case.W, u, v).item()
    seen.ratio(found, integral_19(case, u, v, depth), rel=1e-9)


@pytest.mark.statement("BRTW Prop. 10")
@pytest.mark.parametrize("depth", [2, 3])
def test_inverse_is_integral_20(depth, seen):
    case = Case.build(5, 4, r=2)
    u, v = (case.project(randn(5, 4, seed=s)) for s in (5, 6))
    found = FixedRank(2, depth).inner(case.W, u, v).item()
    seen.ratio(found, integral_20(case, u, v, depth), rel=1e-9)


@pytest.mark.statement("BRTW Prop. 10")
@pytest.mark.parametrize(("m", "n", "r"), [(5, 4, 2), (4, 4, 4)])
def test_inverse_is_integral_21_at_depth_2(m, n, r, seen):
    case = Case.build(m, n, r=r)
    u, v = (case.project(randn(m, n, seed=s)) for s in (5, 6))
    found = FixedRank(r, 2).inner(case.W, u, v).item()
    seen.ratio(found, integral_21(case, u, v), rel=1e-9)


@pytest.mark.statement("BRTW Lemma 8")
@pytest.mark.parametrize("depth", [1, 2, 2.5, 10])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("m", "n", "r"), [(6, 4, 2), (4, 4, 4), (5, 4, 3)])
def test_self_adjoint_positive_kernel_is_the_normal_space(m, n, r, depth, dtype, seen):
    case = Case.build(m, n, r=r, dtype=dtype)
    manifold = FixedRank(r, depth)
    A, B = (randn(m, n, seed=s, dtype=dtype) for s in (5, 6))
    operated = manifold.metric_operator(case.W, A)
    seen.below(dot(operated, B) - dot(A, manifold.metric_operator(case.W, B)), 1e-12)
    normal = A - case.project(A)
    seen.below(manifold.metric_operator(case.W, normal).norm(), 1e-12)
    seen.below(dot(operated, normal), 1e-12)
    # The eigenvalues on the tangent space, from the dense matrix of the operator.
    basis = torch.eye(m * n, dtype=torch.float64).to(dtype).reshape(m * n, m, n)
    matrix = manifold.metric_operator(case.W, basis).reshape(m * n, m * n)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert int((eigenvalues > 1e-10).sum()) == r * (m + n - r)
    assert eigenvalues.min() > -1e-12
    tangent = manifold.proju(case.W, A)
    inverse = manifold.metric_inverse(case.W, tangent)
    seen.below(relative(manifold.metric_operator(case.W, inverse), tangent), 1e-12)


@pytest.mark.statement("BRTW Prop. 11")
@pytest.mark.parametrize("depth", [2, 2.5, 3, 10])
def test_metric_is_continuously_differentiable_where_singular_values_cross(depth, seen):
    """W(t) has singular values 1 + t, 1 − t, so that they are equal at t = 0."""
    case = Case.build(5, 4, r=2)
    G, H = randn(5, 4, seed=5), randn(5, 4, seed=6)
    turn = randn(5, 5, seed=7)
    turn = turn - turn.mT

    def value(t):
        U = torch.linalg.matrix_exp(t * turn) @ case.U
        sigma = torch.tensor([1.0 + t, 1.0 - t], dtype=torch.float64)
        W = (U * sigma) @ case.V.mT
        manifold = FixedRank(2, depth)
        return manifold.inner(W, manifold.proju(W, G), manifold.proju(W, H)).item()

    def slope(t, h=1e-4):
        return (value(t + h) - value(t - h)) / (2 * h)

    right = (value(1e-5) - value(0.0)) / 1e-5
    left = (value(0.0) - value(-1e-5)) / 1e-5
    scale = abs(slope(0.0)) + 1
    seen.below((right - left) / scale, 1e-3)  # no kink
    jumps = [abs(slope(t) - slope(-t)) for t in (0.02, 0.01, 0.005)]
    assert jumps[2] < 0.3 * jumps[0] + 1e-6  # the derivative's jump closes at a linear rate


@pytest.mark.parametrize("depth", [1, 2, 2.5, 10, 64, math.inf])
def test_coefficients_are_differentiable_also_at_equal_singular_values(depth):
    for sigma in ([1.3, 1.3, 0.4], [1.0, 1.0 - 1e-12, 1e-3], [2.0, 0.5, 0.1]):
        s = torch.tensor(sigma, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: DepthMetric(depth).core(x), s, rtol=1e-5)
        assert torch.autograd.gradcheck(lambda x: DepthMetric(depth).side(x), s, rtol=1e-5)


def test_depth_infinity_is_the_limit_of_the_core_over_depth():
    sigma = torch.tensor([1.5, 1.5, 0.7, 0.01], dtype=torch.float64)
    limit = DepthMetric(math.inf).core(sigma)
    far = DepthMetric(1e9).core(sigma) / 1e9
    assert relative(far, limit) < 1e-7
    a, b = 1.5**2, 0.7**2
    assert limit[0, 2].item() == pytest.approx((a - b) / math.log(a / b), rel=1e-13)
    assert limit[0, 0].item() == pytest.approx(a, rel=1e-14)


def test_depth_infinity_is_a_metric_on_square_full_rank_matrices_only():
    case = Case.build(4, 4, r=4)
    manifold = FixedRank(4, math.inf)
    u = manifold.proju(case.W, randn(4, 4, seed=5))
    assert manifold.norm(case.W, u) > 0
    assert relative(manifold.metric_operator(case.W, manifold.metric_inverse(case.W, u)), u) < 1e-12
    low = Case.build(4, 4, r=2)
    for method in ("inner", "norm", "metric_inverse"):
        with pytest.raises(ValueError, match="square matrices of full rank only"):
            getattr(FixedRank(2, math.inf), method)(low.W, low.W)
    # What is defined there is the flow: it moves the core and leaves both spaces where they are.
    rgrad = FixedRank(2, math.inf).egrad2rgrad(low.W, randn(4, 4, seed=6))
    assert relative(low.U @ (low.U.mT @ rgrad @ low.V) @ low.V.mT, rgrad) < 1e-12


@pytest.mark.parametrize("depth", [1, 2, 3, 10, 64, math.inf])
def test_tiny_singular_values_lose_no_relative_accuracy(depth):
    """At σ = (1, 1e-9) each coefficient is compared with its sum in 50 digits."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 50
    sigma = torch.tensor([1.0, 1e-9], dtype=torch.float64)
    found = DepthMetric(depth).core(sigma)
    a, b = (mpmath.mpf(float(s)) for s in sigma)
    if math.isinf(depth):
        wanted = (a**2 - b**2) / (mpmath.log(a**2) - mpmath.log(b**2))
    else:
        wanted = sum(
            a ** (mpmath.mpf(2 * (depth - k)) / depth) * b ** (mpmath.mpf(2 * (k - 1)) / depth)
            for k in range(1, depth + 1)
        )
    assert abs(found[0, 1].item() / float(wanted) - 1) < 1e-14


def test_everything_is_batched():
    cases = [Case.build(6, 5, r=3, seed=10 * k, spectrum=s) for k, s in enumerate(SPECTRA)]
    W = torch.stack([case.W for case in cases]).reshape(2, 3, 6, 5)
    Z = randn(6, 5, seed=5)
    for depth in (1, 2, 2.5, 10):
        manifold = FixedRank(3, depth)
        together = manifold.metric_operator(W, Z)
        single = torch.stack([manifold.metric_operator(case.W, Z) for case in cases])
        assert relative(together.reshape(6, 6, 5), single) < 1e-12


@pytest.mark.statement("BRTW Definition 9")
def test_inner_of_coordinates_is_positive_and_accurate_at_small_singular_values(seen):
    """In factored form g_W(u, u) is a sum of squares: relative accuracy at σ_r = 1e-9."""
    case = Case.build(6, 5, "tail 1e-9", r=3)
    point = exact_point(case)
    tangent = project_matrix(point, randn(6, 5, seed=5))
    inverse = metric_inverse(point, tangent, DepthMetric(3))
    value = metric_inner(point, tangent, tangent, DepthMetric(3)).item()
    wanted = dot(inverse.dense(point), tangent.dense(point)).item()
    seen.ratio(value, wanted, rel=1e-9)
    packed = FixedRankFactored(6, 5, 3, 3)
    x = packed.pack_point(case.U, case.S, case.V)
    u = torch.cat([tangent.Up, tangent.Vp, tangent.M])
    seen.ratio(packed.inner(x, u), wanted, rel=1e-9)
