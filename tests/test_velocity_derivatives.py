"""Derivatives of the end-to-end flow's velocity: right, or refused, never wrong; and compiled."""

import math

import pytest
import torch

import deeplin
from deeplin.flows import EndToEndFlow
from deeplin.geometry import DepthMetric

F64 = torch.float64
DEPTHS = pytest.mark.parametrize("depth", [1, 2, 3, 5.5, math.inf])


def problem(labels):
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(5, 9, dtype=F64, generator=generator) / 3
    Y = torch.randn(5, 9, dtype=F64, generator=generator) / 3
    return deeplin.LeastSquares(X, Y) if labels else deeplin.autoencoder(X)


def state(gap):
    """Orthonormal factors of W with the singular values e^gap and 1."""
    generator = torch.Generator().manual_seed(2)
    U, V = (torch.linalg.qr(torch.randn(5, 2, dtype=F64, generator=generator)).Q for _ in range(2))
    return U, torch.tensor([gap, 0.0], dtype=F64), V


def directions(y):
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(part.shape, dtype=F64, generator=generator) for part in y)


@DEPTHS
@pytest.mark.parametrize("labels", [False, True])
def test_derivatives_by_autograd_are_those_of_differences(depth, labels):
    """Central differences of step 1e-5, good to 1e-10 relative, at singular values 2 : 1."""
    flow, y = EndToEndFlow(problem(labels), depth), state(math.log(2))

    def velocity(*parts):
        return flow.velocity(0.0, parts)

    d, h = directions(y), 1e-5
    ahead, behind = (
        velocity(*(p + sign * h * q for p, q in zip(y, d, strict=True))) for sign in (1, -1)
    )
    expected = [(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)]
    forward = torch.func.jvp(velocity, y, d)[1]
    for ours, reference in zip(forward, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-7, atol=1e-7)
    leaves = [part.clone().requires_grad_() for part in y]
    weights = directions(y)[::-1]
    total = sum((a * b).sum() for a, b in zip(velocity(*leaves), weights[::-1], strict=True))
    gradients = torch.autograd.grad(total, leaves)
    found = sum(float((g * q).sum()) for g, q in zip(gradients, d, strict=True))
    wanted = sum(float((e * w).sum()) for e, w in zip(expected, weights[::-1], strict=True))
    assert found == pytest.approx(wanted, rel=1e-7, abs=1e-7)


@DEPTHS
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("gap", [0.0, 1e-12])
def test_at_equal_singular_values_nothing_wrong_is_returned(depth, labels, gap):
    flow, y = EndToEndFlow(problem(labels), depth), state(gap)

    def velocity(*parts):
        return flow.velocity(0.0, parts)

    leaves = [part.clone().requires_grad_() for part in y]
    with pytest.raises(ValueError, match=r"no derivative by autograd.* take differences"):
        velocity(*leaves)
    with torch.no_grad():
        for ours, plain in zip(velocity(*leaves), velocity(*y), strict=True):
            assert torch.equal(ours, plain)
    forward = torch.func.jvp(velocity, y, directions(y))[1]
    assert all(bool(part.isnan().any()) for part in forward)
    backward = torch.func.jacrev(velocity)(*y)
    assert any(bool(part.isnan().any()) for part in backward)
    batched = torch.func.vmap(velocity)(*(part[None] for part in y))  # a value, no derivative
    for ours, plain in zip(batched, velocity(*y), strict=True):
        torch.testing.assert_close(ours[0], plain, rtol=1e-9, atol=1e-9)


@DEPTHS
@pytest.mark.parametrize("x", [0.0, 1e-30, 1e-16, 1e-9, 1e-3, 1.0, 300.0])
def test_compilers_get_a_series_where_they_have_no_expm1(depth, x, monkeypatch):
    """Inductor's expm1 is eˣ − 1: its quotients lose ε/x of their digits, all of them at 1e-16."""
    log_sigma = torch.tensor([0.5, 0.5 - x], dtype=F64)
    metric = DepthMetric(depth)
    eager = metric.growth(log_sigma)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch, "expm1", lambda z: z.exp() - 1)
    for ours, plain in zip(metric.growth(log_sigma), eager, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-14, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gap", [0.0, 1e-9, 0.7])
def test_compiled_velocities_are_those_of_plain_code(gap):
    flow, y = EndToEndFlow(problem(True), 3), state(gap)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *parts: flow.velocity(0.0, parts), fullgraph=True)(*y)
    for ours, plain in zip(compiled, flow.velocity(0.0, y), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
