"""The retractions: what they compute, their orders, the bridge to layers, rank loss."""

import math

import numpy as np
import pytest
import torch
from manifold_oracles import Case, Geodesic, dot, generator, randn, relative, unitary

from deeplin import DeepLinear, init
from deeplin.manifolds import FixedRank, FixedRankFactored, PSDFixedRank, PSDFixedRankFactored
from deeplin.manifolds.check import check_retraction, check_transport

ALL = ["svd", "orthographic", "splitting", "layers"]


def unit(u):
    return u / torch.linalg.vector_norm(u)


@pytest.mark.statement("HLZ Definition 2.3")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("m", "n", "r"), [(7, 5, 2), (5, 6, 4), (4, 4, 4), (5, 4, 1)])
def test_svd_is_the_nearest_matrix_of_rank_r(m, n, r, dtype, seen):
    case = Case.build(m, n, r=r, dtype=dtype)
    u = 0.3 * case.project(randn(m, n, seed=5, dtype=dtype))
    U, sigma, Vh = torch.linalg.svd(case.W + u, full_matrices=False)
    wanted = (U[:, :r] * sigma[:r]) @ Vh[:r]
    seen.below(relative(FixedRank(r).retr(case.W, u), wanted), 1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.statement("HLZ Definition 2.3, C1")
def test_svd_on_psd_matrices_keeps_the_largest_algebraic_eigenvalues(dtype, seen):
    """A step whose negative eigenvalue is larger in size than a positive one."""
    case = Case.build(6, 6, r=2, dtype=dtype, psd=True)
    left = case.left
    M = torch.diag(torch.tensor([0.0, -1.0], dtype=torch.float64)).to(dtype)
    Up = 0.8 * left[:, 2:4]
    u = left[:, :2] @ M @ left[:, :2].mH + Up @ left[:, :2].mH + left[:, :2] @ Up.mH
    values, vectors = torch.linalg.eigh(case.W + u)
    wanted = (vectors[:, -2:] * values[-2:]) @ vectors[:, -2:].mH
    assert values[0] < -values[-2]  # truncation by size would keep it
    y = PSDFixedRank(2).retr(case.W, u)
    seen.below(relative(y, wanted), 1e-13)
    seen.number("eigenvalue that truncation by size would keep", values[0])
    assert PSDFixedRank(2).check_point_on_manifold(y, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("psd", [False, True])
def test_orthographic_differs_from_the_step_by_a_normal_vector(psd, dtype):
    m, n = (6, 6) if psd else (6, 5)
    case = Case.build(m, n, r=2, dtype=dtype, psd=psd)
    manifold = (PSDFixedRank if psd else FixedRank)(2, 1, "orthographic")
    u = 0.3 * manifold.proju(case.W, randn(m, n, seed=5, dtype=dtype))
    y = manifold.retr(case.W, u)
    assert relative(case.project(y), case.W + u) < 1e-13
    assert manifold.check_point_on_manifold(y, atol=1e-13, rtol=1e-13)
    assert relative(manifold.inverse_orthographic(case.W, y), u) < 1e-12


def test_inverse_of_the_orthographic_retraction_is_defined_on_far_points():
    packed = FixedRankFactored(6, 5, 2, 2, "orthographic")
    x, y = (packed.random(dtype=torch.float64, generator=generator(s)) for s in (1, 2))
    u = packed.inverse_orthographic(x, y)
    assert relative(packed.to_dense(packed.retr(x, u)), packed.to_dense(y)) < 1e-11


def test_orthographic_uses_no_svd_and_no_eigendecomposition(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a decomposition was used")

    points = []
    for manifold in (
        FixedRankFactored(6, 5, 2, 1, "orthographic"),
        PSDFixedRankFactored(6, 2, 1, "orthographic"),
    ):
        x = manifold.random(dtype=torch.float64, generator=generator(1))
        points.append((manifold, x, 0.1 * manifold.proju(x, randn(*x.shape, seed=1))))
    for name in ("svd", "svdvals", "eigh", "eigvalsh", "eig"):
        monkeypatch.setattr(torch.linalg, name, forbidden)
    for manifold, x, u in points:
        y = manifold.retr(x, u)
        assert torch.isfinite(y).all()
        manifold.transp(x, y, u)


def claimed_order(retraction, depth):
    """What deeplin.manifolds.retractions states."""
    if retraction == "layers":
        return 2
    return 2 if depth == 1 else 1


@pytest.mark.parametrize("psd", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_orders_against_an_integrated_geodesic(depth, psd):
    case = Case.build(3, 3, r=2, psd=psd)
    geodesic = Geodesic(case, depth, symmetric=psd)
    family = PSDFixedRank if psd else FixedRank
    u = unit(family(2, depth).proju(case.W, randn(3, 3, seed=9)))
    steps = (0.2, 0.1, 0.05, 0.025)
    curve = {t: geodesic(u, t, steps=max(2, round(30 * t))) for t in steps}
    for retraction in ALL if depth > 1 else ALL[:3]:
        manifold = family(2, depth, retraction)
        errors = [torch.linalg.vector_norm(manifold.retr(case.W, t * u) - curve[t]) for t in steps]
        if psd and depth == 2 and retraction == "layers":
            assert max(errors) < 1e-7  # the exponential map itself: the integrator's error
            continue
        order = claimed_order(retraction, depth)
        report = check_retraction(
            manifold, case.W, u, geodesic=curve.__getitem__, order=order, steps=steps
        )
        assert report, report
        slope = math.log2(errors[-2] / errors[-1])
        assert slope < order + 1.2, "the stated order is not the sharp one"


@pytest.mark.parametrize("retraction", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_first_order_and_transports(retraction, dtype):
    for depth in (2, 3, 10, 64):
        for manifold, shape in (
            (FixedRank(3, depth, retraction), (6, 5)),
            (PSDFixedRank(3, depth, retraction), (6, 6)),
            (FixedRankFactored(6, 5, 3, depth, retraction), (14, 3)),
            (PSDFixedRankFactored(6, 3, depth, retraction), (9, 3)),
        ):
            x = manifold.random(*shape, dtype=dtype, generator=generator(1))
            for report in (check_retraction(manifold, x), check_transport(manifold, x)):
                assert report, report


def balanced_layers(W, depth, rank):
    """Proof of BRTW Prop. 12: U Σ^{1/N}, Σ^{1/N}, ..., Σ^{1/N} Vᵀ, first layer first."""
    U, sigma, Vh = torch.linalg.svd(W, full_matrices=False)
    root = torch.diag(sigma[:rank] ** (1 / depth))
    middle = [root.clone() for _ in range(depth - 2)]
    layers = [root @ Vh[:rank], *middle, U[:, :rank] @ root]
    return [torch.nn.Parameter(layer) for layer in layers]


def product(layers):
    W = layers[0]
    for layer in layers[1:]:
        W = layer @ W
    return W


@pytest.mark.statement("BRTW Prop. 12")
@pytest.mark.parametrize("depth", range(2, 11))
@pytest.mark.parametrize("spectrum", ["generic", "equal", "tail 1e-3"])
def test_the_bridge_one_sgd_step_on_layers_is_one_retraction(depth, spectrum, seen):
    case = Case.build(6, 5, spectrum, r=3)
    target, h = randn(6, 5, seed=5), 0.05
    net = DeepLinear([5, *[3] * (depth - 1), 6], dtype=torch.float64)
    init.balanced_(net, case.W)
    optimizer = torch.optim.SGD(net.parameters(), lr=h)
    (0.5 * (net.end_to_end() - target).square().sum()).backward()
    optimizer.step()
    wanted = net.end_to_end().detach()

    dense = FixedRank(3, depth, "layers")
    rgrad = dense.egrad2rgrad(case.W, case.W - target)
    seen.below(relative(dense.retr(case.W, -h * rgrad), wanted), 1e-13)

    packed = FixedRankFactored(6, 5, 3, depth, "layers")
    P, R = unitary(3, 11), unitary(3, 12)
    for gauge in ((case.U, case.S, case.V), (case.U @ P, P.mT @ case.S @ R, case.V @ R)):
        x = packed.pack_point(*gauge).requires_grad_()
        (grad,) = torch.autograd.grad(0.5 * (packed.to_dense(x) - target).square().sum(), x)
        y = packed.retr(x, -h * packed.egrad2rgrad(x, grad))
        seen.below(relative(packed.to_dense(y), wanted), 1e-13)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_the_symmetric_bridge(depth):
    """On PSD matrices the layers satisfy W_{N+1−j} = W_jᵀ, and so do their steps."""
    case = Case.build(6, 6, r=3, psd=True)
    target, h = randn(6, 6, seed=5), 0.05
    target = target + target.mT
    layers = balanced_layers(case.W, depth, 3)
    optimizer = torch.optim.SGD(layers, lr=h)
    (0.5 * (product(layers) - target).square().sum()).backward()
    optimizer.step()
    for manifold in (PSDFixedRank(3, depth, "layers"), PSDFixedRankFactored(6, 3, depth, "layers")):
        if isinstance(manifold, PSDFixedRank):
            y = manifold.retr(case.W, -h * manifold.egrad2rgrad(case.W, case.W - target))
        else:
            x = manifold.from_dense(case.W).requires_grad_()
            (grad,) = torch.autograd.grad(dot(case.W - target, manifold.to_dense(x)), x)
            y = manifold.to_dense(manifold.retr(x, -h * manifold.egrad2rgrad(x, grad)))
        assert relative(y, product(layers).detach()) < 1e-13


@pytest.mark.parametrize("psd", [False, True])
@pytest.mark.parametrize("retraction", ALL)
def test_a_step_that_would_lose_rank_is_halved(retraction, psd):
    case = Case.build(6, 6, r=2, psd=psd)
    family = PSDFixedRank if psd else FixedRank
    manifold = family(2, 3, retraction)
    # ξ = −W: svd and orthographic land on 0; a third of depth·W empties the layers.
    u = -case.W if retraction != "layers" else -3 * case.W
    y = manifold.retr(case.W, u)
    assert manifold.check_point_on_manifold(y)
    assert relative(y, manifold.retr(case.W, u / 2)) < 1e-13
    # Only the matrices of the batch that need it take the shorter step.
    other = 0.1 * manifold.proju(case.W, randn(6, 6, seed=5))
    both = manifold.retr(case.W, torch.stack([u, other]))
    assert relative(both[0], y) < 1e-12
    assert relative(both[1], manifold.retr(case.W, other)) < 1e-12


@pytest.mark.parametrize("n", [2, 5])
def test_a_psd_step_out_of_the_cone_is_halved_until_inside(n):
    case = Case.build(n, n, r=2, psd=True)
    u = -case.U[:, 1:2] @ case.U[:, 1:2].mT * 7.0
    for retraction in ("svd", "orthographic"):
        manifold = PSDFixedRank(2, 1, retraction)
        y = manifold.retr(case.W, u)
        assert manifold.check_point_on_manifold(y, atol=1e-12, rtol=1e-12)
        assert relative(y, case.W + u / 16) < 1e-12


@pytest.mark.parametrize("retraction", ALL)
@pytest.mark.parametrize("size", [1e2, 1e6, 1e12])
def test_what_four_halvings_do_not_help_is_shortened_to_a_safe_length(retraction, size):
    """ξ = −size·W points out of the cone; what is left of σ_r is at least a half of it."""
    case = Case.build(6, 6, "tail 1e-6", r=3, psd=True)
    manifold = PSDFixedRank(3, 3, retraction)
    y = manifold.retr(case.W, -3 * size * case.W)
    assert manifold.check_point_on_manifold(y, atol=1e-13, rtol=1e-13)
    kept = torch.linalg.eigvalsh(y).flip(-1)[:3] / case.sigma
    assert float(kept.min()) > 0.5
    assert float(kept.max()) < 1 - 1e-3  # not the point itself, for that it need not be


@pytest.mark.parametrize("retraction", ALL)
def test_a_step_that_is_not_finite_moves_nothing_and_says_so(retraction):
    for manifold, W in (
        (FixedRank(2, 2, retraction), Case.build(5, 4, r=2).W),
        (PSDFixedRank(2, 2, retraction), Case.build(5, 5, r=2, psd=True).W),
    ):
        u = 0.1 * manifold.proju(W, randn(*W.shape, seed=1))
        for bad in (math.nan, math.inf):
            with pytest.warns(RuntimeWarning, match="the step holds nan or inf"):
                y = manifold.retr(W, torch.stack([torch.full_like(W, bad), u]))
            assert relative(y[0], W) < 1e-14
            assert relative(y[1], manifold.retr(W, u)) < 1e-12
        assert torch.isfinite(manifold.retr(W, 1e200 * u)).all()  # overflow inside


@pytest.mark.parametrize("retraction", ALL)
def test_a_start_of_lower_rank_is_an_error(retraction):
    with pytest.raises(RuntimeError, match="x must have rank 2, and has not"):
        FixedRank(2, 2, retraction).retr(torch.zeros(5, 4), torch.zeros(5, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [0.1, 3.0])
def test_splitting_is_a_step_of_subspace_iteration(size, dtype):
    """From orth((W + ξ)V), by numpy's QR of dense matrices; no farther from W + ξ than ‖V_p‖."""
    case = Case.build(7, 6, r=3, dtype=dtype)
    V = torch.linalg.svd(case.W)[2][:3].mH
    u = size * case.project(randn(7, 6, seed=5, dtype=dtype))
    Q = torch.from_numpy(np.linalg.qr(((case.W + u) @ V).numpy())[0])
    y = FixedRank(3, 1, "splitting").retr(case.W, u)
    assert relative(y, Q @ (Q.mH @ (case.W + u))) < 1e-13
    outside = u @ (torch.eye(6, dtype=dtype) - V @ V.mH)
    assert torch.linalg.norm(y - case.W - u) <= torch.linalg.norm(outside)
    cone = Case.build(6, 6, r=2, dtype=dtype, psd=True)
    u = 0.1 * PSDFixedRank(2).proju(cone.W, randn(6, 6, seed=5, dtype=dtype))
    U = torch.linalg.eigh(cone.W).eigenvectors[:, -2:]
    Q = torch.from_numpy(np.linalg.qr(((cone.W + u) @ U).numpy())[0])
    y = PSDFixedRank(2, 1, "splitting").retr(cone.W, u)
    assert relative(y, Q @ (Q.mH @ (cone.W + u) @ Q) @ Q.mH) < 1e-13


def test_all_but_svd_are_differentiable_in_the_step():
    for retraction in ALL[1:]:
        manifold = FixedRankFactored(5, 4, 2, 3, retraction)
        x = manifold.random(dtype=torch.float64, generator=generator(1))
        u = (0.1 * manifold.proju(x, randn(*x.shape, seed=1))).requires_grad_()
        assert torch.autograd.gradcheck(lambda v, m=manifold, p=x: m.to_dense(m.retr(p, v)), u)
