"""Products at given places: those of dense matrices, compiled or by torch, with all derivatives."""

import numpy as np
import pytest
import torch
from runner import needs_compiler
from sampled_cases import COLS, F64, ROWS, WAYS, M, N, draws

from deeplin import MatrixCompletion, sampled
from deeplin.sampled import TangentProducts, pattern


@pytest.fixture(params=[*WAYS, pytest.param("blocks", marks=needs_compiler)])
def places(request, monkeypatch):
    """The pattern, compiled, in many blocks and chunks, or by torch."""
    if request.param == "blocks":
        for name, number in (("_FIRST", 2), ("_SECOND", 3), ("_PER_ROW", 0.1), ("_CHUNK", 4)):
            monkeypatch.setattr(pattern, name, number)
    made = sampled.Pattern(ROWS, COLS, (M, N), compiled=request.param != "torch")
    assert made.compiled == (request.param != "torch")
    assert (made.first.blocks > 1) == (request.param == "blocks")
    return made


def dense(places, entries):
    """The sparse matrix itself, by numpy."""
    E = np.zeros((*entries.shape[:-1], M, N), dtype=entries.numpy().dtype)
    for e in np.ndindex(entries.shape[:-1]):
        np.add.at(
            E[e], (ROWS[places.order].numpy(), COLS[places.order].numpy()), entries[e].numpy()
        )
    return torch.from_numpy(E)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)], ids=str)
@pytest.mark.parametrize("k", [1, 4, 5, 35])
@pytest.mark.usefixtures("threads")
def test_products_are_those_of_dense_matrices(places, randn, k, batch):
    A, B, e = draws(randn, *batch, k=k)
    E, close = dense(places, e), {"rtol": 1e-13, "atol": 1e-13}
    want = (A @ B.mT)[..., ROWS[places.order], COLS[places.order]]
    torch.testing.assert_close(sampled.sample(places, A, B), want, **close)
    torch.testing.assert_close(sampled.sparse_times(places, e, B), E @ B, **close)
    torch.testing.assert_close(sampled.adjoint_times(places, e, A), E.mT @ A, **close)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize(("k", "dtype"), [(1, F64), (5, F64), (16, F64), (5, torch.float32)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.usefixtures("threads")
def test_products_along_tangent_vectors(places, randn, k, dtype, batch, weighted):
    U, V, e = (part.to(dtype) for part in draws(randn, *batch, k=k))
    Up, Vp, _ = (part.to(dtype) for part in draws(randn, *batch, k=k))
    M, w = randn(*batch, k, k).to(dtype), randn(len(ROWS)).abs().to(dtype) if weighted else None
    assert TangentProducts.fits(places, U, V, e) == places.compiled
    if not places.compiled:
        return
    products = TangentProducts(places, U, V, e, w)
    xi = (U @ M + Up) @ V.mT + U @ Vp.mT
    x = xi[..., ROWS[places.order], COLS[places.order]]
    H, G = (dense(places, part).to(dtype) for part in (x if w is None else w * x, e))
    products(M, Up, Vp)  # of one call nothing is left to the next
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == F64 else {"rtol": 1e-4, "atol": 1e-4}
    for ours, oracle in zip(
        products(2 * M, 2 * Up, 2 * Vp), (H @ V, H.mT @ U, G @ Vp, G.mT @ Up), strict=True
    ):
        torch.testing.assert_close(ours, 2 * oracle, **close)


def test_what_products_along_tangent_vectors_do_not_take(places, randn):
    U, V, e = draws(randn, k=17)
    assert not TangentProducts.fits(places, U, V, e), "two halves are more than the loops hold"
    U, V, e = draws(randn)
    assert not TangentProducts.fits(places, U, V.requires_grad_(), e)
    assert not TangentProducts.fits(places, U.float(), V.detach(), e)
    assert not TangentProducts.fits(places, torch.stack([U, U]), V.detach(), e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128, torch.bfloat16])
def test_other_numbers(places, randn, dtype):
    A, B, e = draws(randn, 2, dtype=dtype)
    wide = torch.complex128 if dtype.is_complex else F64
    tolerance = {"rtol": 20 * torch.finfo(dtype).eps, "atol": 20 * torch.finfo(dtype).eps}
    E = dense(places, e.to(wide))
    want = (A.to(wide) @ B.to(wide).mH)[..., ROWS[places.order], COLS[places.order]]
    for ours, oracle in (
        (sampled.sample(places, A, B), want),
        (sampled.sparse_times(places, e, B), E @ B.to(wide)),
        (sampled.adjoint_times(places, e, A), E.mH @ A.to(wide)),
    ):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.to(wide), oracle, **tolerance)


def test_batches_broadcast_and_layouts_do_not_matter(places, randn):
    A, B, e = draws(randn)
    stack = torch.stack([B, -2 * B])
    one = sampled.sample(places, A, B)
    torch.testing.assert_close(sampled.sample(places, A, stack), torch.stack([one, -2 * one]))
    strange = torch.empty(N, 2 * 3 + 1, dtype=F64)[:, 1::2].copy_(B)  # strided, not aligned
    assert torch.equal(sampled.sample(places, A.mT.contiguous().mT, strange), one)
    spread = torch.stack([e, e], -1)[:, 0]
    assert torch.equal(sampled.sparse_times(places, spread, B), sampled.sparse_times(places, e, B))


def test_derivatives_of_every_order(places, randn):
    A, B, e = (t.requires_grad_() for t in draws(randn, 2))
    for f, inputs in (
        (lambda A, B: sampled.sample(places, A, B), (A, B)),
        (lambda e, B: sampled.sparse_times(places, e, B), (e, B)),
        (lambda e, A: sampled.adjoint_times(places, e, A), (e, A)),
    ):
        assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(f, inputs)


def quartic(places, A, B):
    return sampled.sample(places, A, B).pow(4).sum(-1)


def dense_quartic(A, B):
    return (A @ B.mT)[..., ROWS, COLS].pow(4).sum(-1)


def test_under_torch_func(places, randn):
    A, B, _ = draws(randn)
    many = torch.stack([A, A + 1, -A])
    hessian = torch.func.hessian(lambda A: quartic(places, A, B))(A)
    torch.testing.assert_close(hessian, torch.func.hessian(lambda A: dense_quartic(A, B))(A))
    ours, oracle = (
        torch.func.vmap(torch.func.grad(f, argnums=1), in_dims=(0, None))(many, B)
        for f in (lambda A, B: quartic(places, A, B), dense_quartic)
    )
    torch.testing.assert_close(ours, oracle)
    last = torch.func.vmap(lambda A, B: sampled.sample(places, A, B), in_dims=(2, 2), out_dims=1)
    wanted = torch.stack([sampled.sample(places, A, B)] * 2, 1)
    assert torch.equal(last(torch.stack([A, A], 2), torch.stack([B, B], 2)), wanted)


@needs_compiler
def test_one_graph(randn):
    places = sampled.Pattern(ROWS, COLS, (M, N))
    A, B, _ = draws(randn)
    compiled = torch.compile(lambda A, B: quartic(places, A, B), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(A, B), dense_quartic(A, B))


@needs_compiler
@pytest.mark.parametrize("places", ["compiled", "blocks"], indirect=True)
@pytest.mark.parametrize("k", [2, 10, 40])
@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.usefixtures("threads")
def test_one_pass_gives_the_numbers_of_several(places, randn, k, others, weighted):
    A, B, y = draws(randn, k=k)
    Q = draws(randn, k=others or k)[0]
    w = randn(len(ROWS)).square() if weighted else None
    d = sampled.sample(places, A, B) - y
    EB, EhQ, loss = sampled.residual_times(places, A, B, Q, y, w)
    wanted = d if w is None else w * d
    E = dense(places, wanted)
    torch.testing.assert_close(EB, E @ B)
    torch.testing.assert_close(EhQ, E.mT @ Q)
    torch.testing.assert_close(loss, 0.5 * wanted @ d)
    torch.testing.assert_close(sampled.square_sum(places, A, B, w, y), wanted @ d)
    x = d + y
    square = sampled.square_sum(places, A, B, w)
    torch.testing.assert_close(square, (x if w is None else w * x) @ x)
    C, D, _ = draws(randn, k=others or k)
    slope = sampled.slope_sum(places, A, B, C, D, y, w)
    torch.testing.assert_close(slope, wanted @ sampled.sample(places, C, D))


@needs_compiler
def test_threads_change_no_bit(randn):
    rows, cols = (torch.arange(200_000) * k % 301 for k in (7, 173))
    places = sampled.Pattern(rows, cols, (301, 301))
    assert len(places.first.bounds) == 4
    A, B, y = randn(301, 2), randn(301, 2), randn(200_000)

    def all_of_them():
        EB, EhA, loss = sampled.residual_times(places, A, B, B, y, None)
        batch = sampled.sample(places, torch.stack([A, B, A]), B)
        slope = sampled.slope_sum(places, A, B, B, A, y, None)
        return EB, EhA, loss, sampled.adjoint_times(places, y, A), batch, slope

    one = all_of_them()
    torch.set_num_threads(2)
    try:
        two = all_of_them()
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_places_that_come_in_order_are_arranged_alike(places):
    """Sorted by NumPy: row by row in each block of columns, and column by column."""
    rows, cols = ROWS.numpy(), COLS.numpy()
    # As they are; row by row, the columns of a row as they are; in order.
    for given in (np.arange(len(rows)), rows.argsort(stable=True), np.lexsort((cols, rows))):
        of = sampled.Pattern(ROWS[given], COLS[given], (M, N), compiled=places.compiled)
        for part, r, c in ((of.first, rows, cols), (of.second, cols, rows)):
            block = c // -(-part.columns // part.blocks)
            wanted = np.lexsort((c, r, block))
            assert part.index.tolist() == c[wanted].tolist()
            key = (block * part.rows + r)[wanted]
            starts = np.searchsorted(key, range(part.blocks * part.rows + 1))
            assert part.starts.tolist() == starts.tolist()
        assert torch.equal(of.first.index.long(), of.cols)
        assert torch.equal(of.second.index.long(), of.rows[of.second.place.long()])
        assert torch.equal(of.rows, ROWS[given][of.order])


@pytest.mark.parametrize("way", WAYS)
def test_no_places_and_no_columns(way, randn):
    none = sampled.Pattern(ROWS[:0], COLS[:0], (M, N), compiled=way == "compiled")
    A, B, e = draws(randn)
    assert sampled.sample(none, A, B).shape == (0,)
    assert torch.equal(sampled.sparse_times(none, e[:0], B), torch.zeros(M, 3, dtype=F64))
    places = sampled.Pattern(ROWS, COLS, (M, N), compiled=way == "compiled")
    assert torch.equal(sampled.sample(places, A[:, :0], B[:, :0]), torch.zeros(12, dtype=F64))
    known = MatrixCompletion(ROWS, COLS, e, (M, N), products=way)
    torch.testing.assert_close(known.pair_loss(A[:, :0], B[:, :0]), 0.5 * e @ e)
    assert sampled.adjoint_times(places, e, A[:, :0]).shape == (N, 0)
