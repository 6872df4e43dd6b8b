"""A step beyond the limit of stability is named before the run, and in its summary."""

import json

import pytest
from hydra import compose, initialize_config_dir
from runner import ROOT, SMALL, train

from deeplin.runner.build import build

HLZ = [
    *("problem=approximation", "problem.n=6", "problem.spectrum=[2,1]", "network.rank=2"),
    *("network.depth=2", "method=rgd"),
]
PSD = [*HLZ, "init=balanced", "init.psd=true", "flow=psd_dlra"]


def named(words):
    """The sentences on the step of the run of these words."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        notes = build(compose("train", words)).notes
    return [note for note in notes if "unstable" in note]


@pytest.mark.parametrize(
    ("words", "method", "limit"),
    [
        ([*SMALL, "method.dt=1e6"], "RK4", None),
        ([*SMALL, "method=sgd", "method.dt=3", "method.t1=9"], "gradient descent", None),
        ([*SMALL, "method=euler", "method.dt=20", "method.t1=40"], "Euler", None),
        # ½‖W − X‖² has curvature 1.
        ([*HLZ, "method.dt=2.1", "method.t1=10"], "ProjectedRungeKutta", 2),
        ([*PSD, "method.order=4", "method.dt=3", "method.t1=10"], "ProjectedRungeKutta", 2.785),
    ],
)
def test_too_long_a_step_is_named(words, method, limit):
    (note,) = named(words)
    assert f"beyond which {method} is unstable here" in note
    assert ("the whole run is one step of" in note) == ("method.dt=1e6" in words)
    if limit is not None:
        assert f"is above {limit:.3g}," in note
    advised = note.rsplit("type method.dt=auto, or method.dt=", 1)[1].split()[0]
    assert not named([word for word in words if "dt=" not in word] + [f"method.dt={advised}"])


@pytest.mark.parametrize(
    "words",
    [
        [*SMALL, "method.dt=1e6", "method.t1=0.01"],  # one step, but a short one
        [*SMALL, "method.t1=1"],
        [*SMALL, "method=dopri5", "method.t1=1"],
        [*HLZ, "method.dt=1.9", "method.t1=4"],
        # Tangent steps do not pay for the inverse of S, however small σ_r.
        [*HLZ, "flow=psd_dlra", "init=spurious", "init.keep=[1]", "init.radius=1e-6"],
        ["experiment=hlz/fig3cd", "problem.n=10", "repeats=3"],  # steps of 2σ_r
    ],
)
def test_steps_that_are_stable_are_not_named(words):
    assert not named(words)


def test_the_summary_holds_the_note_of_the_headline(tmp_path, capsys):
    words = ["problem.n=3", "method.dt=1e6", "method.t1=3"]
    assert train(*HLZ, *words, folder=tmp_path) == 0
    head = capsys.readouterr().out.split("to flow time")[0]
    notes = json.loads((tmp_path / "summary.json").read_text())["notes"]
    assert len(notes) == 2
    assert all(note in head for note in notes)
    assert "the whole run is one step of 3" in notes[1]


def test_layers_that_overflow_have_diverged(tmp_path, capsys):
    """One step of 174 leaves finite layers with a product that is not: that was a traceback."""
    assert train(*SMALL, "method.dt=1e6", folder=tmp_path) == 1
    assert "diverged before t = " in capsys.readouterr().err
