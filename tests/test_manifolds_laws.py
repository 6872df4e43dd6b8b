"""geoopt's contract, as laws, for the four manifolds."""

import copy
import math
import pickle

import geoopt
import pytest
import torch
from manifold_oracles import Case, dot, generator, randn, relative

from deeplin.geometry import DepthMetric, Metric
from deeplin.manifolds import FixedRank, FixedRankFactored, PSDFixedRank, PSDFixedRankFactored

DTYPES = [torch.float64, torch.complex128]


def manifolds(rank=2, **options):
    """The four manifolds on 6×5 (6×6) matrices, with the shape of a point."""
    return [
        (FixedRank(rank, **options), (6, 5)),
        (PSDFixedRank(rank, **options), (6, 6)),
        (FixedRankFactored(6, 5, rank, **options), (11 + rank, rank)),
        (PSDFixedRankFactored(6, rank, **options), (6 + rank, rank)),
    ]


EACH = pytest.mark.parametrize(
    ("manifold", "shape"), manifolds(), ids=lambda value: getattr(value, "name", "")
)


def dense(manifold, x):
    return manifold.to_dense(x) if hasattr(manifold, "to_dense") else x


def dense_vector(manifold, x, u):
    return manifold.tangent_to_dense(x, u) if hasattr(manifold, "tangent_to_dense") else u


def egrad_of(manifold, x, G):
    """What autograd leaves in x.grad for the loss Re⟨G, W⟩."""
    x = x.detach().clone().as_subclass(torch.Tensor).requires_grad_()
    (grad,) = torch.autograd.grad(dot(G, dense(manifold, x)).sum(), x)
    return grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [1, 2, 2.5, 3, 10, 64])
@pytest.mark.statement("BRTW (22)")
def test_riesz(depth, dtype, seen):
    """inner(x, egrad2rgrad(x, ∇f), v) = Df(x)[v] = Re⟨∇f, v⟩_F."""
    taped = [
        (FixedRankFactored(6, 5, 2, depth, gradient="taped"), (13, 2)),
        (PSDFixedRankFactored(6, 2, depth, gradient="taped"), (8, 2)),
    ]
    for manifold, shape in manifolds(depth=depth) + taped:
        x = manifold.random(*shape, dtype=dtype, generator=generator(1))
        G = randn(*dense(manifold, x).shape, seed=2, dtype=dtype)
        rgrad = manifold.egrad2rgrad(x, egrad_of(manifold, x, G))
        assert manifold.check_vector_on_tangent(x, rgrad, atol=1e-12, rtol=1e-12)
        for seed in range(3, 6):
            v = manifold.proju(x, randn(*shape, seed=seed, dtype=dtype))
            slope = dot(G, dense_vector(manifold, x, v))
            seen.below(manifold.inner(x, rgrad, v) - slope, 1e-10)


@pytest.mark.parametrize("spectrum", ["equal", "gap 1e-12", "tail 1e-3", "tail 1e-6", "tail 1e-9"])
@pytest.mark.parametrize("depth", [1, 2, 2.5, 3, 10, 64])
def test_riesz_down_to_the_smallest_singular_values(depth, spectrum):
    """With S diagonal, as the svd retraction leaves it: 1e-10 relative to the terms' sizes."""
    for psd in (False, True):
        m, n = (6, 6) if psd else (6, 5)
        case = Case.build(m, n, spectrum, r=3, psd=psd)
        manifold = PSDFixedRankFactored(6, 3, depth) if psd else FixedRankFactored(6, 5, 3, depth)
        x = manifold.pack_point(*((case.U, case.S) if psd else (case.U, case.S, case.V)))
        G = randn(m, n, seed=2)
        rgrad = manifold.egrad2rgrad(x, egrad_of(manifold, x, G))
        for seed in range(3, 6):
            v = manifold.proju(x, randn(*x.shape, seed=seed))
            slope = dot(G, manifold.tangent_to_dense(x, v))
            assert abs(manifold.inner(x, rgrad, v) - slope) < 1e-10


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("r", [1, 2, 4, 5])
@pytest.mark.statement("HLZ Lemma 2.1(3)")
@pytest.mark.statement("HLZ Lemma 2.1(3), E3")
def test_dimension_from_the_gram_matrix(r, dtype, seen):
    """HLZ Lemma 2.1 prints other complex dimensions."""
    for manifold, shape in manifolds(rank=r):
        x = manifold.random(*shape, dtype=dtype, generator=generator(1))
        draws = randn(130, *shape, seed=2, dtype=dtype)
        u = manifold.proju(x, draws)
        gram = manifold.inner(x, u[:, None], u[None, :])
        eigenvalues = torch.linalg.eigvalsh(gram)
        dimension = int((eigenvalues > 1e-9 * eigenvalues[-1]).sum())
        complex_ = dtype.is_complex
        if isinstance(manifold, PSDFixedRank | PSDFixedRankFactored):
            wanted = (2 * 6 - r) * r if complex_ else 6 * r - r * (r - 1) // 2
        else:
            wanted = r * (6 + 5 - r) * (2 if complex_ else 1)
        seen(dimension - wanted, 0)
        if r == 2:
            field = "complex" if complex_ else "real"
            seen.number(f"{field} dimension, {manifold.name}, r = 2", dimension)


@pytest.mark.statement("BRTW Lemma 7")
@pytest.mark.parametrize("dtype", DTYPES)
@EACH
@pytest.mark.statement("HLZ Lemma 2.2")
def test_proju_is_the_orthogonal_projection(manifold, shape, dtype, seen):
    x = manifold.random(*shape, dtype=dtype, generator=generator(1))
    Z, Y = (randn(*shape, seed=s, dtype=dtype) for s in (2, 3))
    P = manifold.proju(x, Z)
    seen.below(relative(manifold.proju(x, P), P), 1e-14)
    if isinstance(manifold, PSDFixedRankFactored):
        # The Frobenius product of W counts U_p twice, and so does the one proju is for.
        weight = torch.ones(shape, dtype=torch.float64)
        weight[:6] = 2
    else:
        weight = torch.ones(shape, dtype=torch.float64)
    left, right = dot(weight * P, Y), dot(weight * Z, manifold.proju(x, Y))
    seen.below(left - right, 1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_norm_has_a_finite_gradient_at_zero(depth):
    for manifold, shape in manifolds(depth=depth):
        x = manifold.random(*shape, dtype=torch.float64, generator=generator(1))
        u = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(manifold.norm(x, u), u)
        assert torch.isfinite(grad).all()
        v = manifold.proju(x, randn(*shape, seed=2)).requires_grad_()
        assert torch.autograd.gradcheck(lambda w, m=manifold, p=x: m.norm(p, w), v)


@EACH
def test_inner_shapes_and_component_inner(manifold, shape):
    x = manifold.random(4, 3, *shape, dtype=torch.float64, generator=generator(1))
    u = manifold.proju(x, randn(*shape, seed=2))
    assert u.shape == x.shape
    assert manifold.inner(x, u).shape == (4, 3)
    assert manifold.inner(x, u, keepdim=True).shape == (4, 3, 1, 1)
    assert manifold.norm(x, u, keepdim=True).shape == (4, 3, 1, 1)
    assert torch.equal(manifold.component_inner(x, u), manifold.inner(x, u, keepdim=True))
    z = manifold.random(*shape, dtype=torch.complex128, generator=generator(1))
    assert manifold.inner(z, manifold.proju(z, z)).dtype == torch.float64


@pytest.mark.parametrize("retraction", ["svd", "orthographic", "splitting", "layers"])
def test_batches_broadcast_and_equal_single_calls(retraction):
    for manifold, shape in manifolds(depth=3, retraction=retraction):
        x = manifold.random(3, 1, *shape, dtype=torch.float64, generator=generator(1))
        u = 0.1 * manifold.proju(x, randn(2, *shape, seed=2))
        v = manifold.proju(x, randn(*shape, seed=3))
        assert u.shape == (3, 2, *shape)
        y, moved = manifold.retr_transp(x, u, v)
        assert y.shape == moved.shape == (3, 2, *shape)
        for i in range(3):
            for j in range(2):
                one_y, one = manifold.retr_transp(x[i, 0], u[i, j], v[i, 0])
                assert relative(dense(manifold, y[i, j]), dense(manifold, one_y)) < 1e-12
                wanted = dense_vector(manifold, one_y, one)
                assert relative(dense_vector(manifold, y[i, j], moved[i, j]), wanted) < 1e-11


@pytest.mark.parametrize("retraction", ["svd", "orthographic", "splitting", "layers"])
def test_empty_batches(retraction):
    for manifold, shape in manifolds(depth=3, retraction=retraction):
        x = manifold.random(0, *shape, generator=generator(1))
        y, v = manifold.retr_transp(x, x, x)
        assert y.shape == v.shape == manifold.projx(x).shape == (0, *shape)
        assert manifold.egrad2rgrad(x, x).shape == (0, *shape)
        assert manifold.norm(x, x).shape == (0,)
        assert manifold.check_point_on_manifold(y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@EACH
def test_random_origin_and_dtypes(manifold, shape, dtype):
    for point in (
        manifold.random(2, *shape, dtype=dtype, generator=generator(1)),
        manifold.random((2, *shape), dtype=dtype, generator=generator(1)),
        manifold.origin(2, *shape, dtype=dtype),
    ):
        assert isinstance(point, geoopt.ManifoldTensor)
        assert point.shape == (2, *shape)
        assert point.dtype == dtype
        assert manifold.check_point_on_manifold(point)
    assert torch.equal(manifold.origin(*shape), manifold.origin(*shape))
    again = [manifold.random(*shape, generator=generator(7)) for _ in range(2)]
    assert torch.equal(*again)
    x = manifold.random(*shape, dtype=dtype, generator=generator(1))
    u = manifold.proju(x, randn(*shape, seed=2, dtype=dtype))
    y, v = manifold.retr_transp(x, 0.1 * u, u)
    assert y.dtype == v.dtype == manifold.egrad2rgrad(x, u).dtype == dtype
    assert manifold.check_point_on_manifold(y)
    assert manifold.check_vector_on_tangent(y, v, atol=1e-4, rtol=1e-4)


@EACH
def test_retraction_accepts_what_is_not_tangent(manifold, shape):
    """RiemannianSGD's first momentum step hands retr_transp the Euclidean gradient."""
    x = manifold.random(*shape, dtype=torch.float64, generator=generator(1))
    Z = 0.1 * randn(*shape, seed=2)
    P = manifold.proju(x, Z)
    y, v = manifold.retr_transp(x, Z, Z)
    wanted_y, wanted_v = manifold.retr_transp(x, P, P)
    assert relative(dense(manifold, y), dense(manifold, wanted_y)) < 1e-12
    if hasattr(manifold, "to_dense"):
        assert relative(dense_vector(manifold, y, v), dense_vector(manifold, y, wanted_v)) < 1e-10
    assert manifold.check_vector_on_tangent(y, v, atol=1e-12, rtol=1e-12)


def test_the_point_checker_measures_the_defect():
    manifold = FixedRank(2)
    W = Case.build(6, 5, r=3).W
    ok, reason = manifold.check_point_on_manifold(W, explain=True)
    assert not ok
    assert "σ_3/σ_1 = 0.353" in reason
    assert "use projx(x)" in reason
    ok, reason = manifold.check_point_on_manifold(1e-9 * Case.build(6, 5, r=1).W, explain=True)
    assert not ok
    assert "it has less" in reason
    assert manifold.check_point_on_manifold(Case.build(6, 5, "tail 1e-9", r=2).W)
    assert manifold.check_point_on_manifold(1e-20 * Case.build(6, 5, r=2).W)
    assert "nan" in manifold.check_point_on_manifold(W * math.nan, explain=True)[1]
    psd = PSDFixedRank(2)
    assert "Hermitian" in psd.check_point_on_manifold(randn(5, 5, seed=1), explain=True)[1]
    negative = -Case.build(5, 5, r=2, psd=True).W
    assert "semidefinite" in psd.check_point_on_manifold(negative, explain=True)[1]
    packed = FixedRankFactored(6, 5, 2)
    x = packed.random(dtype=torch.float64, generator=generator(1))
    bent = x.clone()
    bent[0] += 0.5
    assert "orthonormal" in packed.check_point_on_manifold(bent, explain=True)[1]
    thin = x.clone()
    thin[-2:] = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert "it has less" in packed.check_point_on_manifold(thin, explain=True)[1]
    half = PSDFixedRankFactored(6, 2)
    z = half.random(dtype=torch.float64, generator=generator(1)).clone()
    z[-2:] = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    assert "positive definite" in half.check_point_on_manifold(z, explain=True)[1]
    ok, reason = packed.check_vector_on_tangent(x, torch.ones_like(x), explain=True)
    assert not ok
    assert "use proju" in reason


def test_errors_say_what_to_type():
    with pytest.raises(ValueError, match=r"1 <= rank <= min\(m, n\); got rank=7 .* \(5, 4\)"):
        FixedRank(7).random(5, 4)
    with pytest.raises(ValueError, match=r"1 <= rank <= min\(m, n\); got rank=7 .* \(5, 4\)"):
        geoopt.ManifoldParameter(torch.ones(5, 4), manifold=FixedRank(7))
    with pytest.raises(ValueError, match="rank=7 for m=5, n=4"):
        FixedRankFactored(5, 4, 7)
    with pytest.raises(ValueError, match="square"):
        PSDFixedRank(2).random(5, 4)
    with pytest.raises(ValueError, match="write depth=1"):
        FixedRank(2, depth=0.5)
    with pytest.raises(TypeError, match="real number"):
        FixedRank(2, depth="2")
    with pytest.raises(TypeError, match="must be an int"):
        FixedRank(2.0)
    with pytest.raises(ValueError, match="'svd', 'orthographic', 'splitting', 'layers'"):
        FixedRank(2, retraction="qr")
    for depth in (1, 2.5, math.inf):
        with pytest.raises(ValueError, match="integer depth >= 2"):
            FixedRank(2, depth=depth, retraction="layers")
    manifold = FixedRankFactored(6, 5, 2)
    with pytest.raises(ValueError, match="pack_point"):
        manifold.pack_point(torch.ones(6, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="use pack_point"):
        manifold.random(6, 5)
    with pytest.raises(ValueError, match="it has less"):
        manifold.projx(torch.zeros(13, 2))
    with pytest.raises(ValueError, match="it has less"):
        FixedRank(3).projx(Case.build(5, 4, r=2).W)
    with pytest.raises(ValueError, match="gradient must be"):
        FixedRankFactored(6, 5, 2, gradient="tape")


@EACH
def test_scaled_and_product(manifold, shape):
    x = manifold.random(*shape, dtype=torch.float64, generator=generator(1))
    u = 0.1 * manifold.proju(x, randn(*shape, seed=2))
    scaled = geoopt.Scaled(manifold, 2.0)
    assert torch.equal(scaled.origin(*shape), manifold.origin(*shape))
    if hasattr(manifold, "to_dense"):  # p.unpack_tensor() of a parameter goes this way
        assert all(map(torch.equal, scaled.unpack_tensor(x), manifold.unpack_tensor(x)))
        assert torch.equal(scaled.pack_point(*scaled.unpack_tensor(x)), x)
    assert relative(
        dense(manifold, scaled.retr(x, 2 * u)), dense(manifold, manifold.retr(x, u))
    ) < (1e-12)
    assert torch.equal(scaled.egrad2rgrad(x, u), manifold.egrad2rgrad(x, u))
    assert scaled.rank == manifold.rank
    y = manifold.retr(x, u)
    back = scaled.inverse_orthographic(x, y)
    assert relative(back, 2 * manifold.inverse_orthographic(x, y)) < 1e-12

    product = geoopt.ProductManifold((manifold, shape), (geoopt.Euclidean(), 3))
    size = shape[0] * shape[1] + 3
    p = product.pack_point(x, torch.ones(3, dtype=torch.float64))
    w = product.pack_point(u, torch.ones(3, dtype=torch.float64))
    assert product.check_point_on_manifold(p)
    assert product.inner(p, w, w).item() == pytest.approx(manifold.inner(x, u).item() + 3)
    assert product.component_inner(p, w).shape == (size,)
    q, moved = product.retr_transp(p, w, w)
    first = product.take_submanifold_value(q, 0)
    assert relative(dense(manifold, first), dense(manifold, y)) < 1e-12
    assert product.projx(q).shape == product.egrad2rgrad(p, w).shape == moved.shape == (size,)
    batch = torch.stack([p, q, product.retr(p, -w), p])
    assert product.check_point_on_manifold(batch)
    assert product.inner(batch, product.proju(batch, torch.ones_like(batch))).shape == (4,)


@EACH
def test_copies_pickles_and_state_dicts(manifold, shape):
    p = geoopt.ManifoldParameter(
        manifold.random(*shape, dtype=torch.float64, generator=generator(1)), manifold=None
    )
    for other in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert torch.equal(other, p)
        assert repr(other.manifold) == repr(manifold)
    assert f"rank={manifold.rank}, depth=2, retraction='svd'" in repr(manifold)
    assert not manifold.state_dict()

    def steps(parameter, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            dense(manifold, parameter).square().sum().backward()
            optimizer.step()

    straight = copy.deepcopy(p)
    # Not Adam: torch's load_state_dict turns geoopt's integer step count into a float32.
    optimizer = geoopt.optim.RiemannianSGD([straight], lr=0.01, momentum=0.9)
    steps(straight, optimizer, 3)
    saved = pickle.loads(pickle.dumps((straight.detach().clone(), optimizer.state_dict())))
    steps(straight, optimizer, 3)
    resumed = geoopt.ManifoldParameter(saved[0].as_subclass(torch.Tensor), manifold=manifold)
    optimizer = geoopt.optim.RiemannianSGD([resumed], lr=0.01, momentum=0.9)
    optimizer.load_state_dict(saved[1])
    steps(resumed, optimizer, 3)
    assert torch.equal(straight, resumed)


def test_a_metric_in_place_of_a_depth_is_printed_as_one():
    class ScaledGD(Metric):
        def core(self, sigma):
            return 2 * torch.ones_like(sigma[..., :, None] * sigma[..., None, :])

        def side(self, sigma):
            return torch.ones_like(sigma)

    for metric, printed, depth in (
        (ScaledGD(), "metric=ScaledGD()", None),
        (DepthMetric(3), "depth=3", 3),
        (math.inf, "depth=inf", math.inf),
    ):
        for manifold, _ in manifolds(depth=metric):
            assert f"rank=2, {printed}, retraction='svd'" in repr(manifold)
            assert manifold.depth == depth


def test_log_and_dist_are_not_implemented_and_expmap_is_retr():
    for manifold, shape in manifolds():
        x = manifold.random(*shape, dtype=torch.float64, generator=generator(1))
        u = 0.1 * manifold.proju(x, randn(*shape, seed=2))
        assert torch.equal(manifold.expmap(x, u), manifold.retr(x, u))
        assert not manifold.reversible
        for method in ("logmap", "dist"):
            with pytest.raises(NotImplementedError):
                getattr(manifold, method)(x, x)
