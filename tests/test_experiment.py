"""Runs from their configuration: what they leave behind, repeat, resume and survive."""

import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from runner import SMALL, needs_compiler, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from deeplin.runner.folder import FORMAT

APPROXIMATION = [
    *("problem=approximation", "problem.n=8", "problem.spectrum=[0.9,0.5]"),
    *("network.rank=2", "init=balanced", "init.psd=true"),
]
KEYS = {
    "loss", "optimal_loss", "relative_excess_loss", "distance_to_limit", "rank",
    "balancedness_gap_initial", "balancedness_gap_final", "rate_measured", "rate_predicted",
    "steps", "flow_time", "seconds", "result", "result_kind", "verdict", "plateaus", "notes",
    "method", "largest_drift",
}  # fmt: skip


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def state(folder: Path) -> list[torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["stepper"]["state"]


def same_end(a: Path, b: Path) -> bool:
    """Bit for bit the same state and the same records."""
    first, second = (torch.load(p / "checkpoint.pt", weights_only=True) for p in (a, b))
    columns = [c["history"]["observed"] for c in (first, second)]
    return (
        all(map(torch.equal, first["stepper"]["state"], second["stepper"]["state"]))
        and first["history"]["moments"] == second["history"]["moments"]
        and all(torch.equal(columns[0][name], columns[1][name]) for name in columns[0])
    )


def test_a_run_leaves_everything_behind(tmp_path, capsys):
    assert train(*SMALL, folder=tmp_path, draw=True) == 0
    assert set(summary(tmp_path)) == KEYS
    assert summary(tmp_path)["verdict"].startswith("Theory and run agree")
    assert summary(tmp_path)["rank"] == 2
    config = OmegaConf.load(tmp_path / "config.yaml")
    assert (config.network.rank, config.problem.seed) == (2, 0)
    (session,) = json.loads((tmp_path / "provenance.json").read_text())["sessions"]
    assert {"versions", "commit", "code", "command", "files", "from_t"} <= set(session)
    assert (tmp_path / "figures" / "convergence.png").read_bytes()[:4] == b"\x89PNG"
    output = capsys.readouterr()
    assert "Theory and run agree" in output.out
    assert f"log in {tmp_path}" in output.out
    assert output.err == "", "quiet when not a terminal"


@pytest.mark.parametrize("repeats", [1, 3])
def test_tensorboard_events(tmp_path, repeats):
    words = [*SMALL, f"repeats={repeats}", "method.t1=5"]
    assert train(*words, folder=tmp_path, draw=True) == 0
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()
    first = ("excess_loss", "distance_to_limit", "gradient_norm")
    names = {"loss", *(f"log10_{name}" for name in first)}
    for axis in ("by_step", "by_flow_time"):
        assert {n for n in tags["scalars"] if n.startswith(axis)} == {f"{axis}/{n}" for n in names}
        more = {"rank", "dt", "log10_balancedness_gap", "log10_drift_largest_gap"}
        assert {f"more_{axis}/{name}" for name in more} <= set(tags["scalars"])
        assert not [tag for tag in tags["scalars"] if "drift_gap" in tag]
        assert f"singular_values_{axis}/02" in tags["scalars"]
        ranged = f"range_{axis}/loss/max" in tags["scalars"]
        assert ranged == (repeats > 1)
    last = events.Scalars("by_flow_time/loss")[-1]
    assert last.step == 5000
    assert last.value == pytest.approx(
        np.median(summary(tmp_path).get("repeats", summary(tmp_path))["loss"]), rel=1e-6
    )
    passed = summary(tmp_path)["plateaus"]
    expected = {"figures/convergence"} | ({"figures/plateaus"} if len(passed) > 1 else set())
    assert set(tags["images"]) == expected
    assert {"4_config/text_summary", "1_verdict/text_summary"} <= set(tags["tensors"])
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert (b"margin" in layout or b"/min" in layout) == (repeats > 1)
    told = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    named = HParamsPluginData.FromString(told).session_start_info.hparams
    assert {"problem.name", "method.name", "problem.d", "network.rank", "repeats"} <= set(named)
    assert not {"seed", "network.depth", "method.rtol", "stop.grad_norm"} & set(named)
    decay = events.Scalars("predicted_by_flow_time/loss")
    assert [e.step for e in decay] == [0, 5000], "each once"
    assert decay[0].value == pytest.approx(summary(tmp_path)["optimal_loss"])
    assert events.Scalars("final/loss")[0].value == pytest.approx(summary(tmp_path)["loss"])
    assert len(list(tmp_path.glob("**/events*"))) == 1, "no extra sub-runs"


def test_seeds_repeat_bit_for_bit(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert (
            train(*SMALL, "method=sgd", f"seed={seed}", "method.t1=3", folder=tmp_path / name) == 0
        )
    assert same_end(tmp_path / "a", tmp_path / "b")
    assert not same_end(tmp_path / "a", tmp_path / "c")


# Where a run is at its limit already, to what the verdict asks.
EARLY = "stop.grad_norm=1e-5"
# Data of which λ_1/ρ is a fifth of that of the usual ones, and with it the steps of a run.
MILD = "problem.seed=2"


@pytest.mark.parametrize(
    "options",
    [
        ["init=orthogonal", "init.tied=false"],
        ["init=balanced", "init.psd=true", "init.rotate=true"],
        ["init=balanced", "init.scale=0.1"],
        ["init=gaussian", "method.t1=20"],
        ["init=gaussian", "init.std=[0.5,0.2,0.4]", "method.t1=20"],
        ["init=identity", "init.scale=0.5", EARLY],
        ["init=special", "method.t1=2"],
        ["problem=teacher", "problem.d=6", "init.tied=false"],
        ["problem.m=4", "problem.singular=keep", "method.t1=5"],
        ["problem.m=4", "problem.singular=project"],
        ["problem.m=4", "problem.singular=whiten", "method.t1=5"],
        ["network.widths=[6,4,3,6]", "init.rank=2"],
        ["network.widths=[6,6]", "method.t1=4"],
        ["dtype=float32", "stop.grad_norm=1e-4"],
        ["method=sgd", "repeats=2", "method.t1=4"],
        ["method=sgd", "method.batch_size=5", "method.t1=4"],
        ["method.dt=0.05", "stop.max_steps=10"],
        ["method=dopri5", "log.records=60", EARLY],
        ["method=dopri5", "flow=pqw", "method.t1=2", "repeats=2", "log.records=20"],
        ["method=rkc", "log.records=60"],
        ["method=rosenbrock", "log.records=60", EARLY],
        ["method=rosenbrock", "flow=layers", "method.t1=2", "repeats=2", "log.records=20"],
        ["method=structure", "log.records=60", EARLY],
        ["method=structure", "flow=dlra_rescaled", "method.t1=2", "log.records=20"],
        ["method=euler", "method.rebalance=true", "method.t1=3"],
        ["flow=compressed"],
        pytest.param(["method.compiled=true"], marks=needs_compiler),
        ["flow=oja", "network.depth=2"],
        ["flow=coupled", "network.depth=2"],
        ["flow=riccati", "network.depth=2"],
        ["init=gaussian", "log.factors=true", EARLY],
        ["init=gaussian", "network.depth=2", "init.std=0.5", EARLY],
        ["experiment=plateaus", "method.t1=1"],
        ["experiment=condition37", "method.t1=1"],
    ],
    ids=" ".join,
)
def test_every_option_runs(tmp_path, options):
    assert train(*SMALL, MILD, *options, folder=tmp_path) == 0
    end = summary(tmp_path)
    assert math.isfinite(end["loss"])
    if "method.t1" not in " ".join(options) and "max_steps" not in " ".join(options):
        assert end["verdict"].startswith("Theory and run agree"), end["verdict"]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["flow=psd_dlra_rescaled", "method.dt=1.5", "repeats=3"],
        ["method.order=2", "method.dt=0.1", "flow=psd_dlra", "method.t1=2"],
        ["method=structure", "flow=dlra", "log.records=30", "method.t1=2"],
    ],
    ids=" ".join,
)
def test_approximation_of_a_matrix(tmp_path, options):
    assert train("method=rgd", *APPROXIMATION, *options, folder=tmp_path) == 0
    if "method.t1=2" not in options:
        assert summary(tmp_path)["verdict"].startswith("Theory and run agree")


def test_digits_with_labels(tmp_path):
    words = ["problem=digits", "problem.target=labels", "network.rank=3", "method.t1=2"]
    assert train(*words, folder=tmp_path) == 0
    assert summary(tmp_path)["rank"] == 3


def test_balanced_start_from_a_file(tmp_path):
    W = 0.5 * torch.eye(6, dtype=torch.float64)[:, :2] @ torch.eye(2, 6, dtype=torch.float64)
    torch.save(W, tmp_path / "W.pt")
    options = ["init=balanced", f"init.path={tmp_path}/W.pt", "method.t1=0.001"]
    assert train(*SMALL, *options, folder=tmp_path / "run") == 0
    layers = state(tmp_path / "run")
    product = layers[2] @ layers[1] @ layers[0]
    torch.testing.assert_close(product, W, rtol=0, atol=0.1)


def test_own_data_from_a_file(tmp_path, randn, capsys):
    np.savetxt(tmp_path / "own.csv", (randn(40, 3) @ randn(3, 5)).numpy(), delimiter=",")
    options = ["problem=file", f"problem.path={tmp_path}/own.csv", "network.rank=2", "method.t1=3"]
    assert train(*options, folder=tmp_path / "run") == 0
    assert "XXᵀ has rank 3 of 5" in capsys.readouterr().out


def test_a_sweep_and_its_repetition(tmp_path, capsys):
    words = [*SMALL, "-m", "network.depth=2,3", "method.t1=2", f"hydra.sweep.dir={tmp_path}"]
    assert train(*words) == 0
    times = [p.stat().st_mtime_ns for p in sorted(tmp_path.glob("*/summary.json"))]
    assert len(times) == 2
    capsys.readouterr()
    assert train(*words) == 0, "jobs are idempotent"
    assert [p.stat().st_mtime_ns for p in sorted(tmp_path.glob("*/summary.json"))] == times
    assert capsys.readouterr().out.count("is finished already") == 2


def test_resuming_with_a_later_end(tmp_path):
    assert train(*SMALL, "method.dt=0.02", "method.t1=4", folder=tmp_path / "whole") == 0
    assert train(*SMALL, "method.dt=0.02", "method.t1=1", folder=tmp_path / "part") == 0
    assert train(f"resume={tmp_path}/part", "method.t1=4") == 0
    for a, b in zip(state(tmp_path / "whole"), state(tmp_path / "part"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert train(f"resume={tmp_path}/part", "network.depth=4") == 2


def test_folders_of_another_format_are_refused_in_one_sentence(tmp_path, capsys):
    assert train(*SMALL, "method.t1=1", folder=tmp_path) == 0
    config = tmp_path / "config.yaml"
    assert config.read_text().startswith(f"format: {FORMAT}\n")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved.pop("format") == FORMAT
    rest = config.read_text().removeprefix(f"format: {FORMAT}\n")
    for number, words in (
        (None, [f"resume={tmp_path}"]),
        (3, [*SMALL, "method.t1=1"]),
        (FORMAT + 1, [f"resume={tmp_path}"]),
    ):
        config.write_text(rest if number is None else f"format: {number}\n{rest}")
        capsys.readouterr()
        assert train(*words, folder=tmp_path) == 2
        error = capsys.readouterr().err
        assert f"was written in format {number or 1} of run folders" in error
        assert error.count("\n") == 1
    config.write_text(f"format: {FORMAT}\n{rest}")
    torch.save(saved, tmp_path / "checkpoint.pt")  # a checkpoint without a number
    assert train(*SMALL, "method.t1=1", folder=tmp_path) == 2
    assert "was written in format 1 of run folders" in capsys.readouterr().err


# -- killed runs -----------------------------------------------------------------------------------

METHODS = {
    "sgd": ["method=sgd", "method.dt=0.004", "method.t1=2", "method.batch_size=7"],
    "rk4": ["method=rk4", "method.dt=0.004", "method.t1=2"],
}
CHECKPOINTS = ["log.checkpoint_seconds=0.03", "stop.grad_norm=null", "log.records=60"]


def test_fresh_processes_have_imported_everything(processes):
    """Their server does not say what it could not import."""
    process = processes.Process(target=_tell_of_imports)
    process.start()
    process.join()
    assert process.exitcode == 0


def _tell_of_imports():
    os._exit(0 if "preloaded" in sys.modules else 1)


def start(processes, words, folder):
    process = processes.Process(target=_quiet_train, args=(words, folder))
    process.start()
    return process


def _quiet_train(words, folder):
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        torch.set_num_threads(1)
        os._exit(train(*words, folder=folder))


def wait_for_checkpoint(folder, process):
    while not (folder / "checkpoint.pt").exists():
        assert process.is_alive()
        time.sleep(0.01)


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_random_moments_ends_with_the_same_bytes(processes, tmp_path, method):
    words = [*SMALL, *METHODS[method], *CHECKPOINTS]
    whole = start(processes, words, tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0
    length = summary(tmp_path / "whole")["seconds"]
    moments = random.Random(7)
    for i in range(2):
        folder = tmp_path / f"killed{i}"
        process = start(processes, words, folder)
        wait_for_checkpoint(folder, process)
        time.sleep(moments.uniform(0, 0.8 * length))
        process.kill()
        process.join()
        again = start(processes, [f"resume={folder}"], folder)
        again.join()
        assert again.exitcode == 0
        assert same_end(folder, tmp_path / "whole")
        assert list(folder.glob("events*")) != []


def test_killed_before_the_summary_was_written(tmp_path):
    """Between the last checkpoint and the report there is a moment, too."""
    assert train(*SMALL, folder=tmp_path) == 0
    before, state_before = summary(tmp_path), state(tmp_path)
    (tmp_path / "summary.json").unlink()
    assert train(f"resume={tmp_path}", folder=tmp_path) == 0
    after = summary(tmp_path)
    assert {**after, "seconds": 0} == {**before, "seconds": 0}
    assert all(map(torch.equal, state(tmp_path), state_before))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_checkpoint_and_summary(processes, tmp_path, number):
    words = [*SMALL, *METHODS["rk4"], *CHECKPOINTS]
    process = start(processes, words, tmp_path / "run")
    wait_for_checkpoint(tmp_path / "run", process)
    time.sleep(0.2)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 128 + number
    end = summary(tmp_path / "run")
    assert f"by {number.name}" in end["result"]
    assert end["verdict"].startswith("Unfinished")
    for words_now, folder in (([f"resume={tmp_path}/run"], "run"), (words, "whole")):
        process = start(processes, words_now, tmp_path / folder)
        process.join()
        assert process.exitcode == 0
    assert same_end(tmp_path / "run", tmp_path / "whole")


def test_adaptive_runs_resume(tmp_path):
    words = [*SMALL, "method=structure", "method.t1=1", "log.records=20"]
    assert train(*words, "stop.max_steps=7", folder=tmp_path / "part") == 0
    assert train(f"resume={tmp_path}/part", "stop.max_steps=null") == 0
    assert train(*words, folder=tmp_path / "whole") == 0
    for a, b in zip(state(tmp_path / "whole"), state(tmp_path / "part"), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_drift_of_conserved_quantities_is_logged(tmp_path):
    words = ["method=structure", "method.t1=0.5", "log.records=20"]
    assert train(*SMALL, *words, folder=tmp_path) == 0
    scalars = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert {"more_by_step/log10_drift_UtU", "more_by_flow_time/log10_drift_rank"} <= set(scalars)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["flow=swarm"], "flow must be auto, layers, compressed, end_to_end"),
        (["flow=oja"], "is that of an autoencoder of two layers; got 3 layers"),
        (["flow=oja", "network.depth=2", "init.tied=false"], "needs tied layers, W_2 = W_1ᵀ"),
        (["flow=compressed", "init=gaussian"], "compress needs balanced layers"),
        (["method=sgd", "flow=dlra"], "one of layers for method=sgd; got 'dlra'"),
        (["method=structure", "method.rtol=-1"], "method.rtol must be a number >= 0"),
        (["method=rgd", "method.order=3"], "method.order must be 1, 2 or 4; got 3"),
        (["problem=approximation", "problem.spectrum=[1,-1]"], "positive eigenvalues; got"),
    ],
)
def test_methods_that_do_not_fit_are_one_sentence(tmp_path, capsys, words, message):
    options = (
        [word for word in SMALL if "problem" not in word] if "spectrum" in str(words) else SMALL
    )
    assert train(*options, *words, folder=tmp_path) == 2
    assert message in capsys.readouterr().err
