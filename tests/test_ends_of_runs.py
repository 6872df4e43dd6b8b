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


# -- what did not end as was asked -----------------------------------------------------------------

LOST = {
    "diverged": [*APPROXIMATION, "method.dt=3"],
    "one step": [*SMALL, "method=sgd", "method.dt=1e9"],
}


@pytest.mark.parametrize("name", LOST)
def test_an_end_that_was_not_asked_for_has_its_status_again_and_again(tmp_path, capsys, name):
    status = 1
    assert train(*LOST[name], folder=tmp_path) == status
    assert summary(tmp_path)["result_kind"] == Kind.DIVERGED
    assert summary(tmp_path)["verdict"].startswith("No verdict: the run ")
    assert agree(tmp_path)
    assert capsys.readouterr().err.startswith("error: ")
    assert train(*LOST[name], folder=tmp_path) == status
    assert "finished already" in capsys.readouterr().out
    assert train(f"resume={tmp_path}", "method.t1=1000", "stop.max_steps=9") == status


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
