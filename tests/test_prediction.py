"""What the theory says of a start, against runs and closed forms."""

import math

import pytest
import torch

import deeplin
from deeplin import flows, solve
from deeplin.flows.contract import Flow
from deeplin.integrators import ProjectedRungeKutta
from deeplin.prediction import predict_flow
from deeplin.problems import from_loss
from deeplin.runner.verdict import fitted_rate


@pytest.fixture
def problem():
    """½‖W − X‖² with X = diag(3, 2, 1, 0.5)."""
    return deeplin.MatrixApproximation(torch.diag(torch.tensor([3, 2, 1, 0.5]).double()))


def measured(flow, y0, limit, t1, **options):
    """The decay rate of ‖W(t) − limit‖_F along a run."""

    def observe(t, y):
        return {"distance": torch.linalg.matrix_norm(flow.end_to_end(y) - limit)}

    times = torch.linspace(0, t1, 200).tolist()[1:-1]
    solution = solve(flow, y0, t1, save_at=times, observe=observe, **options)
    return fitted_rate(solution.t, solution.observed["distance"], 1e-12)


def start_near(problem, rank, generator):
    """A matrix of that rank at a small distance from the minimizer."""
    A = torch.randn(4, 4, dtype=torch.float64, generator=generator)
    eye = torch.eye(4, dtype=torch.float64)
    return (eye + 0.05 * A) @ problem.optimum.minimizer(rank)


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("family", ["dlra", "end_to_end"])
def test_the_clock_of_rescaled_flows_runs_at_the_least_singular_value(
    problem, generator, rescaled, family
):
    if family == "dlra":
        flow = flows.DLRAFlow(problem, rescaled=rescaled)
    else:
        flow = flows.EndToEndFlow(problem, 1, rescaled=rescaled)
    y0 = flow.init_state(start_near(problem, 2, generator), 2)
    prediction = predict_flow(problem, flow, y0)
    rho = 1 - 1 / 2  # 1 − σ_3/σ_2, times σ_2 under the clock
    assert prediction.rate == pytest.approx(rho * (2 if rescaled else 1), rel=1e-9)
    rate = measured(flow, y0, prediction.limit, 14 / prediction.rate, rtol=1e-11, atol=1e-14)
    assert rate == pytest.approx(prediction.rate, rel=0.01)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_finite_steps_decay_by_the_stability_function(problem, generator, order):
    flow = flows.DLRAFlow(problem)
    y0 = flow.init_state(start_near(problem, 2, generator), 2)
    dt = 0.8
    slow = predict_flow(problem, flow, y0)
    prediction = slow.in_steps(dt, order)
    z = -0.5 * dt
    decay = {1: 1 + z, 2: 1 + z + z**2 / 2, 4: sum(z**k / math.factorial(k) for k in range(5))}
    assert prediction.rate == pytest.approx(-math.log(decay[order]) / dt, rel=1e-9)
    assert prediction.pace == slow.rate
    stepper = deeplin.integrators.IntegratorStepper(flow, y0, ProjectedRungeKutta(order), dt)
    distances = []
    for _ in range(45):
        distances.append(
            float(torch.linalg.matrix_norm(flow.end_to_end(stepper.state) - slow.limit))
        )
        stepper.advance(stepper.t + dt)
    distance = torch.tensor(distances, dtype=torch.float64)
    rate = fitted_rate(dt * torch.arange(45).double(), distance, 1e-13)
    assert rate == pytest.approx(prediction.rate, rel=0.01)


def test_rates_of_the_autoencoder_flows(generator):
    values = torch.tensor([4, 2.5, 1, 0.5]).double()
    problem = deeplin.autoencoder(torch.diag(values.sqrt()))
    V = torch.linalg.qr(torch.randn(4, 2, dtype=torch.float64, generator=generator)).Q
    oja = flows.OjaFlow(problem.C)
    assert predict_flow(problem, oja, oja.init_state(V)).rate == pytest.approx(2.5 - 1)
    untied = flows.RiccatiFlow(problem.C)
    y0 = untied.init_state(torch.cat([V, V]))
    layers = [V.mT.contiguous(), V]
    assert predict_flow(problem, untied, y0).rate == pytest.approx(
        deeplin.predict(problem, 2, layers).rate
    )


def test_a_start_is_a_network_layers_or_a_matrix(problem, generator):
    W = start_near(problem, 2, generator)
    net = deeplin.DeepLinear([4, 3, 3, 4], dtype=torch.float64)
    deeplin.init.balanced_(net, W)
    of_net, of_W = deeplin.predict(problem, 3, net), deeplin.predict(problem, 3, W)
    of_layers = deeplin.predict(problem, 3, [W_j.detach() for W_j in net.weights])
    assert of_net.rank == of_W.rank == of_layers.rank == 2
    assert of_net.rate == of_W.rate == of_layers.rate
    with pytest.raises(ValueError, match="depth must be the number of layers, 3; got depth=2"):
        deeplin.predict(problem, 2, net)
    with pytest.raises(ValueError, match=r"the problem's shape \(4, 4\); got \(3, 4\)"):
        deeplin.predict(problem, 2, W[:3])
    batch = torch.stack([W, problem.optimum.minimizer(1)])
    assert deeplin.predict(problem, 2, batch).rank == 1


def test_nothing_is_predicted_of_a_loss_that_is_only_a_function(generator):
    problem = from_loss(lambda W: W.pow(4).sum((-2, -1)), (3, 2))
    W = torch.randn(3, 2, dtype=torch.float64, generator=generator)
    prediction = deeplin.predict(problem, 2, W)
    assert (prediction.rank, prediction.limit, prediction.rate, prediction.pace) == (
        2, None, None, None,
    )  # fmt: skip
    assert "nothing is known in advance of the optimum of this loss" in prediction.missing
    assert prediction.rate_missing == prediction.missing
    assert prediction.in_steps(0.1, 1) == prediction


def test_a_flow_of_another_kind_has_a_limit_but_no_rate(problem, generator):
    class Plain(Flow):
        def velocity(self, t, y):
            return (-problem.egrad(y[0]),)

        def init_state(self, start, rank=None):
            return (start,)

        def end_to_end(self, y):
            return y[0]

    flow = Plain()
    y0 = flow.init_state(start_near(problem, 2, generator))
    prediction = predict_flow(problem, flow, y0)
    assert prediction.limit is not None
    assert prediction.rate is None
    assert "none of those whose rate is known" in prediction.rate_missing
