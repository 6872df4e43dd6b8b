"""Trust regions: Hessians, truncated conjugate gradients, radii, quadratic convergence."""

import pytest
import torch
from optim_cases import closure_of, completion, run

from deeplin.manifolds import FixedRankFactored
from deeplin.optim import (
    TrustRegion,
)
from deeplin.optim.objectives import ClosureObjective, ProblemObjective
from deeplin.optim.space import Space
from deeplin.optim.truncated_cg import Model, truncated_cg

F64 = torch.float64


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_hessians_of_a_problem_are_those_by_autograd(depth, randn, generator):
    _, problem = completion(randn)
    manifold = FixedRankFactored(30, 25, 2, depth=depth)
    U, S, V = manifold.unpack_tensor(manifold.random(dtype=F64, generator=generator))
    P, R = (torch.linalg.qr(randn(2, 2)).Q for _ in range(2))  # S of any gauge
    x = manifold.pack_point(U @ P, P.mT @ S @ R, V @ R).as_subclass(torch.Tensor)
    u = manifold.proju(x, randn(57, 2))
    space = Space([manifold.parameter(x.clone())])
    exact = ProblemObjective(space, problem)
    _, gradient = exact.evaluate([x])
    oracle = manifold.hessian_vector_product(x, lambda A, B: problem.loss(A @ B.mT), u)
    torch.testing.assert_close(exact.hessian([x], gradient)([u])[0], oracle)
    if depth > 1:  # where differences are those of another connection, away from critical points
        return

    def closure():
        p = space.parameters[0]
        p.grad = None
        loss = problem.loss(manifold.to_dense(p))
        loss.backward()
        return loss

    by_difference = ClosureObjective(space, closure).hessian([x], gradient)([u])[0]
    # of first order in the difference, whose length is 2^-14 of a matrix of norm near 1
    assert (by_difference - oracle).norm() < 1e-3 * oracle.norm()


def test_convergence_is_quadratic(randn):
    truth, problem = completion(randn)
    manifold = FixedRankFactored(30, 25, 2, depth=1)
    x = manifold.parameter(manifold.from_dense(truth + 0.1 * randn(30, 25)))
    optimizer = TrustRegion([x], problem=problem, tol=1e-12, kappa=0.1)
    norms = []
    for _ in range(30):
        optimizer.step()
        norms.append(float(optimizer.gradient_norm))
        if bool(optimizer.finished):
            break
    assert norms[-1] <= 1e-12
    last = [n for n in norms if n > 1e-13][-3:]
    assert last[-1] < last[-2] ** 1.5 * 10


@pytest.mark.parametrize("depth", [1, 2])
def test_gauss_and_newton(depth, randn, generator):
    """𝒜 P D∇f P by dense matrices, and what it finds."""
    truth, problem = completion(randn)
    manifold = FixedRankFactored(30, 25, 2, depth=depth)
    start = manifold.from_dense(truth + 0.5 * randn(30, 25))
    x = manifold.random(dtype=F64, generator=generator).as_subclass(torch.Tensor)
    u = manifold.proju(x, randn(57, 2))
    objective = ProblemObjective(Space([manifold.parameter(x.clone())]), problem)
    _, gradient = objective.evaluate([x])
    (ours,) = objective.hessian([x], gradient, curved=False)([u])
    W, xi = manifold.to_dense(x), manifold.tangent_to_dense(x, u)
    H = problem.egrad(W + xi) - problem.egrad(W)  # f is quadratic
    U, s, Vh = torch.linalg.svd(W)
    U, s, V = U[:, :2], s[:2], Vh[:2].mT
    if depth == 1:
        dense = U @ U.mT @ H + H @ V @ V.mT - U @ U.mT @ H @ V @ V.mT
    else:  # (WWᵀ)^½ H + H (WᵀW)^½
        dense = (U * s) @ U.mT @ H + H @ (V * s) @ V.mT
    torch.testing.assert_close(manifold.tangent_to_dense(x, ours), dense)
    p = manifold.parameter(start)
    optimizer = TrustRegion([p], problem=problem, hessian="gauss_newton", tol=1e-10)
    for _ in range(40):
        optimizer.step()
    assert float(optimizer.gradient_norm) <= 1e-10
    assert (manifold.to_dense(p.detach()) - truth).norm() < 1e-8 * truth.norm()


def test_negative_curvature_is_followed_to_the_border():
    """A saddle, exactly: the model of f = ½(x² − y²) from (1, 0) by hand."""
    space = Space([torch.zeros(2, dtype=F64)])
    x, g = [torch.zeros(2, dtype=F64)], [torch.tensor([1.0, 1e-3], dtype=F64)]
    H = torch.diag(torch.tensor([1.0, -1.0], dtype=F64))
    radius, goal = torch.tensor([3.0, 1e-8], dtype=F64)

    def minimizer(H):
        model = Model(space, x, g, lambda u: [H @ u[0]], lambda u: u)
        return truncated_cg(model, radius, goal, torch.tensor(True), most=10)

    found = minimizer(H)
    (eta,) = found.step
    assert bool(found.at_border)
    assert float(eta.norm()) == pytest.approx(3.0)
    assert float(found.change) == pytest.approx(float(g[0] @ eta + 0.5 * eta @ H @ eta))
    assert eta[1] < 0
    inside = minimizer(2 * H.abs())
    torch.testing.assert_close(inside.step[0], -g[0] / 2)
    assert not bool(inside.at_border)


def test_what_is_done_of_a_batch_is_left_out(randn):
    """Quadratics of 1 to 8 curvatures, which take CG so many steps; the last bends down."""
    curvatures = 1.0 + torch.minimum(torch.arange(8), torch.arange(8)[:, None]).to(F64)
    curvatures[7, 3] = -1.0
    g, seen = randn(8, 8), []

    def model(which, narrow):
        own, space = curvatures[which], Space([torch.zeros(int(which.sum()), 8, dtype=F64)])
        space.set_batch(own.shape[:1])

        def hessian(u):
            seen.append(len(own))
            return [own * u[0]]

        def narrowed(few):
            return model(torch.zeros_like(which).masked_scatter(which, few), narrow)

        x = [torch.zeros_like(own)]
        return Model(space, x, [g[which]], hessian, lambda u: u, narrowed if narrow else None)

    def minimizer(narrow):
        seen.clear()
        every, full = torch.ones(8, dtype=torch.bool), torch.full((8,), 1e3, dtype=F64)
        return truncated_cg(model(every, narrow), full, 1e-9 * full / 1e3, every, most=20), [*seen]

    (whole, counts), (parts, fewer) = minimizer(False), minimizer(True)
    assert set(counts) == {8}
    assert len(fewer) == len(counts)
    assert fewer == sorted(fewer, reverse=True)
    assert fewer[-1] <= 2
    torch.testing.assert_close(parts.step[0], whole.step[0])
    torch.testing.assert_close(parts.step[0][:7], -(g / curvatures)[:7], rtol=1e-7, atol=1e-7)
    assert parts.at_border.tolist() == 7 * [False] + [True]
    assert float(parts.step[0][7].norm()) == pytest.approx(1e3)


def test_steps_do_not_depend_on_the_unit_of_the_loss(randn):
    """From the same start f and 1e-6 f take the same way."""
    A = randn(6, 6)
    ends = []
    for unit in (1.0, 1e-6):
        y = torch.nn.Parameter(torch.ones(6, dtype=F64))

        def loss(z, unit=unit):
            return unit * ((A @ z).square().sum() + z.pow(4).sum())

        def hessian(x, u, loss=loss):
            return [torch.autograd.functional.hvp(loss, x[0], u[0])[1]]

        optimizer = run(TrustRegion([y], hessian=hessian), lambda loss=loss, y=y: loss(y), 4)
        ends.append((y.detach().clone(), optimizer.gradient_norm / unit))
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-10)


def test_a_step_that_raises_the_loss_is_refused():
    """f has a wall that its second derivative at the start does not see."""
    y = torch.nn.Parameter(torch.tensor([1.0], dtype=F64))

    def loss():
        return -y.sum() + torch.where(y > 1.5, (y - 1.5) * 100, 0.0).sum()

    optimizer = TrustRegion([y], radius=4.0)
    optimizer.step(closure_of(optimizer, loss))
    assert float(y.detach()) == 1.0
    assert float(optimizer.radius) == 1.0
    assert float(optimizer.rho) < 0
    run(optimizer, loss, 3)
    assert 1.0 < float(y.detach()) <= 1.52


def test_bad_options_of_trust_regions():
    y = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"TrustRegion: accept must lie in \[0, 0.25\]; got 0.5"):
        TrustRegion([y], accept=0.5)
    with pytest.raises(ValueError, match=r"max_radius must lie in \[2, inf\]; got 1"):
        TrustRegion([y], radius=2, max_radius=1)
    with pytest.raises(ValueError, match=r"hessian must be a function of \(x, u\).*got 'newton'"):
        TrustRegion([y], hessian="newton")
    with pytest.raises(ValueError, match=r'hessian="gauss_newton" needs problem=\.\.\.'):
        TrustRegion([y], hessian="gauss_newton")
