"""The gradient of an optimizer's step is that of autograd, and the optimizer remains torch's."""

import pytest
import torch

import deeplin
from deeplin.flows import LayerFlow
from deeplin.problems.data import Data
from deeplin.runner.methods import optimizer_steps

F64 = torch.float64
# Widths whose narrowest is inside, at an end, and one layer alone.
WIDTHS = [[7, 3, 5, 6], [7, 6], [4, 5, 6], [7, 6, 5, 3], [7, 3, 3, 3, 6]]
CASES = [(w, (), F64) for w in WIDTHS] + [(WIDTHS[0], (4,), F64), (WIDTHS[0], (), torch.cdouble)]


def made(widths, batch, dtype, randn, optimizer, autoencoder=False):
    def draw(*shape):
        return torch.complex(randn(*shape), randn(*shape)) if dtype.is_complex else randn(*shape)

    x = draw(20, widths[0])
    y = x if autoencoder else draw(20, widths[-1])
    problem = deeplin.LeastSquares.from_samples(x, y)
    network = deeplin.DeepLinear(widths, batch_shape=batch, dtype=dtype)
    with torch.no_grad():
        for W_j in network.weights:
            W_j.copy_(0.3 * draw(*W_j.shape))
    flow = LayerFlow(problem)
    state = flow.init_state(network)
    return optimizer_steps(
        flow, state, network, Data(problem, x=x, y=y), 0, optimizer=optimizer, dt=1e-3
    )


@pytest.mark.parametrize("autoencoder", [False, True])
@pytest.mark.parametrize(("widths", "batch", "dtype"), CASES)
def test_the_gradient_is_that_of_autograd(widths, batch, dtype, autoencoder, randn):
    widths = [*widths[:-1], widths[0]] if autoencoder else widths
    stepper = made(widths, batch, dtype, randn, torch.optim.SGD, autoencoder)
    stepper.advance(1.0)
    before = [p.detach().clone() for p in stepper.parameters]
    stepper.advance(1.0)
    taken = [p.grad.clone() for p in stepper.parameters]
    after = [p.detach().clone() for p in stepper.parameters]
    with torch.no_grad():
        for p, value in zip(stepper.parameters, before, strict=True):
            p.copy_(value)
    stepper.optimizer.zero_grad()
    stepper.loss(0).backward()
    for p, gradient, start, end in zip(stepper.parameters, taken, before, after, strict=True):
        assert (gradient - p.grad).norm() <= 1e-14 * p.grad.norm()
        assert torch.equal(end, start.add(gradient, alpha=-1e-3))


@pytest.mark.parametrize(("batch_size", "tape"), [(None, False), (5, True)])
def test_only_mini_batches_need_a_tape(batch_size, tape, randn, monkeypatch):
    widths, backward, calls = [7, 3, 6], torch.Tensor.backward, []

    def watched(self, *args, **kwargs):
        calls.append(self)
        return backward(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", watched)
    x, y = randn(20, 7), randn(20, 6)
    network = deeplin.DeepLinear(widths, dtype=F64)
    problem = deeplin.LeastSquares.from_samples(x, y)
    flow = LayerFlow(problem)
    stepper = optimizer_steps(
        flow,
        flow.init_state(network),
        network,
        Data(problem, x=x, y=y),
        0,
        optimizer=torch.optim.SGD,
        dt=1e-3,
        batch_size=batch_size,
    )
    stepper.advance(1.0)
    assert bool(calls) is tape


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "SGD"])
def test_other_optimizers_take_the_steps_that_a_tape_gives(name, randn):
    """Momentum and the like see the same gradients; after 30 steps the layers are the same."""

    def optimizer(parameters, lr):
        more = {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True} if name == "SGD" else {}
        return getattr(torch.optim, name)(parameters, lr=lr, **more)

    stepper = made([7, 3, 5, 6], (), F64, randn, optimizer)
    start = [p.detach().clone() for p in stepper.parameters]
    for _ in range(30):
        stepper.advance(1.0)
    ends = [p.detach().clone() for p in stepper.parameters]
    with torch.no_grad():
        for p, value in zip(stepper.parameters, start, strict=True):
            p.copy_(value)
    taped = optimizer(stepper.parameters, lr=1e-3)
    for k in range(30):
        taped.zero_grad()
        stepper.loss(k).backward()
        taped.step()
    for p, end, first in zip(stepper.parameters, ends, start, strict=True):
        assert (p.detach() - end).norm() <= 1e-10 * (end - first).norm()


def test_hooks_of_the_optimizer_are_called(randn):
    stepper, seen = made([7, 3, 6], (), F64, randn, torch.optim.SGD), []
    stepper.advance(1.0)
    stepper.optimizer.register_step_post_hook(lambda *_: seen.append(1))
    stepper.advance(1.0)
    assert seen == [1]
