"""Runs of several processes: one folder, the data of one process, gone on with by any number."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from runner import ROOT, train

from deeplin.runner.folder import RunFolder

WORDS = ["problem=file", 'problem.path="shards/*.npz"', "network.rank=2", "method=rk4"]
WORDS += ["method.dt=0.05", "log.records=6", "log.checkpoint_seconds=0", "stop.grad_norm=null"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Three files of unequal lengths and means, with a missing entry, one of a constant column."""
    draw = np.random.default_rng(5)
    (tmp_path / "shards").mkdir()
    for i, m in enumerate((40, 25, 60)):
        x = draw.standard_normal((m, 6)) @ np.diag([3, 2, 1, 1, 0.5, 0]) + np.arange(6) + i * 0.3
        x[:, 5] = 7.0
        x[3, i] = np.nan
        y = x[:, :5] @ draw.standard_normal((5, 2)) + 0.1 * draw.standard_normal((m, 2))
        np.savez(tmp_path / "shards" / f"{i}.npz", x=x, y=np.nan_to_num(y))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _member(rank: int, size: int, port: int, words: list[str], place: Path) -> None:
    """What torchrun starts, with what it tells a process in its environment."""
    os.chdir(place)
    said = os.open(f"said{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout, sys.stderr = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(2), "w")
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os._exit(train(*words))


@pytest.fixture
def together(processes, place):
    """The exit statuses of some processes with one command line, and what each has said."""

    def run(*words: str, size: int = 2) -> tuple[list[int | None], list[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        begun = [
            processes.Process(target=_member, args=(rank, size, port, list(words), place))
            for rank in range(size)
        ]
        for process in begun:
            process.start()
        for process in begun:
            process.join(120)
        for process in begun:  # which waits for another, where something is wrong
            process.kill()
            process.join()
        said = [(place / f"said{rank}.txt").read_text() for rank in range(size)]
        return [process.exitcode for process in begun], said

    return run


def state(folder: Path) -> list[torch.Tensor]:
    return list(RunFolder(folder).load_checkpoint().stepper["state"])


def assert_same(a: Path, b: Path) -> None:
    first, second = (RunFolder(f).load_checkpoint() for f in (a, b))
    assert first.stepper["step"] == second.stepper["step"]
    for one, two in zip(state(a), state(b), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    for name in ("mean", "scale"):
        one, two = (c.preparation["x"][name] for c in (first, second))
        torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-13)
    for name in ("loss", "distance_to_limit"):
        one, two = (c.history.column(name) for c in (first, second))
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def ran_with(folder: Path) -> list[object]:
    return [session["processes"] for session in RunFolder(folder).sessions()]


@pytest.mark.parametrize("missing", ["mean", pytest.param("drop", marks=pytest.mark.slow)])
def test_two_processes_are_one_run_and_one_goes_on_with_it(together, place, missing):
    """And the reverse: the state has nothing of how many they were."""
    words = [*WORDS, f"problem.missing={missing}"]
    assert train(*words, "stop.max_steps=12", folder=place / "alone") == 0
    codes, said = together(*words, "stop.max_steps=6", "hydra.run.dir=first")
    assert codes == [0, 0]
    assert "streamed from 3 files by 2 processes" in said[0]
    assert "1 columns that never vary were removed" in said[0]
    assert "deeplin" not in said[1]
    assert not list(place.glob("runs*"))
    assert not list(place.glob("outputs*"))
    assert train("resume=first", "stop.max_steps=12") == 0
    assert_same(place / "first", place / "alone")
    assert ran_with(place / "first") == [2, 1]
    if missing == "drop":
        return
    assert train(*words, "stop.max_steps=6", folder=place / "second") == 0
    codes, said = together("resume=second", "stop.max_steps=12", size=3)
    assert codes == [0, 0, 0]
    assert_same(place / "second", place / "alone")
    assert ran_with(place / "second") == [1, 3]


def test_more_processes_than_files(together, place):
    for i in (1, 2):
        (place / "shards" / f"{i}.npz").unlink()
    words = [*WORDS, "problem.missing=mean", "stop.max_steps=4"]
    assert train(*words, folder=place / "alone") == 0
    codes, _ = together(*words, "hydra.run.dir=run")
    assert codes == [0, 0]
    assert_same(place / "run", place / "alone")


def test_what_one_process_cannot_read_ends_all_with_one_sentence(together, place):
    """The second file is in the second process's share."""
    for wrong, sentence in (
        ({"x": np.full((4, 6), np.inf), "y": np.ones((4, 2))}, "must be finite"),
        ({"x": np.ones((4, 5)), "y": np.ones((4, 2))}, "must have the same columns"),
    ):
        np.savez(place / "shards" / "1.npz", **wrong)
        codes, said = together(*WORDS, "problem.missing=mean", "hydra.run.dir=run")
        assert codes == [2, 2]
        assert said[0].count("error: ") == 1
        assert "error: process 1 of 2: " in said[0]
        assert sentence in said[0]
        assert "1.npz" in said[0]
        assert "Traceback" not in said[0] + said[1]
        assert not (place / "run").exists()
    codes, said = together(*WORDS, "problem.path='nothing*.npz'", "hydra.run.dir=run")
    assert codes == [2, 2]
    assert said[0].count("error: ") == 1
    assert "no file matches" in said[0]


def test_a_sweep_of_several_processes(together, place):
    words = [*WORDS, "problem.missing=mean", "-m", "hydra.sweep.dir=sweep", "stop.max_steps=3"]
    codes, _ = together(*words, "network.rank=1,2,9")
    assert codes == [2, 2]
    stands = {
        p.parent.name: json.loads(p.read_text())["status"] for p in place.glob("sweep/*/s*s.json")
    }
    assert stands == {"rank=1": 0, "rank=2": 0, "rank=9": 2}


# -- torchrun itself -------------------------------------------------------------------------------


def torchrun(place: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "scripts" / "train.py"), *words],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def torchrun_with_a_checkpoint(place: Path, *words: str) -> subprocess.Popen[str]:
    """`torchrun` in the folder run, whose first checkpoint is written."""
    begun = torchrun(place, *words, "hydra.run.dir=run")
    end = time.monotonic() + 120
    while not (place / "run" / "checkpoint.pt").exists():
        assert begun.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    return begun


@pytest.mark.slow
def test_torchrun_is_killed_and_one_process_goes_on(place):
    words = [*WORDS, "problem.missing=mean", "stop.stagnation=null", "method.t1=40"]
    assert train(*words, folder=place / "alone") == 0
    begun = torchrun_with_a_checkpoint(place, *words)
    os.kill(json.loads((place / "run" / ".lock").read_text())["pid"], signal.SIGKILL)
    said, _ = begun.communicate(timeout=120)
    assert begun.returncode != 0
    assert not (place / "run" / "status.json").exists(), said
    assert train(*words, folder=place / "run") == 0
    assert_same(place / "run", place / "alone")
    assert ran_with(place / "run") == [2, 1]


@pytest.mark.slow
def test_torchrun_is_stopped_with_a_checkpoint(place):
    words = [*WORDS, "problem.missing=mean", "stop.stagnation=null", "method.t1=4000"]
    begun = torchrun_with_a_checkpoint(place, *words)
    begun.send_signal(signal.SIGTERM)
    said, _ = begun.communicate(timeout=120)
    assert json.loads((place / "run" / "status.json").read_text()) == {"status": 143}, said
    done = torchrun(place, "resume=run", "stop.max_steps=100")
    said, _ = done.communicate(timeout=120)
    assert done.returncode == 0, said
