"""Complex networks and flows: what is conserved, rank one, Gaussian starts, balanced layers."""

import math

import pytest
import torch
from flow_cases import C128, dense_field, draw, gradient, operator, problems

import deeplin
from deeplin import DeepLinear, init
from deeplin.flows import EndToEndFlow, LayerFlow, compress, rebalance


@pytest.mark.parametrize("depth", [1, 2, 3.5, math.inf])
def test_velocity_of_rank_one_is_the_dense_one(depth):
    problem = problems(C128)["own class"]
    flow = EndToEndFlow(problem, depth)
    W = draw(4, 1, seed=1, dtype=C128) @ draw(1, 5, seed=2, dtype=C128)
    U, log_s, V = flow.init_state(W)
    y = (1.5 * U, log_s, 0.7 * V)  # as in the middle of a step, where columns are no unit vectors
    W = flow.end_to_end(y)
    W_dot = torch.func.jvp(lambda *z: flow.end_to_end(z), y, tuple(flow.velocity(0.0, y)))[1]
    expected = -operator(W, gradient(problem.loss, W), depth, rank=1)
    torch.testing.assert_close(W_dot, expected, rtol=1e-9, atol=1e-10)


def test_velocity_does_not_depend_on_the_factors_of_a_matrix():
    """At columns that are neither orthonormal nor of unit length, as stages see them."""
    problem = problems(C128)["own class"]
    flow = EndToEndFlow(problem, 2)
    U, log_s, V = flow.init_state(draw(4, 2, seed=1, dtype=C128) @ draw(2, 5, seed=2, dtype=C128))
    mixed = 0.1 * draw(2, 2, seed=3, dtype=C128)
    y = (U + U @ mixed, log_s, V - V @ mixed)
    W_dot = torch.func.jvp(lambda *z: flow.end_to_end(z), y, tuple(flow.velocity(0.0, y)))[1]
    expected = dense_field("end to end 2", problem, flow.end_to_end(y))
    torch.testing.assert_close(W_dot, expected, rtol=1e-8, atol=1e-9)


def test_gaps_and_rank_are_conserved_and_the_sign_of_det_is_not_spoken_of():
    problem = problems(C128, (4, 4))["own class"]
    net = DeepLinear([4, 3, 4], dtype=C128)
    init.gaussian_(net, 0.5, generator=torch.Generator().manual_seed(0))
    flow = LayerFlow(problem)
    y = flow.init_state(net)
    end = deeplin.solve(flow, y, 1.0, rtol=1e-10).y[-1]
    start_gap, end_gap = flow.conserved(y)["gap_1"], flow.conserved(end)["gap_1"]
    assert float((end_gap - start_gap).norm()) < 1e-8 < float((end[0] - y[0]).norm())
    assert float((start_gap - (net.weights[1].mH @ net.weights[1]).detach()).norm()) > 0.1
    whole = EndToEndFlow(problem, 2)
    state = whole.init_state(draw(4, 4, seed=1, dtype=C128))
    assert set(whole.conserved(state)) == {"UtU", "VtV", "rank"}


def test_gaussian_entries_have_the_variance_asked_for():
    net = DeepLinear([50, 200, 60], dtype=C128)  # E|w|² = 1/d_j
    for W_j, d_j in zip(net.weights, (200, 60), strict=True):
        size, imaginary = W_j.detach().abs().square().mean(), W_j.detach().imag.square().mean()
        assert float(size * d_j) == pytest.approx(1, abs=0.05)
        assert float(imaginary * d_j) == pytest.approx(0.5, abs=0.05)
    init.gaussian_(net, 0.1, generator=torch.Generator().manual_seed(0))
    assert float(net.weights[0].detach().abs().square().mean()) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, C128])
def test_balanced_layers_compress_and_rebalance(dtype):
    W = draw(4, 2, seed=1, dtype=dtype) @ draw(2, 5, seed=2, dtype=dtype)
    net = DeepLinear([5, 3, 3, 4], dtype=dtype)
    init.balanced_(net, W, rotate=True, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net.end_to_end().detach(), W)
    assert max(float(gap.norm().detach()) for gap in net.balancedness_gap()) < 1e-13
    small = compress(net)
    assert [W_j.shape[-2] for W_j in small] == [2, 2, 4]
    torch.testing.assert_close(small[2] @ small[1] @ small[0], W)
    drifted = [W_j.detach() * (1 + 1e-6 * j) for j, W_j in enumerate(net.weights)]
    again = rebalance(drifted, 2)
    assert max(float(gap.norm()) for gap in deeplin.network.balancedness_gap(again)) < 1e-13
    torch.testing.assert_close(again[2] @ again[1] @ again[0], drifted[2] @ drifted[1] @ drifted[0])
    for before, after in zip(drifted, again, strict=True):
        assert float((before - after).norm()) < 1e-5
