"""What lies on disk: folders, checkpoints and their writing, damaged, shared, foreign, full."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from runner import ROOT

import deeplin.runner.cli  # its resolvers stand in the configurations
from deeplin.loop import History
from deeplin.runner import files, lock, provenance
from deeplin.runner.checkpoints import Checkpoint, sealed, unsealed
from deeplin.runner.folder import RunFolder
from deeplin.runner.run import run

SMALL = ["problem=gaussian", "problem.d=6", "network.rank=2", "method=rk4", "method.t1=2"]
SMALL += ["log.records=20", "stop.grad_norm=null", "stop.stagnation=null"]
assert deeplin.runner.cli


def configured(*words: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return compose("train", [*SMALL, *words])


def refused(words: list[str], folder: Path) -> str:
    """The sentence with which a run is refused."""
    with pytest.raises((ValueError, OSError)) as caught:
        run(configured(*words), folder, draw=False)
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run that can be copied."""
    folder = tmp_path_factory.mktemp("made") / "run"
    assert run(configured(), folder, draw=False) == 0
    return folder


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


# -- checkpoints -----------------------------------------------------------------------------------


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_flipped_bit_of_a_checkpoint_is_accepted(made, count):
    data = (made / "checkpoint.pt").read_bytes()
    unsealed(data)
    bits = random.Random(11).sample(range(8 * len(data)), count)
    for bit in [*bits, *range(8 * (len(data) - 79), 8 * len(data), 37)]:
        with pytest.raises(ValueError, match=r"digest|no checkpoint"):
            unsealed(flipped(data, bit))


def test_a_damaged_checkpoint_is_one_sentence(copy):
    data = (copy / "checkpoint.pt").read_bytes()
    for damaged in (flipped(data, 8 * 3141), data[:-1], data[: len(data) // 2], b"", data + b"x"):
        (copy / "checkpoint.pt").write_bytes(damaged)
        assert "checkpoint.pt cannot be read as a checkpoint" in refused([], copy)


@pytest.mark.parametrize("other", ["seed=1", "dtype=float32", "repeats=3", "method=dopri5"])
def test_a_checkpoint_of_another_run_is_refused(copy, tmp_path, other):
    run(configured(other), tmp_path / "other", draw=False)
    shutil.copy(tmp_path / "other" / "checkpoint.pt", copy)
    sentence = refused([], copy)
    assert "checkpoint.pt holds a run with " in sentence
    assert other.split("=")[0] in sentence


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"t": -1.0}, "its t must be a float >= 0"),
        ({"t": float("nan")}, "its t must be a float >= 0"),
        ({"t": 1e9}, "its t is 1e+09 after 27 steps of at most 0.0"),
        ({"step": -3}, "its step must be a int >= 0"),
        ({"step": 2.0}, "its step must be a int >= 0"),
        ({"state": [torch.zeros(2, 2)]}, "its state is float32 (2, 2), not"),
        ({"state": torch.zeros(2, 2)}, "its state is"),
        ({"more": 1}, "more, not t, "),
    ],
    ids=str,
)
def test_a_checkpoint_that_no_run_wrote_is_refused(copy, change, reason):
    """Its digest is right, its content is not."""
    folder = RunFolder(copy)
    saved = folder.load_checkpoint()
    stepper = {**saved.stepper, **change}
    wrong = Checkpoint(stepper, saved.history, 1.0, None, saved.config, saved.inputs)
    folder.save_checkpoint(wrong)
    assert reason in refused([], copy)
    backwards = History(saved.history.records[::-1])
    folder.save_checkpoint(Checkpoint(saved.stepper, backwards, 1.0, None, saved.config))
    assert "in no order" in refused([], copy)


def test_checkpoints_come_back_as_they_were(made):
    saved = RunFolder(made).load_checkpoint()
    again = unsealed(sealed(saved))
    assert again.config == saved.config
    assert all(map(torch.equal, again.stepper["state"], saved.stepper["state"]))
    assert again.result == saved.result


# -- data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["data.npz", "'data*.npz'"])
def test_results_do_not_outlive_their_data(tmp_path, monkeypatch, path):
    """Neither resumed nor reported with data that are not those of the run."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0).standard_normal
    words = ["problem=file", f"problem.path={path}", "~problem.d"]

    def cfg(*more: str) -> DictConfig:
        keep = [word for word in SMALL if not word.startswith("problem")]
        with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
            return compose("train", [*words[:2], *keep, *more])

    first = draw((30, 6))
    np.savez("data.npz", x=first)
    for steps in ("3", "null"):
        assert run(cfg(f"stop.max_steps={steps}"), Path("run"), draw=False) == 0
        original = Path("data.npz").read_bytes()
        before = contents(Path("run"))
        np.savez("data.npz", x=draw((30, 6)))
        with pytest.raises(ValueError, match=r"problem.path=.* and that file now has SHA-256"):
            run(cfg(), Path("run"), draw=False)
        Path("data.npz").unlink()
        with pytest.raises(ValueError, match="and that file now is gone: put it back"):
            run(cfg(), Path("run"), draw=False)
        assert contents(Path("run")) == before
        Path("data.npz").write_bytes(original)
    assert run(cfg(), Path("run"), draw=False) == 0


# -- folders that are not ours, or not ours alone --------------------------------------------------


@pytest.mark.parametrize(
    "name", ["events.out.tfevents.1.host", "summary.json", "provenance.json", "thesis.tex", "a/b"]
)
def test_a_folder_that_holds_something_else_is_not_entered(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("years of work")
    assert "but no config.yaml of a run: choose a new folder" in refused([], tmp_path)
    assert (tmp_path / name).read_text() == "years of work"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_others_put_into_a_run_stays(copy):
    names = ("events.out.tfevents.1.host", "notes.md")
    for name in names:
        (copy / name).write_text("mine")
    ours = list(copy.glob("*.deeplin"))
    assert run(configured("method.t1=3"), copy, draw=False) == 0
    assert [(copy / name).read_text() for name in names] == ["mine", "mine"]
    assert len(ours) == 1
    assert len(list(copy.glob("*.deeplin"))) == 1
    assert not ours[0].exists()


def test_a_held_folder_is_refused_and_a_killed_holder_is_no_obstacle(made, copy):
    before = contents(copy)
    with lock.locked(copy):
        named = json.loads((copy / lock.LOCK).read_text())
        assert named["pid"] == os.getpid()
        sentence = refused([], copy)
        assert f"is being written by process {os.getpid()} on" in sentence
    assert contents(copy) == before
    (copy / lock.LOCK).write_text(json.dumps({**named, "pid": 1}))  # left by one that was killed
    assert run(configured("method.t1=3"), copy, draw=False) == 0
    assert not (copy / lock.LOCK).exists()


def test_a_lock_of_another_machine_stays_in_force(copy):
    other = {"pid": 7, "host": "elsewhere", "boot": "another"}
    (copy / lock.LOCK).write_text(json.dumps(other))
    assert "process 7 on elsewhere, and from here nobody can tell" in refused([], copy)
    assert json.loads((copy / lock.LOCK).read_text()) == other


def test_a_job_that_slurm_queues_again_has_its_own_folder(copy, monkeypatch):
    other = {"pid": 7, "host": "elsewhere", "boot": "another", "job": "1234", "start": "0"}
    (copy / lock.LOCK).write_text(json.dumps(other))
    for job in ("", "99", "1234"):  # the last on two machines at a time
        monkeypatch.setenv("SLURM_JOB_ID", job)
        assert "process 7 on elsewhere" in refused([], copy)
        assert lock.holder(copy) == "process 7 on elsewhere"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert lock.holder(copy) == ""
    assert run(configured("method.t1=3"), copy, draw=False) == 0


def test_who_holds_a_folder(tmp_path):
    assert lock.holder(tmp_path) == ""
    with lock.locked(tmp_path / "run"):
        assert lock.holder(tmp_path / "run").startswith(f"process {os.getpid()} on ")
    (tmp_path / lock.LOCK).write_text(json.dumps({**lock._this_process(), "pid": 1}))
    assert lock.holder(tmp_path) == ""  # killed, and its number is another's now


def test_a_file_system_without_locks(copy, monkeypatch):
    """There the name of the owner has to do."""

    def unsupported(file, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with lock.locked(copy):
        named = json.loads((copy / lock.LOCK).read_text())
        assert "is being written by" in refused([], copy)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (copy / lock.LOCK).write_text(json.dumps({**named, "pid": gone.pid}))
    assert run(configured("method.t1=3"), copy, draw=False) == 0


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path):
    refused(["network.rank=9"], tmp_path / "a" / "b")
    assert not (tmp_path / "a" / "b").exists()


# -- writing ---------------------------------------------------------------------------------------


def test_partial_files_are_removed(copy, monkeypatch):
    """On every exception, and those of killed processes when the next one comes."""
    left = [copy / f".checkpoint.pt.host.1.ab{files.PARTIAL}", copy / f".x{files.PARTIAL}"]
    for path in left:
        path.write_text("half")
    assert run(configured("method.t1=3"), copy, draw=False) == 0
    assert not list(copy.glob(".*"))

    def interrupted(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.replace(copy / "summary.json", interrupted)
    assert not list(copy.glob(".*"))
    json.loads((copy / "summary.json").read_text())


def test_links_are_not_followed(tmp_path, monkeypatch):
    """In a folder that others can write to, nothing outside it is overwritten."""
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "a.txt").symlink_to("precious")
    files.replace(tmp_path / "a.txt", lambda file: file.write(b"new"))
    assert (tmp_path / "precious").read_text() == "keep"
    assert (tmp_path / "a.txt").read_text() == "new"
    (tmp_path / "b").symlink_to("precious")
    with pytest.raises(FileExistsError):
        files.create(tmp_path / "b")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to("../precious")
    with pytest.raises(OSError, match=r"\.lock"), lock.locked(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "keep"
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == (0o666 & ~0o022)


# -- provenance ------------------------------------------------------------------------------------


def test_provenance_is_appended(copy):
    (first,) = RunFolder(copy).sessions()
    assert run(configured("method.t1=3"), copy, draw=False) == 0
    kept, second = RunFolder(copy).sessions()
    assert kept == first
    assert (first["from_t"], second["from_t"]) == (0.0, 2.0)
    assert run(configured("method.t1=3"), copy, draw=False) == 0
    assert len(RunFolder(copy).sessions()) == 2, "a run that is only reported computes nothing"


def test_the_commit_is_that_of_the_package_itself(tmp_path):
    """Not of a repository that an installed package happens to lie in."""
    package = tmp_path / "site" / "deeplin"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "a"]):
        subprocess.run([*git, *words], check=True)
    assert provenance._commit.__wrapped__(package) is None
    for words in (["add", "."], ["commit", "-q", "-m", "b"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert provenance._commit.__wrapped__(package) == head.strip()
    digest = provenance.code_digest.__wrapped__(package)
    (package / "__init__.py").write_text("x = 2\n")
    assert provenance._commit.__wrapped__(package) == f"{head.strip()}+changes"
    assert provenance.code_digest.__wrapped__(package) != digest


def test_damaged_files_of_a_folder_are_one_sentence(copy):
    whole = (copy / "config.yaml").read_text()
    cuts = [whole[:n] for n in range(20, len(whole), 97)]
    for text in ("", "[1]", "a: [", "\0", *cuts, whole.replace("seed: 0", "seed: 1")):
        (copy / "config.yaml").write_text(text)
        assert "config.yaml cannot be read as a configuration" in refused([], copy)


def test_a_damaged_summary_is_written_again(copy):
    summary = (copy / "summary.json").read_text()
    for text in ("{}", summary[:20], ""):
        (copy / "summary.json").write_text(text)
        assert run(configured(), copy, draw=False) == 0
        again = json.loads((copy / "summary.json").read_text())
        assert {**again, "seconds": 0} == {**json.loads(summary), "seconds": 0}
