"""The runs of reproduce.py under joblib, with a kill and with a signal in the middle."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
import reproduce
from launching import Command, forked, status, wait_for

from deeplin.runner import lock
from deeplin.runner.folder import Checkpointer


@pytest.fixture
def reproduced(processes, tmp_path):
    """`reproduce.py hlz/example11`, which has four runs, with two workers."""
    words = ("hlz/example11", "--quick", "--processes", "2", "--root", ".")
    return Command(processes, reproduce.main, words, tmp_path)


def forked_and_deadly_once(place: Path) -> None:
    """The first run at its fifth step kills its process, if there is a file `deadly`."""
    original = Checkpointer.on_step

    def on_step(self, stepper):
        original(self, stepper)
        if stepper.step == 5:
            self.save()
            with contextlib.suppress(FileNotFoundError):
                (place / "deadly").unlink()
                os.kill(os.getpid(), signal.SIGKILL)

    Checkpointer.on_step = on_step
    forked(place, lambda place: None)


def test_the_reproduction_loses_a_worker_and_goes_on(reproduced, tmp_path):
    """There is a report without the runs that are missing, and what is finished stays."""
    (tmp_path / "deadly").touch()
    code, said = reproduced(prepare=forked_and_deadly_once)
    assert code == 1
    assert not (tmp_path / "deadly").exists()
    assert "error: hydra/launcher=joblib has not run all jobs (TerminatedWorkerError: " in said
    assert ": not finished: it goes on from its last checkpoint" in said
    assert "runs are not finished" in said
    assert "Traceback" not in said
    assert len(list(tmp_path.glob("*/report.html"))) == 1
    folders = sorted((tmp_path / "jobs").iterdir())
    made = {f: (f / "checkpoint.pt").read_bytes() for f in folders if status(f) == 0}
    assert len(made) < 4
    code, said = reproduced(prepare=forked_and_deadly_once)
    assert code == 0
    assert "error:" not in said
    folders = sorted((tmp_path / "jobs").iterdir())
    assert [status(folder) for folder in folders] == [0] * 4
    assert all((f / "checkpoint.pt").read_bytes() == before for f, before in made.items())
    assert "  resumed at t = " in "".join((f / "log.txt").read_text() for f in folders)


def forked_and_slow(place: Path) -> None:
    """From the fifth step on, when its state is saved, each takes a while, if there is a file."""
    original = Checkpointer.on_step

    def on_step(self, stepper):
        original(self, stepper)
        if stepper.step == 5:
            self.save()
        if stepper.step >= 5 and (place / "lasting").exists():
            time.sleep(0.2)

    Checkpointer.on_step = on_step
    forked(place, lambda place: None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_reproduction_that_is_stopped_lets_its_runs_save(reproduced, tmp_path, number):
    """Also where the signal reaches the command alone."""
    (tmp_path / "lasting").touch()
    process = reproduced.begun(prepare=forked_and_slow)
    wait_for(lambda: len(list(tmp_path.glob("jobs/*/checkpoint.pt"))) == 2)
    stopped = [path.parent for path in tmp_path.glob("jobs/*/checkpoint.pt")]
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 128 + number
    said = reproduced.said()
    assert said.splitlines()[-1] == "interrupted: the same command goes on from here."
    assert "Traceback" not in said
    assert [status(folder) for folder in stopped] == [143, 143]
    assert not any(lock.holder(folder) for folder in stopped)
