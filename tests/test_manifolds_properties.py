"""The laws again, on shapes, ranks, depths, dtypes and spectra that hypothesis draws."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from manifold_oracles import Case, dot, randn, relative, unitary

from deeplin.geometry import DepthMetric
from deeplin.linalg import orthonormal_factor
from deeplin.manifolds import FixedRank, FixedRankFactored, PSDFixedRank, PSDFixedRankFactored

FEW = settings(max_examples=40, deadline=None, derandomize=True)

dtypes = st.sampled_from([torch.float32, torch.float64, torch.complex64, torch.complex128])
depths = st.one_of(st.integers(1, 12), st.floats(1.0, 100.0))
retractions = st.sampled_from(["svd", "orthographic", "splitting", "layers"])


@st.composite
def spectra(draw, r):
    """Descending, from 1 down to 1e-3, with repetitions and near repetitions."""
    exponents = draw(
        st.lists(st.sampled_from([0.0, -1e-13, -0.5, -1.0, -3.0]), min_size=r, max_size=r)
    )
    return torch.tensor(sorted((10.0**e for e in exponents), reverse=True), dtype=torch.float64)


@st.composite
def cases(draw, psd=False):
    """A known decomposition, its manifolds, and a unit in the last place for its dtype."""
    m = draw(st.integers(1, 7))
    n = m if psd else draw(st.integers(1, 7))
    r = draw(st.integers(1, min(m, n)))
    dtype = draw(dtypes)
    seed = draw(st.integers(0, 50))
    real = dtype.to_real()
    left = unitary(m, seed + 1, dtype)
    right = left if psd else unitary(n, seed + 2, dtype)
    return Case(left, right, draw(spectra(r)).to(real))


def eps(case):
    """Round-off, times how well W knows its own singular vectors."""
    ratio = (case.sigma[0] / case.sigma[-1]).item()
    return 1e2 * torch.finfo(case.dtype).eps * ratio


def manifolds_of(case, depth, retraction, psd):
    """The dense and the packed manifold and the point on each, the packed one in another gauge."""
    m, n, r = len(case.left), len(case.right), case.r
    if retraction == "layers" and not (depth >= 2 and float(depth).is_integer()):
        retraction = "svd"
    P = unitary(r, 77, case.dtype)
    if psd:
        W = (case.W + case.W.mH) / 2
        dense, packed = (
            PSDFixedRank(r, depth, retraction),
            PSDFixedRankFactored(n, r, depth, retraction),
        )
        return dense, W, packed, packed.pack_point(case.U @ P, P.mH @ case.S @ P)
    R = unitary(r, 78, case.dtype)
    dense, packed = FixedRank(r, depth, retraction), FixedRankFactored(m, n, r, depth, retraction)
    return dense, case.W, packed, packed.pack_point(case.U @ P, P.mH @ case.S @ R, case.V @ R)


@FEW
@given(st.data(), depths, retractions, st.booleans())
def test_riesz_tangency_and_agreement(data, depth, retraction, psd):
    case = data.draw(cases(psd))
    dense, W, packed, x = manifolds_of(case, depth, retraction, psd)
    tolerance = max(10 * eps(case), 1e-11)
    G = randn(*W.shape, seed=1, dtype=case.dtype)
    p = x.clone().requires_grad_()
    (egrad,) = torch.autograd.grad(dot(G, packed.to_dense(p)), p)
    rgrad, packed_rgrad = dense.egrad2rgrad(W, G), packed.egrad2rgrad(x, egrad)
    full = packed.tangent_to_dense(x, packed_rgrad)
    size = max(1.0, torch.linalg.vector_norm(rgrad).item())
    assert torch.linalg.vector_norm(full - rgrad) < tolerance * size
    v = packed.proju(x, randn(*x.shape, seed=2, dtype=case.dtype))
    slope = dot(G, packed.tangent_to_dense(x, v))
    scale = packed.norm(x, packed_rgrad) * packed.norm(x, v) + slope.abs()
    assert abs(packed.inner(x, packed_rgrad, v) - slope) < tolerance * scale
    assert packed.check_vector_on_tangent(x, packed_rgrad, atol=tolerance, rtol=tolerance)
    assert torch.linalg.vector_norm(dense.proju(W, rgrad) - rgrad) < tolerance * size


@FEW
@given(st.data(), depths, retractions, st.booleans(), st.floats(1e-3, 10.0))
def test_every_retraction_lands_on_the_manifold(data, depth, retraction, psd, length):
    case = data.draw(cases(psd))
    dense, W, packed, x = manifolds_of(case, depth, retraction, psd)
    Z = randn(*W.shape, seed=1, dtype=case.dtype)
    u = dense.metric_operator(W, Z)
    u = length * u / torch.linalg.vector_norm(u).clamp(min=1e-30)
    y, moved = dense.retr_transp(W, u, u)
    assert torch.isfinite(y).all()
    ok, reason = dense.check_point_on_manifold(y, explain=True)
    assert ok or "it has less" in reason  # W in this dtype may not hold a smaller σ_r
    assert torch.isfinite(moved).all()
    v = packed.metric_operator(x, randn(*x.shape, seed=2, dtype=case.dtype))
    v = length * v / torch.linalg.vector_norm(v).clamp(min=1e-30)
    z, moved = packed.retr_transp(x, v, v)
    U = z[..., : len(case.left), :]
    gram = U.mH @ U
    assert relative(gram, torch.eye(case.r, dtype=case.dtype)) < 1e3 * torch.finfo(case.dtype).eps
    assert packed.check_vector_on_tangent(z, moved, atol=1e-3, rtol=1e-3)
    assert packed.check_point_on_manifold(packed.retr(x, 0 * v))


@FEW
@given(st.data(), depths)
def test_coefficients_are_homogeneous_symmetric_monotone(data, depth):
    """c(tσ) = t^{2−2/N} c(σ), c = cᵀ, c_ii = N σ_i^{2−2/N} = N d_i, and c grows with σ."""
    sigma = data.draw(spectra(data.draw(st.integers(1, 5))))
    c, d = DepthMetric(depth).core(sigma), DepthMetric(depth).side(sigma)
    assert torch.equal(c, c.mT)
    assert torch.allclose(c.diagonal(), depth * d, rtol=1e-13)
    scale = 3.7
    assert torch.allclose(
        DepthMetric(depth).core(scale * sigma), scale ** (2 - 2 / depth) * c, rtol=1e-12
    )
    assert (DepthMetric(depth).core(1.5 * sigma) >= c * (1 - 1e-12)).all()
    assert (c > 0).all()
    if not math.isinf(depth):
        lower, upper = torch.minimum(d[:, None], d), torch.maximum(d[:, None], d)
        assert (c <= depth * upper * (1 + 1e-12)).all()
        assert (c >= depth * lower * (1 - 1e-12)).all()


@FEW
@given(st.data(), st.booleans())
def test_transport_is_the_projection_and_linear(data, psd):
    case = data.draw(cases(psd))
    dense, _, packed, x = manifolds_of(case, 2, "svd", psd)
    u = packed.proju(x, randn(*x.shape, seed=1, dtype=case.dtype))
    v = packed.proju(x, randn(*x.shape, seed=2, dtype=case.dtype))
    y = packed.retr(x, 0.1 * u)
    Y = packed.to_dense(y)
    moved = packed.transp(x, y, v)
    tolerance = 1e3 * torch.finfo(case.dtype).eps * torch.linalg.vector_norm(v).item() + 1e-30
    both = packed.transp(x, y, 2 * v - u)
    assert torch.linalg.vector_norm(both - (2 * moved - packed.transp(x, y, u))) < 3 * tolerance
    wanted = dense.proju(Y, packed.tangent_to_dense(x, v))
    sigma = torch.linalg.svdvals(Y)[: case.r]
    allowed = tolerance * max(1.0, (sigma[0] / sigma[-1]).item())
    assert torch.linalg.vector_norm(packed.tangent_to_dense(y, moved) - wanted) < allowed


@FEW
@given(
    st.integers(1, 30),
    st.integers(1, 6),
    dtypes,
    st.integers(0, 9),
    st.floats(0.0, 12.0),
    st.booleans(),
)
def test_orthonormal_factor(m, r, dtype, seed, digits, cholesky):
    """A = QR with orthonormal Q and diag R > 0, also for nearly dependent columns."""
    r = min(m, r)
    A = randn(2, m, r, seed=seed, dtype=dtype)
    A = A * torch.logspace(0, -digits, r, dtype=torch.float64).to(dtype)
    Q, R = orthonormal_factor(A, cholesky=cholesky)
    unit = 1e2 * torch.finfo(dtype).eps
    assert (Q.mH @ Q - torch.eye(r, dtype=dtype)).abs().max() < unit
    assert relative(Q @ R, A) < unit
    assert (R.diagonal(dim1=-2, dim2=-1).real >= 0).all()
    assert R.tril(-1).abs().max() == 0 if r > 1 else True
