"""Bad input: one clear sentence, a non-zero status, no traceback."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from runner import ROOT, SMALL, train

from deeplin.runner.comments import header, remarks
from deeplin.runner.configurations import visible
from deeplin.runner.schema import OF_OPTIMIZERS, OPTIONS, check

BAD = {
    # names
    "network.dpeth=3": "there is no network.dpeth; the nearest valid names are network.depth",
    "depth=3": "there is no depth; the nearest valid names are network.depth",
    "problem=digit": "there is no problem=digit; the nearest valid names are problem=digits",
    "methd=rk4": "there is no methd; the nearest valid names are method",
    "method=adam": "there is no method=adam; the nearest valid names are method=",
    "experiment=none": "there is no experiment=none",
    "init.tied.x=1": "there is no init.tied.x",
    "~network.dept": "there is no network.dept",
    # syntax and kinds
    "network.depth": "must look like key=value",
    "network.depth=[1": "must look like key=value",
    "network.depth=three": "network.depth must be an integer from 2 to 1000; got 'three'",
    "network.depth=2.5": "network.depth must be an integer",
    "init.scale=big": "init.scale must be a positive number",
    "repeats=true": "repeats must be an integer",
    "problem.standardize=3": "problem.standardize must be true or false",
    # values
    "network.depth=1": "depth must be an integer from 2 to 1000",
    "network.rank=0": "network.rank must be an integer >= 1, auto or gap; got 0",
    "network.rank=62": "1 <= rank <= min(d_x, d_y) = 61; got 62",
    "network.widths=[61,10,60]": "must run from d_x = 61 to d_y = 61",
    "network.widths=[61,0,61]": "positive integers",
    "network.widths=7": "a list of at least two positive integers, such as [64,10,64] or null",
    "repeats=0": "repeats must be an integer >= 1",
    "seed=-1": "seed must be an integer",
    "dtype=int8": "dtype must be float64 or float32",
    "method.dt=0": "method.dt must be a positive number or auto; got 0",
    "method.dt=fast": "method.dt must be a positive number or auto; got 'fast'",
    "method.t1=-1": "method.t1 must be a positive number, 20/rho or auto; got -1",
    "method.t1=20/tau": "method.t1 must be a positive number, 20/rho or auto; got '20/tau'",
    "method=rk4 method.compiled=true": "method.compiled must be false here: compiled steps are for",
    "method=rk4 method.compiled=true flow=end_to_end": "needs the flow of layers",
    "method.safety=2.0": "method.safety must be a number in (0, 1]",
    "method.batch_size=0": "method.batch_size must be an integer >= 1 or null; got 0",
    "method.batch_size=1798": "1 <= batch_size <= m = 1797",
    "init.scale=0": "init.scale must be a positive number; got 0",
    "init.rank=11": "1 <= rank <= min widths = 10",
    "log.records=0": "log.records must be an integer from 1 to 10000000",
    "problem.target=pixels": "must be autoencoder, labels",
    "problem.singular=ignore": "problem.singular must be keep, project or whiten",
    "device=tpu9": "device must be",
    # combinations
    "init=balanced init.path=nowhere.npz": "nowhere.npz must be a file",
    "problem=gaussian problem.d=20 problem.m=15": "give method.t1=<flow time>",
    "problem.target=labels init.tied=true": "tied=True needs d_0 = d_N",
    "problem.target=labels network.rank=4 init=special": "d = d_0 = d_N",
    # what is called is no user's to name
    "+problem._target_=os.system": "stands in its file in conf/ alone; got +problem._target_=os",
    "problem._target_=os.system": "stands in its file in conf/ alone",
    "~problem._target_": "stands in its file in conf/ alone",
    "+problem.x={_target_:os.system}": "stands in its file in conf/ alone",
    "init.matrix=[{_target_:os.system}]": "stands in its file in conf/ alone",
    "method.integrator._target_=os.system": "stands in its file in conf/ alone",
    "+method.optimizer={x:{_args_:[1]}}": "stands in its file in conf/ alone",
    "problem.name=x": "stands in its file in conf/ alone",
    # files and folders
    "problem=file": "needs problem.path=",
    "problem=file problem.path=nowhere.csv": "nowhere.csv must be a file",
    "problem=file problem.path=README.md": "must end in .csv, .tsv, .npz, .npy, .pt or .parquet",
    "resume=nowhere": "must name the folder of a run with a checkpoint",
    "hydra.run.dir=README.md/run": "no folder that can be written",
}


@pytest.mark.parametrize("words", BAD, ids=list(BAD))
def test_bad_input(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").touch()
    assert train(*words.split()) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert BAD[words] in output.err
    assert output.err.count("\n") == 1
    assert "Traceback" not in output.err + output.out
    assert not list(tmp_path.glob("runs/*/*")), "a run that never began leaves no folder"


def test_data_with_nan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("nan.npz", x=np.array([[1.0, np.nan], [2.0, 3.0]]))
    assert train("problem=file", "problem.path=nan.npz", "network.rank=1") == 2
    assert "is missing: fill in" in capsys.readouterr().err


def test_divergence_is_reported(tmp_path, capsys):
    assert train(*SMALL, "method.dt=3.0", "method.t1=100", folder=tmp_path / "run") == 1
    output = capsys.readouterr()
    assert "error: diverged before t =" in output.err
    assert "take a smaller dt" in output.err
    assert "No verdict" in (tmp_path / "run" / "summary.json").read_text()
    assert (tmp_path / "run" / "status.json").read_text() == '{\n  "status": 1\n}\n'


def test_a_folder_of_another_run_is_not_overwritten(tmp_path, capsys):
    assert train(*SMALL, "method.t1=1", folder=tmp_path) == 0
    assert train(*SMALL, "method.t1=1", "seed=3", folder=tmp_path) == 2
    assert "holds a run with problem.seed=0, not 3" in capsys.readouterr().err


def test_a_broken_checkpoint(tmp_path, capsys):
    assert train(*SMALL, "method.t1=1", folder=tmp_path) == 0
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    assert train(f"resume={tmp_path}") == 2
    assert "cannot be read as a checkpoint" in capsys.readouterr().err


def test_one_bad_job_does_not_stop_a_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status = train(*SMALL, "-m", "network.rank=2,9,3", "method.t1=1", "hydra.sweep.dir=sweep")
    assert status == 2
    assert "1 <= rank <= min(d_x, d_y) = 6; got 9" in capsys.readouterr().err
    made = [p.with_name("config.yaml") for p in tmp_path.glob("sweep/*/summary.json")]
    assert sorted(OmegaConf.load(path).network.rank for path in made) == [2, 3]


def test_unknown_value_in_a_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train("-m", "problem=gaussian,digit") == 2
    assert "there is no problem=digit; the nearest" in capsys.readouterr().err


def test_help_says_what_every_option_means(capsys):
    assert train("--help") == 0
    page = capsys.readouterr().out
    for key in visible(compose_default()):
        assert f"  {key}=" in page
        assert key in OPTIONS, f"{key} has no help"
    assert "repeats=1\n        initial values at once" in page


def compose_default():
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return compose("train")


def test_every_option_of_every_file_is_in_the_schema():
    """A value that a file of conf/ has by default is one that its option takes."""
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        for path in sorted((ROOT / "conf").glob("*/*.yaml")):
            group = path.parent.name
            if group == "experiment":
                continue
            cfg = compose("train", [f"{group}={path.stem}"])
            check(cfg)
            missing = [key for key in visible(cfg) if key not in {**OPTIONS, **OF_OPTIMIZERS}]
            assert not missing, path


def test_from_the_shell(tmp_path):
    """The same in a process of its own: nothing in between catches or adds anything."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *SMALL[:2], "network.rank=99"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: rank must satisfy")
    assert done.stdout.startswith("deeplin: loading torch and the options ...\n")


@pytest.mark.parametrize("words", [(), ("resume=runs/digits/a",)])
def test_ctrl_c_while_it_loads(tmp_path, words):
    """The first line comes before torch, and from there on a signal is answered in a sentence."""
    started = subprocess.Popen(
        [sys.executable, "-X", "importtime", str(ROOT / "scripts" / "train.py"), *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # In the background of a shell it would be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "deeplin: loading torch and the options ...\n"
    started.send_signal(signal.SIGINT)
    _, told = started.communicate()
    told = "\n".join(line for line in told.splitlines() if not line.startswith("import time:"))
    assert started.returncode == 130
    left = "resume=runs/digits/a goes on from its last checkpoint" if words else "nothing ran"
    assert told == f"error: stopped by SIGINT before the start: {left}."


def test_help_of_a_group_tells_what_its_file_says(capsys):
    assert train("method=rkc", "--help") == 0
    page = capsys.readouterr().out
    assert "method=rkc\n  Runge-Kutta-Chebyshev of order 2" in page
    assert "each repeat with steps of its own." in page
    assert "method.rtol=1e-06\n        of the error of a step, relative to the norm" in page
    assert "(a number >= 0)" in page
    assert "seed" not in page
    assert "method.safety" not in page


def test_comments_are_those_behind_the_values(tmp_path):
    """Not a # inside a value, nor the comment of a line of its own; with the lines that go on."""
    (tmp_path / "a.yaml").write_text(
        "# @package _global_\n# What it is,\n# and of whom.\n# python scripts/train.py x\n"
        "a: 1   # of a\n       # and more\n# of nothing\nb: '# no'\n"
        "c:\n  d: [1, 2]  # of d\n  e: {f: 1}  # of e\n  g: x#y\n"
    )
    assert header(tmp_path / "a.yaml") == "What it is, and of whom."
    assert remarks(tmp_path / "a.yaml") == {"a": "of a and more", "c.d": "of d", "c.e": "of e"}
