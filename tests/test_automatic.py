"""What a run will cost is what it costs; and the method that fits is chosen, named and kept."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from runner import ROOT, train

from deeplin.loop import Every, GradientNormBelow, drive
from deeplin.runner.automatic import METHODS
from deeplin.runner.build import build
from deeplin.runner.cost import time_of, tolerance_of
from deeplin.runner.folder import RunFolder
from deeplin.runner.verdict import fitted_rate

MILD = ["problem=gaussian", "problem.d=6", "network.rank=2"]
# λ_1/ρ is 4e3 here: the slowest direction is that between the values 1 and 0.999.
STIFF = [
    *("problem=approximation", "problem.n=6", "problem.spectrum=[1,0.999,0.4]"),
    *("network.rank=1", "network.depth=2"),
]


def built(*words):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return build(compose("train", list(words)))


@pytest.mark.parametrize(
    "words",
    [
        *([*MILD, f"method={name}"] for name in ("sgd", "rk4", "rkc", "rosenbrock", "dopri5")),
        *([*STIFF, f"method={name}"] for name in ("rkc", "rosenbrock")),
        [*MILD, "method=structure", "network.depth=2"],
        [*MILD, "method=rkc", "method.rtol=1e-8"],
        [*MILD, "method=dopri5", "method.rtol=1e-5"],
        [*MILD, "method=rkc", "repeats=3"],
        ["problem=teacher", "problem.d=8", "network.rank=3", "method=rkc", "network.depth=5"],
    ],
    ids=" ".join,
)
def test_a_run_takes_the_steps_that_were_announced(words):
    """To a factor of 3, the accuracy that `adaptive_cost` states; fields of RKC alike."""
    experiment = built(*words, "log.records=100", "stop.grad_norm=1e-5")
    cost = experiment.forecast().cost
    fields, velocity = 0, experiment.flow.velocity

    def counted(t, y):
        nonlocal fields
        fields += 1
        return velocity(t, y)

    experiment.flow.velocity = counted
    stretches = experiment.t1 / experiment.stepper.stretch
    drive(
        experiment.stepper,
        experiment.t1,
        record_at=Every(max(1, int(stretches / 100))),
        observe=lambda t, y: {"gradient_norm": experiment.flow.gradient_norm(y)},
        stop=[GradientNormBelow(1e-5)],
    )
    assert 1 / 3 < experiment.stepper.step / cost.steps < 3
    if "method=rkc" in words:
        assert 1 / 3 < fields / cost.fields < 3


def test_what_limits_fixed_steps_is_announced_by_their_length():
    """Half the steps for twice the step, and no more than stop.max_steps."""
    one, two = (
        built(*MILD, "method=rk4", f"method.dt={dt}").forecast().cost.steps for dt in (0.01, 0.02)
    )
    assert one == pytest.approx(2 * two)
    assert built(*MILD, "method=rk4", "stop.max_steps=7").forecast().cost.steps == 7


@pytest.mark.parametrize("words", [MILD, STIFF], ids=["mild", "stiff"])
def test_the_stiffness_is_that_of_the_hessian(words):
    """λ_1 and ρ are the largest and the least eigenvalue beyond 0 of the layers' Hessian there."""
    experiment = built(*words, "method=rkc", "network.depth=2")
    seen = experiment.forecast().stiffness
    U, s, Vh = torch.linalg.svd(experiment.prediction.limit)
    k = experiment.prediction.rank
    root = torch.diag(s[:k].sqrt())
    shapes = [(k, Vh.shape[1]), (U.shape[0], k)]

    def loss(flat):
        W_1, W_2 = flat.split([r * c for r, c in shapes])
        product = W_2.reshape(shapes[1]) @ W_1.reshape(shapes[0])
        return experiment.data.problem.loss(product)

    at = torch.cat([(root @ Vh[:k]).flatten(), (U[:, :k] @ root).flatten()])
    values = torch.linalg.eigvalsh(torch.func.hessian(loss)(at))
    assert seen.fastest == pytest.approx(float(values[-1]), rel=0.05)  # from below, a few per cent
    assert seen.slowest == pytest.approx(float(values[values > 1e-9 * values[-1]][0]), rel=1e-6)


def test_before_a_run_a_line_says_what_it_costs(tmp_path, capsys):
    assert train(*MILD, "method=sgd", "stop.max_steps=30", folder=tmp_path) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if " steps, " in line]
    assert told[0].startswith("  sgd: about 30 steps, less than a second (λ_1/ρ = ")


def test_a_method_that_costs_much_less_is_named():
    """A learning rate of a ten-thousandth of what is stable: days against seconds."""
    experiment = built(*STIFF, "method=sgd", "method.dt=1e-4")
    line = experiment.forecast().line("sgd", experiment.observe, 1000, experiment.t1)
    assert line.startswith("sgd: about 1.2e+08 steps, ")
    assert "; method=rosenbrock: about " in line


def test_a_method_beyond_its_size_is_refused(tmp_path, capsys):
    words = ["problem=approximation", "problem.n=160", "network.rank=4", "method=rosenbrock"]
    assert train(*words, folder=tmp_path / "run") == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "all 1284 numbers of its state" in said
    assert "take method=rkc, or" in said
    assert not (tmp_path / "run").exists()


def test_the_methods_are_those_of_their_files():
    """Flows and tolerances, which are written in both places."""
    for name, (integrator, flows) in METHODS.items():
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            method = compose("train", [f"method={name}"]).method
        assert method.rtol == tolerance_of(integrator())
        assert method.atol == pytest.approx(1e-4 * method.rtol)
        assert method.integrator._target_.endswith(f".{integrator.__name__}")
        fits = OmegaConf.to_container(method).get("_flows_", flows)
        assert set(fits) == set(flows)
        assert fits[0] == flows[0]


# -- method=auto -----------------------------------------------------------------------------------

LARGE = ["problem=approximation", "problem.n=160", "network.rank=4"]
OTHER_SIDE = ["problem=gaussian", "problem.d=2", "network.rank=2", "network.depth=2"]


@pytest.mark.parametrize(
    ("words", "name", "flow"),
    [
        (STIFF, "rosenbrock", "EndToEndFlow"),
        ([*STIFF, "flow=layers"], "rosenbrock", "LayerFlow"),
        ([*LARGE, "problem.spectrum=[1,0.9,0.8,0.7,0.6999]"], "rkc", "LayerFlow"),
        (LARGE, "dopri5", "LayerFlow"),
        ([*STIFF, "init=gaussian"], "rosenbrock", "LayerFlow"),
        ([*MILD, "method.batch_size=5"], "sgd", "LayerFlow"),
        ([*STIFF, "method.dt=0.01"], "sgd", "LayerFlow"),
        (  # det W(0) < 0: only what keeps it ends where the flow does
            [*OTHER_SIDE, "init=balanced", "init.matrix=[[0.3,0.6],[0.6,0.3]]"],
            "structure",
            "EndToEndFlow",
        ),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else words,
)
def test_the_method_that_fits(words, name, flow):
    experiment = built(*words, "method=auto")
    assert (experiment.method.name, type(experiment.flow).__name__) == (name, flow)


def test_a_run_with_auto_names_its_method_and_goes_on_with_it(tmp_path, capsys):
    words = [*STIFF, "method=auto", "log.records=40", "method.t1=2/rho"]
    assert train(*words, folder=tmp_path / "whole") == 0
    said = capsys.readouterr().out
    assert "start, rkc with rtol = 1e-06\n" in said
    assert "  method=auto takes rkc: λ_1/ρ = 2e+03, a state of 12 numbers\n" in said
    assert train(*words, "stop.max_steps=20", folder=tmp_path / "part") == 0
    assert train(f"resume={tmp_path / 'part'}", "stop.max_steps=null") == 0
    whole, part = (torch.load(tmp_path / n / "checkpoint.pt") for n in ("whole", "part"))
    for a, b in zip(whole["stepper"]["state"], part["stepper"]["state"], strict=True):
        assert torch.equal(a, b)
    summary = json.loads((tmp_path / "part" / "summary.json").read_text())
    assert summary["method"] == "rkc"
    capsys.readouterr()
    assert train(*words, folder=tmp_path / "whole") == 0, "jobs are idempotent"
    assert "is finished already" in capsys.readouterr().out


def test_what_auto_took_is_kept_whatever_it_would_take_now(tmp_path, monkeypatch, capsys):
    words = [*STIFF, "method=auto", "log.records=40"]
    assert train(*words, "stop.max_steps=20", folder=tmp_path) == 0
    monkeypatch.delitem(METHODS, "rosenbrock")
    assert built(*STIFF, "method=auto").method.name == "rkc"
    assert train(*words, "stop.max_steps=25", folder=tmp_path) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["method"] == "rosenbrock"
    # To name the method that was taken is to say the same.
    words = [*STIFF, "method=rosenbrock", "log.records=40", "stop.max_steps=25"]
    capsys.readouterr()
    assert train(*words, folder=tmp_path) == 0
    assert "is finished already" in capsys.readouterr().out
    assert train(*STIFF, "method=auto", "method.dt=0.1", "log.records=40", folder=tmp_path) == 2


# -- the rate that a run is held to ----------------------------------------------------------------


def test_a_rate_among_many_near_it_is_seen_in_its_own_mode(tmp_path):
    """Where the spectrum is dense the distance falls faster than ρ to the end of the run.

    The metric is that of depth 2: next to the slowest rate, 1 − 0.5, are eleven up to 1 − 0.39.
    """
    spectrum = [1, *(0.5 - 0.01 * j for j in range(12))]
    words = ["problem=approximation", "problem.kind=general", "problem.n=13", "method=rkc"]
    options = ["network.rank=1", "network.depth=2", f"problem.spectrum={spectrum}".replace(" ", "")]
    assert train(*words, *options, "stop.grad_norm=1e-4", folder=tmp_path) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert "agree" in summary["verdict"]
    assert summary["rate_measured"] == pytest.approx(summary["rate_predicted"], rel=0.01)
    history = RunFolder(tmp_path).load_checkpoint("cpu").history
    of_distance = fitted_rate(history.t, history.column("distance_to_limit"), 1e-12)
    assert of_distance is not None
    off, of_mode = (
        x / summary["rate_predicted"] - 1 for x in (of_distance, summary["rate_measured"])
    )
    assert off > 0.01
    assert abs(of_mode) < off / 4


def test_the_time_of_a_step_leaves_out_what_the_first_sets_up(monkeypatch):
    """A first call of 2 s, others of 0.01 s, by a clock of the test's own."""
    now, calls = [0.0], []

    def repeated(count):
        now[0] += 0.01 * count if calls else 2.0
        calls.append(count)

    monkeypatch.setattr("deeplin.runner.cost._TIMED", 0.05)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    assert time_of(repeated) == pytest.approx(0.01)
    assert calls == [1, 1, 2, 4]


def test_calls_that_do_nothing_end(monkeypatch):
    """As those of a run that ends within its first steps do; by a clock that stands."""
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    assert time_of(lambda count: None) == 0
