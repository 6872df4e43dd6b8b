"""Packed factors do what dense points do, in every operation, gauge, spectrum and depth."""

import math

import pytest
import torch
from manifold_oracles import (
    DEPTHS,
    PSD_SHAPES,
    SHAPES,
    SPECTRA,
    Case,
    dot,
    generator,
    randn,
    relative,
    unitary,
)

from deeplin.manifolds import FixedRank, FixedRankFactored, PSDFixedRank, PSDFixedRankFactored

DTYPES = [torch.float64, torch.complex128]


class Pair:
    """The same W as a dense point and as packed factors in a random gauge."""

    def __init__(
        self, m, n, r, spectrum, depth, *, psd=False, gauge=True, dtype=torch.float64, **kw
    ):
        self.case = case = Case.build(m, n, spectrum, r=r, dtype=dtype, psd=psd)
        P = unitary(r, 11, dtype) if gauge else torch.eye(r, dtype=dtype)
        R = P if psd or not gauge else unitary(r, 12, dtype)
        self.U, self.V = case.U @ P, case.V @ R
        self.psd, self.W = psd, case.W
        S = P.mH @ case.S @ R
        if psd:
            self.W = (self.W + self.W.mH) / 2
            self.dense = PSDFixedRank(r, depth, **kw)
            self.packed = PSDFixedRankFactored(n, r, depth, **kw)
            self.x = self.packed.pack_point(self.U, S)
        else:
            self.dense = FixedRank(r, depth, **kw)
            self.packed = FixedRankFactored(m, n, r, depth, **kw)
            self.x = self.packed.pack_point(self.U, S, self.V)

    def ambient(self, Z):
        """The packed form of a matrix: (ZV, ZᴴU, UᴴZV), or (Z_s U, UᴴZ_sU)."""
        if self.psd:
            Z = (Z + Z.mH) / 2
            return torch.cat([Z @ self.U, self.U.mH @ Z @ self.U])
        return torch.cat([Z @ self.V, Z.mH @ self.U, self.U.mH @ Z @ self.V])

    def full(self, u):
        return self.packed.tangent_to_dense(self.x, u)

    def partials(self, G):
        """What autograd gives for f(W) = Re⟨G, W⟩ written with unpack_tensor."""
        x = self.x.clone().requires_grad_()
        factors = self.packed.unpack_tensor(x)
        W = factors[0] @ factors[1] @ factors[-1 if not self.psd else 0].mH
        (grad,) = torch.autograd.grad(dot(G, W), x)
        return grad

    @property
    def tolerance(self):
        """1e-9, or what W rounded to ε knows of its own tangent space, ε·σ_1/σ_r.

        At depth ∞ the step takes σ_r further down, and the transport is from there.
        """
        steps = 1e3 if math.isinf(self.dense.depth) else 10.0
        ratio = (self.case.sigma[0] / self.case.sigma[-1]).item()
        return max(1e-9, steps * torch.finfo(torch.float64).eps * ratio)


def compare(pair):
    """Every operation, once; the largest relative difference of each."""
    m, n = pair.W.shape
    dense, packed, W, x = pair.dense, pair.packed, pair.W, pair.x
    dtype = W.dtype
    G, Z, Y = (randn(m, n, seed=s, dtype=dtype) for s in (21, 22, 23))
    u, v = dense.proju(W, Z), dense.proju(W, Y)
    pu, pv = packed.proju(x, pair.ambient(Z)), packed.proju(x, pair.ambient(Y))
    rgrad, packed_rgrad = dense.egrad2rgrad(W, G), packed.egrad2rgrad(x, pair.partials(G))
    found = {
        "to_dense": relative(packed.to_dense(x), W),
        "from_dense": relative(packed.to_dense(packed.from_dense(W)), W),
        "projx": relative(packed.to_dense(packed.projx(x)), dense.projx(W)),
        "proju": relative(pair.full(pu), u),
        "egrad2rgrad": relative(pair.full(packed_rgrad), rgrad),
        "metric_operator": relative(
            pair.full(packed.metric_operator(x, pair.ambient(Z))), dense.metric_operator(W, Z)
        ),
    }
    if not math.isinf(dense.depth):
        found |= {
            "inner": abs((packed.inner(x, pu, pv) - dense.inner(W, u, v)).item())
            / (dense.norm(W, u) * dense.norm(W, v)).item(),
            "norm": abs((packed.norm(x, pu) / dense.norm(W, u)).item() - 1),
            "metric_inverse": relative(
                pair.full(packed.metric_inverse(x, pu)), dense.metric_inverse(W, u)
            ),
        }
    h = 0.1 / (1 + torch.linalg.vector_norm(rgrad).item())
    y, py = dense.retr(W, -h * rgrad), packed.retr(x, -h * packed_rgrad)
    found |= {
        "retr": relative(packed.to_dense(py), y),
        "transp": relative(
            packed.tangent_to_dense(py, packed.transp(x, py, pv)), dense.transp(W, y, v)
        ),
        "retr_transp": relative(
            packed.tangent_to_dense(py, packed.retr_transp(x, -h * packed_rgrad, pv)[1]),
            dense.retr_transp(W, -h * rgrad, v)[1],
        ),
        # a difference of two points: its round-off is relative to them
        "inverse_orthographic": torch.linalg.vector_norm(
            pair.full(packed.inverse_orthographic(x, py)) - dense.inverse_orthographic(W, y)
        )
        / max(torch.linalg.vector_norm(W), torch.linalg.vector_norm(y)),
    }
    return found


@pytest.mark.parametrize("depth", [*DEPTHS, math.inf])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_dense_and_factored_agree_whatever_the_gauge(spectrum, depth):
    for m, n, r in SHAPES:
        pair = Pair(m, n, r, spectrum, depth)
        for name, error in compare(pair).items():
            assert error < pair.tolerance, (name, m, n, r)


@pytest.mark.parametrize("depth", [*DEPTHS, math.inf])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_dense_and_factored_agree_on_psd_matrices(spectrum, depth):
    for n, r in PSD_SHAPES:
        pair = Pair(n, n, r, spectrum, depth, psd=True)
        for name, error in compare(pair).items():
            assert error < pair.tolerance, (name, n, r)


@pytest.mark.parametrize("retraction", ["orthographic", "layers"])
@pytest.mark.parametrize("psd", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_and_factored_agree_for_the_other_retractions(retraction, psd, dtype):
    for depth in (2, 3, 10):
        for spectrum in ("generic", "equal", "gap 1e-12", "tail 1e-3"):
            m, n, r = (6, 6, 3) if psd else (6, 5, 3)
            pair = Pair(m, n, r, spectrum, depth, psd=psd, dtype=dtype, retraction=retraction)
            for name, error in compare(pair).items():
                assert error < pair.tolerance, (name, depth, spectrum)


@pytest.mark.parametrize("depth", [2, 2.5, 3, 10, 64])
def test_gradients_of_depth_2_and_more_agree_to_1e_9_down_to_sigma_1e_9(depth):
    """𝒜_W is smooth enough in W that the dense gradient loses little, for every gauge.

    Its derivative with respect to log σ_r is (2/N)σ_r^{2/N}, which at depth 64 is no longer small
    against the relative error 1e-7 that W in float64 leaves to σ_r = 1e-9.
    """
    tolerance = 1e-9 if depth <= 10 else 1e-8
    for spectrum in SPECTRA:
        for m, n, r in SHAPES:
            pair = Pair(m, n, r, spectrum, depth)
            G = randn(m, n, seed=21)
            found = pair.full(pair.packed.egrad2rgrad(pair.x, pair.partials(G)))
            assert relative(found, pair.dense.egrad2rgrad(pair.W, G)) < tolerance


@pytest.mark.parametrize("psd", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("spectrum", ["tail 1e-6", "tail 1e-9"])
def test_the_taped_form_keeps_all_digits_at_every_gauge(spectrum, depth, psd):
    """Against (I−UUᴴ)GV from the known bases, which no inverse of S enters."""
    m, n = (6, 6) if psd else (6, 5)
    G = randn(m, n, seed=21)
    case = Case.build(m, n, spectrum, r=3, psd=psd)
    Z = (G + G.mT) / 2 if psd else G
    power = torch.diag(case.sigma ** (2 - 2 / depth))
    wanted = (Z - case.U @ (case.U.mT @ Z)) @ case.V @ power @ case.V.mT

    def column_part(pair, u):
        full = pair.full(u)
        return full - case.U @ (case.U.mT @ full)

    pair = Pair(m, n, 3, spectrum, depth, psd=psd)
    taped = type(pair.packed)(*([n] if psd else [m, n]), 3, depth, gradient="taped")
    x = pair.x.clone().requires_grad_()
    A, B = taped.factor_pair(x)
    (grad,) = torch.autograd.grad(dot(G, A @ B.mH), x)
    assert relative(column_part(pair, taped.egrad2rgrad(pair.x, grad)), wanted) < 1e-13
    with pytest.raises(RuntimeError, match="factor_pair"):  # unpacked it would give other numbers
        taped.unpack_tensor(x)

    # With S diagonal, as retraction="svd" leaves it, the plain partials lose nothing either.
    diagonal = Pair(m, n, 3, spectrum, depth, psd=psd, gauge=False)
    plain = diagonal.packed.egrad2rgrad(diagonal.x, diagonal.partials(G))
    assert relative(column_part(diagonal, plain), wanted) < 1e-13
    if depth == 1:  # in a general gauge they do: the reason for the tape
        lost = pair.packed.egrad2rgrad(pair.x, pair.partials(G))
        assert relative(column_part(pair, lost), wanted) > 1e-13


def test_weight_decay_is_that_of_w_in_both_gradient_forms():
    """geoopt adds λx to x.grad; U and V are projected away and λS is the gradient of ½λ‖W‖²."""
    for gradient in ("partials", "taped"):
        manifold = FixedRankFactored(6, 5, 2, 3, gradient=gradient)
        x = manifold.random(dtype=torch.float64, generator=generator(1))
        W = manifold.to_dense(x)
        found = manifold.tangent_to_dense(x, manifold.egrad2rgrad(x, 0.3 * x))
        assert relative(found, FixedRank(2, 3).egrad2rgrad(W, 0.3 * W)) < 1e-12


def test_projx_keeps_the_gauge_and_the_matrix():
    for manifold in (FixedRankFactored(6, 5, 3), PSDFixedRankFactored(6, 3)):
        x = manifold.random(dtype=torch.float64, generator=generator(1))
        assert relative(manifold.projx(x), x) < 1e-14
        bent = x + 1e-3 * randn(*x.shape, seed=1)
        if isinstance(manifold, PSDFixedRankFactored):
            U, S = manifold.unpack_tensor(bent)
            bent = manifold.pack_point(U, (S + S.mT) / 2)
        straight = manifold.projx(bent)
        assert manifold.check_point_on_manifold(straight, atol=1e-14, rtol=1e-14)
        assert relative(manifold.to_dense(straight), manifold.to_dense(bent)) < 1e-13
        assert relative(straight, bent) < 1e-2


def test_gradients_flow_through_to_dense_and_factor_pair():
    for gradient in ("partials", "taped"):
        manifold = FixedRankFactored(6, 5, 2, 2, gradient=gradient)
        x = manifold.random(dtype=torch.float64, generator=generator(1)).as_subclass(torch.Tensor)
        G = randn(6, 5, seed=3)
        results = []
        for write in (manifold.to_dense, lambda p, m=manifold: torch.matmul(*_pair(m, p))):
            p = x.clone().requires_grad_()
            (grad,) = torch.autograd.grad(dot(G, write(p)), p)
            results.append(manifold.egrad2rgrad(x, grad))
        assert relative(*results) < 1e-14


def _pair(manifold, x):
    A, B = manifold.factor_pair(x)
    return A, B.mH
