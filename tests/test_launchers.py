"""Sweeps under launchers, with kills in the middle: none lost, none repeated, statuses true."""

import contextlib
import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import reproduce
import slurm
import torch
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from runner import ROOT, SMALL, train

from deeplin.runner import devices, lock, plugins, targets
from deeplin.runner.folder import Checkpointer, RunFolder

STEPS = 12
SHORT = [*SMALL, "log.checkpoint_seconds=0", f"stop.max_steps={STEPS}", "log.records=6"]


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


def status(folder: Path) -> object:
    return RunFolder(folder).read_status().get("status")


def end(folder: Path) -> list[torch.Tensor]:
    return list(RunFolder(folder).load_checkpoint().stepper["state"])


def same_bits(a: Path, b: Path) -> bool:
    return all(map(torch.equal, end(a), end(b)))


# -- sweeps in processes of their own, which have imported everything already ----------------------


def _run(
    main: Callable[[list[str]], int],
    words: list[str],
    place: Path,
    prepare: Callable[[Path], None] | None,
) -> None:
    os.chdir(place)
    said = os.open("said.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout, sys.stderr = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(2), "w")
    torch.set_num_threads(1)
    if prepare is not None:
        prepare(place)
    code = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _train(words: list[str]) -> int:
    return train(*words)


@pytest.fixture
def sweep(processes, tmp_path):
    """(exit status, what was said) of a sweep in tmp_path/sweep; `begun` only starts it."""

    def begun(*words: str, prepare: Callable[[Path], None] | None = None):
        words = (*SHORT, "-m", f"hydra.sweep.dir={tmp_path}/sweep", *words)
        process = processes.Process(target=_run, args=(_train, list(words), tmp_path, prepare))
        process.start()
        return process

    def run(*words: str, prepare: Callable[[Path], None] | None = None) -> tuple[int | None, str]:
        (tmp_path / "said.txt").unlink(missing_ok=True)
        process = begun(*words, prepare=prepare)
        process.join()
        return process.exitcode, (tmp_path / "said.txt").read_text()

    run.begun = begun
    return run


def deadly(place: Path) -> None:
    """Seed 1 kills its process after its fifth step, as long as there is a file `deadly`."""
    original = Checkpointer.on_step

    def on_step(self, stepper):
        original(self, stepper)
        if self.config["seed"] == 1 and stepper.step == 5 and (place / "deadly").exists():
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpointer.on_step = on_step


def lasting(place: Path) -> None:
    """From the fifth step on each takes a second, as long as there is a file `lasting`."""
    original = Checkpointer.on_step

    def on_step(self, stepper):
        original(self, stepper)
        if stepper.step >= 5 and (place / "lasting").exists():
            time.sleep(1)

    Checkpointer.on_step = on_step


def forked(place: Path, then: Callable[[Path], None]) -> None:
    """joblib's workers are forks of this process, which need not import anything."""
    from joblib.externals.loky.backend.context import set_start_method

    set_start_method("fork", force=True)
    then(place)


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
    assert said.count("is finished already") == len(made)
    assert [row["status"] for row in jobs(tmp_path / "sweep")] == ["0"] * 3
    assert [status(folder) for folder in folders] == [0] * 3
    assert all((f / "checkpoint.pt").read_bytes() == before for f, before in made.items())
    assert train(*SHORT, "seed=1", folder=tmp_path / "whole") == 0
    assert same_bits(tmp_path / "whole", folders[1])


def wait_for(done: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_killed_command_takes_its_workers_along(sweep, tmp_path):
    (tmp_path / "lasting").touch()
    folders = [tmp_path / "sweep" / f"seed={seed}" for seed in (0, 1)]
    process = sweep.begun(*JOBLIB, "seed=0,1", prepare=forked_and_lasting)
    wait_for(lambda: all((folder / "checkpoint.pt").exists() for folder in folders))
    process.kill()
    process.join()
    wait_for(lambda: not any(lock.holder(folder) for folder in folders))
    assert [status(folder) for folder in folders] == [143, 143]
    (tmp_path / "lasting").unlink()
    code, said = sweep(*JOBLIB, "seed=0,1", prepare=forked_and_lasting)
    assert code == 0
    assert said.count("resumed at t = ") == 2
    assert [row["status"] for row in jobs(tmp_path / "sweep")] == ["0", "0"]


# -- the reproduction of the papers ---------------------------------------------------------------


@pytest.fixture
def reproduced(processes, tmp_path):
    """As `sweep`, of `reproduce.py hlz/example11`, which has four runs, with two workers."""

    def begun(prepare: Callable[[Path], None]):
        words = ["hlz/example11", "--quick", "--processes", "2", "--root", "."]
        process = processes.Process(target=_run, args=(reproduce.main, words, tmp_path, prepare))
        (tmp_path / "said.txt").unlink(missing_ok=True)
        process.start()
        return process

    def run(prepare: Callable[[Path], None]) -> tuple[int | None, str]:
        process = begun(prepare)
        process.join()
        return process.exitcode, (tmp_path / "said.txt").read_text()

    run.begun = begun
    return run


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
    code, said = reproduced(forked_and_deadly_once)
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
    code, said = reproduced(forked_and_deadly_once)
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
    process = reproduced.begun(forked_and_slow)
    wait_for(lambda: len(list(tmp_path.glob("jobs/*/checkpoint.pt"))) == 2)
    stopped = [path.parent for path in tmp_path.glob("jobs/*/checkpoint.pt")]
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 128 + number
    said = (tmp_path / "said.txt").read_text()
    assert said.splitlines()[-1] == "interrupted: the same command goes on from here."
    assert "Traceback" not in said
    assert [status(folder) for folder in stopped] == [143, 143]
    assert not any(lock.holder(folder) for folder in stopped)


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


# -- what jobs have of their own -------------------------------------------------------------------


def test_jobs_take_devices_that_are_free(tmp_path, monkeypatch):
    class Properties:
        def __init__(self, number):
            self.uuid = f"{number}-of-three"

    used = []

    @contextlib.contextmanager
    def device(number):
        used.append(number)
        yield

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", Properties)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    with contextlib.ExitStack() as others:
        for _ in range(3):
            others.enter_context(devices.own_device("cuda"))
        with devices.own_device("cuda"):  # shares one
            pass
    with devices.own_device("cuda"):  # what is free again
        pass
    assert used == [0, 1, 2, os.getpid() % 3, 0]
    for other in ("cpu", "cuda:1"):
        with devices.own_device(other):
            pass
    assert len(used) == 5


def test_trusted_packages_go_with_hydras_singletons(monkeypatch):
    monkeypatch.setattr(targets._Trusted(), "packages", {"deeplin"})
    targets.trust("ours")
    state = Singleton.get_state()
    kept = targets._Trusted()
    monkeypatch.setitem(Singleton._instances, targets._Trusted, None)
    del Singleton._instances[targets._Trusted]  # another process
    assert "ours" not in targets._Trusted().packages
    Singleton.set_state(state)
    assert targets._Trusted().packages == kept.packages == {"deeplin", "ours"}


# -- statuses --------------------------------------------------------------------------------------


def test_a_status_stands_in_the_folder_unless_the_run_was_killed(tmp_path, monkeypatch):
    assert train(*SHORT, folder=tmp_path) == 0
    assert json.loads((tmp_path / "status.json").read_text()) == {"status": 0}
    (tmp_path / "status.json").unlink()  # killed between its summary and its status
    assert train(f"resume={tmp_path}") == 0
    assert status(tmp_path) == 0

    def killed(self, cfg):
        raise KeyboardInterrupt  # past all that could save something

    monkeypatch.setattr(RunFolder, "write_config", killed)
    assert train(f"resume={tmp_path}", "stop.max_steps=20") == 130
    assert status(tmp_path) is None
    assert not (tmp_path / "summary.json").exists()


def test_a_job_that_cannot_begin_says_so_in_its_folder(tmp_path):
    words = [*SHORT, "-m", "network.rank=2,9", f"hydra.sweep.dir={tmp_path}"]
    assert train(*words) == 2
    told = json.loads((tmp_path / "rank=9" / "status.json").read_text())
    assert told["status"] == 2
    assert told["error"].startswith("rank must satisfy")
    assert os.listdir(tmp_path / "rank=9") == ["status.json"]
    before = (tmp_path / "rank=2" / "status.json").read_bytes()
    RunFolder(tmp_path / "rank=2").refuse("of another job")  # whose folder it is not
    assert (tmp_path / "rank=2" / "status.json").read_bytes() == before
    where = [f"hydra.run.dir='{tmp_path}/rank={rank}'" for rank in (9, 2)]
    assert train(*SHORT, "network.rank=3", where[0]) == 0
    assert status(tmp_path / "rank=9") == 0
    assert train(*SHORT, "network.rank=3", where[1]) == 2  # holds another run
    assert (tmp_path / "rank=2" / "status.json").read_bytes() == before
