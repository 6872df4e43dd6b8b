"""What a job of a sweep has of its own: a device, Hydra's singletons, a status in its folder."""

import contextlib
import json
import os

import torch
from hydra.core.singleton import Singleton
from launching import SHORT, status
from runner import train

from deeplin.runner import devices, jobs, targets
from deeplin.runner.folder import RunFolder


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


def test_a_bar_counts_the_jobs_that_have_ended(tmp_path, monkeypatch):
    shown = []

    class Bar:
        n = 0

        def __init__(self, total, **options):
            shown.append(total)

        def __enter__(self):
            return self

        def __exit__(self, *exc_info):
            pass

        def update(self, more):
            self.n += more
            shown.append(self.n)

    monkeypatch.setattr(jobs, "tqdm", Bar)
    folders = [RunFolder(tmp_path / name) for name in "abc"]
    for folder in folders:
        folder.path.mkdir()
    folders[0].write_status(130)  # of the time before
    with jobs._watched([folder.path for folder in folders]):
        folders[0].write_status(0)
        folders[2].write_status(2)
    assert shown[0] == 3
    assert shown[-1] == 2


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
