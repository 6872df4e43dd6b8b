import math

import pytest
import torch

import deeplin
from deeplin import DeepLinear, LeastSquares, exact, init, landscape
from deeplin.flows import LayerFlow
from deeplin.integrators import RK4
from deeplin.integrators.steppers import IntegratorStepper
from deeplin.landscape import RiemannianHessian, local_rate
from deeplin.loop import drive
from deeplin.manifolds import FixedRank
from deeplin.runner.observables import layer_observables
from deeplin.runner.verdict import fitted_rate


def layer_hessian_rates(problem, W, depth):
    """Positive eigenvalues of Hess L^N at balanced layers of W, by autograd."""
    k = int(torch.linalg.matrix_rank(W, rtol=1e-9))
    d_y, d_x = W.shape
    net = init.balanced_(DeepLinear([d_x, *[k] * (depth - 1), d_y], dtype=torch.float64), W)
    shapes = [tuple(w.shape) for w in net.weights]

    def loss(flat):
        parts = flat.split([a * b for a, b in shapes])
        product = None
        for part, shape in zip(parts, shapes, strict=True):
            layer = part.view(shape)
            product = layer if product is None else layer @ product
        return problem.loss(product)

    flat = torch.cat([w.detach().flatten() for w in net.weights])
    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_rate_is_the_least_positive_eigenvalue_of_the_layers_hessian(randn, depth, k):
    """Beyond the directions in which the product is constant the two Hessians share spectra."""
    problem = LeastSquares(randn(4, 20), randn(3, 20))
    W = problem.minimizer(k)
    eigenvalues = layer_hessian_rates(problem, W, depth)
    positive = eigenvalues[eigenvalues > 1e-7]
    dim = k * (4 + 3 - k)
    assert len(positive) >= dim
    assert local_rate(problem, W, depth) == pytest.approx(float(positive[0]), rel=1e-6)


@pytest.mark.parametrize("depth", [1, 2, 3, 7.5, 40])
@pytest.mark.statement("BRTW §7.3, E9")
def test_autoencoder_rate_has_a_closed_form_at_any_depth(randn, depth, seen):
    problem = deeplin.autoencoder(randn(6, 40))
    for r in (1, 3, 5):
        rate = local_rate(problem, problem.minimizer(r), depth)
        seen.ratio(rate, exact.autoencoder_rate(problem.spectrum.values, r), rel=1e-9)
        seen.number(f"ρ, d = 6, r = {r}, N = 1 to 40", rate)


@pytest.mark.statement("BRTW Prop. 33")
def test_hessian_has_a_negative_direction_at_every_other_critical_point(randn):
    problem = LeastSquares(randn(4, 20), randn(4, 20))
    for J, W in problem.optimum.critical_points(2):
        least = RiemannianHessian(problem, W, 3).smallest_eigenvalue()
        assert (least > 0) == (J == (1, 2))


@pytest.mark.parametrize("depth", [1, 2, 3, 2.5])
def test_hessian_away_from_critical_points_is_that_of_the_manifold(randn, depth):
    """Its eigenvalues, against those of the manifold's Hessian on a basis of the tangent space."""
    problem, manifold = LeastSquares(randn(5, 20), randn(4, 20)), FixedRank(2, depth)
    W = manifold.projx(randn(4, 5)).as_subclass(torch.Tensor)
    G = problem.egrad(W)
    units = torch.eye(20, dtype=torch.float64).view(20, 4, 5)
    tangent = torch.stack([manifold.proju(W, u) for u in units]).flatten(1)
    basis = torch.linalg.svd(tangent).Vh[:14].view(14, 4, 5)  # 2·(4 + 5 − 2)
    images = []
    for u in basis:
        change = torch.func.jvp(problem.egrad, (W,), (u,))[1]
        images.append(manifold.ehess2rhess(W, G, change, u).flatten())
    want = torch.linalg.eigvals(torch.stack(images) @ basis.flatten(1).mT).real.sort().values
    ours = RiemannianHessian(problem, W, depth)
    matrix = torch.stack([ours @ e for e in torch.eye(14, dtype=torch.float64)])
    torch.testing.assert_close(torch.linalg.eigvalsh(matrix), want, rtol=1e-9, atol=1e-9)


def test_lanczos_agrees_with_the_dense_eigenproblem(randn, monkeypatch):
    problem = LeastSquares(randn(12, 60), randn(10, 60))
    W = problem.minimizer(3)
    dense = local_rate(problem, W, 3)
    monkeypatch.setattr(landscape.operators, "_DENSE_DIMENSION", 10)
    assert local_rate(problem, W, 3) == pytest.approx(dense, rel=1e-7)


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.statement("BRTW §7.3, E9")
def test_rate_predicts_the_decay_of_a_trajectory(generator, depth, seen):
    X = torch.randn(6, 30, dtype=torch.float64, generator=generator)
    problem = deeplin.autoencoder(X / math.sqrt(30))
    net = init.orthogonal_balanced_(
        DeepLinear([6, *[2] * (depth - 1), 6], dtype=torch.float64), tied=True, generator=generator
    )
    W = problem.minimizer(2)
    rho = local_rate(problem, W, depth)
    flow = LayerFlow(problem)
    y0 = flow.init_state(net)
    stepper = IntegratorStepper(flow, y0, RK4(), 2 / flow.curvature(y0))
    t1 = 15 / rho
    times = [t1 * i / 100 for i in range(1, 100)]
    _, history = drive(stepper, t1, record_at=times, observe=layer_observables(problem, W))
    rate = fitted_rate(history.t, history.column("distance_to_limit"), 1e-12)
    seen.ratio(rate, rho, rel=0.02)


@pytest.mark.parametrize(
    ("depth", "W", "sentence"),
    [(0.5, torch.eye(2), "depth must be"), (2, torch.zeros(2, 2), "W must not be 0")],
)
def test_bad_input(depth, W, sentence):
    with pytest.raises(ValueError, match=sentence):
        local_rate(deeplin.autoencoder(torch.eye(2)), W, depth)
