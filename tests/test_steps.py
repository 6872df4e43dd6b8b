"""Steps are steps taken, and dt is the step taken: in every method, in records and summaries."""

import itertools
import json
import math

import pytest
import torch
from plain_flow import PlainFlow
from runner import SMALL, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import deeplin
from deeplin.integrators import RK4, RKC, DormandPrince, Rosenbrock
from deeplin.integrators.adaptive import AdaptiveStepper
from deeplin.integrators.steppers import IntegratorStepper
from deeplin.loop import Every, Kind, Result, drive

F64 = torch.float64
CONTROLLED = [DormandPrince(), RKC(), Rosenbrock()]


class Rates(PlainFlow):
    """ẏ = −λ_b y + sin(λ_b t): trajectories of one batch at paces of their own."""

    def __init__(self, rates):
        self.rates = torch.tensor(rates, dtype=F64)

    def velocity(self, t, y):
        (part,) = y  # (*batch, 1), or with as many of each trajectory between
        rates = self.rates.reshape(-1, *(1,) * (part.ndim - 1))
        t = torch.as_tensor(t, dtype=F64)[..., None]
        return (-rates * part + (rates * t).sin(),)

    def end_to_end(self, y):
        return y[0][..., None]

    def start(self):
        return (torch.ones(len(self.rates), 1, dtype=F64),)

    def exact(self, t):
        """x(s) = y(s/λ) has x' = −x + sin(s)/λ: x = e^{−s}(1 + 1/(2λ)) + (sin s − cos s)/(2λ)."""
        s, half = self.rates * t, 0.5 / self.rates
        return ((-s).exp() * (1 + half) + half * (s.sin() - s.cos()))[:, None]


def watched(monkeypatch, method):
    """The times at which a method began a step: one for each that was accepted in the end."""
    begun = []
    stages = type(method).stages

    def watching(self, flow, t, *rest):
        begun.append(t)
        return stages(self, flow, t, *rest)

    monkeypatch.setattr(type(method), "stages", watching)
    return begun


@pytest.mark.parametrize("method", CONTROLLED, ids=lambda m: type(m).__name__)
def test_step_and_dt_are_those_taken(monkeypatch, method):
    flow, begun = Rates([3.0]), watched(monkeypatch, method)
    stepper = AdaptiveStepper(flow, flow.start(), rtol=1e-6, stretch=0.5, integrator=method)
    _, history = drive(stepper, 4.0, record_at=Every(1))
    starts = sorted({float(t) for t in begun})
    assert stepper.step == len(starts) == history.records[-1].step
    assert [record.t for record in history.records] == [0.5 * i for i in range(9)]
    for record in history.records[1:-1]:
        assert record.step == sum(t < record.t for t in starts)
        taken = starts[record.step] - starts[record.step - 1]
        assert record.dt == pytest.approx(taken, rel=1e-9)


def test_in_a_batch_the_busiest_trajectory_counts():
    flow = Rates([0.1, 20.0])
    stepper = AdaptiveStepper(flow, flow.start(), rtol=1e-6)
    assert 0 < stepper.dt < 1
    stepper.advance(2.0)
    assert stepper.step == int(stepper.steps_taken.max()) > 2 * int(stepper.steps_taken.min())
    alone = AdaptiveStepper(Rates([20.0]), (torch.ones(1, 1, dtype=F64),), rtol=1e-6)
    alone.advance(2.0)
    assert (stepper.step, stepper.dt) == (alone.step, pytest.approx(alone.dt, rel=1e-6))


def test_fixed_steps_say_the_step_taken():
    flow = Rates([1.0])
    stepper = IntegratorStepper(flow, flow.start(), RK4(), 0.3)
    _, history = drive(stepper, 1.0, record_at=Every(1))
    assert [record.dt for record in history.records] == pytest.approx([0.3, *[0.25] * 4])
    assert sum(record.dt for record in history.records[1:]) == pytest.approx(1.0)


@pytest.mark.parametrize("rates", [[3.0], [0.1, 3.0, 20.0]])
@pytest.mark.parametrize("method", CONTROLLED, ids=lambda m: type(m).__name__)
def test_the_largest_number_of_steps_is_of_steps(method, rates):
    """It acts inside a stretch, and what is shown then is the solution at the time shown."""
    flow = Rates(rates)
    stepper = AdaptiveStepper(flow, flow.start(), rtol=1e-6, stretch=50.0, integrator=method)
    result, history = drive(stepper, 50.0, record_at=Every(1), max_steps=11)
    assert result.kind is Kind.STEPS
    assert stepper.step == history.records[-1].step == 11
    assert 0 <= stepper.t < 50.0
    if len(rates) == 1:
        assert stepper.t > 0
    torch.testing.assert_close(stepper.state[0], flow.exact(stepper.t), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", CONTROLLED, ids=lambda m: type(m).__name__)
def test_a_run_stopped_inside_a_stretch_goes_on_to_the_same_records(method):
    flow = Rates([3.0])

    def observe(t, y):
        return {"y": y[0].sum()}

    def stepper():
        return AdaptiveStepper(flow, flow.start(), rtol=1e-6, stretch=1.0, integrator=method)

    whole = drive(stepper(), 6.0, record_at=Every(1), observe=observe)[1]
    first, second = stepper(), stepper()
    _, part = drive(first, 6.0, record_at=Every(1), observe=observe, max_steps=17)
    assert not part.records[-1].scheduled
    assert 0 < first.t % 1.0 < 1.0
    second.load_state_dict(first.state_dict())
    saved = deeplin.loop.History.from_state_dict(part.state_dict())
    _, resumed = drive(second, 6.0, record_at=Every(1), observe=observe, history=saved)
    assert resumed.state_dict()["moments"] == whole.state_dict()["moments"]
    assert torch.equal(resumed.column("y"), whole.column("y"))


def test_a_run_says_the_steps_that_it_took(monkeypatch, tmp_path, capsys):
    begun = watched(monkeypatch, DormandPrince())
    options = ["method=dopri5", "log.records=50", "method.t1=20", "stop.grad_norm=null"]
    assert train(*SMALL, *options, folder=tmp_path) == 0
    taken = len({float(t) for t in begun})
    seen = json.loads((tmp_path / "summary.json").read_text())
    assert seen["steps"] == taken
    assert taken > 100
    assert f"\n{taken} steps in" in capsys.readouterr().out
    assert seen["result_kind"] == "time"
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    assert events.Scalars("by_step/loss")[-1].step == taken
    starts = sorted({float(t) for t in begun})
    longest = max(b - a for a, b in itertools.pairwise(starts))
    steps = [event.value for event in events.Scalars("more_by_step/dt")][1:-1]
    assert max(steps) <= longest * (1 + 1e-6)
    assert len(steps) >= 48, "records keep their density"


def test_the_limit_of_a_run_is_of_steps(tmp_path):
    assert train(*SMALL, "method=dopri5", "stop.max_steps=25", folder=tmp_path) == 0
    seen = json.loads((tmp_path / "summary.json").read_text())
    assert (seen["steps"], seen["result_kind"]) == (25, "steps")
    assert seen["flow_time"] > 0


def test_every_kind_of_result_has_a_sentence_of_its_own():
    meanings = [kind.meaning for kind in Kind]
    assert len(set(meanings)) == len(Kind) == 9
    assert all(meaning[0].isupper() and meaning.endswith(".") for meaning in meanings)
    assert Kind("diverged") is Kind.DIVERGED
    assert json.loads(json.dumps(Result(Kind.TIME, "end.").kind)) == "time"
    with pytest.raises(ValueError, match="not a valid Kind"):
        Kind("asleep")


@pytest.mark.parametrize("rate", [0.0, math.inf])
def test_where_no_step_follows_from_the_curvature_one_is_asked_for(rate):
    class Unknown(Rates):
        def curvature(self, y):
            return rate

    flow = Unknown([1.0])
    with pytest.raises(ValueError, match=r"the step dt must be given here: .* give dt=\.\.\."):
        deeplin.solve(flow, flow.start(), 1.0)
