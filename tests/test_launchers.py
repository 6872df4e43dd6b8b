"""Sweeps under launchers, with kills in the middle: none lost, none repeated, statuses true."""

import contextlib
import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import slurm
import torch
from hydra.core.plugins import Plugins
from launching import SHORT, Command, deadly, forked, lasting, status, wait_for
from runner import ROOT, train

from deeplin.runner import lock, plugins
from deeplin.runner.folder import RunFolder


def installed(plugin: str) -> bool:
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec(f"hydra_plugins.{plugin}") is not None
    return False


def needs(plugin: str) -> pytest.MarkDecorator:
    package = plugin.replace("_", "-")
    return pytest.mark.skipif(not installed(plugin), reason=f"{package} is not installed")


def jobs(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def end(folder: Path) -> list[torch.Tensor]:
    return list(RunFolder(folder).load_checkpoint().stepper["state"])


def runs(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True).stdout
    return not state.startswith(b"Z") and state != b""


def same_bits(a: Path, b: Path) -> bool:
    return all(map(torch.equal, end(a), end(b)))


# -- sweeps in processes of their own, which have imported everything already ----------------------


@pytest.fixture
def sweep(processes, tmp_path):
    """A sweep in tmp_path/sweep."""
    return Command(processes, _train, (*SHORT, "-m", f"hydra.sweep.dir={tmp_path}/sweep"), tmp_path)


def _train(words: list[str]) -> int:
    return train(*words)


def forked_and_deadly(place: Path) -> None:
    forked(place, deadly)


def forked_and_lasting(place: Path) -> None:
    forked(place, lasting)


JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def test_joblib_loses_a_worker_and_the_sweep_goes_on(sweep, tmp_path):
    """joblib then kills the others, and tells of no job at all."""
    words = [*JOBLIB, "seed=0,1,2"]
    folders = [tmp_path / "sweep" / f"seed={seed}" for seed in range(3)]
    (tmp_path / "deadly").touch()
    code, said = sweep(*words, prepare=forked_and_deadly)
    assert code == 137
    assert "error: hydra/launcher=joblib has not run all jobs (TerminatedWorkerError: " in said
    assert "Traceback" not in said
    rows = jobs(tmp_path / "sweep")
    assert [row["seed"] for row in rows] == ["0", "1", "2"]
    assert rows[1]["status"] == ""
    assert rows[1]["error"] == "not finished: it goes on from its last checkpoint"
    for row, folder in zip(rows, folders, strict=True):
        told = status(folder)
        assert row["status"] == ("" if told is None else str(told))
        assert row["status"] in ("", "0")
    assert said.splitlines()[-2] == "To go on, without the jobs that are finished:"
    (tmp_path / "deadly").unlink()
    assert RunFolder(folders[1]).load_checkpoint().stepper["step"] == 5
    made = {f: (f / "checkpoint.pt").read_bytes() for f in folders if status(f) == 0}
    code, said = sweep(*words, prepare=forked_and_deadly)
    assert code == 0
    assert "[seed=1]   resumed at t = " in said
    # a job killed between its summary and its status is finished too, and is not repeated either
    assert all(f"{f.name} is finished already" in said for f in made)
    assert [row["status"] for row in jobs(tmp_path / "sweep")] == ["0"] * 3
    assert [status(folder) for folder in folders] == [0] * 3
    assert all((f / "checkpoint.pt").read_bytes() == before for f, before in made.items())
    assert train(*SHORT, "seed=1", folder=tmp_path / "whole") == 0
    assert same_bits(tmp_path / "whole", folders[1])


def test_a_killed_command_takes_its_workers_along(sweep, tmp_path):
    (tmp_path / "lasting").touch()
    folders = [tmp_path / "sweep" / f"seed={seed}" for seed in (0, 1)]
    process = sweep.begun(*JOBLIB, "seed=0,1", prepare=forked_and_lasting)
    wait_for(lambda: all((folder / "checkpoint.pt").exists() for folder in folders))
    workers = [json.loads((folder / lock.LOCK).read_text())["pid"] for folder in folders]
    process.kill()
    process.join()
    wait_for(lambda: not any(lock.holder(folder) for folder in folders))
    assert [status(folder) for folder in folders] == [143, 143]
    wait_for(lambda: not any(map(runs, workers)), seconds=30)  # loky's own patience is 300
    (tmp_path / "lasting").unlink()
    code, said = sweep(*JOBLIB, "seed=0,1", prepare=forked_and_lasting)
    assert code == 0
    assert said.count("resumed at t = ") == 2
    assert [row["status"] for row in jobs(tmp_path / "sweep")] == ["0", "0"]


# -- the other launchers ---------------------------------------------------------------------------


def in_this_process(place: Path) -> None:
    """submitit runs each job here, when its result is asked for, with the same files."""
    name = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"
    Plugins.instance().class_name_to_class[name]._EXECUTOR = "debug"
    deadly(place)


@needs("hydra_submitit_launcher")
def test_submitit_is_killed_with_the_whole_command(sweep, tmp_path):
    words = ["hydra/launcher=submitit_local", "seed=0,1"]
    folders = [tmp_path / "sweep" / f"seed={seed}" for seed in (0, 1)]
    (tmp_path / "deadly").touch()
    assert sweep(*words, prepare=in_this_process)[0] == -signal.SIGKILL
    assert [status(folder) for folder in folders] == [0, None]
    made = (folders[0] / "checkpoint.pt").read_bytes()
    (tmp_path / "deadly").unlink()
    code, _ = sweep(*words, prepare=in_this_process)
    assert code == 0
    assert [status(folder) for folder in folders] == [0, 0]
    assert [row["status"] for row in jobs(tmp_path / "sweep")] == ["0", "0"]
    assert (folders[0] / "checkpoint.pt").read_bytes() == made
    assert len(RunFolder(folders[1]).sessions()) == 2
    assert train(*SHORT, "seed=1", folder=tmp_path / "whole") == 0
    assert same_bits(tmp_path / "whole", folders[1])


# -- the launchers themselves ----------------------------------------------------------------------

DEADLY = """
import os, signal, torch

A, calls = torch.outer(torch.arange(1.0, 7), torch.ones(5)).double(), 0

def loss(W):
    global calls
    calls += 1
    if calls == 200 and os.path.exists("deadly-" + os.environ.get("WHO", "1")):
        os.remove("deadly-" + os.environ.get("WHO", "1"))
        os.kill(os.getpid(), signal.SIGKILL)
    return ((W - A).square() + 1).sqrt().sum((-2, -1))
"""


def command(*words: str, place: Path) -> subprocess.CompletedProcess[str]:
    """What a user would type; the loss kills the process that calls it first for the 200th time."""
    (place / "deadly.py").write_text(DEADLY)
    common = ["problem=custom", "problem.target=deadly:loss", "problem.shape=[6,5]"]
    common += ["network.rank=2", "method=rk4", "method.dt=0.01", "method.t1=1", "log.records=5"]
    common += ["log.checkpoint_seconds=0", "-m", f"hydra.sweep.dir={place}/sweep"]
    path = os.pathsep.join([str(place), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    if "hydra/launcher=submitit_slurm" in words:
        environment |= slurm.installed(place / "slurm")
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *common, *words],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
    )


RAY = ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"]
LAUNCHERS = {
    "joblib": ("hydra_joblib_launcher", JOBLIB),
    "submitit_local": ("hydra_submitit_launcher", ["hydra/launcher=submitit_local"]),
    "submitit_slurm": ("hydra_submitit_launcher", ["hydra/launcher=submitit_slurm"]),
    "ray": ("hydra_ray_launcher", RAY),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_job_is_not_lost(tmp_path, launcher):
    plugin, words = LAUNCHERS[launcher]
    if not installed(plugin):
        pytest.skip(f"{plugin.replace('_', '-')} is not installed")
    words = [*words, "seed=0,1,2"]
    (tmp_path / "deadly-1").touch()
    done = command(*words, place=tmp_path)
    rows = jobs(tmp_path / "sweep")
    folders = [tmp_path / "sweep" / f"seed={seed}" for seed in range(3)]
    assert not (tmp_path / "deadly-1").exists(), done.stderr
    retried = launcher == "ray" and done.returncode == 0  # Ray takes a lost task up again
    assert retried or done.returncode == 137, done.stderr
    assert "Traceback" not in done.stderr
    for row, folder in zip(rows, folders, strict=True):
        assert row["status"] == ("" if status(folder) is None else str(status(folder)))
    finished = [f for f in folders if status(f) == 0]
    assert retried or len(finished) < 3
    wait_for(lambda: not any(lock.holder(folder) for folder in folders))
    finished = [f for f in folders if status(f) == 0]
    made = {f: (f / "checkpoint.pt").read_bytes() for f in finished}
    done = command(*words, place=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in jobs(tmp_path / "sweep")] == ["0"] * 3
    assert [status(folder) for folder in folders] == [0] * 3
    assert all((f / "checkpoint.pt").read_bytes() == before for f, before in made.items())
    assert any(len(RunFolder(folder).sessions()) == 2 for folder in folders)


@pytest.mark.parametrize("name", ["submitit_local", "submitit_slurm"])
@needs("hydra_submitit_launcher")
def test_our_options_of_submitit_are_the_plugins(name):
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    theirs = ConfigStore.instance().load(f"hydra/launcher/{name}.yaml").node
    ours = OmegaConf.load(ROOT / "conf" / "hydra" / "launcher" / f"{name}.yaml")
    assert set(ours) == set(theirs)
    assert ours._target_ == theirs._target_
    merged = OmegaConf.merge(theirs, ours)  # raises for a value of another type
    for key in merged:
        if OmegaConf.is_interpolation(ours, key):
            assert OmegaConf.to_container(ours)[key] == OmegaConf.to_container(theirs)[key]


def test_a_plugin_that_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setattr(plugins.importlib.util, "find_spec", lambda name: None)
    for word, package in (
        ("hydra/launcher=joblib", "hydra-joblib-launcher"),
        ("hydra/launcher=submitit_slurm", "hydra-submitit-launcher"),
        ("hydra/launcher=ray", "hydra-ray-launcher"),
        ("hydra/sweeper=optuna", "hydra-optuna-sweeper"),
    ):
        assert train(*SHORT, "-m", "seed=0,1", word) == 2
        assert f"{word} is a plugin of Hydra that is not installed: pip install {package}" in (
            capsys.readouterr().err
        )
