"""What goes wrong around a run: readers who leave, encodings, signals, folders that vanish."""

import csv
import io
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from runner import ROOT, SMALL, train

import deeplin.runner.run as running
from deeplin.runner import outcomes, terminal

SHORT = [*SMALL, "method.t1=1", "problem.m=4"]  # singular: its note has a ᵀ


def test_a_reader_who_leaves_ends_no_run(tmp_path, monkeypatch):
    """As `train.py … | head -1`: saved, and status 0."""
    read, write = os.pipe()
    os.close(read)
    with monkeypatch.context() as patch, os.fdopen(write, "w") as pipe:
        patch.setattr(sys, "stdout", pipe)
        patch.setattr(sys, "stderr", pipe)
        assert train(*SHORT, folder=tmp_path / "run") == 0
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_under_the_output_ends_no_run(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, open("/dev/full", "w") as full:
        patch.setattr(sys, "stdout", full)
        assert train(*SHORT, folder=tmp_path / "run") == 0
    assert (tmp_path / "run" / "summary.json").exists()
    error = capsys.readouterr().err
    assert "error: the output cannot be written (No space left on device)" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_without_the_characters_ends_no_run(tmp_path, monkeypatch, encoding):
    shown = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding=encoding))
        assert train(*SHORT, folder=tmp_path / "run") == 0
    assert rb"XX\u1d40 has rank" in shown.getvalue()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_run_is_built(tmp_path, monkeypatch, capsys, number):
    """One sentence, and nothing left; a run that was to go on stays as it was."""

    disguises = iter([False, True, True])

    def stopped(cfg):
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as stop:
            if not next(disguises):
                raise
            raise RuntimeError("a callback has failed") from stop  # as libraries do

    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # as a shell starts what it does not wait for
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert train(*SHORT, "stop.max_steps=2", folder=tmp_path / "old") == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir() if p.is_file()}
    monkeypatch.setattr(running, "build", stopped)
    handler = signal.getsignal(signal.SIGTERM)
    capsys.readouterr()
    for _ in range(2):
        assert train(*SHORT, folder=tmp_path / "new") == 128 + number
        error = capsys.readouterr().err
        assert error == f"error: stopped at once by {number.name}: there is no checkpoint yet.\n"
        assert not (tmp_path / "new").exists()
    assert train(f"resume={tmp_path}/old", "stop.max_steps=null") == 128 + number
    assert f"resume={tmp_path}/old continues the run" in capsys.readouterr().err
    after = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir() if p.is_file()}
    assert after == before
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert train(*SHORT) == 2
    error = capsys.readouterr().err
    assert error == "error: the working directory is gone: change to another.\n"


def test_a_run_goes_on_in_its_own_folder(tmp_path, capsys):
    """resume=a hydra.run.dir=b means neither a nor b."""
    for name in "ab":
        assert train(*SHORT, "stop.max_steps=2", folder=tmp_path / name) == 0
    files = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    before = [p.read_bytes() for p in files]
    capsys.readouterr()
    for folder in ("b", "new"):
        words = [f"resume={tmp_path}/a", f"hydra.run.dir={tmp_path}/{folder}"]
        assert train(*words, "stop.max_steps=null") == 2
        error = capsys.readouterr().err
        assert "goes on in the folder of that run" in error
        assert error.count("\n") == 1
    assert train(f"resume={tmp_path}/a,{tmp_path}/b", "-m") == 2
    assert [p.read_bytes() for p in files] == before
    assert train(f"resume={tmp_path}/a", "stop.max_steps=null", folder=tmp_path / "a") == 0


# -- sweeps ----------------------------------------------------------------------------------------


def test_a_sweep_of_one_more_seed(tmp_path, capsys):
    """Each job has a folder of its own, whatever the others are."""
    words = [*SHORT, "-m", f"hydra.sweep.dir={tmp_path}"]
    assert train(*words, "seed=0,1") == 0
    made = {p: p.read_bytes() for p in tmp_path.glob("*/checkpoint.pt")}
    assert len(made) == 2
    capsys.readouterr()
    assert train(*words, "seed=2,1,0") == 0
    assert capsys.readouterr().out.count("is finished already") == 2
    assert len(list(tmp_path.glob("*/checkpoint.pt"))) == 3
    assert all(p.read_bytes() == content for p, content in made.items())


def test_long_values_and_paths_make_names_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    init = ["init=balanced", f"init.matrix={[[0.1] * 6] * 6}".replace(" ", "")]
    assert train(*SHORT, *init, "network.depth=2,3", "-m", "hydra.sweep.dir=a/b") == 0
    names = [p.parent.name for p in tmp_path.glob("a/b/*/summary.json")]
    assert len(names) == 2
    assert all(len(name) < 80 for name in names)


def test_an_outcome_arrives_where_it_is_sent():
    outcomes.worst()
    for status in (0, 2, 1):
        made = outcomes.Outcome(outcomes.Ended(status, 0.25, 3, "a"))
        sent = pickle.dumps(made)
        assert outcomes.worst() == 0, "one that is sent is noted where it arrives"
        assert pickle.loads(sent) == float(made) == 0.25
        assert outcomes.ended() == [made.ended]
        assert outcomes.worst() == status


LAUNCHER = '''
from dataclasses import dataclass
from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import run_job, setup_globals
from hydra.plugins.launcher import Launcher
from joblib import Parallel, delayed
from omegaconf import open_dict

@dataclass
class Conf:
    _target_: str = "hydra_plugins.parallel.ParallelLauncher"

ConfigStore.instance().store(group="hydra/launcher", name="parallel", node=Conf)

class ParallelLauncher(Launcher):
    """Does what hydra-joblib-launcher does."""

    def setup(self, *, hydra_context, task_function, config):
        self.context, self.function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides, initial_job_idx):
        state = Singleton.get_state()
        return Parallel(2)(
            delayed(one)(i, o, self.context, self.config, self.function, state)
            for i, o in enumerate(job_overrides)
        )

def one(i, overrides, context, config, function, state):
    setup_globals()
    Singleton.set_state(state)
    config = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(config):
        config.hydra.job.id, config.hydra.job.num = str(i), i
    return run_job(hydra_context=context, task_function=function, config=config,
                   job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir")
'''


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "status"), [("2,9,3", 2), ("2,3", 0)])
def test_failed_jobs_of_other_processes_are_seen(tmp_path, ranks, status):
    (tmp_path / "hydra_plugins" / "parallel").mkdir(parents=True)
    (tmp_path / "hydra_plugins" / "parallel" / "__init__.py").write_text(LAUNCHER)
    words = [*SHORT, "-m", f"network.rank={ranks}", "hydra/launcher=parallel"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert ("[rank=9] error: rank must satisfy" in done.stderr) == (status == 2)
    assert len(list(tmp_path.glob("runs/sweep/*/*/summary.json"))) == 2
    (table,) = tmp_path.glob("runs/sweep/*/sweep.csv")
    with table.open() as file:
        jobs = list(csv.DictReader(file))
    assert [job["folder"] for job in jobs] == [f"rank={rank}" for rank in ranks.split(",")]
    assert [job["status"] for job in jobs] == ["2" if r == "9" else "0" for r in ranks.split(",")]
    assert done.stdout.count("All numbers: ") == 1


# -- terminals -------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


ROWS = [
    ("", "run", "theory", ""),
    ("loss", "1.25", "1.5", "NO   " + 6 * "far away "),
    ("rank", "2", "2", "ok"),
]


@pytest.mark.parametrize("columns", [30, 60, 100])
def test_a_table_fits_into_its_terminal(columns):
    lines = terminal.laid_out(ROWS, columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert " ".join(" ".join(lines).split()) == " ".join(" ".join(map(" ".join, ROWS)).split())
    assert terminal.laid_out(ROWS, 100) == terminal.laid_out(ROWS)


def test_colours_are_for_those_who_want_them(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def told(stream):
        monkeypatch.setattr(sys, "stdout", stream)
        terminal.say_table(ROWS)
        return stream.getvalue()

    assert "\033[1;31mNO\033[0m   far" in told(Terminal())
    assert "\033[32mok\033[0m" in told(Terminal())
    plain = told(io.StringIO())
    assert "\033" not in plain
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert told(Terminal()) == plain


def test_a_line_is_broken_for_a_terminal_alone(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = "  " + "word " * 20 + "/a/path/that/is/longer/than/the/terminal/is/wide"
    for stream, broken in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stdout", stream)
        terminal.say(text)
        lines = stream.getvalue().splitlines()
        assert (len(lines) > 1) == broken
        assert " ".join(stream.getvalue().split()) == " ".join(text.split())
    monkeypatch.setattr(sys, "stdout", stream := Terminal())
    terminal.say_command("To go on", text)
    assert stream.getvalue() == f"To go on:\n    {text}\n"


def test_a_wait_is_announced(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "_SECONDS", 0.0)
    announced = threading.Event()
    monkeypatch.setattr(terminal, "say", lambda text: (print(text), announced.set()))
    with terminal.slow("reading the data"):
        assert announced.wait(60)
    assert capsys.readouterr().out == "  reading the data ...\n"
    monkeypatch.setattr(terminal, "_SECONDS", 1000.0)
    with terminal.slow("nothing"):
        pass
    assert capsys.readouterr().out == ""
