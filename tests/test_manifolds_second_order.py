"""Riemannian Hessians against Taylor expansions, dense formulas and finite differences."""

import math

import pytest
import torch
from manifold_oracles import Case, dot, generator, randn, relative, unitary

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


def test_other_depths_away_from_critical_points_are_an_error():
    manifold = FixedRank(2, 2)
    W = Case.build(5, 4, r=2).W
    u = manifold.proju(W, randn(5, 4, seed=1))
    with pytest.raises(ValueError, match="needs a critical point"):
        manifold.ehess2rhess(W, W - 1, u, u)


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
