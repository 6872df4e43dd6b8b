"""A metric given as ten lines gives a manifold, a flow, a Hessian and a rate: shown for two."""

import inspect
import math

import pytest
import torch
from manifold_oracles import Case, gauss_panels, randn, relative
from metric_oracles import MetricGeodesic, scaled_operator, second_derivative, shifted_operator

from deeplin.flows import EndToEndFlow
from deeplin.geometry.metric import Metric
from deeplin.integrators import RK4
from deeplin.landscape import local_rate
from deeplin.linalg import power_divided_difference
from deeplin.manifolds import FixedRank, FixedRankFactored, PSDFixedRank, PSDFixedRankFactored
from deeplin.manifolds.check import (
    check_gradient,
    check_hessian,
    check_manifold,
    check_retraction,
    check_transport,
)
from deeplin.problems import MatrixApproximation


class ScaledGD(Metric):
    def core(self, sigma):
        return 2 * torch.ones_like(sigma[..., :, None] * sigma[..., None, :])

    def side(self, sigma):
        return torch.ones_like(sigma)


class Shifted(Metric):
    def __init__(self, depth, u):
        self.depth, self.u = depth, u

    def core(self, sigma):
        s = (sigma**2 + self.u).sqrt()
        return power_divided_difference(s[..., :, None], s[..., None, :], self.depth)

    def side(self, sigma):
        s = (sigma**2 + self.u).sqrt()
        return power_divided_difference(s, torch.full_like(s, self.u**0.5), self.depth)


class Off(ScaledGD):
    """ScaledGD with a core that is 1 % too large."""

    def core(self, sigma):
        return 1.01 * super().core(sigma)


# The metric, and what W ↦ the matrix of 𝒜_W is by its definition, for rank 2.
METRICS = {
    "ScaledGD": (ScaledGD(), scaled_operator(2)),
    "A_{W,u}": (Shifted(3, 0.3), shifted_operator(3, 0.3)),
}
KINDS = [FixedRank, FixedRankFactored, PSDFixedRank, PSDFixedRankFactored]


class Quartic:
    """f(W) = ½‖W − B‖² + ¼Σ W⁴ with a symmetric B for symmetric W, and its derivatives."""

    def __init__(self, n, symmetric):
        B = randn(n, n, seed=31)
        self.B = B + B.mT if symmetric else B

    def loss(self, W):
        return 0.5 * (W - self.B).square().sum() + (W**4).sum() / 4

    def egrad(self, W):
        return W - self.B + W**3

    def ehess(self, W, xi):
        return xi + 3 * W**2 * xi


class Setting:
    """A manifold of 3×3 matrices of rank 2, a loss, and points as matrices."""

    def __init__(self, kind, metric):
        self.symmetric = kind in (PSDFixedRank, PSDFixedRankFactored)
        self.packed = kind in (FixedRankFactored, PSDFixedRankFactored)
        self.case = Case.build(3, 3, r=2, psd=self.symmetric)
        sizes = (3,) if self.symmetric else (3, 3)
        self.manifold = kind(*(sizes if self.packed else ()), 2, metric)
        self.problem = Quartic(3, self.symmetric)
        self.x = self.stored(self.case.W)

    def stored(self, W):
        return self.manifold.from_dense(W).detach() if self.packed else W

    def dense(self, x):
        return self.manifold.to_dense(x) if self.packed else x

    def matrix(self, u):
        return self.manifold.tangent_to_dense(self.x, u) if self.packed else u

    def loss(self, x):
        return self.problem.loss(self.dense(x))

    def hessian(self, u):
        W = self.case.W
        ehess = self.problem.ehess(W, self.matrix(u))
        return self.manifold.ehess2rhess(self.x, self.problem.egrad(W), ehess, u)

    def operated(self, operator, Z):
        """𝒜_W(P_W Z) by the definition."""
        Z = self.case.project(Z)
        return (operator(self.case.W) @ Z.reshape(-1)).reshape(Z.shape)

    def checks(self, geodesic):
        return (
            check_manifold(self.manifold, self.x),
            check_gradient(self.manifold, self.loss, self.x),
            check_retraction(self.manifold, self.x),
            check_hessian(self.manifold, self.loss, self.x, self.hessian, geodesic=geodesic),
            check_transport(self.manifold, self.x),
        )


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_lines_give_a_manifold_with_its_hessian(kind, name):
    metric, operator = METRICS[name]
    at = Setting(kind, metric)
    curve = MetricGeodesic(at.case, operator, at.symmetric)
    for report in at.checks(lambda u, t: at.stored(curve.to_order_2(at.matrix(u), t))):
        assert report, report
    # The gradient is 𝒜_W(∇f) of the definition, and autograd's Hessian that of ehess2rhess.
    x = at.x.clone().requires_grad_()
    (egrad,) = torch.autograd.grad(at.loss(x), x)
    rgrad = at.matrix(at.manifold.egrad2rgrad(at.x, egrad))
    G = at.problem.egrad(at.case.W)
    assert relative(rgrad, at.operated(operator, G)) < 1e-13
    u = at.manifold.proju(at.x, randn(*at.x.shape, seed=5))
    taped = at.manifold.hessian_vector_product(at.x, lambda A, B: at.problem.loss(A @ B.mT), u)
    assert relative(at.matrix(taped), at.matrix(at.hessian(u))) < 1e-12


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("kind", [FixedRank, PSDFixedRank])
def test_the_hessian_along_integrated_geodesics(kind, name):
    metric, operator = METRICS[name]
    at = Setting(kind, metric)
    u = at.manifold.proju(at.x, randn(*at.x.shape, seed=3))
    u = u / at.manifold.norm(at.x, u)
    curve = MetricGeodesic(at.case, operator, at.symmetric)
    wanted = second_derivative(lambda t: at.loss(curve(u, t, 1)).item(), 0.02)
    # As for depths (test_manifolds_second_order): the difference formula errs by O(h⁴).
    assert at.manifold.inner(at.x, at.hessian(u), u).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("depth", "u"), [(2, 0.3), (3, 0.01), (3, 2.0)])
@pytest.mark.statement("BRTW Lemma 43")
def test_the_inverse_of_the_shifted_operator_is_an_integral(depth, u, seen):
    """BRTW (43), Lemma 43 with A = (uI + WWᵀ)^{1/N} and B = (uI + WᵀW)^{1/N}, in log t.

    𝒜_{W,u}⁻¹(Z) = sin(π/N)/π ∫ ((t+u)I + WWᵀ)⁻¹ Z ((t+u)I + WᵀW)⁻¹ t^{1/N} dt
    """
    case = Case.build(4, 3, r=2)
    manifold, W = FixedRank(2, Shifted(depth, u)), case.W
    xi = manifold.proju(W, randn(4, 3, seed=1))
    total, (nodes, weights) = torch.zeros_like(xi), gauss_panels(-40.0, 80.0, 100)
    for s, weight in zip(nodes, weights, strict=True):
        t = math.exp(s)
        left = torch.eye(4, dtype=W.dtype) * (t + u) + W @ W.mT
        right = torch.eye(3, dtype=W.dtype) * (t + u) + W.mT @ W
        inner = torch.linalg.solve(right, torch.linalg.solve(left, xi), left=False)
        total += weight * math.exp(s * (1 + 1 / depth)) * inner
    seen(
        relative(manifold.metric_inverse(W, xi), math.sin(math.pi / depth) / math.pi * total), 1e-11
    )


def flow_defect(metric, operator):
    """How far the flow's Ẇ is from −𝒜_W(P_W ∇f) by dense matrices."""
    case = Case.build(4, 3, r=2)
    problem = MatrixApproximation(randn(4, 3, seed=31))
    flow = EndToEndFlow(problem, metric)
    y = flow.init_state(case.W, rank=2)
    (U, log_s, V), (U_dot, log_s_dot, V_dot) = y, flow.velocity(0.0, y)
    s = log_s.exp()
    W_dot = (U_dot * s + U * (s * log_s_dot)) @ V.mT + (U * s) @ V_dot.mT
    G = case.project(problem.egrad(case.W))
    return relative(W_dot, -(operator(case.W) @ G.reshape(-1)).reshape(4, 3))


@pytest.mark.parametrize("name", METRICS)
def test_ten_lines_give_a_flow(name):
    assert flow_defect(*METRICS[name]) < 1e-13


@pytest.mark.parametrize("name", METRICS)
def test_the_flow_decays_at_the_least_eigenvalue_of_the_hessian(name):
    """Near the best approximation of rank 2 the distance falls like e^{−ρt}."""
    metric = METRICS[name][0]
    case = Case.build(4, 3, r=2, seed=4)
    sigma = torch.tensor([3.0, 1.0, 0.6], dtype=torch.float64)
    X = (case.left[:, :3] * sigma) @ case.right.mT
    best = (case.left[:, :2] * sigma[:2]) @ case.right[:, :2].mT
    problem, manifold = MatrixApproximation(X), FixedRankFactored(4, 3, 2, metric)
    x = manifold.from_dense(best).detach()
    draws = manifold.proju(x, randn(10, *x.shape, seed=1))  # dim M_2 = 2(4 + 3 − 2)
    gram = manifold.inner(x, draws[:, None], draws[None])
    images = manifold.hessian_vector_product(x, problem.pair_loss, draws)
    form = manifold.inner(x, draws[:, None], images[None])
    rate = torch.linalg.eigvals(torch.linalg.solve(gram, form)).real.min().item()

    flow, method, dt = EndToEndFlow(problem, metric), RK4(), 0.1
    y = flow.init_state(manifold.to_dense(manifold.retr(x, 0.02 * draws[0])), rank=2)
    distances = []
    for step in range(1, 201):
        y = flow.normalised(method.step(flow, 0.0, y, dt), y)
        if step in (150, 200):
            distances.append(torch.linalg.vector_norm(flow.end_to_end(y) - best).item())
    fitted = math.log(distances[0] / distances[1]) / (50 * dt)
    assert fitted == pytest.approx(rate, rel=1e-4)
    assert local_rate(problem, best, metric) == pytest.approx(rate, rel=1e-12)


def test_a_metric_that_is_wrong_by_one_percent_is_found():
    """Not by its own gradient, which fits its own product: by the flow and by the geodesics."""
    operator = METRICS["ScaledGD"][1]
    assert flow_defect(Off(), operator) > 1e-3
    at = Setting(FixedRank, Off())
    curve = MetricGeodesic(at.case, operator)
    reports = at.checks(curve.to_order_2)
    assert [report.name for report in reports if not report.ok] == ["check_hessian"]


def test_metrics_are_values_of_ten_lines():
    for metric in (ScaledGD, Shifted):
        lines = [line for line in inspect.getsource(metric).splitlines() if line.strip()]
        assert len(lines) <= 10
    assert Shifted(3, 0.3) == Shifted(3, 0.3)
    assert hash(Shifted(3, 0.3)) == hash(Shifted(3, 0.3))
    assert Shifted(3, 0.3) != Shifted(3, 0.2)
    assert ScaledGD() != Off()
    assert repr(Shifted(3, 0.3)) == "Shifted(depth=3, u=0.3)"
