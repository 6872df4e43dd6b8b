"""Riemannian Hessians against Taylor expansions, dense formulas and finite differences."""

import math

import mpmath
import pytest
import torch
from manifold_oracles import Case, dot, generator, randn, relative, unitary
from metric_oracles import MetricGeodesic, depth_operator, second_derivative

from deeplin.geometry.connection import MetricDerivative, squares_quotient
from deeplin.geometry.coordinates import Point, project_matrix
from deeplin.geometry.metric import DepthMetric
from deeplin.geometry.retractions import svd_step
from deeplin.manifolds import FixedRank, FixedRankFactored, PSDFixedRank, PSDFixedRankFactored
from deeplin.manifolds.check import check_gradient, check_hessian

DTYPES = [torch.float64, torch.complex128]


class Cubic:
    """f(W) = ½‖W − B‖² + ⅙Σ (Re W)³, with its gradient and the derivative of that."""

    def __init__(self, m, n, dtype=torch.float64, hermitian=False):
        self.B = randn(m, n, seed=31, dtype=dtype)
        if hermitian:
            self.B = self.B + self.B.mH

    def loss(self, W):
        return 0.5 * dot(W - self.B, W - self.B).sum() + (W.real**3).sum() / 6

    def egrad(self, W):
        return W - self.B + 0.5 * W.real**2

    def ehess(self, W, xi):
        return xi + W.real * xi.real


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("retraction", ["svd", "orthographic"])
@pytest.mark.parametrize("psd", [False, True])
def test_depth_1_everywhere_by_taylor(psd, retraction, dtype):
    m, n = (6, 6) if psd else (6, 5)
    problem = Cubic(m, n, dtype, psd)
    case = Case.build(m, n, r=2, dtype=dtype, psd=psd)
    dense = (PSDFixedRank if psd else FixedRank)(2, 1, retraction)
    report = check_hessian(
        dense,
        problem.loss,
        case.W,
        lambda u: dense.ehess2rhess(case.W, problem.egrad(case.W), problem.ehess(case.W, u), u),
    )
    assert report, report
    for gradient in ("partials", "taped"):
        options = {"depth": 1, "retraction": retraction, "gradient": gradient}
        packed = (
            PSDFixedRankFactored(6, 2, **options) if psd else FixedRankFactored(6, 5, 2, **options)
        )
        P = unitary(2, 11, dtype)
        R = P if psd else unitary(2, 12, dtype)
        parts = (case.U @ P, P.mH @ case.S @ R) + (() if psd else (case.V @ R,))
        x = packed.pack_point(*parts)

        def loss(p, packed=packed):
            return problem.loss(packed.to_dense(p))

        report = check_hessian(
            packed,
            loss,
            x,
            lambda u, packed=packed, x=x: packed.hessian_vector_product(
                x, lambda A, B: problem.loss(A @ B.mH), u
            ),
        )
        assert report, report
        # The three ways give the same vector: autograd on pairs, and both ehess2rhess.
        u = packed.proju(x, randn(*x.shape, seed=3, dtype=dtype))
        xi = packed.tangent_to_dense(x, u)
        G, H = problem.egrad(case.W), problem.ehess(case.W, xi)
        found = packed.tangent_to_dense(x, packed.ehess2rhess(x, G, H, u))
        taped = packed.hessian_vector_product(x, lambda A, B: problem.loss(A @ B.mH), u)
        assert relative(packed.tangent_to_dense(x, taped), found) < 1e-12
        assert relative(dense.ehess2rhess(case.W, G, H, xi), found) < 1e-12


@pytest.mark.parametrize("psd", [False, True])
def test_depth_1_is_the_projected_derivative_of_the_gradient_field(psd):
    """Hess f[ξ] = P_W(d/dt grad f(R(tξ))): the embedded connection, by finite differences."""
    m, n = (6, 6) if psd else (6, 5)
    problem = Cubic(m, n, hermitian=psd)
    W = Case.build(m, n, r=2, psd=psd).W
    manifold = (PSDFixedRank if psd else FixedRank)(2, 1)
    u = manifold.proju(W, randn(m, n, seed=3))

    def field(t):
        y = manifold.retr(W, t * u)
        return manifold.egrad2rgrad(y, problem.egrad(y))

    h = 1e-5
    wanted = manifold.proju(W, (field(h) - field(-h)) / (2 * h))
    found = manifold.ehess2rhess(W, problem.egrad(W), problem.ehess(W, u), u)
    assert relative(found, wanted) < 1e-8


def autoencoder_saddle(depth, family):
    """½‖X − WX‖² at the critical point u_2u_2ᵀ + u_3u_3ᵀ of rank 2 (BRTW Prop. 32)."""
    C = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    basis = unitary(4, 5)
    C = basis @ C @ basis.mT
    frame = basis[:, 1:3]
    W = frame @ frame.mT

    def loss(Z):
        D = torch.eye(4, dtype=torch.float64) - Z
        return 0.5 * torch.einsum("...ij,jk,...ik->...", D, C, D)

    return C, W, loss, family(2, depth)


@pytest.mark.statement("BRTW Prop. 33")
@pytest.mark.parametrize(
    ("depth", "retraction"),
    [(2, "svd"), (2.5, "svd"), (3, "svd"), (10, "svd"), (2, "layers"), (10, "layers")],
)
def test_every_depth_at_critical_points(depth, retraction):
    C, W, loss, _ = autoencoder_saddle(depth, FixedRank)
    manifold = FixedRank(2, depth, retraction)

    def hess(u):
        return manifold.ehess2rhess(W, W @ C - C, u @ C, u)

    report = check_hessian(manifold, loss, W, hess)
    assert report, report
    packed = FixedRankFactored(4, 4, 2, depth, retraction)
    P, R = unitary(2, 11), unitary(2, 12)
    U, S, Vh = torch.linalg.svd(W)
    x = packed.pack_point(U[:, :2] @ P, P.mT @ torch.diag(S[:2]) @ R, Vh[:2].mT @ R)
    report = check_hessian(
        packed,
        lambda p: loss(packed.to_dense(p)),
        x,
        lambda u: packed.hessian_vector_product(x, lambda A, B: loss(A @ B.mT), u),
    )
    assert report, report
    # W is a strict saddle: the best exchange of directions has slope −2·(σ_j0(σ_j0 − σ_j1)) < 0.
    basis = manifold.proju(W, torch.eye(16, dtype=torch.float64).reshape(16, 4, 4))
    form = torch.stack([manifold.inner(W, basis, hess(u)) for u in basis])
    assert torch.linalg.eigvalsh((form + form.mT) / 2)[0] < -0.1


@pytest.mark.parametrize("depth", [2, 3, 10])
def test_the_smallest_eigenvalue_is_the_local_rate_whatever_the_depth(depth):
    """ρ = min ½(λ_a+λ_b − √((λ_a−λ_b)²+4λ_b²)) at the optimum of an autoencoder."""
    lam = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    C, W = torch.diag(lam), torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64))
    manifold = FixedRank(2, depth)
    draws = manifold.proju(W, randn(12, 4, 4, seed=1))
    gram = manifold.inner(W, draws[:, None], draws[None])
    hess = torch.stack([manifold.ehess2rhess(W, W @ C - C, u @ C, u) for u in draws])
    form = manifold.inner(W, draws[:, None], hess[None])
    smallest = torch.linalg.eigvals(torch.linalg.solve(gram, form)).real.min().item()
    rate = min(
        0.5 * (a + b - math.sqrt((a - b) ** 2 + 4 * b**2))
        for a in lam[:2].tolist()
        for b in lam[2:].tolist()
    )
    assert smallest == pytest.approx(rate, rel=1e-9)


def test_depth_infinity_is_no_metric_below_full_rank():
    manifold = FixedRank(2, math.inf)
    W = Case.build(5, 4, r=2).W
    u = manifold.proju(W, randn(5, 4, seed=1))
    with pytest.raises(ValueError, match="use a finite depth"):
        manifold.ehess2rhess(W, W - 1, u, u)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("psd", [False, True])
@pytest.mark.parametrize("spectrum", ["generic", "equal", "gap 1e-12"])
@pytest.mark.parametrize("depth", [2, 3, 7])
def test_integer_depths_everywhere_by_taylor(depth, spectrum, psd, dtype):
    """Along `layers`, a retraction of order 2 for g_W, at points that are not critical."""
    m, n = (5, 5) if psd else (5, 4)
    problem = Cubic(m, n, dtype, psd)
    case = Case.build(m, n, spectrum, r=3, dtype=dtype, psd=psd)
    dense = (PSDFixedRank if psd else FixedRank)(3, depth, "layers")

    def hess(u):
        return dense.ehess2rhess(case.W, problem.egrad(case.W), problem.ehess(case.W, u), u)

    report = check_hessian(dense, problem.loss, case.W, hess)
    assert report, report
    # Packed, in a gauge of its own, by both routes: the same vector.
    P = unitary(3, 11, dtype)
    R = P if psd else unitary(3, 12, dtype)
    packed = (
        PSDFixedRankFactored(5, 3, depth, "layers")
        if psd
        else FixedRankFactored(5, 4, 3, depth, "layers")
    )
    x = packed.pack_point(case.U @ P, P.mH @ case.S @ R, *(() if psd else (case.V @ R,)))
    u = packed.proju(x, randn(*x.shape, seed=3, dtype=dtype))
    xi = packed.tangent_to_dense(x, u)
    wanted = hess(xi)
    both = (
        packed.ehess2rhess(x, problem.egrad(case.W), problem.ehess(case.W, xi), u),
        packed.hessian_vector_product(x, lambda A, B: problem.loss(A @ B.mH), u),
    )
    for found in both:
        assert relative(packed.tangent_to_dense(x, found), wanted) < 1e-12


@pytest.mark.parametrize(
    ("depth", "psd", "m", "n"),
    [
        (2, False, 3, 3),
        (3, False, 2, 3),
        (3.5, False, 3, 3),
        (math.inf, False, 2, 2),
        (1.5, True, 3, 3),
        (3.5, True, 4, 4),
    ],
)
def test_every_depth_along_integrated_geodesics(depth, psd, m, n):
    """g(Hess f[ξ], ξ) is the second derivative of f along the geodesic of g_W."""
    problem = Cubic(m, n, hermitian=psd)
    case = Case.build(m, n, r=2, psd=psd)
    manifold = (PSDFixedRank if psd else FixedRank)(2, depth)
    u = manifold.proju(case.W, randn(m, n, seed=3))
    u = u / manifold.norm(case.W, u)
    curve = MetricGeodesic(case, depth_operator(depth, 2), psd)
    wanted = second_derivative(lambda t: problem.loss(curve(u, t, 1)).item(), 0.02)
    hess = manifold.ehess2rhess(case.W, problem.egrad(case.W), problem.ehess(case.W, u), u)
    # The difference formula errs by O(h⁴): 2e-7 here, and 16 times that for twice the h.
    assert manifold.inner(case.W, hess, u).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("psd", [False, True])
@pytest.mark.parametrize("depth", [1.5, 3.5])
def test_real_depths_everywhere_by_taylor(depth, psd):
    problem = Cubic(3, 3, hermitian=psd)
    case = Case.build(3, 3, r=2, psd=psd)
    manifold = (PSDFixedRank if psd else FixedRank)(2, depth)
    curve = MetricGeodesic(case, depth_operator(depth, 2), psd)

    def hess(u):
        return manifold.ehess2rhess(case.W, problem.egrad(case.W), problem.ehess(case.W, u), u)

    report = check_hessian(manifold, problem.loss, case.W, hess, geodesic=curve.to_order_2)
    assert report, report
    # The svd retraction is of order 1 for these metrics: along it the expansion must fail.
    assert not check_hessian(manifold, problem.loss, case.W, hess)


@pytest.mark.parametrize("spectrum", ["tail 1e-3", "tail 1e-6", "tail 1e-9"])
@pytest.mark.parametrize("depth", [1.5, 2, 3.5, 10])
def test_self_adjoint_along_steps_however_small_the_singular_values(depth, spectrum):
    """Along ξ = 𝒜_W(Z), as gradients and steps are, nothing is lost to σ_r."""
    problem, W = Cubic(6, 5), Case.build(6, 5, spectrum, r=3).W
    manifold = FixedRank(3, depth)
    u, v = (manifold.metric_operator(W, randn(6, 5, seed=k)) for k in (1, 2))
    Hu, Hv = (manifold.ehess2rhess(W, problem.egrad(W), problem.ehess(W, xi), xi) for xi in (u, v))
    left, right = manifold.inner(W, Hu, v).item(), manifold.inner(W, u, Hv).item()
    # Relative to the value; depth 1.5 is between 1, which loses ε·σ_1/σ_r, and 2.
    assert left == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [2, 3.5])
def test_the_derivative_of_the_metric_operator(depth, dtype):
    """∇𝒜 = P (d𝒜) P by finite differences of the dense operator; both ways to use it agree."""
    case = Case.build(5, 4, r=3, dtype=dtype)
    point = Point(case.U, case.S, case.V)
    derivative = MetricDerivative.of(DepthMetric(depth), case.sigma)
    xi, a, b = (project_matrix(point, randn(5, 4, seed=k, dtype=dtype)) for k in (5, 6, 7))
    direction, dense = xi.dense(point), a.dense(point)

    def operated(t):
        end = svd_step(point, xi.scaled(t))[0].dense()
        return (depth_operator(depth, 3)(end) @ dense.reshape(-1)).reshape(5, 4)

    h = 1e-3
    near, far = operated(h) - operated(-h), operated(2 * h) - operated(-2 * h)
    wanted = case.project((8 * near - far) / (12 * h))
    found = derivative.along(xi, a)
    assert relative(found.dense(point), wanted) < 1e-9
    slot = derivative.by_direction(a, b).dense(point)
    assert dot(slot, direction).item() == pytest.approx(
        dot(wanted, b.dense(point)).item(), rel=1e-9
    )


@pytest.mark.parametrize("depth", [1.25, 2, 3.5])
@pytest.mark.parametrize("other", [1.0, 1e-4, 1e4])
def test_divided_differences_of_the_metric_lose_nothing_at_gaps(depth, other):
    """Against the quotient in 80 digits, relative to c(a, l)/a²."""
    p = 2 / mpmath.mpf(depth)

    def c(a):
        b = mpmath.mpf(other)
        return depth * a ** (2 - p) if a == b else (a**2 - b**2) / (a**p - b**p)

    ratios = [1 - 1e-14, 1 - 1e-8, 0.999, 0.8, 0.51, 0.49, 0.1, 1e-3, 1e-6]
    a = torch.tensor([1.1] * len(ratios), dtype=torch.float64)
    b = a * torch.tensor(ratios, dtype=torch.float64)
    metric = DepthMetric(depth)

    def kernel(s):
        pair = torch.stack([s, torch.full_like(s, other)], -1)
        return metric.core(pair)[..., 0, 1]

    found = squares_quotient(kernel, a, b)
    swapped = squares_quotient(kernel, b, a)
    with mpmath.workdps(80):
        for i, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
            x, y = mpmath.mpf(x), mpmath.mpf(y)
            wanted = (c(x) - c(y)) / (x**2 - y**2)
            scale = max(c(x), c(y)) / x**2
            assert abs(found[i].item() - wanted) / scale < 1e-14
            assert abs(swapped[i].item() - wanted) / scale < 1e-14
    # At a = b the limit, half the logarithmic derivative: c'(a)/(2a).
    limit = squares_quotient(kernel, a, a)[0].item()
    with mpmath.workdps(30):
        wanted = mpmath.diff(c, mpmath.mpf(1.1)) / (2 * mpmath.mpf(1.1))
        assert abs(limit - wanted) / (c(mpmath.mpf(1.1)) / 1.21) < 1e-14


def test_hessians_are_batched_and_linear_losses_have_only_curvature():
    packed = FixedRankFactored(6, 5, 2, 1)
    x, G = packed.random(3, 13, 2, dtype=torch.float64, generator=generator(1)), randn(6, 5, seed=1)
    u = packed.proju(x, randn(3, 13, 2, seed=2))

    def loss(A, B):
        return dot(G, A @ B.mT)

    found = packed.hessian_vector_product(x, loss, u)
    for i in range(3):
        wanted = packed.ehess2rhess(x[i], G, torch.zeros_like(G), u[i])
        assert relative(found[i], wanted) < 1e-12


def batch_of(kind):
    """A manifold of 5×5 matrices of rank 2, and the arguments of ehess2rhess for three of them."""
    sizes = {FixedRankFactored: (5, 5), PSDFixedRankFactored: (5,)}.get(kind, ())
    manifold = kind(*sizes, 2, 3.5)
    shape = {FixedRankFactored: (12, 2), PSDFixedRankFactored: (7, 2)}.get(kind, (5, 5))
    x = manifold.random(3, *shape, dtype=torch.float64, generator=generator(1))
    x = x.detach().as_subclass(torch.Tensor)
    u = manifold.proju(x, randn(3, *shape, seed=2))
    return manifold, (x, randn(3, 5, 5, seed=3), randn(3, 5, 5, seed=4), u)


@pytest.mark.parametrize("kind", [FixedRank, FixedRankFactored, PSDFixedRank, PSDFixedRankFactored])
def test_hessians_of_batches_and_by_vmap(kind):
    manifold, batch = batch_of(kind)
    single = torch.stack([manifold.ehess2rhess(*parts) for parts in zip(*batch, strict=True)])
    assert relative(manifold.ehess2rhess(*batch), single) < 1e-13
    assert relative(torch.func.vmap(manifold.ehess2rhess)(*batch), single) < 1e-13


@pytest.mark.slow
@pytest.mark.parametrize("kind", [FixedRankFactored, PSDFixedRank])
def test_hessians_compile_without_breaks(kind):
    manifold, batch = batch_of(kind)
    compiled = torch.compile(manifold.ehess2rhess, backend="eager", fullgraph=True)
    assert relative(compiled(*batch), manifold.ehess2rhess(*batch)) < 1e-13


@pytest.mark.parametrize("depth", [1, 2, 3, 10])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_by_taylor(depth, dtype):
    for psd, dense, packed in (
        (False, FixedRank(2, depth), FixedRankFactored(6, 5, 2, depth)),
        (True, PSDFixedRank(2, depth), PSDFixedRankFactored(6, 2, depth)),
    ):
        problem = Cubic(6, 6 if psd else 5, dtype, psd)
        W = Case.build(6, 6 if psd else 5, r=2, dtype=dtype, psd=psd).W
        assert check_gradient(dense, problem.loss, W)
        assert check_gradient(
            packed, lambda p, m=packed, f=problem: f.loss(m.to_dense(p)), packed.from_dense(W)
        )
