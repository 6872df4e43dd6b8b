import pytest
import torch
from plain_flow import PlainFlow

import deeplin
from deeplin import DeepLinear, init
from deeplin.flows import LayerFlow
from deeplin.integrators import RK4, Euler, IntegratorStepper, OptimizerStepper, minibatch_indices
from deeplin.loop import Every, GradientNormBelow, History, Kind, Result, Stagnation, drive
from deeplin.runner.observables import layer_observables


class Decay(PlainFlow):
    """ẏ = −y."""

    def velocity(self, t, y):
        return tuple(-v for v in y)

    def curvature(self, y):
        return 1.0


Y0 = (torch.ones(3, dtype=torch.float64),)


def test_saved_times_are_met_and_the_end_is_last():
    solution = deeplin.solve(Decay(), Y0, 1.0, dt=0.03, save_at=[0.7, 0.25, 1.0])
    assert solution.t.tolist() == [0.0, 0.25, 0.7, 1.0]
    for t, (y,) in zip(solution.t, solution.y, strict=True):
        torch.testing.assert_close(y, torch.exp(-t) * Y0[0], rtol=1e-7, atol=0)
    assert solution.result.kind == "time"
    assert "t1 = 1" in solution.result.sentence


def test_default_step_is_stable_and_accurate():
    (y,) = deeplin.solve(Decay(), Y0, 2.0).y[-1]
    assert float((y - Y0[0] * torch.tensor(-2.0).exp()).abs().max()) < 0.03


def test_observables_are_stacked_along_the_saved_times():
    solution = deeplin.solve(
        Decay(), Y0, 1.0, dt=0.1, save_at=[0.5], observe=lambda t, y: {"sum": y[0].sum()}
    )
    assert solution.observed["sum"].shape == (3,)


def test_stop_function_ends_the_run():
    def stop(history):
        small = float(history.records[-1].observed["norm"]) < 0.5
        return Result(Kind.CONVERGED, "small.") if small else None

    solution = deeplin.solve(
        Decay(),
        Y0,
        9.0,
        dt=0.1,
        save_at=[float(t) for t in range(1, 9)],
        observe=lambda t, y: {"norm": y[0].norm()},
        stop=stop,
    )
    assert solution.result == Result(Kind.CONVERGED, "small.")
    assert float(solution.t[-1]) == 2.0


def test_records_are_dense_at_first_and_then_regular():
    assert all(Every(10).includes(step) for step in range(32))
    later = [step for step in range(32, 200) if Every(10).includes(step)]
    assert later[:5] == [32, 34, 36, 38, 40]
    assert [step for step in later if step >= 160] == [160, 168, 170, 176, 180, 184, 190, 192]
    assert [step for step in range(256, 300) if Every(10).includes(step)] == [260, 270, 280, 290]


def test_limits_and_interruption():
    stepper = IntegratorStepper(Decay(), Y0, RK4(), 0.1)
    result, history = drive(stepper, 5.0, max_steps=7)
    assert (result.kind, stepper.step, history.records[-1].step) == ("steps", 7, 7)
    stepper = IntegratorStepper(Decay(), Y0, RK4(), 0.1)
    result, _ = drive(stepper, 5.0, interrupt=lambda: "SIGTERM" if stepper.step == 3 else None)
    assert result.kind == "interrupted"
    assert "SIGTERM" in result.sentence


def test_divergence_is_a_result():
    class Blowup(Decay):
        def velocity(self, t, y):
            return tuple(v**3 for v in y)

    stepper = IntegratorStepper(Blowup(), Y0, RK4(), 0.1)
    result, history = drive(
        stepper, 50.0, record_at=Every(1), observe=lambda t, y: {"norm": y[0].norm()}
    )
    assert result.kind == "diverged"
    assert "take a smaller dt" in result.sentence
    assert all(bool(torch.isfinite(r.observed["norm"])) for r in history.records)


def saddle_run(duration):
    """The flow from a tiny start: a long rest at the saddle 0, then the escape."""
    problem = deeplin.autoencoder(torch.diag(torch.tensor([1.0, 0.5], dtype=torch.float64)))
    net = init.identity_(DeepLinear([2, 1, 2], dtype=torch.float64), scale=1e-14)
    flow = LayerFlow(problem)
    stepper = IntegratorStepper(flow, flow.init_state(net), RK4(), 0.05)
    observe = layer_observables(problem, problem.minimizer(1))
    stop = [Stagnation(duration)]
    return problem, drive(stepper, 200.0, record_at=Every(10), observe=observe, stop=stop)


def test_stagnation_is_no_false_alarm_at_a_saddle():
    problem, (result, history) = saddle_run(10.0)
    assert result.kind == "stagnated"
    assert float(history.records[-1].observed["loss"]) == pytest.approx(
        float(problem.optimal_loss(1))
    )


def test_gradient_norm_stop():
    problem = deeplin.autoencoder(torch.eye(2, dtype=torch.float64))
    net = init.identity_(DeepLinear([2, 2, 2], dtype=torch.float64), scale=0.5)
    flow = LayerFlow(problem)
    stepper = IntegratorStepper(flow, flow.init_state(net), RK4(), 0.1)
    result, history = drive(
        stepper,
        99.0,
        record_at=Every(5),
        observe=layer_observables(problem, problem.minimizer(2)),
        stop=[GradientNormBelow(1e-6)],
    )
    assert result.kind == "converged"
    assert float(history.records[-1].observed["gradient_norm"]) <= 1e-6


def test_history_survives_its_state_dict():
    stepper = IntegratorStepper(Decay(), Y0, Euler(), 0.1)
    _, history = drive(
        stepper, 1.0, record_at=Every(2), observe=lambda t, y: {"n": y[0].norm(), "y": y[0]}
    )
    copy = History.from_state_dict(history.state_dict())
    assert copy.t.tolist() == history.t.tolist()
    torch.testing.assert_close(copy.column("y"), history.column("y"), rtol=0, atol=0)


@pytest.mark.parametrize("make", ["integrator", "optimizer"])
def test_steppers_continue_bit_for_bit(make, randn):
    X = randn(4, 12)
    problem = deeplin.autoencoder(X)

    def fresh():
        torch.manual_seed(0)
        net = DeepLinear([4, 2, 4], dtype=torch.float64)
        if make == "integrator":
            flow = LayerFlow(problem)
            return IntegratorStepper(flow, flow.init_state(net), RK4(), 1e-3)
        indices = minibatch_indices(12, 5, seed=3)

        def loss(step):
            x = X.mT[indices(step)]
            return (net(x) - x).square().sum()

        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        return OptimizerStepper(list(net.weights), optimizer, loss, 1e-3)

    whole, first, second = fresh(), fresh(), fresh()
    for _ in range(11):
        whole.advance(1.0)
    for _ in range(4):
        first.advance(1.0)
    second.load_state_dict(first.state_dict())
    for _ in range(7):
        second.advance(1.0)
    assert (second.t, second.step) == (whole.t, whole.step)
    assert all(torch.equal(a, b) for a, b in zip(second.state, whole.state, strict=True))


def test_minibatches_visit_every_sample_once_an_epoch():
    indices = minibatch_indices(10, 5, seed=0)
    first = torch.cat([indices(0), indices(1)])
    second = torch.cat([indices(2), indices(3)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()
    assert minibatch_indices(10, 5, seed=0)(3).tolist() == indices(3).tolist()
    with pytest.raises(ValueError, match="1 <= batch_size <= m = 10"):
        minibatch_indices(10, 11, seed=0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"t1": -1.0}, "t1 must be a positive"),
        ({"t1": 1.0, "dt": 0.0}, "dt must be a positive"),
        ({"t1": 1.0, "save_at": [2.0]}, "times in"),
    ],
)
def test_bad_input(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        deeplin.solve(Decay(), Y0, **options)
    with pytest.raises(ValueError, match="must be >= 1"):
        Every(0)
