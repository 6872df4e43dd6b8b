"""Matrix completion: weights, steps, devices and bad entries, whatever takes the products."""

import geoopt
import pytest
import torch
from sampled_cases import COLS, F64, ROWS, WAYS, M, N, draws
from torch.autograd import forward_ad

from deeplin import MatrixCompletion
from deeplin.manifolds import FixedRankFactored


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
    torch.testing.assert_close(problem.slope_along(A, B, C, D), (G * xi).sum())
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
def test_forward_mode_goes_through_every_product(way, randn):
    """Levels of duals, where no tensor asks for a gradient, against jvp of the dense loss."""
    problem = MatrixCompletion(ROWS, COLS, randn(len(ROWS)), (M, N), products=way)
    (A, B, _), (rate, _, _) = draws(randn), draws(randn)
    Q, eye = randn(M, 3), torch.eye(3, dtype=F64)
    counts = torch.zeros(M, N, dtype=F64)
    counts.index_put_((ROWS, COLS), torch.ones(len(ROWS), dtype=F64), accumulate=True)

    def ours(A):
        square = problem.quadratic_along(A, B)
        of_U = problem.loss_and_products(A, eye, B)
        slope = problem.slope_along(A, B, rate, B)
        return problem.pair_loss(A, B), square, slope, *of_U, *problem.egrad_times(A, B, B, Q)

    def dense(A):
        W = A @ B.mT
        loss, G = problem.loss(W), problem.egrad(W)
        square = (counts * W.square()).sum()
        slope = (G * (rate @ B.mT)).sum()
        return loss, square, slope, loss, G @ B, G.mT @ A, G @ B, G.mT @ Q

    wanted = torch.func.jvp(dense, (A,), (rate,))[1]
    with forward_ad.dual_level():
        found = [forward_ad.unpack_dual(part) for part in ours(forward_ad.make_dual(A, rate))]
    for part, oracle in zip(found, wanted, strict=True):
        assert part.tangent is not None, "lost on the way"
        torch.testing.assert_close(part.tangent, oracle)


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
