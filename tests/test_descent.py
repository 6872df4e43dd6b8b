"""The momentum step in compiled code: what the definitions give, and the torch road beside it."""

import math
from functools import partial

import pytest
import torch
from runner import needs_compiler

from deeplin.manifolds import FixedRankFactored, descent
from deeplin.manifolds.low_rank import LowRankManifold
from deeplin.nn import FixedRankLinear
from deeplin.optim import RiemannianSGD

F64, F32 = torch.float64, torch.float32
SHAPES = [(7, 5, 3), (64, 33, 1), (130, 64, 16), (20, 20, 20), (100, 90, 17)]
SHAPES += [(5, 70, 4), (66, 40, 32)]


def case(m, n, r, *, depth=1, gradient="taped", batch=(), dtype=F64, seed=0):
    """A manifold, a point, a vector of the ambient space, and a tangent one."""
    manifold = FixedRankFactored(m, n, r, depth, "splitting", gradient=gradient)
    generator = torch.Generator().manual_seed(seed)
    x = manifold.random(*batch, m + n + r, r, dtype=dtype, generator=generator)
    x = x.as_subclass(torch.Tensor)
    grad, kept = (torch.randn(x.shape, dtype=dtype, generator=generator) for _ in range(2))
    return manifold, x, grad, manifold.proju(x, kept)


def tangent_projector(W, r):
    """P_W by the singular vectors of the dense matrix."""
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    left, right = U[:, :r] @ U[:, :r].mT, Vh[:r].mT @ Vh[:r]
    return lambda Z: left @ Z + Z @ right - left @ Z @ right


@needs_compiler
@pytest.mark.parametrize("nesterov", [False, True], ids=["plain", "nesterov"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_step_is_that_of_its_definition(shape, nesterov, randn):
    """Dense matrices and their singular vectors: W' = P(W + ξ), P onto the range of (W + ξ)V."""
    m, n, r = shape
    manifold, x, _, buffer = case(*shape)
    G, lr, momentum, dampening = randn(m, n), 0.05, 0.9, 0.3
    U, _, V = manifold.unpack_tensor(x)
    grad = torch.cat([G @ V, G.mT @ U, U.mT @ G @ V])
    assert descent.takes(x)
    options = {"lr": lr, "momentum": momentum, "dampening": dampening, "nesterov": nesterov}
    new, moved = manifold.descend(x, grad, buffer, **options)

    W, b = manifold.to_dense(x), manifold.tangent_to_dense(x, buffer)
    rgrad = tangent_projector(W, r)(G)
    b = momentum * b + (1 - dampening) * rgrad
    aim = W - lr * (rgrad + momentum * b if nesterov else b)
    basis = torch.linalg.svd(aim @ V, full_matrices=False)[0]
    W = basis @ basis.mT @ aim
    torch.testing.assert_close(manifold.to_dense(new), W, rtol=0, atol=1e-12)
    b = tangent_projector(W, r)(b)
    torch.testing.assert_close(manifold.tangent_to_dense(new, moved), b, rtol=0, atol=1e-11)
    assert manifold.check_point_on_manifold(new, atol=1e-13, rtol=0)
    Up, Vp = moved[:m], moved[m : m + n]
    for frame, sides in ((new[:m], Up), (new[m : m + n], Vp)):  # in coordinates, too
        assert float((frame.mT @ sides).abs().max()) < 1e-13 * (1 + float(sides.norm()))


@needs_compiler
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("gradient", ["taped", "partials"])
@pytest.mark.parametrize("depth", [1, 2, 3.5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_step_of_all_manifolds(shape, depth, gradient, dtype):
    """In the same gauge, so that a run can change roads; batches, with momentum and without."""
    for batch in ((), (2, 3)):
        manifold, x, grad, buffer = case(
            *shape, depth=depth, gradient=gradient, batch=batch, dtype=dtype
        )
        grad = grad / 10
        # not row by row in memory
        x, grad, buffer = (part.mT.contiguous().mT for part in (x, grad, buffer))
        for options in (
            {"lr": 0.1, "dampening": 0.5},
            {"lr": 0.1, "momentum": 0.9, "dampening": 0.2},
            {"lr": 0.05, "momentum": 0.5, "nesterov": True},
        ):
            kept = buffer if "momentum" in options else None
            step = partial(manifold.descend, x, grad, kept, **options)
            want = LowRankManifold.descend(manifold, x, grad, kept, **options)
            for ours, theirs in zip(step(), want, strict=True):
                if theirs is None:
                    assert ours is None
                    continue
                assert ours.shape == theirs.shape
                size = torch.finfo(dtype).eps * (1 + float(theirs.abs().max()))
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e4 * size)


@needs_compiler
def test_a_step_that_needs_care_takes_the_other_road(monkeypatch):
    """One that would lose rank is shortened, nan warned of; nothing was written before."""
    manifold, x, *_ = case(12, 9, 3, batch=(4,))
    taken = []
    compiled = descent.descend
    monkeypatch.setattr(descent, "descend", lambda *a, **k: taken.append(compiled(*a, **k)))
    down = torch.zeros_like(x)
    down[1, -3:] = x[1, -3:]  # −S: the whole step ends at 0
    U, S, V = manifold.unpack_tensor(x)
    new, _ = manifold.descend(x, down, torch.zeros_like(x), lr=1.0, momentum=0.9)
    assert taken == [None]
    torch.testing.assert_close(manifold.to_dense(new)[1], 0.5 * (U @ S @ V.mT)[1])
    torch.testing.assert_close(manifold.to_dense(new)[0], (U @ S @ V.mT)[0])
    # What is left of it is round-off of the step.
    down[1, -1] *= 1 - 1e-16
    down[1, -3:-1] = 0
    manifold.descend(x, down, None, lr=1.0)
    assert taken.pop() is None
    for bad in (math.nan, math.inf):
        for place in (0, 13, 22):  # of U, V, S
            grad = torch.zeros_like(x)
            grad[2, place, 1] = bad
            with pytest.warns(RuntimeWarning, match="nan or inf"):
                new, _ = manifold.descend(x, grad, None, lr=1.0)
            torch.testing.assert_close(manifold.to_dense(new), U @ S @ V.mT)
            assert taken.pop() is None
    # Sizes whose squares leave the range of numbers.
    for size in (1e-160, 1e-180):
        tiny = torch.cat([U, V, size * S], -2)
        new, _ = manifold.descend(tiny, torch.zeros_like(x), None, lr=1.0)
        torch.testing.assert_close(manifold.to_dense(new) / size, U @ S @ V.mT)
    with pytest.raises(RuntimeError, match="the iteration diverges"):
        manifold.descend(torch.cat([U, V, 1e180 * S], -2), torch.zeros_like(x), None, lr=1.0)
    assert taken == [None, None, None, None]


@needs_compiler
def test_small_singular_values_keep_their_digits():
    """σ_r = 1e-9: the frames are orthonormal and the step that of the torch road, to 1e-13."""
    manifold, x, grad, buffer = case(40, 30, 4)
    x[-4:] = torch.diag(torch.tensor([1.0, 1e-3, 1e-6, 1e-9], dtype=F64))
    options = {"lr": 1e-9, "momentum": 0.9}
    want = LowRankManifold.descend(manifold, x, grad, buffer, **options)
    for ours, theirs in zip(manifold.descend(x, grad, buffer, **options), want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_without_a_compiler_the_layer_learns_as_with_one(monkeypatch, tmp_path):
    def trained():
        torch.manual_seed(0)
        layer = FixedRankLinear(20, 30, rank=4, dtype=F64)
        optimizer = RiemannianSGD(layer.parameters(), lr=0.01, momentum=0.9)
        x, y = torch.randn(8, 20, dtype=F64), torch.randn(8, 30, dtype=F64)
        for _ in range(20):
            optimizer.zero_grad()
            (layer(x) - y).square().mean().backward()
            optimizer.step()
        return layer

    here = trained()
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not descent.takes(here.factors)
    torch.testing.assert_close(trained().weight, here.weight, rtol=1e-10, atol=1e-12)


@needs_compiler
def test_what_the_loops_do_not_take():
    x = case(40, 40, 8)[1]
    assert descent.takes(x)
    assert descent.takes(torch.zeros(100, descent.LARGEST_RANK))
    for other in (x.to(torch.bfloat16), x.to(torch.complex128), x.to("meta")):
        assert not descent.takes(other)
    assert not descent.takes(torch.zeros(100, descent.LARGEST_RANK + 1))
    assert not descent.takes(x[:0])
    for other in (x[None], x[:-1], x.float()):
        assert not descent.takes(x, other)
        assert not descent.takes(x, x, other)


@needs_compiler
def test_what_does_not_fit_is_not_read(monkeypatch):
    """A gradient for many points is that of each; other shapes and types are left to torch."""
    manifold, x, grad, buffer = case(9, 8, 3, batch=(4,))
    step = partial(manifold.descend, lr=0.1, momentum=0.9)
    want = step(x, grad[:1].expand(4, -1, -1).contiguous(), buffer)
    monkeypatch.setattr(descent, "descend", None)  # not to be called
    for ours, theirs in zip(step(x, grad[0], buffer), want, strict=True):
        torch.testing.assert_close(ours, theirs)
    for bad in (grad.float(), grad[..., :-1, :]):
        with pytest.raises((RuntimeError, ValueError)):
            step(x, bad, buffer)
    with pytest.raises((RuntimeError, ValueError)):
        step(x, grad, buffer[..., :-1, :])
    step(x, grad, buffer.float())  # torch takes it
    with pytest.raises((RuntimeError, ValueError)):
        step(x[..., :-1, :], grad[..., :-1, :], None)


@needs_compiler
def test_a_learning_rate_may_be_a_tensor():
    manifold, x, grad, buffer = case(9, 8, 3)
    want = manifold.descend(x, grad, buffer, lr=0.1, momentum=0.9)
    found = manifold.descend(x, grad, buffer, lr=torch.tensor(0.1, dtype=F64), momentum=0.9)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_another_retraction_is_not_replaced():
    generator = torch.Generator().manual_seed(0)
    manifold = FixedRankFactored(9, 8, 3, 1, "svd", gradient="taped")
    x = manifold.random(dtype=F64, generator=generator).as_subclass(torch.Tensor)
    grad = torch.randn(x.shape, dtype=F64, generator=generator)
    new = manifold.descend(x, grad, None, lr=0.1)[0]
    want = manifold.retr(x, -0.1 * manifold.egrad2rgrad(x, grad))
    torch.testing.assert_close(new, want, rtol=0, atol=1e-13)
