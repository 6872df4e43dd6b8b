"""Faults put into runs: killed at any call that writes, disks full, two writers of one folder."""

import json
import os
import random
import tempfile
from pathlib import Path

import pytest
from faults import MOMENTS, Server, compiler
from torch import Tensor

from deeplin.loop import Kind
from deeplin.runner.folder import RunFolder

pytestmark = pytest.mark.skipif(not compiler(), reason="needs Linux and a C compiler")

COMMON = [
    *("problem=gaussian", "problem.d=5", "network.rank=2", "log.checkpoint_seconds=0"),
    *("stop.grad_norm=null", "stop.stagnation=null", "log.records=8"),
]
STEPS = "stop.max_steps=12"
METHODS = {
    "cg": ["manifold=fixed_rank", "method=cg", "method.t1=5"],
    "trust_region": ["manifold=fixed_rank", "method=trust_region", "repeats=2", "method.t1=5"],
    "sgd": ["method=sgd", "method.batch_size=4", "method.t1=1", STEPS],
    "euler": ["method=euler", "method.rebalance=true", "method.t1=2", STEPS],
    "rk4": ["method=rk4", "repeats=2", "method.t1=2", STEPS],
    "rk4 pqw": ["method=rk4", "flow=pqw", "method.t1=2", STEPS],
    "rk4 end to end": ["method=rk4", "flow=end_to_end", "method.t1=2", STEPS],
    "rk4 factors": ["method=rk4", "log.factors=true", "method.t1=2", STEPS],
    "dopri5": ["method=dopri5", "method.t1=2"],
    "rkc": ["method=rkc", "method.t1=2"],
    "rosenbrock": ["method=rosenbrock", "method.t1=1"],
    "structure": ["method=structure", "method.t1=1"],
    "rgd": ["method=rgd", "method.t1=2", STEPS],
    "sgd with a schedule": [
        *("method=sgd", "method.schedule={name:StepLR,step_size:3}", "method.t1=1", STEPS),
    ],
    "lbfgs": ["method=lbfgs", "method.t1=12"],
    "riemannian_sgd": [
        *("manifold=fixed_rank", "method=riemannian_sgd", "+method.optimizer.momentum=0.5"),
        *("method.t1=2", "method.batch_size=4", STEPS),
    ],
    "riemannian_sgd of W": [
        *("manifold=psd_fixed_rank", "manifold.factored=false", "method=riemannian_sgd"),
        *("method.t1=2", STEPS),
    ],
    "riemannian_adam": ["manifold=fixed_rank", "method=riemannian_adam", "method.t1=12"],
    "line_search": ["manifold=fixed_rank", "method=line_search", "method.t1=12"],
}


@pytest.fixture
def folder(tmp_path):
    """In memory where that is possible: thousands of files are written to the disk for sure."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as made:
        yield Path(made)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("faults"), *COMMON)
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """name ↦ (the folder of a run of a method that nothing happened to, its calls)."""
    made: dict[tuple[str, bool], tuple[Path, int]] = {}

    def run(name: str, draw: bool = False) -> tuple[Path, int]:
        if (name, draw) not in made:
            folder = tmp_path_factory.mktemp("whole") / "run"
            (end,) = server({"words": METHODS[name], "folder": str(folder), "draw": draw})
            assert end["status"] == 0, end
            made[name, draw] = folder, end["calls"]
        return made[name, draw]

    return run


def seen(value):
    """A value that compares to the bit."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: seen(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [seen(v) for v in value]
    return value


def told(folder: Path) -> dict[str, object]:
    """Everything that a run leaves behind but its times, to the bit."""
    files = RunFolder(folder)
    saved = files.load_checkpoint()
    summary = json.loads((folder / "summary.json").read_text())
    summary.pop("seconds")
    assert files.sessions()
    assert len(list(folder.glob("events*"))) == 1
    names = {p.name for p in folder.rglob("*") if p.is_file() and not p.name.startswith("events")}
    return {
        "stepper": seen(saved.stepper),
        "model": seen([saved.factors, saved.layers, saved.preparation]),
        "history": seen(saved.history.state_dict()),
        "result": saved.result,
        "config": (folder / "config.yaml").read_bytes(),
        "summary": summary,
        "names": names,
        "images": {p.name: p.read_bytes() for p in folder.glob("figures/*.png")},
    }


# -- killed ----------------------------------------------------------------------------------------


def killed_and_continued(server, whole, folder: Path, trials: int, seed: int) -> int:
    """Kills runs at random calls, lets them go on, compares; how many of the kills hit."""
    draw_of = random.Random(seed)
    hit = i = 0
    while hit < trials:
        name, draw = list(METHODS)[i % len(METHODS)], i % 10 == 9
        expected, calls = whole(name, draw)
        job = {"words": METHODS[name], "folder": str(folder / str(i)), "draw": draw}
        call, moment = draw_of.randint(1, calls), draw_of.choice(MOMENTS)
        (end,) = server({**job, "call": call, "moment": moment})
        i += 1
        if not end.get("killed"):  # the call was one of those that hang on the clock
            assert end["status"] == 0, (name, call, moment, end)
            assert call > end["calls"]
            continue
        hit += 1
        if draw_of.random() < 0.3:  # what goes on can be killed, too
            (end,) = server({**job, "call": draw_of.randint(1, calls), "moment": moment})
            hit += bool(end.get("killed"))
        (end,) = server(job)
        assert end["status"] == 0, (name, call, moment, end)
        assert told(Path(job["folder"])) == told(expected), (name, call, moment)
    return hit


def test_killed_at_some_calls_that_write(server, whole, folder):
    killed_and_continued(server, whole, folder, 5, 3)


@pytest.mark.slow
def test_killed_at_200_calls_that_write(server, whole, folder):
    assert killed_and_continued(server, whole, folder, 200, 2) >= 200


# -- a full disk -----------------------------------------------------------------------------------


def full_and_continued(server, whole, folder: Path, trials: int, seed: int) -> None:
    """Each run finds the disk full, says so in one sentence, loses nothing, and goes on."""
    draw_of = random.Random(seed)
    for i in range(trials):
        name, draw = draw_of.choice(list(METHODS)), i % 10 == 9
        expected, _ = whole(name, draw)
        size = sum(p.stat().st_size for p in expected.rglob("*") if p.is_file())
        job = {"words": METHODS[name], "folder": str(folder / str(i)), "draw": draw}
        (end,) = server({**job, "room": draw_of.randrange(size)})
        assert end["status"] == 2, (name, end)
        assert "cannot be written (No space left on device): when that is mended" in end["said"]
        assert "Errno" not in end["said"]
        assert not list((folder / str(i)).rglob("*.partial"))
        if (folder / str(i) / "checkpoint.pt").exists():
            assert f"resume={folder / str(i)} continues the run" in end["said"]
            RunFolder(folder / str(i)).load_checkpoint()
        (end,) = server(job)
        assert end["status"] == 0, (name, end)
        assert told(folder / str(i)) == told(expected), name


def test_some_full_disks(server, whole, folder):
    full_and_continued(server, whole, folder, 3, 3)


@pytest.mark.slow
def test_100_full_disks(server, whole, folder):
    full_and_continued(server, whole, folder, 100, 4)


# -- two writers -----------------------------------------------------------------------------------


def pairs(server, whole, folder: Path, trials: int, seed: int) -> None:
    """Of two different runs in one folder one is made, the other refused, and nothing is mixed."""
    draw_of = random.Random(seed)
    for i in range(trials):
        names = draw_of.sample(list(METHODS), 2)
        delays = draw_of.choice([(0.0, 0.0), (0.0, draw_of.uniform(0, 0.3))])
        jobs = [
            {"words": METHODS[name], "folder": str(folder / str(i)), "delay": delay}
            for name, delay in zip(names, delays, strict=True)
        ]
        ends = server(*jobs)
        assert sorted(end["status"] for end in ends) == [0, 2], (names, ends)
        winner = 0 if ends[0]["status"] == 0 else 1
        refusal = ends[1 - winner]["said"]
        assert "is being written by process" in refusal or "holds a run with" in refusal
        assert told(folder / str(i)) == told(whole(names[winner])[0]), names


def test_some_pairs_of_runs_in_one_folder(server, whole, folder):
    pairs(server, whole, folder, 3, 5)


@pytest.mark.slow
def test_50_pairs_of_runs_in_one_folder(server, whole, folder):
    pairs(server, whole, folder, 50, 6)


def test_two_continuations_of_one_run(server, whole, folder):
    """One goes on, the other is refused, or finds it finished."""
    expected, calls = whole("rk4")
    job = {"words": METHODS["rk4"], "folder": str(folder / "run")}
    server({**job, "call": calls // 2})
    ends = server(job, job)
    assert sorted(end["status"] for end in ends) in ([0, 2], [0, 0])
    assert all("is being written" in end["said"] for end in ends if end["status"] == 2)
    assert told(folder / "run") == told(expected)


def test_the_harness_kills_and_fills(server, folder):
    """At the call it is told to, and no other."""
    job = {"words": METHODS["rk4"], "folder": str(folder / "run")}
    (end,) = server({**job, "call": 1})
    assert end["killed"]
    assert not (folder / "run").exists()
    (end,) = server({**job, "call": 1, "moment": 1})
    assert end["killed"]
    assert list((folder / "run").iterdir()) == []
    (end,) = server({**job, "call": 10**6})
    assert end["status"] == 0
    assert end["calls"] > 40
    result = RunFolder(folder / "run").load_checkpoint().result
    assert result is not None
    assert result.kind is Kind.STEPS
