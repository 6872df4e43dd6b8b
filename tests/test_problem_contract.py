"""Laws of every problem: its derivatives and products are those of its loss by definition."""

import pytest
import torch
from problem_cases import C128, CASES, F64, draw

from deeplin.problems import (
    LogisticRegression,
    MatrixApproximation,
    MatrixCompletion,
    Problem,
    Ridge,
    RobustCompletion,
)
from deeplin.problems.function import FromLoss

# Sums of a few hundred products of numbers of order one, in double precision.
TOL = {"rtol": 1e-10, "atol": 1e-10}

every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def matrices(case, *batch, seed=20):
    m, n = case.problem.shape
    return 0.4 * draw(*batch, m, n, seed=seed, dtype=case.dtype)


def factors(case, *batch, k=2, seed=30):
    m, n = case.problem.shape
    return (
        0.5 * draw(*batch, m, k, seed=seed, dtype=case.dtype),
        0.5 * draw(*batch, n, k, seed=seed + 1, dtype=case.dtype),
    )


def plain_gradient(case, W):
    """∇f(W) of the formula, with the batch of its data."""
    W = W.expand(*case.plain(W).shape, *W.shape[-2:]).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(case.plain(W).sum(), W)
    return gradient


def plain_hessian(case, W, xi):
    """D∇f(W)[ξ] of the formula, by a double backward pass of the dense loss."""
    W = W.expand(*case.plain(W).shape, *W.shape[-2:]).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(case.plain(W).sum(), W, create_graph=True)
    (product,) = torch.autograd.grad((gradient.conj() * xi).real.sum(), W)
    return product


def plain_eigenvalues(case, W):
    """All eigenvalues of the Hessian at one W, over real coordinates; (*batch of data, d)."""
    d = W.numel()
    basis = torch.eye(d, dtype=case.dtype)
    basis = torch.cat([basis, 1j * basis]) if case.dtype.is_complex else basis
    columns = []
    for direction in basis.unflatten(-1, W.shape):
        product = plain_hessian(case, W, direction).flatten(-2)
        columns.append(
            torch.cat([product.real, product.imag], -1) if product.is_complex() else product
        )
    return torch.linalg.eigvalsh(torch.stack(columns, -1))


@every
@pytest.mark.parametrize("batch", [(), (5, 1)])
def test_loss_and_gradient(case, batch):
    if batch and case.batch:
        batch = (5, *case.batch)
    W = matrices(case, *batch)
    torch.testing.assert_close(case.problem.loss(W), case.plain(W), **TOL)
    gradient = case.problem.egrad(W)
    torch.testing.assert_close(gradient, plain_gradient(case, W), **TOL)
    # The default, which subclasses override, too: it is what their own must equal.
    torch.testing.assert_close(Problem.egrad(case.problem, W), gradient, **TOL)


@every
def test_gradient_is_the_slope_of_the_loss(case):
    """f(W + hξ) − f(W − hξ) = 2h Re⟨∇f(W), ξ⟩ + O(h³): the convention of complex gradients."""
    W, xi, h = matrices(case), matrices(case, seed=21), 1e-4
    slope = (case.problem.loss(W + h * xi) - case.problem.loss(W - h * xi)) / (2 * h)
    product = (case.problem.egrad(W).conj() * xi).real.sum((-2, -1))
    # h² times a third derivative of order ten, and eps·f/h
    torch.testing.assert_close(slope, product, rtol=1e-6, atol=1e-6)


@every
@pytest.mark.parametrize("batch", [(), (5,)])
@pytest.mark.parametrize("default", [False, True], ids=["own", "default"])
def test_products_with_the_gradient(case, batch, default):
    problem = case.problem
    own = Problem if default else type(problem)
    batch = (*batch, *(1 for _ in case.batch))  # broadcast against the batch of the data
    A, B = factors(case, *batch)
    Q, P = factors(case, *batch, k=3, seed=40)
    torch.testing.assert_close(problem.pair_loss(A, B), case.plain(A @ B.mH), **TOL)
    G = plain_gradient(case, A @ B.mH)
    GP, GhQ = own.egrad_times(problem, A, B, P, Q)
    torch.testing.assert_close(GP, G @ P, **TOL)
    torch.testing.assert_close(GhQ, G.mH @ Q, **TOL)
    GRh, LhG = own.egrad_pair(problem, A, B.mH)
    torch.testing.assert_close(GRh, G @ B, **TOL)
    torch.testing.assert_close(LhG, A.mH @ G, **TOL)
    for k in (1, 2):
        U, V = (torch.linalg.qr(M[..., :k]).Q for M in (A, B))
        S = 0.5 * draw(*batch, k, k, seed=50, dtype=case.dtype)
        s = 0.5 + draw(*batch, k, seed=51).abs()
        for core, dense in ((S, S), (s, torch.diag_embed(s).to(case.dtype))):
            G = plain_gradient(case, U @ dense @ V.mH)
            GV, GhU = own.egrad_products(problem, U, core, V)
            torch.testing.assert_close(GV, G @ V, **TOL)
            torch.testing.assert_close(GhU, G.mH @ U, **TOL)


@every
def test_split_of_the_gradient(case):
    A, B = factors(case)
    U, V = torch.linalg.qr(A).Q, torch.linalg.qr(B).Q
    S = draw(2, 2, seed=50, dtype=case.dtype)
    split = case.problem.egrad_split(S, V)
    has_one = isinstance(case.problem, MatrixApproximation) or "C" in vars(case.problem)
    assert (split is not None) == has_one
    if split is not None:
        G = plain_gradient(case, U @ S @ V.mH)
        torch.testing.assert_close(U @ split[0] - split[1], G @ V, **TOL)


@every
@pytest.mark.parametrize("batch", [(), (5,)])
@pytest.mark.parametrize("default", [False, True], ids=["own", "default"])
def test_products_with_the_hessian(case, batch, default):
    problem = case.problem
    own = Problem if default else type(problem)
    batch = (*batch, *(1 for _ in case.batch))
    A, B = factors(case, *batch)
    left, right = factors(case, *batch, k=1, seed=60)
    Q, P = factors(case, *batch, k=3, seed=40)
    H = plain_hessian(case, A @ B.mH, left @ right.mH)
    HP, HhQ = own.hessian_times(problem, A, B, left, right, P, Q)
    torch.testing.assert_close(HP, H @ P, **TOL)
    torch.testing.assert_close(HhQ, H.mH @ Q, **TOL)
    U, V = torch.linalg.qr(A).Q, torch.linalg.qr(B).Q
    s = 0.5 + draw(*batch, 2, seed=51).abs()
    H = plain_hessian(case, (U * s[..., None, :]) @ V.mH, left @ right.mH)
    HV, HhU = own.hessian_products(problem, U, s, V, left, right)
    torch.testing.assert_close(HV, H @ V, **TOL)
    torch.testing.assert_close(HhU, H.mH @ U, **TOL)


@every
@pytest.mark.parametrize("batch", [(), (5,)])
@pytest.mark.parametrize("default", [False, True], ids=["own", "default"])
def test_products_that_riemannian_hessians_are_made_of(case, batch, default):
    batch = (*batch, *case.batch)
    U, V = (torch.linalg.qr(A).Q for A in factors(case, *batch))
    S, M = (0.5 * draw(*batch, 2, 2, seed=seed, dtype=case.dtype) for seed in (50, 51))
    Up, Vp = (
        A - Q @ (Q.mH @ A) for A, Q in zip(factors(case, *batch, seed=60), (U, V), strict=True)
    )
    products = (Problem if default else type(case.problem)).hessian_at(case.problem, U, S, V)
    found = products(M, Up, Vp)
    products(-M, 0 * Up, Vp)  # and what was found before stays
    W, xi = U @ S @ V.mH, (U @ M + Up) @ V.mH + U @ Vp.mH
    G, H = plain_gradient(case, W), plain_hessian(case, W, xi)
    for ours, oracle in zip(found, (H @ V, H.mH @ U, G @ Vp, G.mH @ Up), strict=True):
        torch.testing.assert_close(ours, oracle, **TOL)


@every
def test_a_part_of_a_batch(case):
    W = matrices(case, 3, *case.batch)
    which = torch.arange(W[..., 0, 0].numel()).reshape(W.shape[:-2]) % 3 == 1
    part = case.problem.narrowed(which)
    knows = isinstance(case.problem, MatrixCompletion | Ridge) and case.dtype == F64
    assert (part is not None) or not knows
    if part is not None:
        torch.testing.assert_close(part.loss(W[which]), case.plain(W)[which], **TOL)
        A, B = W[which][..., :2], draw(int(which.sum()), W.shape[-1], 2, seed=1, dtype=case.dtype)
        torch.testing.assert_close(part.pair_loss(A, B), part.loss(A @ B.mH), **TOL)


@every
def test_curvature_is_the_largest_eigenvalue(case):
    W = matrices(case)
    exact = float(plain_eigenvalues(case, W).abs().max())
    own, measured = case.problem.curvature(W), Problem.curvature(case.problem, W)
    assert 0.98 * exact <= measured <= exact * (1 + 1e-9)
    if isinstance(case.problem, LogisticRegression | RobustCompletion):
        assert own >= exact  # a bound, met at equal odds of two, and where no error is beyond delta
    elif type(case.problem).curvature is not Problem.curvature:
        assert own == pytest.approx(exact, rel=1e-10)


@every
def test_curvature_of_pairs_is_that_of_tangent_directions(case):
    """Against the Hessian restricted to a dense basis of the tangent space at ABᴴ."""
    A, B = factors(case, k=1)
    m, n = case.problem.shape
    U, V = (torch.linalg.qr(M, mode="complete").Q for M in (A, B))
    units = [1.0, 1j] if case.dtype.is_complex else [1.0]
    places = [(i, 0) for i in range(m)] + [(0, j) for j in range(1, n)]
    basis = [c * U[:, [i]] @ V[:, [j]].mH for i, j in places for c in units]
    products = [plain_hessian(case, A @ B.mH, xi) for xi in basis]
    form = [[(x.conj() * h).real.sum((-2, -1)) for h in products] for x in basis]
    exact = torch.linalg.eigvalsh(torch.stack([torch.stack(row, -1) for row in form], -2))
    exact = float(exact.abs().max())
    measured = Problem.pair_curvature(case.problem, A, B)
    assert 0.98 * exact <= measured <= exact * (1 + 1e-9)
    own = case.problem.pair_curvature(A, B)
    whole = case.problem.curvature(A @ B.mH)
    assert 0.98 * measured <= own <= whole * 1.02


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, F64, C128])
def test_moved_problems_keep_their_values(case, dtype):
    moved = case.problem.to(dtype.to_real())
    assert moved.shape == case.problem.shape
    assert moved.field == case.problem.field == ("complex" if case.dtype.is_complex else "real")
    if case.dtype.is_complex != dtype.is_complex:
        return
    if isinstance(case.problem, FromLoss):
        return  # what a function holds is its own
    W = matrices(case)
    near = moved.loss(W.to(dtype))
    assert near.dtype == dtype.to_real()
    torch.testing.assert_close(near.double(), case.plain(W), rtol=1e-4, atol=1e-4)
    if dtype == case.dtype:
        assert moved is case.problem


@every
def test_transforms(case):
    """vmap, jvp, jacrev, no_grad and an outer tape, as without."""
    problem = case.problem
    W, xi = matrices(case, 4, *(1 for _ in case.batch)), matrices(case, seed=21)
    gradient = problem.egrad(W)
    vmapped = torch.func.vmap(problem.egrad)(W)
    torch.testing.assert_close(vmapped, gradient, **TOL)
    with torch.no_grad():
        torch.testing.assert_close(problem.egrad(W), gradient, **TOL)
        Problem.egrad(problem, W)
    hessian = plain_hessian(case, W[0], xi)
    if not case.batch:
        _, along = torch.func.jvp(problem.egrad, (W[0],), (xi,))
        torch.testing.assert_close(along, hessian, **TOL)
    if not case.batch and not case.dtype.is_complex:  # torch's jacrev is of real functions alone
        torch.testing.assert_close(torch.func.jacrev(problem.loss)(W[0]), gradient[0], **TOL)
    taped = W[0].clone().requires_grad_()
    (product,) = torch.autograd.grad((problem.egrad(taped).conj() * xi).real.sum(), taped)
    torch.testing.assert_close(product, hessian.sum_to_size(product.shape), **TOL)
    A, B = factors(case)
    Q, P = factors(case, k=3, seed=40)
    stacked = (A[None], B[None], P[None], Q[None])
    for a, b in zip(
        torch.func.vmap(problem.egrad_times)(*stacked), problem.egrad_times(A, B, P, Q), strict=True
    ):
        torch.testing.assert_close(a[0], b, **TOL)


@pytest.mark.parametrize("name", ["least squares", "completion", "logistic", "own class"])
def test_one_graph(name):
    case = CASES[name]
    A, B = factors(case)
    Q, P = factors(case, k=3, seed=40)
    for own, inputs in (
        (case.problem.egrad, (matrices(case),)),
        (case.problem.egrad_times, (A, B, P, Q)),
        (case.problem.hessian_times, (A, B, *factors(case, k=1, seed=60), P, Q)),
    ):
        torch.compiler.reset()
        compiled = torch.compile(own, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(*inputs), own(*inputs), **TOL)
