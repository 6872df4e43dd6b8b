"""The blocks of completion's Hessian: their formulas, and what they do for conjugate gradients."""

import itertools

import numpy as np
import pytest
import torch
from optim_cases import planted
from runner import needs_compiler
from sampled_cases import COLS, F64, ROWS, M, N

from deeplin import sampled
from deeplin.manifolds import FixedRankFactored
from deeplin.optim.blocks import BlockPreconditioner
from deeplin.optim.objectives import ProblemObjective
from deeplin.optim.space import Space
from deeplin.problems import (
    MatrixCompletion,
    Ridge,
    RobustCompletion,
)
from deeplin.sampled import pattern

F32, C128 = torch.float32, torch.complex128


def drawn(randn, *shape, dtype=F64):
    real = randn(*shape)
    return (real + 1j * randn(*shape) if dtype.is_complex else real).to(dtype)


@pytest.fixture(
    params=[*(pytest.param(way, marks=needs_compiler) for way in ("compiled", "blocks")), "torch"]
)
def places(request, monkeypatch):
    """The pattern, compiled, in many blocks of columns and chunks, or by torch."""
    if request.param == "blocks":
        for name, number in (("_FIRST", 2), ("_SECOND", 3), ("_PER_ROW", 0.1), ("_CHUNK", 4)):
            monkeypatch.setattr(pattern, name, number)
    return sampled.Pattern(ROWS, COLS, (M, N), compiled=request.param != "torch")


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize(
    ("dtype", "r", "batch", "weighted"),
    [
        (F64, 1, (), False),
        (F64, 10, (), True),
        (F64, 5, (2,), True),
        (F64, 3, (2, 3), "each"),
        (F64, 33, (), True),
        (F32, 9, (), True),
        (C128, 2, (2,), True),
    ],
    ids=str,
)
@pytest.mark.usefixtures("threads")
def test_rows_are_multiplied_by_the_inverses_of_their_gram_matrices(
    places, randn, dtype, r, batch, weighted, adjoint
):
    B = drawn(randn, *batch, M if adjoint else N, r, dtype=dtype)
    X = drawn(randn, *batch, N if adjoint else M, r, dtype=dtype)
    Q = torch.linalg.qr(drawn(randn, *batch, r, r, dtype=dtype)).Q
    shift = 0.5 + randn(*batch, 1)[..., 0].abs().to(B.real.dtype)
    w = randn(*(batch if weighted == "each" else ()), len(ROWS)).abs().to(B.real.dtype)
    rows, cols = (COLS, ROWS) if adjoint else (ROWS, COLS)
    G = np.zeros((*batch, X.shape[-2], r, r), dtype=B.numpy().dtype)
    for k, (i, j) in enumerate(zip(rows[places.order], cols[places.order], strict=True)):
        b = B[..., j, :].numpy()
        weight = w[..., k].numpy()[..., None, None] if weighted else 1.0
        G[..., i, :, :] += weight * b.conj()[..., :, None] * b[..., None, :]
    grams = sampled.Grams.of(places, B, w if weighted else None, adjoint=adjoint)
    size = float(abs(G).max()) * 1e-5 if dtype == F32 else 1e-12
    traces = np.trace(G, axis1=-2, axis2=-1).real.sum(-1)
    np.testing.assert_allclose(grams.traces(), traces, rtol=1e-5 if dtype == F32 else 1e-13)
    inverse = np.linalg.inv(G + shift.numpy()[..., None, None, None] * np.eye(r))
    turned = (X @ Q).numpy()
    want = (turned[..., None, :] @ inverse)[..., 0, :] @ Q.mH.resolve_conj().numpy()
    np.testing.assert_allclose(grams.inverse(shift)(X, Q), want, atol=max(size, 1e-12))
    for part in (slice(1, 4), slice(0, 0), slice(3, None)):
        some = sampled.Grams.of(places, B, w if weighted else None, adjoint=adjoint, rows=part)
        np.testing.assert_allclose(
            some.inverse(shift)(X[..., part, :], Q), want[..., part, :], atol=max(size, 1e-12)
        )


def of_kind(kind, randn):
    """A problem, and the factors of a point of rank 2."""
    every = itertools.product(range(6), range(5))
    rows, cols = (torch.tensor(part) for part in zip(*every, strict=True))
    weights = randn(30).abs() + 0.1
    values = drawn(randn, 30, dtype=C128 if kind == "complex" else F64)
    if kind == "robust":
        problem = RobustCompletion(rows, cols, values, (6, 5), delta=0.7, weights=weights)
    else:
        kept = weights if kind == "weighted" else None
        problem = MatrixCompletion(rows, cols, values, (6, 5), weights=kept)
    U, s, Vh = torch.linalg.svd(drawn(randn, 6, 5, dtype=values.dtype), full_matrices=False)
    S = torch.diag(s[:2]).to(values.dtype)
    return (Ridge(problem, 0.3) if kind == "ridge" else problem), U[:, :2], S, Vh.mH[:, :2]


def block(problem, W, other, i, *, of_rows):
    """The Hessian of f(W + AVᴴ) in row i of A, or of f(W + UBᴴ) in that of B, by autograd."""

    def loss(row):
        a = torch.view_as_complex(row) if W.is_complex() else row
        change = a.new_zeros((W.shape[0 if of_rows else 1], 2))
        change = change.index_put((torch.tensor([i]),), a[None])
        return problem.loss(W + (change @ other.mH if of_rows else other @ change.mH))

    H = torch.func.hessian(loss)(torch.zeros((2, 2) if W.is_complex() else (2,), dtype=F64))
    # a ↦ ½aGaᴴ has Re G for real parts, and −Im G for imaginary by real ones.
    return H[:, 0, :, 0] - 1j * H[:, 1, :, 0] if W.is_complex() else H


@pytest.mark.parametrize("kind", ["plain", "weighted", "complex", "robust", "ridge"])
def test_blocks_are_those_of_the_hessian(kind, randn):
    problem, U, S, V = of_kind(kind, randn)
    W, eye = U @ S @ V.mH, torch.eye(2, dtype=S.dtype)
    reg = 0.3 if kind == "ridge" else 0.0
    inverses = problem.inverse_blocks(U, S, V, torch.tensor(0.2, dtype=F64))
    for times, other, count in zip(inverses, (V, U), (6, 5), strict=True):
        blocks = [block(problem, W, other, i, of_rows=other is V) for i in range(count)]
        G = torch.stack(blocks) - reg * eye
        damped = G + (0.2 * G.diagonal(dim1=-2, dim2=-1).real.mean() + reg) * eye
        X = drawn(randn, count, 2, dtype=W.dtype)
        want = torch.linalg.solve(damped.mT, X[..., None])[..., 0]
        torch.testing.assert_close(times(X, eye), want, rtol=1e-11, atol=1e-12)


# -- the preconditioner ----------------------------------------------------------------------------


def at_truth(known, factors, manifold, *, loss):
    """ξ ↦ Pξ at the planted matrix, as if its loss were this share of that at 0; the point, too."""
    U, sigma, V = factors
    x = manifold.pack_point(U, torch.diag(sigma), V).as_subclass(torch.Tensor)
    objective = ProblemObjective(Space([manifold.parameter(x)]), known)
    kept, at_zero = {}, known.pair_loss(U * 0, V)
    return BlockPreconditioner().at(objective, [x], loss * at_zero, kept), x, kept


@pytest.fixture(scope="module")
def operators():
    """(P, Hess f) at the truth, in an orthonormal basis of the tangent space."""
    known, factors = planted()
    manifold = FixedRankFactored(60, 50, 3, depth=1)
    product, x, _ = at_truth(known, factors, manifold, loss=0.0)
    objective = ProblemObjective(Space([manifold.parameter(x)]), known)
    hessian = objective.hessian([x], objective.evaluate([x])[1])
    generator = torch.Generator().manual_seed(1)
    drawn = [
        manifold.proju(x, torch.randn(*x.shape, dtype=F64, generator=generator))
        for _ in range(3 * (60 + 50 - 3))
    ]
    basis = torch.linalg.qr(torch.stack([u.flatten() for u in drawn], 1)).Q
    images = []
    for apply in (product, hessian):
        columns = [apply([b.reshape(x.shape)])[0].flatten() for b in basis.T]
        image = torch.stack(columns, 1)
        torch.testing.assert_close(basis @ (basis.mT @ image), image)  # tangent
        images.append(basis.mT @ image)
    return images


def test_it_is_symmetric_and_positive_definite(operators):
    P, _ = operators
    torch.testing.assert_close(P, P.mT)
    assert float(torch.linalg.eigvalsh(P)[0]) > 0


def test_with_it_the_hessian_is_well_conditioned(operators):
    """Its eigenvalues lie about 1, and at 2 where both sides see the same: 1 ± 2√(r/d) at most."""
    P, H = operators
    L = torch.linalg.cholesky(P)
    plain, found = torch.linalg.eigvalsh(H), torch.linalg.eigvalsh(L.mT @ H @ L)
    assert float(found[-1]) < 2.0 + 1e-10
    assert float(found[-1] / found[0]) < 0.4 * float(plain[-1] / plain[0])


def test_other_bases_of_the_same_spaces_change_nothing(randn):
    """Blocks that are kept act on vectors at another representation of the point."""
    known, (U, sigma, V) = planted()
    manifold = FixedRankFactored(60, 50, 3, depth=1)
    product, x, kept = at_truth(known, (U, sigma, V), manifold, loss=0.01)
    u = manifold.proju(x, randn(*x.shape))
    P, Q = (torch.linalg.qr(randn(3, 3)).Q for _ in range(2))

    def turned(tensor, first, second):
        left, right, core = tensor.split([60, 50, 3])
        return torch.cat([left @ first, right @ second, P.mT @ core @ Q])

    objective = ProblemObjective(Space([manifold.parameter(x)]), known)
    there = turned(x, P, Q)  # U, V and S
    before = kept["blocks_at"].clone()
    again = BlockPreconditioner().at(objective, [there], 0.01 * kept["loss_at_zero"], kept)
    assert torch.equal(kept["blocks_at"], before)
    # Of a vector U_p goes with V, and V_p with U.
    torch.testing.assert_close(again([turned(u, Q, P)])[0], turned(product([u])[0], Q, P))


def test_blocks_are_made_again_when_the_spaces_have_turned(randn):
    known, factors = planted()
    manifold = FixedRankFactored(60, 50, 3, depth=1)
    _, x, kept = at_truth(known, factors, manifold, loss=0.2**2)
    assert torch.equal(kept["blocks_at"], x)
    assert float(kept["blocks_damping"]) == pytest.approx(0.2)
    objective = ProblemObjective(Space([manifold.parameter(x)]), known)
    u = manifold.proju(x, randn(*x.shape))
    left, right, core = u.split([60, 50, 3])
    only_left = torch.cat([left / torch.linalg.matrix_norm(left, 2), 0 * right, 0 * core])
    S = torch.eye(3, dtype=F64)
    blocks = BlockPreconditioner()
    for angle, again in ((0.46, False), (0.47, True)):  # sin²θ against 0.2
        U, V, _ = x.split([60, 50, 3])
        turned = torch.linalg.qr(U + np.tan(angle) * only_left[:60]).Q
        at = manifold.pack_point(turned, S, V).as_subclass(torch.Tensor)
        here = dict(kept)
        blocks.at(objective, [at], 0.2**2 * kept["loss_at_zero"], here)
        assert torch.equal(here["blocks_at"], at) == again
    here = dict(kept)
    blocks.at(objective, [x], 0.051**2 * kept["loss_at_zero"], here)
    assert float(here["blocks_damping"]) == pytest.approx(0.2)
    blocks.at(objective, [x], 0.049**2 * kept["loss_at_zero"], here)
    assert float(here["blocks_damping"]) == pytest.approx(0.049)


def test_before_anything_is_fitted_there_are_none():
    known, factors = planted()
    manifold = FixedRankFactored(60, 50, 3, depth=1)
    assert at_truth(known, factors, manifold, loss=0.31**2)[0] is None
    assert at_truth(known, factors, manifold, loss=0.29**2)[0] is not None
