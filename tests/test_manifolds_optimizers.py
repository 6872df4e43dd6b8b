"""geoopt's optimizers on the four manifolds: recovery of a matrix, batches, long runs."""

import geoopt
import pytest
import torch
from manifold_oracles import dot, generator, relative

from deeplin.manifolds import FixedRank, FixedRankFactored, PSDFixedRank, PSDFixedRankFactored
from deeplin.optim import RiemannianSGD

N, R = 40, 5
SHAPES = {
    FixedRank: (N, N),
    PSDFixedRank: (N, N),
    FixedRankFactored: (2 * N + R, R),
    PSDFixedRankFactored: (N + R, R),
}


def build(family, depth=2, retraction="svd", **options):
    sizes = {FixedRankFactored: (N, N), PSDFixedRankFactored: (N,)}.get(family, ())
    return family(*sizes, R, depth, retraction, **options), SHAPES[family]


def dense(manifold, x):
    return manifold.to_dense(x) if hasattr(manifold, "to_dense") else x


class Decayed:
    """An optimizer whose learning rate shrinks: Adam's steps have a fixed length otherwise."""

    def __init__(self, optimizer, factor):
        self.optimizer = optimizer
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, factor)

    def step(self, closure):
        closure()
        self.optimizer.step()
        self.schedule.step()


class Plain:
    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, closure):
        closure()
        self.optimizer.step()


OPTIMIZERS = {
    "sgd": lambda p: Plain(geoopt.optim.RiemannianSGD([p], lr=0.3)),
    "momentum": lambda p: Plain(
        geoopt.optim.RiemannianSGD([p], lr=0.25, momentum=0.5, nesterov=True, stabilize=10)
    ),
    "adam": lambda p: Decayed(
        geoopt.optim.RiemannianAdam([p], lr=0.3, betas=(0.5, 0.9), eps=1e-30, stabilize=7), 0.975
    ),
    "line search": lambda p: geoopt.optim.RiemannianLineSearch([p]),
    "conjugate gradients": lambda p: geoopt.optim.RiemannianLineSearch(
        [p], line_search_method="wolfe", cg_method="fr"
    ),
}


def recover(manifold, start, target, optimizer, steps, goal=1e-8):
    """The parameter after some steps, or as soon as the relative error is below the goal."""
    p = geoopt.ManifoldParameter(start.detach().clone(), manifold=manifold)
    stepper = OPTIMIZERS[optimizer](p)

    def closure():
        p.grad = None
        difference = dense(manifold, p) - target
        loss = 0.5 * dot(difference, difference).sum()
        loss.backward()
        return loss.detach()

    for _ in range(steps):
        stepper.step(closure)
        if goal and relative(dense(manifold, p.detach()), target) < goal:
            break
    return p


# geoopt hands torch tensors to scipy's line searches, which NumPy and scipy warn about.
SCIPY = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:retr. the step holds nan or inf:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:The line search algorithm did not converge"),
    pytest.mark.filterwarnings("ignore:No suitable step size:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning"),
]


def scipy_warnings(test):
    for mark in SCIPY:
        test = mark(test)
    return test


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "line search"])
@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_recovery_to_1e_8_from_a_random_start(family, optimizer, dtype):
    manifold, shape = build(family)
    g = generator(0)
    target = dense(manifold, manifold.random(*shape, dtype=dtype, generator=g)).detach()
    start = manifold.random(*shape, dtype=dtype, generator=g)
    p = recover(manifold, start, target, optimizer, 500)
    assert relative(dense(manifold, p.detach()), target) < 1e-8
    assert manifold.check_point_on_manifold(p, atol=1e-11, rtol=1e-11)


@scipy_warnings
@pytest.mark.parametrize("family", [FixedRankFactored, PSDFixedRankFactored])
def test_conjugate_gradients_with_a_wolfe_search(family):
    """The one that transports search directions and gradients."""
    manifold, shape = build(family, depth=1)
    g = generator(0)
    target = manifold.to_dense(manifold.random(*shape, dtype=torch.float64, generator=g)).detach()
    start = manifold.random(*shape, dtype=torch.float64, generator=g)
    p = recover(manifold, start, target, "conjugate gradients", 300)
    assert relative(manifold.to_dense(p.detach()), target) < 1e-8


@pytest.mark.parametrize("retraction", ["svd", "orthographic", "layers"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_recovery_for_every_retraction(depth, retraction):
    if retraction == "layers" and depth == 1:
        return
    for gradient in ("partials", "taped"):
        manifold, shape = build(FixedRankFactored, depth, retraction, gradient=gradient)
        g = generator(0)
        target = manifold.to_dense(manifold.random(*shape, dtype=torch.float64, generator=g))
        start = manifold.random(*shape, dtype=torch.float64, generator=g)
        p = recover(manifold, start, target.detach(), "sgd", 500)
        assert relative(manifold.to_dense(p.detach()), target) < 1e-8


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("family", SHAPES)
def test_a_batch_of_8_is_8_single_runs(family, optimizer):
    """RiemannianLineSearch is not here: geoopt takes one step size for the whole parameter."""
    manifold, shape = build(family)
    g = generator(1)
    target = dense(manifold, manifold.random(8, *shape, dtype=torch.float64, generator=g)).detach()
    start = manifold.random(8, *shape, dtype=torch.float64, generator=g)
    together = dense(manifold, recover(manifold, start, target, optimizer, 12, None).detach())
    assert relative(together, target) < relative(dense(manifold, start), target)  # it moved
    for k in range(8):
        single = recover(manifold, start[k], target[k], optimizer, 12, None)
        assert relative(together[k], dense(manifold, single.detach())) < 1e-10


def test_line_search_on_a_batch_converges_together():
    manifold, shape = build(FixedRankFactored)
    g = generator(1)
    target = manifold.to_dense(manifold.random(8, *shape, dtype=torch.float64, generator=g))
    start = manifold.random(8, *shape, dtype=torch.float64, generator=g)
    p = recover(manifold, start, target.detach(), "line search", 500)
    assert relative(manifold.to_dense(p.detach()), target) < 1e-8


@scipy_warnings
def test_line_search_past_its_goal_stays_there():
    """At the optimum scipy's step size becomes nan; the point must not."""
    manifold, shape = build(FixedRankFactored, depth=1)
    g = generator(0)
    target = manifold.to_dense(manifold.random(*shape, dtype=torch.float64, generator=g)).detach()
    start = manifold.random(*shape, dtype=torch.float64, generator=g)
    p = recover(manifold, start, target, "line search", 13, None)
    assert relative(manifold.to_dense(p.detach()), target) < 1e-12


@pytest.mark.parametrize("family", SHAPES)
def test_single_precision(family):
    manifold, shape = build(family)
    g = generator(0)
    target = dense(manifold, manifold.random(*shape, dtype=torch.float32, generator=g)).detach()
    start = manifold.random(*shape, dtype=torch.float32, generator=g)
    p = recover(manifold, start, target, "momentum", 200, 1e-5)
    assert p.dtype == torch.float32
    assert relative(dense(manifold, p.detach()), target) < 1e-5
    assert manifold.check_point_on_manifold(p)


def test_a_stabilized_momentum_run_keeps_its_gauge():
    """projx leaves orthonormal factors as they are, so that momentum keeps its meaning."""
    manifold, shape = build(FixedRankFactored)
    g = generator(0)
    target = manifold.to_dense(manifold.random(*shape, dtype=torch.float64, generator=g)).detach()
    start = manifold.random(*shape, dtype=torch.float64, generator=g)
    ends = []
    for stabilize in (None, 1):
        p = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
        optimizer = geoopt.optim.RiemannianSGD([p], lr=0.1, momentum=0.9, stabilize=stabilize)
        for _ in range(40):
            optimizer.zero_grad()
            difference = manifold.to_dense(p) - target
            (0.5 * dot(difference, difference)).backward()
            optimizer.step()
        ends.append(manifold.to_dense(p.detach()))
    assert relative(*ends) < 1e-10


def test_a_product_of_manifolds_with_a_euclidean_part():
    """Low rank plus a constant: W + b, by SGD on one packed parameter."""
    low = FixedRankFactored(12, 10, 2)
    manifold = geoopt.ProductManifold((low, (24, 2)), (geoopt.Euclidean(), 10))
    g = generator(3)
    truth = low.random(dtype=torch.float64, generator=g)
    target = low.to_dense(truth).detach() + torch.randn(10, dtype=torch.float64, generator=g)
    start = manifold.pack_point(
        low.random(dtype=torch.float64, generator=g), torch.zeros(10, dtype=torch.float64)
    )
    p = geoopt.ManifoldParameter(start, manifold=manifold)
    optimizer = geoopt.optim.RiemannianSGD([p], lr=0.05)
    first = None
    for _ in range(400):
        optimizer.zero_grad()
        y, c = manifold.unpack_tensor(p)
        loss = 0.5 * (low.to_dense(y) + c - target).square().sum()
        loss.backward()
        optimizer.step()
        first = loss.item() if first is None else first
    assert loss.item() < 1e-6 * first


def test_escape_from_the_neighbourhood_of_spurious_critical_points(seen):
    """HLZ §5, Figure 2b: 100 starts near points of rank r − 2, step 0.2; all of them reach X.

    The retraction has to keep the largest algebraic eigenvalues: with plain truncation by size
    98 of 100 such runs left the cone.
    """
    n = 100
    manifold = PSDFixedRankFactored(n, R, depth=1)
    d = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2], dtype=torch.float64)
    g = generator(5)
    basis = torch.linalg.qr(torch.randn(n, R, dtype=torch.float64, generator=g)).Q
    X = (basis * d) @ basis.mT
    spurious = (basis[:, :3] * d[:3]) @ basis[:, :3].mT
    noise = torch.randn(100, n, R, dtype=torch.float64, generator=g)
    start = manifold.from_dense(spurious + 1e-3 * noise @ noise.mT / n)
    p = geoopt.ManifoldParameter(start, manifold=manifold)
    optimizer = geoopt.optim.RiemannianSGD([p], lr=0.2)
    for _ in range(160):
        optimizer.zero_grad()
        U, S = manifold.unpack_tensor(p)
        core = S @ (U.mT @ U)  # ½‖USUᵀ − X‖² but for a constant, without 10⁴ entries each
        (0.5 * (core @ core - 2 * S @ (U.mT @ X @ U)).diagonal(0, -2, -1).sum()).backward()
        optimizer.step()
    distance = torch.linalg.matrix_norm(manifold.to_dense(p.detach()) - X)
    seen.below(distance, 1e-9)
    assert manifold.check_point_on_manifold(p, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.5, "nesterov": True, "weight_decay": 0.01},
        {"momentum": 0.8, "dampening": 0.3, "stabilize": 2},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_ours_takes_the_steps_of_geoopts(options):
    """On all our manifolds, a sphere and plain parameters at once; states can be exchanged."""

    def parameters():
        points = [
            FixedRank(2, 1).random(6, 5, dtype=torch.float64, generator=generator(1)),
            PSDFixedRank(2).random(6, 6, dtype=torch.float64, generator=generator(2)),
            FixedRankFactored(6, 5, 2).random(dtype=torch.float64, generator=generator(3)),
            FixedRankFactored(6, 5, 2, 1, "splitting", gradient="taped").random(
                3, 13, 2, dtype=torch.float64, generator=generator(4)
            ),
            PSDFixedRankFactored(6, 2).random(dtype=torch.float64, generator=generator(5)),
        ]
        made = [geoopt.ManifoldParameter(point) for point in points]
        sphere = geoopt.ManifoldTensor(
            torch.eye(4, dtype=torch.float64)[0], manifold=geoopt.Sphere()
        )
        plain = [torch.nn.Parameter(torch.ones(n, dtype=torch.float64)) for n in (3, 4)]
        unused = torch.nn.Parameter(torch.ones(2))
        return [*made, geoopt.ManifoldParameter(sphere), *plain, unused]

    def loss(points):
        total = 0.0
        for i, p in enumerate(points[:-1]):
            W = dense(p.manifold, p) if i < 5 else p
            target = torch.linspace(-1, 1, W.numel(), dtype=torch.float64).reshape(W.shape)
            total = total + (W - target).square().sum()
        return total

    both = [parameters() for _ in range(2)]
    optimizers = [
        geoopt.optim.RiemannianSGD(both[0], lr=0.02, **options),
        RiemannianSGD(both[1], lr=0.02, **options),
    ]
    for step in range(6):
        if step == 3:
            states = [optimizer.state_dict() for optimizer in optimizers]
            for optimizer, state in zip(optimizers, states[::-1], strict=True):
                optimizer.load_state_dict(state)
        for points, optimizer in zip(both, optimizers, strict=True):

            def closure(points=points, optimizer=optimizer):
                optimizer.zero_grad()
                value = loss(points)
                value.backward()
                return value

            with torch.enable_grad():
                closure()
            assert optimizer.step() is None
    for p, q in zip(*both, strict=True):
        first, second = (dense(a.manifold, a) if hasattr(a, "manifold") else a for a in (p, q))
        assert relative(second.detach(), first.detach()) < 1e-13
    value = optimizers[1].step(closure)
    assert float(value.detach()) == pytest.approx(float(loss(both[0]).detach()), rel=1e-12)
