"""The rate of arrival of unbalanced layers: against local_rate, and against runs."""

import math

import pytest
import torch
from reproduction.modes import embedded_hessian_of

import deeplin
from deeplin import DeepLinear, init
from deeplin.flows import EndToEndFlow, LayerFlow
from deeplin.landscape import hessian, layer_rate, local_mode, local_rate, slowest_mode
from deeplin.landscape.operators import SymmetricOperator
from deeplin.network import end_to_end
from deeplin.prediction import predict
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


@pytest.mark.parametrize("kind", ["autoencoder", "teacher"])
@pytest.mark.parametrize("depth", [1, 2, 3.5])
def test_the_slowest_mode_alone_falls_at_the_rate(kind, depth, randn):
    """⟨P, W(t) − W⟩ is one exponential from the start on; the distance is far from it."""
    problem = problem_of(kind, 2)
    W = problem.minimizer(2)
    rho, P = local_mode(problem, W, depth)
    flow = EndToEndFlow(problem, depth)
    start = flow.init_state(W + 1e-5 * (randn(*W.shape) @ W + W @ randn(*W.shape)), rank=2)
    times = [0.25 / rho, 0.5 / rho, 1 / rho]
    end = deeplin.solve(flow, start, times[-1], save_at=times, rtol=1e-11, atol=1e-14).y
    moved = torch.stack([flow.end_to_end(y) - W for y in (start, *end[-3:])])
    along = (P * moved).sum((-2, -1))
    torch.testing.assert_close(
        along[1:] / along[0], torch.tensor([-0.25, -0.5, -1]).double().exp(), rtol=1e-3, atol=0
    )
    distance = torch.linalg.matrix_norm(moved)
    assert distance[1] / distance[0] < 0.97 * math.exp(-0.25)


def test_a_lower_rank_and_a_batch_are_refused():
    problem = problem_of("autoencoder", 2)
    zero = [torch.zeros(2, 8).double(), torch.zeros(8, 2).double()]
    with pytest.raises(ValueError, match="needs rank W = the narrowest width 2"):
        layer_rate(problem, zero)
    with pytest.raises(ValueError, match="one tuple of layers"):
        layer_rate(problem, [W_j.expand(3, *W_j.shape) for W_j in zero])


@pytest.mark.parametrize("shape", [(2, 6), (6, 2)])
def test_the_narrowest_width_may_be_that_of_the_data(shape, randn):
    d_x, d_y = shape
    problem = deeplin.LeastSquares(randn(d_x, 30), randn(d_y, 30))
    net = DeepLinear([d_x, 5, 4, d_y], dtype=torch.float64)
    layers = [W_j.detach() for W_j in init.balanced_(net, problem.minimizer(2)).weights]
    expected = local_rate(problem, problem.minimizer(2), 3)
    assert layer_rate(problem, layers) == pytest.approx(expected, rel=1e-9)


def test_a_single_layer():
    problem = problem_of("teacher", 2)
    W = problem.minimizer(2) + 0
    square = deeplin.LeastSquares.from_moments(problem.C, problem.C, problem.C.trace())
    eye = torch.eye(8, dtype=torch.float64)
    assert W.shape == eye.shape
    expected = float(torch.linalg.eigvalsh(problem.C)[0])
    assert layer_rate(square, [eye]) == pytest.approx(expected, rel=1e-10)


DIRECT = "deeplin.landscape.rates._DENSE_DIMENSION", "deeplin.landscape.operators._DENSE_DIMENSION"


@pytest.fixture(params=["all eigenvalues", "the inverse"])
def way(request, monkeypatch):
    """Both ways to the slowest mode; the second is that of large problems."""
    if request.param == "the inverse":
        for name in DIRECT:
            monkeypatch.setattr(name, 0)


def at_the_minimum(problem, widths, generator):
    """Layers of the minimizer that are not balanced: between them stand M and M^{-1}."""
    net = init.balanced_(DeepLinear(widths, dtype=torch.float64), problem.minimizer(2))
    layers = [W_j.detach().clone() for W_j in net.weights]
    for j, width in enumerate(widths[1:-1]):
        M = torch.eye(width).double() + 0.3 * torch.randn(
            width, width, dtype=torch.float64, generator=generator
        )
        layers[j], layers[j + 1] = M @ layers[j], torch.linalg.solve(M, layers[j + 1], left=False)
    return layers


@pytest.mark.parametrize("kind", ["autoencoder", "teacher"])
@pytest.mark.parametrize("widths", [[8, 2, 8], [8, 5, 2, 8], [8, 2, 4, 6, 8]])
def test_the_slowest_part_of_any_displacement_falls_at_the_rate(kind, widths, way):
    """⟨P, Ẇ⟩ = −ρ⟨P, W − W*⟩ to first order, Ẇ by the layers' own gradients; P = Hess f[ξ]."""
    problem, generator = problem_of(kind, 3), torch.Generator().manual_seed(4)
    layers, W = at_the_minimum(problem, widths, generator), problem.minimizer(2)
    rho, direction = slowest_mode(problem, layers)
    assert rho != pytest.approx(local_rate(problem, W, len(layers)), rel=1e-2)
    P = embedded_hessian_of(problem, W, direction)
    size = 1e-5

    def seen(moved):
        """⟨P, W − W*⟩ and ⟨P, Ẇ⟩."""
        moved = [W_j.requires_grad_() for W_j in moved]
        velocity = [-g for g in torch.autograd.grad(problem.loss(end_to_end(moved)), moved)]
        product, W_dot = torch.func.jvp(lambda *a: end_to_end(a), tuple(moved), tuple(velocity))
        return torch.stack([(P * (product - W)).sum(), (P * W_dot).sum()]).detach()

    for _ in range(3):
        step = [size * torch.randn(A.shape, dtype=A.dtype, generator=generator) for A in layers]
        # What is odd in the displacement: all but the second order.
        there, back = (
            seen([A + sign * S for A, S in zip(layers, step, strict=True)]) for sign in (1, -1)
        )
        away, falls = 0.5 * (there - back)
        assert abs(away) > 1e-4 * size * P.norm(), "a displacement that the mode is seen in"
        torch.testing.assert_close(falls, -rho * away, rtol=1e-5, atol=0.0)


def test_a_continuum_of_minima_has_no_rate(way):
    """σ_2 = σ_3: an eigenvalue 0, of which round-off would make a rate of 1e-16."""
    C = torch.diag(torch.tensor([3.0, 2, 2, 1, 1, 1]).double())
    problem = deeplin.LeastSquares.from_moments(C, C, C.trace())
    layers = at_the_minimum(problem, [6, 2, 4, 6], torch.Generator().manual_seed(4))
    with pytest.raises(ValueError, match="at a strict minimum on M_k"):
        layer_rate(problem, layers)


def test_a_prediction_has_the_rate_of_layers_that_arrived_or_why_it_has_none():
    problem, generator = problem_of("autoencoder", 3), torch.Generator().manual_seed(4)
    layers = at_the_minimum(problem, [8, 5, 2, 8], generator)
    before = predict(problem, 3, layers)
    assert before.rate is None
    assert before.arrived(problem, layers).rate == layer_rate(problem, layers)
    off = [*layers[:-1], 2 * layers[-1]]
    assert before.arrived(problem, off) == before
    # So small that the other layers' part of 𝒜 is lost in that of the first.
    tiny = [1e20 * layers[0], 1e-10 * layers[1], 1e-10 * layers[2]]
    after = before.arrived(problem, tiny)
    assert after.rate is None
    assert "that of these layers is not known: layer_rate needs layers of which" in (
        after.rate_missing
    )


def test_the_inverse_finds_the_rate_of_all_eigenvalues(monkeypatch):
    generator = torch.Generator().manual_seed(4)
    for kind in ("autoencoder", "teacher"):
        problem = problem_of(kind, 3)
        layers = at_the_minimum(problem, [8, 5, 2, 8], generator)
        expected = layer_rate(problem, layers)
        with monkeypatch.context() as patch:
            patch.setattr(DIRECT[0], 0)
            assert layer_rate(problem, layers) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("depth", [2, 5, 20])
@pytest.mark.parametrize("kind", ["autoencoder", "teacher", "labels"])
def test_the_inverse_of_a_hessian(kind, depth, randn, monkeypatch):
    """In closed form where the fit is perfect, else by a factorisation: H·H^{-1}x = x."""
    if kind == "labels":
        problem = deeplin.LeastSquares(randn(8, 30), randn(6, 30))
    else:
        problem = problem_of(kind, depth)
    H = hessian(problem, problem.minimizer(2), depth)
    closed = []
    monkeypatch.setattr(
        type(H), "dense", lambda self: closed.append(0) or SymmetricOperator.dense(self)
    )
    inverse = H.inverse(H.factored_dimension)
    assert inverse is not None
    assert bool(closed) == (kind != "teacher")
    x = randn(H.dim)
    torch.testing.assert_close(H @ torch.from_numpy(inverse(x.numpy())), x, rtol=1e-9, atol=1e-9)
