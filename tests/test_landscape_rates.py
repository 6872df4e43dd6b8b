"""The rate of arrival of unbalanced layers: against local_rate, and against runs."""

import pytest
import torch

import deeplin
from deeplin import DeepLinear, init
from deeplin.flows import LayerFlow
from deeplin.landscape import layer_rate, local_rate
from deeplin.network import end_to_end
from deeplin.problems import data
from deeplin.runner.verdict import fitted_rate


def problem_of(kind: str, depth: int):
    generator = torch.Generator().manual_seed(3)
    if kind == "autoencoder":
        return data.gaussian(8, generator=generator).problem
    return data.teacher(8, rank=2, depth=depth, generator=generator).problem


@pytest.mark.parametrize("kind", ["autoencoder", "teacher"])
@pytest.mark.parametrize("widths", [[8, 2, 8], [8, 5, 2, 8], [8, 2, 4, 6, 8], [8, 7, 6, 2, 5, 8]])
def test_balanced_layers_arrive_at_the_local_rate(kind, widths):
    problem = problem_of(kind, len(widths) - 1)
    W = problem.minimizer(2)
    net = init.balanced_(DeepLinear(widths, dtype=torch.float64), W)
    layers = [W_j.detach() for W_j in net.weights]
    torch.testing.assert_close(
        layer_rate(problem, layers), local_rate(problem, W, len(layers)), rtol=1e-9, atol=0.0
    )


@pytest.mark.parametrize("kind", ["autoencoder", "teacher"])
@pytest.mark.parametrize("widths", [[8, 2, 8], [8, 5, 2, 8]])
def test_unbalanced_layers_arrive_at_their_own_rate(kind, widths):
    problem = problem_of(kind, len(widths) - 1)
    net = DeepLinear(widths, dtype=torch.float64)
    init.gaussian_(net, "fan_max", generator=torch.Generator().manual_seed(6))
    flow, limit = LayerFlow(problem), problem.minimizer(2)
    balanced = local_rate(problem, limit, net.depth)
    t1 = 40 / balanced
    solution = deeplin.solve(
        flow,
        flow.init_state(net),
        t1,
        save_at=torch.linspace(0, t1, 300, dtype=torch.float64).tolist(),
        observe=lambda t, y: {"distance": torch.linalg.matrix_norm(end_to_end(y) - limit)},
    )
    rho = layer_rate(problem, solution.y[-1])
    measured = fitted_rate(solution.t, solution.observed["distance"], 1e-13)
    assert measured == pytest.approx(rho, rel=0.01)
    assert abs(rho / balanced - 1) > 0.02, "a start for which balancedness does not matter"


def test_a_lower_rank_and_a_batch_are_refused():
    problem = problem_of("autoencoder", 2)
    zero = [torch.zeros(2, 8).double(), torch.zeros(8, 2).double()]
    with pytest.raises(ValueError, match="needs rank W = the narrowest width 2"):
        layer_rate(problem, zero)
    with pytest.raises(ValueError, match="one tuple of layers"):
        layer_rate(problem, [W_j.expand(3, *W_j.shape) for W_j in zero])


def test_a_single_layer():
    problem = problem_of("teacher", 2)
    W = problem.minimizer(2) + 0
    square = deeplin.LeastSquares.from_moments(problem.C, problem.C, problem.C.trace())
    eye = torch.eye(8, dtype=torch.float64)
    assert W.shape == eye.shape
    expected = float(torch.linalg.eigvalsh(problem.C)[0])
    assert layer_rate(square, [eye]) == pytest.approx(expected, rel=1e-10)
