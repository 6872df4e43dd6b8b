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
from deeplin.optim.truncated_cg import truncated_cg

F64 = torch.float64


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_hessians_of_a_problem_are_those_by_autograd(depth, randn, generator):
    _, problem = completion(randn)
    manifold = FixedRankFactored(30, 25, 2, depth=depth)
    x = manifold.random(dtype=F64, generator=generator).as_subclass(torch.Tensor)
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


def test_negative_curvature_is_followed_to_the_border():
    """A saddle, exactly: the model of f = ½(x² − y²) from (1, 0) by hand."""
    space = Space([torch.zeros(2, dtype=F64)])
    x, g = [torch.zeros(2, dtype=F64)], [torch.tensor([1.0, 1e-3], dtype=F64)]
    H = torch.diag(torch.tensor([1.0, -1.0], dtype=F64))
    options = {"theta": 1.0, "kappa": 1e-8, "most": 10}
    true = torch.tensor(True)
    found = truncated_cg(
        space,
        x,
        g,
        lambda u: [H @ u[0]],
        lambda u: u,
        torch.tensor(3.0, dtype=F64),
        true,
        **options,
    )
    (eta,) = found.step
    assert bool(found.at_border)
    assert float(eta.norm()) == pytest.approx(3.0)
    assert float(found.change) == pytest.approx(float(g[0] @ eta + 0.5 * eta @ H @ eta))
    assert eta[1] < 0
    inside = truncated_cg(
        space,
        x,
        g,
        lambda u: [H.abs() @ u[0] * 2],
        lambda u: u,
        torch.tensor(3.0, dtype=F64),
        true,
        **options,
    )
    torch.testing.assert_close(inside.step[0], -g[0] / 2)
    assert not bool(inside.at_border)


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
