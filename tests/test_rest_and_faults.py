"""When a run is at rest, risen or stuck, and what is asked between the steps of a stretch."""

import math

import pytest
import torch
from plain_flow import Decay, Growth

import deeplin
from deeplin.integrators import RK4, RKC, DormandPrince, Rosenbrock
from deeplin.integrators.adaptive import AdaptiveStepper
from deeplin.integrators.steppers import IntegratorStepper
from deeplin.loop import (
    Every,
    GradientNormBelow,
    History,
    Kind,
    Record,
    RisenLoss,
    Stagnation,
    drive,
    driving,
)

F64 = torch.float64
CONTROLLED = [DormandPrince(), RKC(), Rosenbrock()]


# -- at rest, and risen ----------------------------------------------------------------------------


def told(losses, norms=None, dt=1.0, steps=None):
    norms = [0.5] * len(losses) if norms is None else norms
    steps = range(len(losses)) if steps is None else steps
    values = zip(steps, losses, norms, strict=True)
    return History(
        [
            Record(
                k,
                dt * i,
                dt,
                {
                    "loss": torch.tensor(loss, dtype=F64),
                    "gradient_norm": torch.tensor(g, dtype=F64),
                },
            )
            for i, (k, loss, g) in enumerate(values)
        ]
    )


def test_at_rest_is_who_stays_where_it_is_over_enough_records():
    rest = Stagnation(5.0)
    assert rest(told([3.0] * 12)).kind is Kind.STAGNATED
    assert "for a flow time of 7" in rest(told([3.0] * 12)).sentence  # eight records
    rising = [2.449, 2.596, 3.126, 3.463, 3.9, 4.4, 5.1, 6.0, 7.1, 8.4]
    assert rest(told(rising)) is None
    assert rest(told([3.0, 3.5] * 6)) is None, "the same at both ends of the window"
    assert rest(told([3.0] * 7)) is None, "seven records"
    moved = told([2.0] * 10 + [3.0] * 12)
    assert "for a flow time of 11" in Stagnation(11.0)(moved).sentence
    assert Stagnation(12.0)(moved) is None, "moved within the window, more than eight records ago"
    assert rest(told([3.0] * 12, steps=[0, *[1] * 11])) is None, "one step"
    assert rest(told([3.0] * 12, norms=[0.5] * 11 + [1.5])) is None
    assert Stagnation(0.0)(told([3.0])) is None
    assert Stagnation(100.0)(told([3.0] * 12)) is None


def test_a_descent_whose_loss_rises_a_thousandfold_has_diverged():
    risen, first = RisenLoss(at_zero=2.0), torch.tensor([1e-20, 5.0, -3.0], dtype=F64)
    now = torch.tensor([1900.0, 1e4, 2000.0], dtype=F64)
    assert risen(first, now).tolist() == [False, True, False]
    assert risen(first, 4 * now).tolist() == [True, True, True]
    assert not RisenLoss(at_zero=0.0)(torch.zeros(1), torch.ones(1)).any(), "of nothing"
    assert RisenLoss(at_zero=math.inf)(torch.ones(1), torch.full((1,), 1e4)).all()


# -- tolerances ------------------------------------------------------------------------------------


def test_a_fault_says_which_way_to_turn():
    loose = deeplin.solve(Growth(), Growth().start(1.0), 1.0, rtol=2.0)
    assert loose.result.kind is Kind.FAULT
    assert "take a smaller rtol" in loose.result.sentence
    ending = deeplin.solve(Growth(), Growth().start(1.0), 1.0, rtol=1e-6)
    assert "the solution ends there" in ending.result.sentence


def test_a_tolerance_below_round_off_is_refused():
    with pytest.raises(ValueError, match=r"rtol must be >= 1\.8e-15, .* float64; got 1e-15"):
        deeplin.solve(Decay(), Decay().start(1.0), 1.0, rtol=1e-15, atol=0.0)
    assert deeplin.solve(Decay(), Decay().start(1.0), 1.0, rtol=0.0, atol=1e-12).y


def test_steps_that_will_never_arrive_are_a_fault():
    """Explicit steps at 10⁻⁴⁰ of the way."""

    class Stiff(Decay):
        def velocity(self, t, y):
            return (-1e40 * (y[0] - 1),)

    solution = deeplin.solve(Stiff(), Stiff().start(2.0), 1.0, rtol=1e-6)
    assert solution.result.kind is Kind.FAULT
    assert "t = 1 is more than 1e+12 steps away" in solution.result.sentence


# -- signals and limits inside a stretch -----------------------------------------------------------


@pytest.mark.parametrize("method", CONTROLLED, ids=lambda m: type(m).__name__)
def test_signals_and_checkpoints_come_between_the_steps_of_one_stretch(monkeypatch, method):
    """And what was cut short goes on to the same bits."""
    monkeypatch.setattr(driving, "_PATIENCE", 0.0)
    flow = Decay()

    def observe(t, y):
        return {"y": y[0].sum()}

    class Saving:
        def __init__(self):
            self.saved = []

        def on_record(self, record):
            pass

        def on_step(self, stepper):
            self.saved.append((stepper.step, stepper.state_dict()))

    def stepper():
        return AdaptiveStepper(flow, flow.start(1.0, 4.0), rtol=1e-5, integrator=method)

    whole, saving = stepper(), Saving()
    result, history = drive(whole, 8.0, observe=observe, listeners=[saving])
    assert result.kind is Kind.TIME
    steps = [step for step, _ in saving.saved]
    assert steps == sorted(steps)
    assert len(set(steps)) > 0.9 * whole.step, "a look after every step"
    third = stepper()
    third.load_state_dict(saving.saved[len(steps) // 2][1])
    drive(third, 8.0, observe=observe, history=History(history.records[:1]))
    assert torch.equal(third.state[0], whole.state[0])

    asked = stepper()
    signal = lambda: "SIGTERM" if asked.step >= 7 else None  # noqa: E731
    result, part = drive(asked, 8.0, observe=observe, interrupt=signal)
    assert (result.kind, result.step, asked.step) == (Kind.INTERRUPTED, 7, 7)
    assert not part.records[-1].scheduled
    second = stepper()
    second.load_state_dict(asked.state_dict())
    _, again = drive(second, 8.0, observe=observe, history=part)
    assert torch.equal(second.state[0], whole.state[0])
    assert torch.equal(again.column("y"), history.column("y"))


def test_a_run_that_goes_on_asks_its_stops_and_limits_at_once():
    def observe(t, y):
        return {"gradient_norm": y[0].abs().max()}

    def end(t1, history, **options):
        stepper = IntegratorStepper(Decay(), Decay().start(1.0), RK4(), 0.1)
        if first is not None:
            stepper.load_state_dict(first.state_dict())
        options |= {"record_at": Every(1), "observe": observe, "history": history}
        return drive(stepper, t1, **options), stepper

    first = None
    (result, history), first = end(5.0, None, stop=[GradientNormBelow(0.1)])
    assert result.kind is Kind.CONVERGED
    for stop, kind in ((0.2, Kind.CONVERGED), (1e-9, Kind.TIME)):
        (result, _), stepper = end(5.0, history, stop=[GradientNormBelow(stop)])
        assert result.kind is kind
        assert (stepper.step == first.step) is (kind is Kind.CONVERGED)
    first = stepper
    (result, _), stepper = end(2.0, history)
    assert "is at t = 5, past the end time t1 = 2" in result.sentence
    (result, _), stepper = end(9.0, history, max_steps=3)
    assert "took 50 of max_steps = 3 steps" in result.sentence
    assert stepper.step == 50
