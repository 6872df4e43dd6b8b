"""HLZ §1 on Example 1.1: the apocalypse, in the words of its [19], and [23]'s remedy of it.

Stationarity of f on the matrices of rank at most r at Z: s(Z) = ‖P(−∇f(Z))‖, P onto the tangent
cone there. An apocalypse is a sequence Z_k → Z with s(Z_k) → 0 and s(Z) > 0.
"""

import pytest
import torch

from deeplin.flows import DLRAFlow
from deeplin.manifolds import FixedRank
from deeplin.problems import MatrixApproximation

F64 = torch.float64
ALPHA = 0.2
X = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=F64))
START = torch.diag(torch.tensor([2.0, 0.0, 1.0], dtype=F64))
LIMIT = torch.diag(torch.tensor([2.0, 0.0, 0.0], dtype=F64))
E2 = torch.diag(torch.tensor([0.0, 1.0, 0.0], dtype=F64))
PROBLEM = MatrixApproximation(X)


def perturbed(eps):
    """The start of Example 1.1 with an ε in it: of rank 2 again."""
    v = torch.tensor([0.0, eps, 1.0], dtype=F64)
    return LIMIT + torch.outer(v, v)


def descended(Z, steps):
    """Z_0, …, Z_k of Riemannian gradient descent on M_2 with the step α, and ‖P_T(Z_k − X)‖."""
    flow = DLRAFlow(PROBLEM)
    y = flow.init_state(Z, 2)
    path, gradients = [flow.end_to_end(y)], [float(flow.gradient_norm(y))]
    for _ in range(steps):
        y = flow.gradient_step(y, ALPHA)
        path.append(flow.end_to_end(y))
        gradients.append(float(flow.gradient_norm(y)))
    return path, gradients


def descent_at(Z, tries=20_000, eps=1e-4, generator=None):
    """The largest (f(Z) − f(Y))/‖Y − Z‖ over random Y of rank <= 2 at about the distance ε from Z.

    Y is Z + tE or the nearest matrix of rank 2 to it, E near −∇f(Z) or anything: s(Z), from below,
    with no word of tangent cones. ‖∇f(Z)‖ is a bound from above.
    """
    G = Z - X
    noise = torch.randn(tries, 3, 3, dtype=F64, generator=generator)
    noise = noise * torch.linspace(1e-3, 1, tries, dtype=F64)[:, None, None]
    U, s, Vh = torch.linalg.svd(Z - eps * (torch.nn.functional.normalize(G, dim=(0, 1)) + noise))
    Y = (U[..., :2] * s[:, None, :2]) @ Vh[..., :2, :]
    fall = PROBLEM.loss(Z) - PROBLEM.loss(Y)
    return float((fall / torch.linalg.matrix_norm(Y - Z)).max())


@pytest.mark.statement("HLZ §1 [19]")
def test_example_has_an_apocalypse(generator, seen):
    """s(Z_k) = (1 − α)^k → 0 on M_2, but s = 1 at the limit: e_2e_2ᵀ is in no tangent space."""
    path, gradients = descended(START, 60)
    for k in (1, 10, 30, 60):
        seen.ratio(gradients[k], (1 - ALPHA) ** k, rel=1e-9)
    seen.ratio((path[-1] - LIMIT).norm(), (1 - ALPHA) ** 60, rel=1e-9)
    # At the limit f falls by 1 per unit length, as much as ‖∇f‖ = 1 allows; at Z_k by s(Z_k).
    seen.number("s(Z_60)", gradients[60])
    least = descent_at(LIMIT, generator=generator)
    seen.number("s(lim Z_k), from below", least)
    seen.ratio(least, 1.0, rel=1e-3)
    t = 1e-6
    assert int(torch.linalg.matrix_rank(LIMIT + t * E2)) == 2
    seen.ratio((PROBLEM.loss(LIMIT) - PROBLEM.loss(LIMIT + t * E2)) / t, 1.0, rel=1e-5)
    seen.ratio(descent_at(path[10], eps=1e-4, generator=generator), gradients[10], rel=0.05)
    # The tangent cones at Z_k do not tend to the one at the limit.
    kept = FixedRank(2, 1).proju(torch.stack(path), E2.expand(61, 3, 3))
    seen(torch.linalg.matrix_norm(kept), 1e-12)


@pytest.mark.statement("HLZ §1 [19]")
def test_perturbed_sequences_have_none(generator, seen):
    """It can fail: where the limit is X, s tends to what it is there, 0."""
    for eps in (1e-2, 1e-6):
        path, gradients = descended(perturbed(eps), 300)
        seen((path[-1] - X).norm(), 1e-12)
        seen(gradients[-1], 1e-12)
        assert max(gradients[:100]) > 0.5
        seen.number(f"largest s(Z_k) on the way, ε = {eps:g}", max(gradients))
    assert descent_at(X, generator=generator) < 1e-3


@pytest.mark.statement("HLZ §1 [19]")
def test_the_smooth_lift_sees_what_the_gradient_does_not(seen):
    """f(LRᵀ) at a lift of Z_#: its gradient is 0, its Hessian has the eigenvalue −1."""
    L = torch.zeros(3, 2, dtype=F64)
    L[0, 0] = 2**0.5

    def lifted(x):
        L, R = x.view(2, 3, 2)
        return PROBLEM.loss(L @ R.mT)

    x = torch.stack([L, L]).flatten()
    seen(torch.autograd.functional.jacobian(lifted, x), 1e-12)
    H = torch.autograd.functional.hessian(lifted, x)
    least = torch.linalg.eigvalsh(H)[0]
    seen.number("least eigenvalue of the lift's Hessian", least)
    seen.ratio(least, -1.0, rel=1e-12)


# -- rank reduction --------------------------------------------------------------------------------


def of_rank(Z, k):
    """A nearest matrix of rank at most k."""
    U, s, Vh = torch.linalg.svd(Z)
    return (U[:, :k] * s[:k]) @ Vh[:k]


def projected_step(Z, r=2):
    """R(Z + αP(−∇f)): P onto the tangent cone of the matrices of rank at most r, at any rank."""
    U, s, Vh = torch.linalg.svd(Z)
    k = int((s > 1e-12).sum())
    left, right = U[:, :k] @ U[:, :k].mT, Vh[:k].mT @ Vh[:k]
    G = X - Z
    eye = torch.eye(len(Z), dtype=F64)
    cone = of_rank((eye - left) @ G @ (eye - right), r - k)
    return of_rank(Z + ALPHA * (G - (eye - left) @ G @ (eye - right) + cone), r)


def reducing(Z, delta, steps=200):
    """[23]: of the steps from Z and from Z without its singular values below Δ, the lower one."""
    for _ in range(steps):
        s = torch.linalg.svdvals(Z)
        ranks = range(int((s > max(delta, 1e-12)).sum()), int((s > 1e-12).sum()) + 1)
        Z = min((projected_step(of_rank(Z, k)) for k in ranks), key=PROBLEM.loss)
    return Z


@pytest.mark.statement("HLZ §1 [23]")
def test_rank_reduction_ends_the_apocalypse(randn, seen):
    """From diag(2, 0, 1) descent ends at distance 1 from X; with Δ = 0.1 or 1e-6 it ends at X."""
    plain = reducing(START, 0.0, 100)  # the least value stays above the 1e-12 of a rank
    seen.norm(plain, descended(START, 100)[0][-1], 1e-12)
    seen.number("distance from X without it", (plain - X).norm())
    seen((plain - X).norm() - 1.0, 1e-9)
    for delta in (0.1, 1e-6):
        seen.number(f"distance from X with it, Δ = {delta:g}", (reducing(START, delta) - X).norm())
        seen.norm(reducing(START, delta), X, 1e-9)
    # Where there is no apocalypse both arrive: from random starts.
    for _ in range(4):
        Z = randn(3, 2) @ randn(2, 3)
        for delta in (0.0, 0.1):
            seen.norm(reducing(Z, delta, 150), X, 1e-9)
