"""How a run says that it ended: status, checkpoint, summary and verdict agree, and it goes on."""

import json

import pytest
import torch
from runner import SMALL, train

from deeplin.loop import Kind

APPROXIMATION = [
    *("problem=approximation", "problem.n=8", "network.rank=3", "network.depth=2", "method=rgd"),
]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def end(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["result"]


def agree(folder):
    told, kept = summary(folder), end(folder)
    return [told[k] for k in ("result_kind", "steps", "flow_time", "result")] == [
        kept[k] for k in ("kind", "step", "t", "sentence")
    ]


# -- one fact, stored once -------------------------------------------------------------------------


def test_a_run_killed_before_its_summary_is_told_anew(tmp_path, capsys):
    """What lies there is of another end."""
    assert train(*SMALL, "method.t1=10", "stop.max_steps=20", folder=tmp_path) == 0
    old = (tmp_path / "summary.json").read_text()
    assert train(f"resume={tmp_path}", "stop.max_steps=null") == 0
    (tmp_path / "summary.json").write_text(old)
    capsys.readouterr()
    assert train(f"resume={tmp_path}", "stop.max_steps=null") == 0
    assert "finished already" not in capsys.readouterr().out
    assert agree(tmp_path)
    assert summary(tmp_path)["flow_time"] == pytest.approx(10)
    assert train(f"resume={tmp_path}", "stop.max_steps=null") == 0
    assert "finished already: reached the end time t1 = 10" in capsys.readouterr().out


def test_a_summary_of_another_end_is_not_believed(tmp_path, capsys):
    assert train(*SMALL, "method.t1=2", folder=tmp_path) == 0
    told = summary(tmp_path)
    for wrong in ({"steps": 3}, {"flow_time": 1.0}, {"result_kind": "converged"}):
        (tmp_path / "summary.json").write_text(
            json.dumps({**told, **wrong, "verdict": "of another end"})
        )
        assert train(f"resume={tmp_path}") == 0
        assert agree(tmp_path)
        assert summary(tmp_path)["verdict"] == told["verdict"]
    assert "of another end" not in capsys.readouterr().out


# -- what did not end as was asked -----------------------------------------------------------------

LOST = {
    "diverged": [*APPROXIMATION, "method.dt=3"],
    "one step": [*SMALL, "method=sgd", "method.dt=1e9"],
    "fault": [*SMALL, "method=dopri5", "init=gaussian", "init.std=1e10", "method.t1=5"],
}


@pytest.mark.parametrize("name", LOST)
def test_an_end_that_was_not_asked_for_has_its_status_again_and_again(tmp_path, capsys, name):
    status = 3 if name == "fault" else 1
    assert train(*LOST[name], folder=tmp_path) == status
    kind = Kind.FAULT if name == "fault" else Kind.DIVERGED
    assert summary(tmp_path)["result_kind"] == kind
    assert summary(tmp_path)["verdict"].startswith("No verdict: the run ")
    assert agree(tmp_path)
    assert capsys.readouterr().err.startswith("error: ")
    assert train(*LOST[name], folder=tmp_path) == status
    assert "finished already" in capsys.readouterr().out
    assert train(f"resume={tmp_path}", "method.t1=1000", "stop.max_steps=9") == status


def test_a_run_that_diverges_by_its_tolerance_is_told_to_take_a_smaller_one(tmp_path):
    words = [*SMALL, "method=dopri5", "method.rtol=1e9", "method.t1=5"]
    assert train(*words, folder=tmp_path) == 1
    assert summary(tmp_path)["result"].endswith("; take a smaller rtol.")


def test_a_rise_of_the_loss_is_no_rest(tmp_path):
    """Steps that alternate around the optimum, and a window shorter than a step."""
    for i, words in enumerate(
        [
            [*APPROXIMATION, "method.dt=1.95"],
            [*APPROXIMATION, "method.dt=2.1"],
            [*SMALL, "method=sgd", "method.dt=0.3", "method.t1=1"],
        ]
    ):
        assert train(*words, folder=tmp_path / str(i)) == 0
        assert summary(tmp_path / str(i))["result_kind"] == "time"
        assert "came to rest" not in summary(tmp_path / str(i))["verdict"]


def test_one_repeat_that_diverges_is_named_and_the_others_are_judged(tmp_path, capsys):
    good, bad = [[1, 0, 0], [0, 1, 0], [0, 0, 0]], [[99, 0, 0], [0, 99, 0], [0, 0, 0]]
    words = [
        *("problem=gaussian", "problem.d=3", "network.rank=2", "method=euler", "method.dt=0.05"),
        *("init=balanced", f"init.matrix={[good, bad, good]}".replace(" ", ""), "repeats=3"),
    ]
    assert train(*words, folder=tmp_path) == 1
    told = summary(tmp_path)
    assert (told["result_kind"], end(tmp_path)["lost"], end(tmp_path)["rest"]) == (
        "diverged",
        (1,),
        "converged",
    )
    assert told["verdict"].startswith(
        "Of 2 of 3 trajectories, without those lost: Theory and run agree"
    )
    lost = told["repeats"]["lost"]
    assert (lost[0], lost[2], lost[1]["kind"]) == (None, None, "diverged")
    assert told["repeats"]["distance_to_limit"][1] is None
    assert "error: trajectory 2 of 3 diverged" in capsys.readouterr().err


def test_steps_too_long_to_follow_the_flow_are_not_unfinished(tmp_path):
    """One step is the whole run, and no loss rose."""
    words = [*APPROXIMATION, "method.dt=2.5", "method.t1=2.5"]
    assert train(*words, folder=tmp_path) == 0
    assert summary(tmp_path)["steps"] == 1
    assert "does not follow the flow" in summary(tmp_path)["verdict"]
    assert summary(tmp_path)["verdict"].startswith("No verdict (")


# -- options that can change on the way ------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "then", "kinds"),
    [
        (["stop.grad_norm=1e-2"], ["stop.grad_norm=1e-5"], ("converged", "converged")),
        (["method.t1=0.2/rho"], ["method.t1=0.5/rho"], ("time", "time")),
        (["method.t1=0.2/rho"], ["method.t1=auto"], ("time", "converged")),
        (["stop.max_steps=9", "method.t1=2"], ["stop.max_steps=null"], ("steps", "time")),
        (["stop.max_steps=9", "method.t1=2"], ["stop.max_steps=12"], ("steps", "steps")),
        (
            ["stop.grad_norm=null", "stop.stagnation=0.02", "method.t1=400"],
            ["stop.stagnation=null"],
            ("stagnated", "time"),
        ),
    ],
    ids=lambda words: " ".join(words),
)
def test_what_can_change_takes_a_run_further(tmp_path, capsys, first, then, kinds):
    assert train(*SMALL, *first, folder=tmp_path) == 0
    before = summary(tmp_path)
    assert before["result_kind"] == kinds[0]
    assert train(f"resume={tmp_path}", *then) == 0
    after = summary(tmp_path)
    assert after["result_kind"] == kinds[1]
    assert after["steps"] > before["steps"]
    assert agree(tmp_path)
    capsys.readouterr()
    assert train(f"resume={tmp_path}") == 0
    assert "finished already" in capsys.readouterr().out


def test_a_tolerance_that_stops_early_is_called_so(tmp_path):
    assert train(*SMALL, "stop.grad_norm=1e-2", folder=tmp_path) == 0
    assert summary(tmp_path)["verdict"].startswith("Stopped early: the gradient norm, ")


def test_other_options_of_the_log_are_taken_by_a_finished_run(tmp_path, capsys):
    assert train(*SMALL, "method.t1=2", folder=tmp_path) == 0
    before = summary(tmp_path)
    assert train(f"resume={tmp_path}", "log.singular_values=1") == 0
    assert "finished already" not in capsys.readouterr().out
    assert {**summary(tmp_path), "seconds": 0} == {**before, "seconds": 0}
