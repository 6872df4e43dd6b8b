"""How a run ends: what is lost on the way and what goes on, when it stops, and what it says."""

import math

import pytest
import torch
from plain_flow import Decay, Growth

import deeplin
from deeplin.flows import DLRAFlow, LayerFlow
from deeplin.integrators import (
    RK4,
    RKC,
    DormandPrince,
    Euler,
    IntegratorStepper,
    OptimizerStepper,
    ProjectedRungeKutta,
    Rosenbrock,
)
from deeplin.integrators.adaptive import AdaptiveStepper
from deeplin.loop import (
    Every,
    GradientNormBelow,
    History,
    Kind,
    LossBelow,
    SingularValueBelow,
    Stagnation,
    drive,
)

F64 = torch.float64
CONTROLLED = [DormandPrince(), RKC(), Rosenbrock()]


# -- statuses --------------------------------------------------------------------------------------


def test_every_end_but_those_asked_for_has_a_status_of_its_own():
    asked = {Kind.TIME, Kind.STEPS, Kind.CONVERGED, Kind.NEAR_LOWER_RANK, Kind.STAGNATED}
    asked |= {Kind.PAST_BEST}
    assert {kind for kind in Kind if kind.status == 0} == asked
    others = [kind.status for kind in Kind if kind not in asked]
    assert len(set(others)) == len(others)
    assert 2 not in others, "that is bad input"
    for kind in Kind:
        assert f"| {kind.status}" in Kind.__doc__


# -- what is lost, and what goes on ----------------------------------------------------------------


@pytest.fixture
def layers(randn):
    """Three starts of one flow, the second of which no step of 0.05 can follow."""
    flow = LayerFlow(deeplin.autoencoder(randn(4, 20) / 4))
    starts = [(randn(2, 4) / 2, randn(4, 2) / 2) for _ in range(3)]
    starts[1] = tuple(40 * part for part in starts[1])
    return flow, starts


def stacked(starts):
    return tuple(torch.stack(parts) for parts in zip(*starts, strict=True))


TIMES = [0.5 * i for i in range(1, 6)]


@pytest.mark.parametrize("integrator", [RK4(), Euler(), RKC()], ids=lambda i: type(i).__name__)
def test_one_diverging_trajectory_is_named_and_the_others_go_on(layers, integrator):
    """As they do alone."""
    flow, starts = layers
    options = {"dt": 0.05, "integrator": integrator, "save_at": TIMES}
    solution = deeplin.solve(flow, stacked(starts), 3.0, **options)
    assert solution.result.kind is Kind.DIVERGED
    assert (solution.result.lost, solution.result.rest) == ((1,), Kind.TIME)
    assert "trajectory 2 of 3 diverged before t = 0.5 (step 10)" in solution.result.sentence
    assert "The others: reached the end time t1 = 3." in solution.result.sentence
    assert solution.t.tolist() == [0.0, *TIMES, 3.0]
    for i in (0, 2):
        alone = deeplin.solve(flow, starts[i], 3.0, **options)
        for whole, own in zip(solution.y, alone.y, strict=True):
            # RKC's number of stages is that of the stiffest of the batch, lost or not.
            close = 1e-2 if isinstance(integrator, RKC) else 1e-12
            for a, b in zip(whole, own, strict=True):
                torch.testing.assert_close(a[i], b, rtol=close, atol=close)
    for part, start in zip(solution.y[-1], starts[1], strict=True):
        torch.testing.assert_close(part[1], start, rtol=0, atol=0)  # as when last seen


def test_a_batch_of_which_nothing_is_left_has_diverged(layers):
    flow, starts = layers
    solution = deeplin.solve(flow, stacked([starts[1]] * 2), 3.0, dt=0.05, save_at=TIMES)
    assert (solution.result.kind, solution.result.rest) == (Kind.DIVERGED, None)
    assert "2 of 2 trajectories were lost, 1, 2" in solution.result.sentence
    assert solution.t.tolist() == [0.0]


@pytest.mark.parametrize("order", [1, 2, 4])
def test_a_step_that_cannot_be_factorised_loses_its_own_trajectory_alone(randn, order):
    """Truncations are SVDs, and these raise for the whole batch."""
    X = randn(6, 2) @ randn(2, 5)

    class Steep(deeplin.problems.Problem):
        shape = (6, 5)

        def loss(self, W):
            return (W - X).square().sum((-2, -1)) ** 60

    flow = DLRAFlow(Steep())
    W = X + torch.tensor([1e-3, 1e5, 2e-3], dtype=F64)[:, None, None] * randn(3, 6, 5)
    y0 = flow.init_state(W, 2)
    alone = deeplin.solve(
        flow, tuple(p[0] for p in y0), 1.0, dt=0.1, integrator=ProjectedRungeKutta(order)
    )
    together = deeplin.solve(flow, y0, 1.0, dt=0.1, integrator=ProjectedRungeKutta(order))
    assert together.result.lost == (1,)
    torch.testing.assert_close(
        flow.end_to_end(together.y[-1])[0], flow.end_to_end(alone.y[-1]), rtol=1e-10, atol=1e-10
    )
    single = deeplin.solve(
        flow, tuple(p[1] for p in y0), 1.0, dt=0.1, integrator=ProjectedRungeKutta(order)
    )
    assert (single.result.kind, single.result.lost) == (Kind.DIVERGED, ())


def test_an_optimizer_goes_on_with_what_is_left(layers):
    """Momentum, too."""
    flow, starts = layers

    def stepper(y0):
        net = [torch.nn.Parameter(part.clone()) for part in y0]
        sgd = torch.optim.SGD(net, lr=0.05, momentum=0.5)
        loss = lambda k: flow.problem.loss(flow.end_to_end(tuple(net))).sum()  # noqa: E731
        return OptimizerStepper(net, sgd, loss, 0.05, flow)

    together = stepper(stacked(starts))
    result, _ = drive(together, 3.0, record_at=Every(10))
    assert (result.kind, result.lost, result.step) == (Kind.DIVERGED, (1,), 60)
    for i in (0, 2):
        alone = stepper(starts[i])
        drive(alone, 3.0, record_at=Every(10))
        for a, b in zip(together.state, alone.state, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", CONTROLLED, ids=lambda m: type(m).__name__)
def test_a_trajectory_that_no_step_can_follow_is_left_behind_by_the_others(method):
    """Blow-up in finite time, of one of three."""
    flow = Growth()
    solution = deeplin.solve(
        flow, flow.start(0.1, 2.0, 0.2), 1.0, rtol=1e-6, integrator=method, save_at=[0.05, 0.1]
    )
    result = solution.result
    assert (result.kind, result.lost, result.rest) == (Kind.FAULT, (1,), Kind.TIME)
    assert "trajectory 2 of 3 stopped at t = 0.1" in result.sentence
    exact = [(0.1**-2 - 2) ** -0.5, (2**-2 - 0.2) ** -0.5, (0.2**-2 - 2) ** -0.5]
    assert solution.y[-1][0].flatten().tolist() == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("kind", ["fixed", "adaptive"])
def test_what_is_lost_stays_lost_through_a_checkpoint(kind):
    """The same bits as without."""
    flow = Growth()

    def stepper():
        y0 = flow.start(0.1, 3.0, 0.2)
        if kind == "fixed":
            return IntegratorStepper(flow, y0, RK4(), 0.01)
        return AdaptiveStepper(flow, y0, stretch=0.01, rtol=1e-6)

    def observe(t, y):
        return {"y": y[0].sum()}

    whole = stepper()
    ended, history = drive(whole, 1.0, record_at=Every(1), observe=observe)
    assert ended.lost == (1,)
    first, second = stepper(), stepper()
    signal = lambda: "SIGTERM" if first.t > 0.5 else None  # noqa: E731
    cut, part = drive(first, 1.0, record_at=Every(1), observe=observe, interrupt=signal)
    assert (cut.kind, cut.lost, cut.rest) == (Kind.INTERRUPTED, (1,), Kind.INTERRUPTED)
    steps = [record.step for record in part.records]
    assert steps == sorted(steps)
    second.load_state_dict(first.state_dict())
    saved = History.from_state_dict(part.state_dict())
    resumed, again = drive(second, 1.0, record_at=Every(1), observe=observe, history=saved)
    assert resumed.sentence == ended.sentence
    assert again.state_dict()["moments"] == history.state_dict()["moments"]
    assert torch.equal(again.column("y"), history.column("y"))
    assert torch.equal(second.state[0], whole.state[0])


def test_what_is_lost_keeps_no_stop_from_judging_the_rest():
    flow, observe = Growth(), lambda t, y: {"gradient_norm": y[0].abs().amax(-1)}
    stepper = IntegratorStepper(flow, flow.start(0.1, 30.0), RK4(), 0.1)
    stops = [lambda history: GradientNormBelow(0.2)(history) if history.lost else None]
    result, _ = drive(stepper, 9.0, record_at=Every(1), observe=observe, stop=stops)
    assert (result.kind, result.rest) == (Kind.DIVERGED, Kind.CONVERGED)


# -- starts and stops that cannot be ---------------------------------------------------------------


@pytest.mark.parametrize("options", [{"dt": 0.1}, {"rtol": 1e-6}])
def test_a_start_must_be_finite(layers, options):
    flow, starts = layers
    starts[1][0][0, 0] = math.nan
    with pytest.raises(ValueError, match="must be finite; trajectory 2 of 3 is not"):
        deeplin.solve(flow, stacked(starts), 1.0, **options)
    with pytest.raises(ValueError, match="must be finite; it is not"):
        deeplin.solve(flow, starts[1], 1.0, **options)


@pytest.mark.parametrize("options", [{"dt": 0.1}, {"rtol": 1e-3}, {}])
def test_a_start_has_the_dtype_of_the_problem(layers, options):
    flow, starts = layers
    with pytest.raises(ValueError, match="dtype of the flow's problem, float64; got float32"):
        deeplin.solve(flow, tuple(part.float() for part in starts[0]), 1.0, **options)


@pytest.mark.parametrize("options", [{"dt": 0.1}, {"rtol": 1e-3}, {}])
def test_an_empty_batch_ends_empty(layers, options):
    flow, starts = layers
    none = tuple(part.expand(0, *part.shape).clone() for part in starts[0])
    solution = deeplin.solve(flow, none, 1.0, **options)
    assert (solution.result.kind, solution.y[-1][0].shape) == (Kind.TIME, (0, 2, 4))


def test_what_is_observed_of_a_start_must_be_finite(layers):
    flow, starts = layers
    with pytest.raises(ValueError, match="observed of the start must be finite; a is not"):
        deeplin.solve(
            flow, starts[0], 1.0, dt=0.1, observe=lambda t, y: {"a": torch.tensor(math.nan)}
        )


def test_a_stop_returns_a_result(layers):
    flow, starts = layers
    with pytest.raises(TypeError, match=r"must return None, or why it stops.*got True"):
        deeplin.solve(flow, starts[0], 1.0, dt=0.1, stop=lambda history: True)


@pytest.mark.parametrize(
    ("stop", "name"),
    [
        (GradientNormBelow(1e-3), "gradient_norm"),
        (LossBelow(1e-3), "loss"),
        (SingularValueBelow(1e-3), "singular_values"),
        (Stagnation(0.1), "loss"),
    ],
)
def test_a_stop_names_what_it_needs_to_see(stop, name):
    flow = Decay()
    with pytest.raises(ValueError, match=f"judges the observable '{name}'; observed is a"):
        deeplin.solve(
            flow,
            flow.start(1.0),
            1.0,
            dt=0.01,
            save_at=[0.05 * i for i in range(20)],
            observe=lambda t, y: {"a": y[0].sum()},
            stop=stop,
        )


@pytest.mark.parametrize("stop", [GradientNormBelow, SingularValueBelow, Stagnation])
@pytest.mark.parametrize("number", [math.inf, math.nan, -1.0])
def test_a_bound_is_a_finite_number(stop, number):
    with pytest.raises(ValueError, match="finite number >= 0"):
        stop(number)
