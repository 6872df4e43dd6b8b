"""The blocks of completion's Hessian: their formulas, and what they do for conjugate gradients."""

import itertools

import numpy as np
import pytest
import torch
from runner import needs_compiler

from deeplin import sampled
from deeplin.manifolds import FixedRankFactored
from deeplin.optim import ConjugateGradient, TrustRegion, minimize
from deeplin.optim.blocks import BlockPreconditioner
from deeplin.optim.objectives import ProblemObjective
from deeplin.optim.space import Space
from deeplin.problems import (
    MatrixApproximation,
    MatrixCompletion,
    Ridge,
    RobustCompletion,
    alternating_start,
    spectral_start,
)
from deeplin.sampled import pattern

F64, F32, C128 = torch.float64, torch.float32, torch.complex128
SOLVERS = [ConjugateGradient, TrustRegion]
M, N = 7, 5
ROWS = torch.tensor([5, 2, 0, 2, 3, 2, 4, 0, 3, 2, 5, 4])
COLS = torch.tensor([1, 4, 0, 4, 2, 4, 1, 2, 0, 1, 4, 0])


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


def planted(seed=0, *, shape=(60, 50), rank=3, oversampling=3.0, **options):
    return MatrixCompletion.planted(
        shape,
        rank,
        oversampling=oversampling,
        generator=torch.Generator().manual_seed(seed),
        dtype=F64,
        **options,
    )


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


# -- alternating least squares ---------------------------------------------------------------------


def test_a_sweep_fits_each_row_by_damped_least_squares(randn):
    known, _ = planted()
    start = spectral_start(known, 3)
    found = alternating_start(known, 3, most=1)
    X, mask = np.zeros((60, 50)), np.zeros((60, 50), dtype=bool)
    X[known.rows, known.cols], mask[known.rows, known.cols] = known.values, True

    def fitted(A, B, X, mask):
        """Rows a of least Σ_j (x_j − ⟨a, B_j⟩)² + δμ|a − A_i|²."""
        damping = np.square((A @ B.T - X)[mask]).sum() / np.square(X[mask]).sum()
        mean = sum(np.trace(B[row].T @ B[row]) for row in mask) / (3 * len(A))
        root = np.sqrt(damping * mean) * np.eye(3)
        rows = []
        for a, x, row in zip(A, X, mask, strict=True):
            system = np.concatenate([B[row], root]), np.concatenate([x[row], root @ a])
            rows.append(np.linalg.lstsq(*system, rcond=None)[0])
        return np.stack(rows)

    A, V = fitted((start.U @ start.S).numpy(), start.V.numpy(), X, mask), start.V.numpy()
    U, S = np.linalg.qr(A)
    B = fitted(V @ S.T, U, X.T, mask.T)
    np.testing.assert_allclose(found.dense(), U @ B.T, atol=1e-10)
    assert float((found.U.mT @ found.U - torch.eye(3)).norm()) < 1e-13
    assert float((found.V.mT @ found.V - torch.eye(3)).norm()) < 1e-13


def test_sweeps_end_once_they_are_enough_or_do_not_pay(monkeypatch):
    known, _ = planted(shape=(200, 150))

    def residual(point):
        return (
            float(
                known.pair_loss(point.U @ point.S, point.V) / known.pair_loss(0 * point.U, point.V)
            )
            ** 0.5
        )

    counted = []
    of_known = MatrixCompletion.inverse_blocks
    monkeypatch.setattr(
        MatrixCompletion,
        "inverse_blocks",
        lambda self, *given, **options: counted.append(1) or of_known(self, *given, **options),
    )
    assert residual(alternating_start(known, 3, most=9, enough=0.02)) < 0.02
    assert 4 <= len(counted) < 18
    counted.clear()
    noise = known.with_values(torch.randn(len(known.values), dtype=F64))
    alternating_start(noise, 3, most=9)
    assert len(counted) == 4, "the second has not halved the loss"
    start, same = spectral_start(known, 3), alternating_start(known, 3, most=0)
    assert torch.equal(same.U, start.U)
    assert torch.equal(same.S, start.S)


def test_what_has_no_blocks_has_the_spectral_start(randn):
    problem = MatrixApproximation(randn(6, 5))
    start, same = spectral_start(problem, 2), alternating_start(problem, 2)
    assert torch.equal(same.dense(), start.dense())
    with pytest.raises(ValueError, match=r"most must be an integer >= 0; got -1"):
        alternating_start(problem, 2, most=-1)


def test_conjugate_gradients_need_fewer_steps_from_there():
    known, _ = planted(shape=(400, 300))
    tol = 1e-8 * float(known.values.norm())
    starts = alternating_start(known, 3), spectral_start(known, 3)
    near, far = (minimize(known, start, tol=tol) for start in starts)
    assert bool(near.converged)
    assert near.iterations < 0.85 * far.iterations


# -- in solvers ------------------------------------------------------------------------------------


def test_steps_are_fewer_than_without():
    known, _ = planted(shape=(400, 300), oversampling=3.0)
    tol = 1e-8 * float(known.values.norm())
    start = spectral_start(known, 3)
    few, many = (
        minimize(known, start, tol=tol, preconditioner=which) for which in ("blocks", None)
    )
    assert bool(few.converged)
    assert bool(many.converged)
    assert few.iterations < 0.7 * many.iterations
    auto = minimize(known, start, tol=tol)
    assert torch.equal(auto.point.U, few.point.U)


def test_what_is_ill_conditioned_is_found_in_fewer_steps():
    known, (U, sigma, V) = planted(shape=(300, 300), rank=5, condition=10.0)
    tol, start = 1e-8 * float(known.values.norm()), spectral_start(known, 5)
    found = minimize(known, start, tol=tol, max_iter=100)
    assert float((found.point.dense() - (U * sigma) @ V.mT).norm()) < 1e-6 * float(sigma.norm())
    plain = minimize(known, start, tol=tol, max_iter=200, preconditioner=None)
    assert found.iterations < 0.6 * plain.iterations


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__)
def test_a_state_with_blocks_goes_on_to_the_same_bits(solver, tmp_path):
    known, _ = planted()
    manifold = FixedRankFactored(60, 50, 3, depth=1)
    start = spectral_start(known, 3)
    x = manifold.parameter(manifold.pack_point(start.U, start.S, start.V))
    optimizer = solver([x], problem=known, preconditioner="blocks")
    for _ in range(4):
        optimizer.step()
    torch.save({"x": x.detach().clone(), "state": optimizer.state_dict()}, tmp_path / "state.pt")
    assert float(optimizer.state[x]["blocks_used"]) == 1
    assert not torch.equal(optimizer.state[x]["blocks_at"], x), "they are of an earlier point"
    straight = [float(optimizer.step()) for _ in range(4)]
    kept = torch.load(tmp_path / "state.pt")
    y = manifold.parameter(kept["x"].as_subclass(torch.Tensor))
    other = solver([y], problem=known, preconditioner="blocks")
    other.load_state_dict(kept["state"])
    assert [float(other.step()) for _ in range(4)] == straight
    assert torch.equal(x.detach(), y.detach())
    for _ in range(4):
        optimizer.step()  # to blocks of another point
    kept = torch.load(tmp_path / "state.pt")
    x.data.copy_(kept["x"])
    optimizer.load_state_dict(kept["state"])
    assert [float(optimizer.step()) for _ in range(4)] == straight


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__)
def test_each_matrix_of_a_batch_has_its_own_blocks(solver):
    """Also those that begin to use them later, or are done before."""
    known, _ = planted(oversampling=4.0)
    values = torch.stack([planted(seed, oversampling=4.0)[0].values for seed in range(3)])
    near = planted()[1]
    batch = known.with_values(values)
    manifold = FixedRankFactored(60, 50, 3, depth=1)
    U, sigma, V = near
    start = manifold.pack_point(U, torch.diag(sigma), V)
    x = manifold.parameter(start.expand(3, *start.shape).clone())
    optimizer = solver([x], problem=batch, preconditioner="blocks", tol=1e-9)
    for _ in range(12):
        optimizer.step()
    for i in range(3):
        alone = manifold.parameter(start.clone())
        single = solver(
            [alone], problem=known.with_values(values[i]), preconditioner="blocks", tol=1e-9
        )
        for _ in range(12):
            single.step()
        assert float(optimizer.loss[i]) == pytest.approx(float(single.loss), rel=1e-6, abs=1e-18)


def test_outliers_and_ridges(randn):
    known, _ = planted()
    robust = RobustCompletion(known.rows, known.cols, known.values, known.shape, delta=0.02)
    for problem in (robust, Ridge(known, 0.01)):
        start = spectral_start(problem, 3)
        few, many = (
            minimize(problem, start, tol=1e-9, max_iter=400, preconditioner=which)
            for which in ("blocks", None)
        )
        assert bool(few.converged)
        assert float(few.loss) <= float(many.loss) * (1 + 1e-9)
        assert few.iterations <= many.iterations


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__)
def test_what_blocks_need_is_said(solver, randn):
    known, _ = planted()
    y = torch.nn.Parameter(torch.ones(3, dtype=F64))
    with pytest.raises(ValueError, match=r"preconditioner must be a function .* got \'rows\'"):
        solver([y], preconditioner="rows")
    with pytest.raises(ValueError, match=r'preconditioner="blocks" needs problem=\.\.\.'):
        solver([y], preconditioner="blocks")
    manifold = FixedRankFactored(60, 50, 3, depth=2)
    x = manifold.parameter(manifold.origin(dtype=F64))
    with pytest.raises(ValueError, match=r"belongs to the embedded metric, depth=1; got"):
        solver([x], problem=known, preconditioner="blocks")
    optimizer = solver([x], problem=known)
    optimizer.step()
    assert "blocks_used" not in optimizer.state[x], '"auto" takes none'
    manifold = FixedRankFactored(6, 5, 2, depth=1)
    problem = MatrixApproximation(randn(6, 2) @ randn(2, 5) + 0.01 * randn(6, 5))
    x = manifold.parameter(manifold.origin(dtype=F64))
    solver([x], problem=problem).step()
    near = manifold.parameter(manifold.from_dense(problem.X).as_subclass(torch.Tensor))
    optimizer = solver([near], problem=problem, preconditioner="blocks")
    with pytest.raises(ValueError, match=r"rows meet in no term.* got MatrixApproximation"):
        optimizer.step()
