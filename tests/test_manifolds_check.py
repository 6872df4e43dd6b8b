"""The diagnostics: they pass on geoopt's own manifolds and fail on broken ones."""

import geoopt
import pytest
import torch
from manifold_oracles import Case, Geodesic, generator, randn

from deeplin.manifolds import FixedRank, FixedRankFactored
from deeplin.manifolds.check import (
    Report,
    check_gradient,
    check_hessian,
    check_manifold,
    check_retraction,
    check_transport,
    convergence_slope,
)


def sphere_point():
    x = randn(5, seed=1)
    return x / x.norm()


@pytest.mark.parametrize(
    ("manifold", "point"),
    [
        (geoopt.Euclidean(ndim=1), randn(5, seed=1)),
        (geoopt.Sphere(), sphere_point()),
        (geoopt.EuclideanStiefel(), torch.linalg.qr(randn(5, 3, seed=2)).Q),
        (FixedRank(2, 3), Case.build(5, 4, r=2).W),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_they_pass_on_sound_manifolds(manifold, point):
    target = randn(*point.shape, seed=3)

    def loss(x):
        return 0.5 * (x - target).square().sum() + (x**3).sum() / 6

    for report in (
        check_manifold(manifold, point),
        check_gradient(manifold, loss, point),
        check_retraction(manifold, point),
        check_transport(manifold, point),
    ):
        assert report, report
        assert "ok" in str(report)


def test_hessian_and_geodesic_of_the_sphere():
    manifold, x = geoopt.Sphere(), sphere_point()
    A = randn(5, 5, seed=4)
    A = A + A.mT

    def hess(u):
        return manifold.proju(x, A @ u) - (x @ A @ x) * u

    assert check_hessian(manifold, lambda p: 0.5 * p @ A @ p, x, hess)
    wrong = check_hessian(
        manifold, lambda p: 0.5 * p @ A @ p, x, lambda u: manifold.proju(x, A @ u)
    )
    assert not wrong
    assert "<- violated" in str(wrong)
    u = manifold.proju(x, randn(5, seed=5))
    report = check_retraction(manifold, x, u, geodesic=lambda t: manifold.expmap(x, t * u), order=2)
    assert report, report
    with pytest.raises(ValueError, match="geodesic"):
        check_retraction(manifold, x, order=2)


class WrongMetric(FixedRank):
    def egrad2rgrad(self, x, u):
        return 1.01 * super().egrad2rgrad(x, u)


class WrongRetraction(FixedRank):
    def retr(self, x, u):
        return super().retr(x, 1.01 * u)


class WrongTransport(FixedRank):
    def transp(self, x, y, v):
        return v


class WrongProjection(FixedRank):
    def proju(self, x, u):
        return 0.99 * super().proju(x, u)


def test_they_fail_on_broken_manifolds():
    W = Case.build(5, 4, r=2).W
    target = randn(5, 4, seed=3)

    def loss(x):
        return 0.5 * (x - target).square().sum()

    assert not check_gradient(WrongMetric(2), loss, W)
    assert not check_retraction(WrongRetraction(2), W)
    assert not check_transport(WrongTransport(2), W)
    assert not check_manifold(WrongProjection(2), W)
    assert not check_manifold(FixedRank(2), target)


def test_an_order_that_is_not_kept_is_found():
    """The svd retraction is of order 2 for the embedded metric and not for that of depth 2."""
    case = Case.build(3, 3, r=1)
    u = FixedRank(1).proju(case.W, randn(3, 3, seed=9))
    u = u / u.norm()
    steps = (0.2, 0.1, 0.05)
    for depth, kept in ((1, True), (2, False)):
        curve = Geodesic(case, depth)
        report = check_retraction(
            FixedRank(1, depth),
            case.W,
            u,
            geodesic=lambda t, curve=curve: curve(u, t, steps=4),
            order=2,
            steps=steps,
        )
        assert report.ok is kept, report


def test_reports_and_slopes():
    report = Report("check_x", {"slope": 1.0, "defect": float("nan")}, {"slope": 1.9, "defect": 1})
    assert not report.holds("slope")
    assert not report.holds("defect")
    assert "FAILED" in str(report)
    steps = [2.0**-k for k in range(10)]
    assert convergence_slope(steps, [t**3 for t in steps], 1e-12) == pytest.approx(3)
    assert convergence_slope(steps, [0.0] * 10, 1e-12) == float("inf")
    with pytest.raises(AttributeError):
        report.name = "other"  # frozen


def test_packed_factors_are_compared_as_matrices():
    manifold = FixedRankFactored(6, 5, 2, 3)
    x = manifold.random(dtype=torch.float64, generator=generator(1))
    for report in (check_manifold(manifold, x), check_retraction(manifold, x)):
        assert report, report
