"""Products at given places: those of dense matrices, compiled or by torch, with all derivatives."""

import geoopt
import numpy as np
import pytest
import torch
from runner import needs_compiler

from deeplin import MatrixCompletion, sampled
from deeplin.manifolds import FixedRankFactored
from deeplin.sampled import TangentProducts, pattern

F64 = torch.float64
M, N = 7, 5
# Rows 1 and 6 and column 3 have no place; (2, 4) is listed three times.
ROWS = torch.tensor([5, 2, 0, 2, 3, 2, 4, 0, 3, 2, 5, 4])
COLS = torch.tensor([1, 4, 0, 4, 2, 4, 1, 2, 0, 1, 4, 0])
WAYS = [pytest.param("compiled", marks=needs_compiler), "torch"]


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


@pytest.fixture(params=[1, 2], ids="{} threads".format)
def threads(request):
    """A matrix is one thread's, or several share it: then a batch of two is one thread's each."""
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


def dense(places, entries):
    """The sparse matrix itself, by numpy."""
    E = np.zeros((*entries.shape[:-1], M, N), dtype=entries.numpy().dtype)
    for e in np.ndindex(entries.shape[:-1]):
        np.add.at(
            E[e], (ROWS[places.order].numpy(), COLS[places.order].numpy()), entries[e].numpy()
        )
    return torch.from_numpy(E)


def draws(randn, *batch, k=3, dtype=F64):
    def draw(*shape):
        real = randn(*batch, *shape).to(dtype)
        return real + 1j * randn(*batch, *shape).to(dtype) if dtype.is_complex else real

    return draw(M, k), draw(N, k), draw(len(ROWS))


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
@pytest.mark.parametrize("k", [2, 40])
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


@needs_compiler
def test_threads_change_no_bit(randn):
    rows, cols = (torch.arange(200_000) * k % 301 for k in (7, 173))
    places = sampled.Pattern(rows, cols, (301, 301))
    assert len(places.first.bounds) == 4
    A, B, y = randn(301, 2), randn(301, 2), randn(200_000)

    def all_of_them():
        EB, EhA, loss = sampled.residual_times(places, A, B, B, y, None)
        batch = sampled.sample(places, torch.stack([A, B, A]), B)
        return EB, EhA, loss, sampled.adjoint_times(places, y, A), batch

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


# -- in the problem --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_those_of_dense_sums(way, randn):
    y, w = randn(len(ROWS)), randn(len(ROWS)).square()
    problem = MatrixCompletion(ROWS, COLS, y, (M, N), weights=w, products=way)
    A, B, _ = draws(randn)
    C, D, _ = draws(randn, k=2)

    def plain(W):
        return 0.5 * (w * (W[ROWS, COLS] - y).square()).sum()

    W, xi = A @ B.mT, C @ D.mT
    G, H = torch.func.jvp(torch.func.grad(plain), (W,), (xi,))
    torch.testing.assert_close(problem.loss(W), plain(W))
    torch.testing.assert_close(problem.pair_loss(A, B), plain(W))
    torch.testing.assert_close(problem.egrad(W), G)
    for P, Q in ((B, A), (D, C)):  # in one pass, and not
        for ours, oracle in zip(problem.egrad_times(A, B, P, Q), (G @ P, G.mT @ Q), strict=True):
            torch.testing.assert_close(ours, oracle)
        for ours, oracle in zip(
            problem.hessian_times(A, B, C, D, P, Q), (H @ P, H.mT @ Q), strict=True
        ):
            torch.testing.assert_close(ours, oracle)
    torch.testing.assert_close(problem.quadratic_along(C, D), (xi * H).sum())
    many = problem.quadratic_along(torch.stack([C, 2 * C]), D)
    torch.testing.assert_close(many, torch.stack([(xi * H).sum(), 4 * (xi * H).sum()]))
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    for core in (S, torch.diag(S)):
        loss, GV, GhU = problem.loss_and_products(U, core, Vh.mT)
        for ours, oracle in ((loss, plain(W)), (GV, G @ Vh.mT), (GhU, G.mT @ U)):
            torch.testing.assert_close(ours, oracle)
    for ours, oracle in zip(problem.egrad_at(A, B)(D, C), (G @ D, G.mT @ C), strict=True):
        torch.testing.assert_close(ours, oracle)
    diagonal = torch.zeros(M, N, dtype=F64).index_put_((ROWS, COLS), w, accumulate=True)
    assert problem.curvature(W) == pytest.approx(float(diagonal.max()))


@pytest.mark.parametrize("way", WAYS)
def test_a_step_of_geoopt_is_that_on_the_dense_loss(way, randn, generator):
    manifold = FixedRankFactored(M, N, 2)
    problem = MatrixCompletion(ROWS, COLS, randn(len(ROWS)), (M, N), products=way)
    x = manifold.random(dtype=F64, generator=generator)
    ends = []
    for loss in (
        lambda p: problem.pair_loss(*manifold.factor_pair(p)),
        lambda p: 0.5 * (manifold.to_dense(p)[ROWS, COLS] - problem.values).square().sum(),
    ):
        p = geoopt.ManifoldParameter(x.clone(), manifold=manifold)
        loss(p).backward()
        geoopt.optim.RiemannianSGD([p], lr=0.1).step()
        ends.append(manifold.to_dense(p.detach()))
    torch.testing.assert_close(*ends)


def test_where_there_is_no_compiler_torch_takes_its_place(monkeypatch, randn):
    monkeypatch.setenv("CC", "no-such-cc")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/none")
    problem = MatrixCompletion(ROWS, COLS, randn(12), (M, N))
    assert not problem._pattern.compiled
    A, B, _ = draws(randn)
    torch.testing.assert_close(problem.pair_loss(A, B), problem.loss(A @ B.mT))
    with pytest.raises(
        ValueError, match=r"compiled products need a C compiler, .* got 'no-such-cc'.*, or use prod"
    ):
        MatrixCompletion(ROWS, COLS, randn(12), (M, N), products="compiled")


def test_moved_to_other_numbers_and_devices(randn):
    problem = MatrixCompletion(ROWS, COLS, randn(12), (M, N), weights=randn(12).square())
    moved = problem.to(torch.float32)
    A, B, _ = draws(randn, dtype=torch.float32)
    torch.testing.assert_close(moved.pair_loss(A, B), moved.loss(A @ B.mT))
    assert moved.pair_loss(A, B).dtype == torch.float32
    assert problem.to("meta")._pattern.order.device.type == "meta"


NAN = float("nan")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "sentence"),
    [
        (
            ([0], [5], [1.0], (2, 2)),
            {},
            ValueError,
            r"cols must lie in 0\.\.1; got values in 5",
        ),
        (([-1], [0], [1.0], (2, 2)), {}, ValueError, r"rows must lie in 0\.\.1; got values in -1"),
        (
            ([0.5], [0], [1.0], (2, 2)),
            {},
            TypeError,
            "rows must be whole numbers; got dtype t",
        ),
        (
            ([0], [True], [1.0], (2, 2)),
            {},
            TypeError,
            "cols must be whole numbers; got dtype",
        ),
        (([0, 1], [0], [1.0], (2, 2)), {}, ValueError, "one row and one column per value"),
        (([0], [0], [NAN], (2, 2)), {}, ValueError, "values must be finite; 1 of 1 are NaN"),
        (([0], [0], [1.0], (2, 2)), {"weights": [-1.0]}, ValueError, "finite and not negative"),
        (([0], [0], [1.0], (2, 2)), {"weights": [NAN]}, ValueError, "finite and not negative"),
        (([0], [0], [1.0], (2, 2)), {"weights": [1.0, 2.0]}, ValueError, "one weight per known"),
        (
            ([0], [0], [1.0], (2, 2)),
            {"products": "c"},
            ValueError,
            "products must be one of 'a",
        ),
    ],
)
def test_bad_entries_are_one_sentence(arguments, options, error, sentence):
    rows, cols, values, shape = arguments
    if "weights" in options:
        options = {"weights": torch.tensor(options["weights"])}
    with pytest.raises(error, match=sentence):
        MatrixCompletion(rows, cols, torch.tensor(values), shape, **options)


def test_weights_are_tensors():
    with pytest.raises(TypeError, match="weights must be a tensor of real numbers; got list"):
        MatrixCompletion([0], [0], torch.ones(1), (2, 2), weights=[1.0])


def test_places_of_a_matrix_with_more_entries_than_32_bits_count():
    d = 3_000_000
    problem = MatrixCompletion([0, d - 1, d - 1], [d - 1, 5, 5], torch.ones(3, dtype=F64), (d, d))
    A, B = torch.ones(d, 1, dtype=F64), torch.arange(d, dtype=F64)[:, None]
    assert float(problem.pair_loss(A, B)) == 0.5 * ((d - 2) ** 2 + 2 * 16)
    assert problem.curvature(A) == 2
