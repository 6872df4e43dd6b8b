"""What a user runs into: parameters that knew no manifold, lost gradients, divergence, bfloat16."""

import copy
import io
import pickle

import geoopt
import pytest
import torch
from manifold_oracles import generator, randn

from deeplin.manifolds import FixedRank, FixedRankFactored, PSDFixedRank, PSDFixedRankFactored
from deeplin.nn import FixedRankLinear
from deeplin.optim import RiemannianSGD

F64 = torch.float64
MANIFOLDS = [
    FixedRank(2, 1),
    PSDFixedRank(2, 1),
    FixedRankFactored(6, 6, 2, 1),
    PSDFixedRankFactored(6, 2, 1),
]


def factored(man):
    return isinstance(man, FixedRankFactored | PSDFixedRankFactored)


def points(man):
    """By each method that makes a point of one that was given."""
    A = randn(6, 6, seed=0)
    W = A @ A.mT
    made = {"projx": man.projx(W)} if not factored(man) else {"from_dense": man.from_dense(W)}
    x = next(iter(made.values())).as_subclass(torch.Tensor)
    parts = man.unpack_tensor(x) if factored(man) else (x,)
    return made | {
        "pack_point": man.pack_point(*parts),
        "projx of a point": man.projx(x),
    }


@pytest.mark.parametrize("man", MANIFOLDS, ids=lambda m: m.name)
def test_what_makes_a_point_says_its_manifold(man):
    """ManifoldParameter of it takes Riemannian steps: its rank is kept, by what copies it, too."""
    for made in points(man).values():
        assert isinstance(made, geoopt.ManifoldTensor)
        assert made.manifold is man
        before, file = made.clone(), io.BytesIO()
        torch.save(made, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
        for x in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), again, made):
            assert torch.equal(x, before)
            p = geoopt.ManifoldParameter(x)
            assert p.manifold.rank == 2
            optimizer = geoopt.optim.RiemannianSGD([p], lr=0.01)
            W = man.to_dense(p) if factored(man) else p
            (W - torch.eye(6, dtype=F64)).square().sum().backward()
            optimizer.step()
            p.manifold.assert_check_point_on_manifold(p)
            assert not torch.equal(p, before)


def test_a_packed_point_keeps_the_derivatives_of_its_factors():
    man = FixedRankFactored(5, 4, 2)
    U, S, V = (part.clone().requires_grad_() for part in man.unpack_tensor(man.random(dtype=F64)))
    x = man.pack_point(U, S, V)
    assert isinstance(x, geoopt.ManifoldTensor)
    G = randn(5, 4, seed=0)
    (man.to_dense(x) * G).sum().backward()
    torch.testing.assert_close(S.grad, U.detach().mT @ G @ V.detach())


@pytest.mark.parametrize("man", [m for m in MANIFOLDS if factored(m)], ids=lambda m: m.name)
def test_under_transforms_and_in_traces_points_are_plain(man):
    A = randn(3, 6, 6, seed=0)
    W = A @ A.mT
    x = man.from_dense(W).as_subclass(torch.Tensor)
    for f, given in ((man.from_dense, W), (man.projx, x)):
        plain = f(given).as_subclass(torch.Tensor)
        mapped, traced = torch.vmap(f)(given), torch.compile(f, backend="eager", fullgraph=True)
        for got in (mapped, traced(given)):
            assert type(got) is torch.Tensor
            dense = [man.to_dense(p) for p in (got, plain)]
            torch.testing.assert_close(*dense)
    grad = torch.func.grad(lambda y: man.to_dense(man.pack_point(*man.unpack_tensor(y))).sum())
    assert grad(x[0]).shape == x[0].shape


@pytest.mark.parametrize(
    "make",
    [
        lambda g: FixedRankFactored(5, 5, 2, 1, gradient=g),
        lambda g: PSDFixedRankFactored(5, 2, 1, gradient=g),
    ],
)
def test_a_taped_gradient_is_not_lost_silently(make):
    man = make("taped")
    p = geoopt.ManifoldParameter(man.random())
    bias = torch.nn.Parameter(torch.zeros(5))
    for unpack in (p.unpack_tensor, lambda: man.unpack_tensor(p)):
        with pytest.raises(RuntimeError, match=r"write the loss with A, B = x\.manifold\.factor_p"):
            (unpack()[0] + bias[:, None]).sum().backward()
    with torch.no_grad():
        seen = p.unpack_tensor()
    assert torch.equal(seen[0], man.unpack_tensor(p.detach())[0])
    assert make("partials").unpack_tensor(p)[0].requires_grad


# -- divergence ------------------------------------------------------------------------------------


def stepped(sigma, step):
    """The step that adds a number to σ_1 alone, at a point with these singular values."""
    man = FixedRankFactored(6, 5, 2, 1)
    drawn = man.random(dtype=F64, generator=generator(0)).as_subclass(torch.Tensor)
    U, _, V = man.unpack_tensor(drawn)
    x = man.pack_point(U, torch.diag(torch.tensor(sigma, dtype=F64)), V).float()
    u = torch.zeros_like(x)
    u[-2, 0] = step
    return man.retr(x, u)


@pytest.mark.parametrize("step", [1e8, float("nan")])
def test_a_step_that_diverges_is_called_so_with_what_was_seen(step):
    with pytest.raises(RuntimeError) as raised:
        stepped([1.3e6, 1e-3], step)
    said = str(raised.value)
    assert "the iteration diverges, and W has lost rank 2 to float32 (σ_1 = 1.3e+06" in said
    assert "take a smaller learning rate" in said
    assert "projx" not in said


def test_growth_to_the_limits_of_the_numbers_is_called_divergence():
    """As a learning rate of 10 brings it: W keeps its rank, and its squares are no numbers."""
    with pytest.raises(
        RuntimeError, match=r"the iteration diverges: W has grown to .* float32 \(σ"
    ):
        stepped([3e19, 3e18], 1e18)


def test_a_point_of_lower_rank_is_called_so():
    with pytest.raises(RuntimeError, match=r"x must have rank 2, and has not in float32.*projx"):
        stepped([1.0, 1e-12], 1e-3)


def test_what_float16_makes_of_adams_eps_is_said():
    """1e-8 is 0 there: geoopt divides a gradient of 0 by a root of 0."""
    man = FixedRankFactored(6, 5, 2, 1)
    p = man.parameter(man.random(dtype=torch.float16, generator=generator(0)))
    start = p.detach().clone()
    p.grad = torch.zeros_like(start)
    with pytest.warns(RuntimeWarning, match=r"float16 .*eps=1e-08.* is 0.*eps=1e-4"):
        geoopt.optim.RiemannianAdam([p], lr=0.1).step()
    assert float((man.to_dense(p) - man.to_dense(start)).detach().abs().max()) < 4e-3
    p.grad = torch.zeros_like(start)
    geoopt.optim.RiemannianAdam([p], lr=0.1, eps=1e-4).step()
    assert float((man.to_dense(p) - man.to_dense(start)).detach().abs().max()) < 4e-3


def test_a_step_that_is_not_finite_says_how_large_W_is():
    with pytest.warns(RuntimeWarning, match=r"left .* where they are \(σ_1 = 7e\+03\).*diverges"):
        stepped([7e3, 1.0], float("inf"))


# -- bfloat16 and float16 --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", ["dense", "psd", "factored", "psd factored"])
def test_low_precision_stores_what_float32_computes(name, depth, dtype):
    """Each operation is that of the float32 point, rounded once; points stay on the manifold."""
    low = {
        "dense": (FixedRank(2, depth), (6, 5)),
        "psd": (PSDFixedRank(2, depth), (6, 6)),
        "factored": (FixedRankFactored(6, 5, 2, depth), ()),
        "psd factored": (PSDFixedRankFactored(6, 2, depth), ()),
    }
    man, size = low[name]
    x = man.random(*size, dtype=dtype, generator=generator(0)).as_subclass(torch.Tensor)
    man.assert_check_point_on_manifold(x)
    u = man.proju(x, torch.randn(x.shape, generator=generator(1)).to(dtype))
    man.assert_check_vector_on_tangent(x, u)
    wide = man.projx(x.float()).as_subclass(torch.Tensor)
    # Dense points are rounded off the manifold, by which σ_r's own directions turn.
    close = {"rtol": 0, "atol": 40 * torch.finfo(dtype).eps}
    for got, expected in (
        (man.retr(x, u), man.retr(wide, u.float())),
        (man.egrad2rgrad(x, u), man.egrad2rgrad(wide, u.float())),
        (man.metric_operator(x, u), man.metric_operator(wide, u.float())),
        (man.inner(x, u), man.inner(wide, u.float())),
        (man.transp(x, man.retr(x, u), u), man.transp(wide, man.retr(wide, u.float()), u.float())),
    ):
        assert got.dtype == dtype
        if got.ndim > 1 and factored(man) and got.shape == x.shape:
            assert got.isfinite().all()
        torch.testing.assert_close(got.float(), expected, **close)
    man.assert_check_point_on_manifold(man.retr(x, u))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_of_low_precision_learns(dtype):
    torch.manual_seed(0)
    layer = FixedRankLinear(8, 9, 2, dtype=dtype)
    target = FixedRankLinear(8, 9, 2, dtype=torch.float64)
    x = torch.randn(64, 8)
    optimizer = geoopt.optim.RiemannianSGD(layer.parameters(), lr=0.2, momentum=0.5)
    y = target(x.double()).detach().float()
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        loss = (layer(x.to(dtype)).float() - y).square().sum(-1).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert layer.factors.dtype == dtype
    assert losses[-1] < 1e-3 * losses[0]
    assert FixedRankLinear.from_linear(layer.to_linear(), 2).factors.dtype == dtype
    assert layer.with_rank(3).factors.dtype == dtype


# -- geoopt's Scaled -------------------------------------------------------------------------------


def test_a_scaled_manifold_takes_the_numbers_of_a_point():
    """As geoopt's, it scales lengths: steps are s times shorter."""
    man = FixedRankFactored(6, 5, 2, 1)
    scaled = geoopt.Scaled(man, 2.0)
    x = man.random(dtype=F64, generator=generator(0))
    with pytest.raises(ValueError, match="Manifolds do not match"):
        geoopt.ManifoldParameter(x, manifold=scaled)
    ends = []
    for optimizer, manifold, lr in (
        (geoopt.optim.RiemannianSGD, man, 0.05),
        (geoopt.optim.RiemannianSGD, scaled, 0.1),
        (RiemannianSGD, scaled, 0.1),
    ):
        p = geoopt.ManifoldParameter(x.detach().clone(), manifold=manifold)
        assert p.manifold is manifold
        steps = optimizer([p], lr=lr)
        for _ in range(3):
            steps.zero_grad()
            (man.to_dense(p) - torch.ones(6, 5, dtype=F64)).square().sum().backward()
            steps.step()
        ends.append(man.to_dense(p).detach())
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-13)
