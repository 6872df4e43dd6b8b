"""Compiled steps: the numbers of the method, whatever the widths, the batch and the threads."""

import itertools

import pytest
import torch
from runner import needs_compiler

from deeplin import LeastSquares, MatrixApproximation, solve
from deeplin.flows import DLRAFlow, LayerFlow
from deeplin.integrators import RK4, Compiled, Euler, bound
from deeplin.integrators.compiled import runge_kutta_step
from deeplin.linalg import batch_last


def literal_step(X, Y, layers, h, stages):
    """A step of the flow whose field is autograd's gradient of the sum over the samples."""

    def field(*weights):
        weights = [W_j.detach().requires_grad_() for W_j in weights]
        W = weights[0]
        for W_j in weights[1:]:
            W = W_j @ W
        loss = 0.5 * (Y - W @ X).square().sum()
        return [-G_j for G_j in torch.autograd.grad(loss, weights)]

    k = field(*layers)
    if stages == 1:
        return [W_j + h * k_j for W_j, k_j in zip(layers, k, strict=True)]
    slopes = [k]
    for c in (0.5, 0.5, 1.0):
        k = field(*(W_j + c * h * k_j for W_j, k_j in zip(layers, k, strict=True)))
        slopes.append(k)
    return [
        W_j + h / 6 * (a + 2 * b + 2 * c + d)
        for W_j, a, b, c, d in zip(layers, *slopes, strict=True)
    ]


@needs_compiler
@pytest.mark.parametrize("batch", [(), (1,), (7,), (8,), (2, 3)], ids=str)
@pytest.mark.parametrize(
    "widths",
    [(3, 2), (4, 4, 4, 4), (5, 2, 3), (1, 8, 1), (2,) * 12],
    ids=lambda w: "-".join(map(str, w)),
)
def test_a_step_is_that_of_the_method(randn, widths, batch):
    X, Y = randn(widths[0], 10) / 3, randn(widths[-1], 10) / 3
    layers = [0.6 * randn(*batch, m, k) for k, m in itertools.pairwise(widths)]
    flow = LayerFlow(LeastSquares(X, Y))
    for method, stages in ((Euler(), 1), (RK4(), 4)):
        ours = bound(Compiled(method), flow)(0.0, flow.init_state(layers), 0.1)
        literal = literal_step(X, Y, layers, 0.1, stages)
        for W_j, oracle in zip(ours, literal, strict=True):
            torch.testing.assert_close(W_j, oracle, rtol=1e-12, atol=1e-13)


@needs_compiler
def test_float32_and_the_layout_in_memory(randn):
    layers = [0.6 * randn(300, 3, 4), 0.6 * randn(300, 2, 3)]
    moments = randn(4, 4), randn(2, 4)
    double = runge_kutta_step(layers, *moments, 0.1, RK4.nodes, RK4.weights)
    single = runge_kutta_step([W.float() for W in layers], *moments, 0.1, RK4.nodes, RK4.weights)
    laid_out = [batch_last(W_j) for W_j in layers]
    other = runge_kutta_step(laid_out, *moments, 0.1, RK4.nodes, RK4.weights)
    for a, b, c in zip(double, single, other, strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(b.double(), a, rtol=1e-4, atol=1e-5)
        assert torch.equal(a, c)
        assert a[..., 0, 0].is_contiguous()


@needs_compiler
def test_threads_change_no_bit(randn):
    layers, moments = [0.6 * randn(1003, 3, 3) for _ in range(3)], (randn(3, 3), randn(3, 3))
    one = runge_kutta_step(layers, *moments, 0.1, RK4.nodes, RK4.weights)
    torch.set_num_threads(2)
    try:
        two = runge_kutta_step(layers, *moments, 0.1, RK4.nodes, RK4.weights)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@needs_compiler
def test_along_a_flow_and_with_rebalancing(randn):
    X = randn(4, 12) / 4
    problem = LeastSquares(X, randn(3, 12) / 4)
    layers = [0.5 * randn(5, 2, 4), 0.5 * randn(5, 3, 2)]
    for flow in (LayerFlow(problem), LayerFlow(problem, balanced_rank=2)):
        y = flow.normalised(flow.init_state(layers))
        ours = solve(flow, y, 2.0, integrator=Compiled(RK4()), dt=0.05).y[-1]
        plain = solve(flow, y, 2.0, integrator=RK4(), dt=0.05).y[-1]
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def step_of(layers):
    d_x, d_y = layers[0].shape[-1], layers[-1].shape[-2]
    moments = torch.eye(d_x, dtype=torch.float64), torch.ones(d_y, d_x, dtype=torch.float64)
    return runge_kutta_step(layers, *moments, 0.1, (), (1.0,))


@pytest.mark.parametrize(
    ("widths", "dtype", "sentence"),
    [
        ((9, 2), torch.float64, "max d_j <= 8 and N·max d_j² <= 2048; got widths [9, 2]"),
        ((8,) * 34, torch.float64, "N·max d_j² <= 2048"),
        ((2, 2), torch.complex128, "for float32 and float64 on a CPU; got layers of torch.complex"),
    ],
)
def test_what_does_not_fit_is_said(widths, dtype, sentence):
    layers = [torch.ones(m, k, dtype=dtype) for k, m in itertools.pairwise(widths)]
    with pytest.raises(ValueError, match="use the integrator itself") as error:
        step_of(layers)
    assert sentence in str(error.value)


def test_shapes_that_do_not_fit_each_other(randn):
    for layers in ([randn(2, 3, 3), randn(3, 3)], [randn(3, 4), randn(2, 2)]):
        with pytest.raises(ValueError, match="with the same batch"):
            step_of(layers)
    with pytest.raises(ValueError, match=r"C and B \[\(3, 3\), \(2, 2\)\]"):
        runge_kutta_step([randn(2, 3)], randn(3, 3), randn(2, 2), 0.1, (), (1.0,))


@pytest.mark.parametrize(("compiler", "reason"), [("no-such-cc", "No such file"), ("false", "")])
def test_no_compiler(monkeypatch, compiler, reason):
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(ValueError, match="need a C compiler") as error:
        step_of([torch.ones(7, 1, dtype=torch.float64)])  # widths that no other test compiles
    assert f"got '{compiler}' ({reason}" in str(error.value)


def test_for_the_flow_of_layers_alone(randn):
    X = randn(3, 3)
    flow = DLRAFlow(MatrixApproximation(X))
    y = flow.init_state(X, 1)
    with pytest.raises(TypeError, match=r"needs the flow of layers, LayerFlow; got DLRAFlow"):
        bound(Compiled(RK4()), flow)(0.0, y, 0.1)
    with pytest.raises(TypeError, match="of LeastSquares; got MatrixApproximation"):
        Compiled(Euler()).step(LayerFlow(MatrixApproximation(X)), 0.0, (X, X), 0.1)
