"""The table of scripts/benchmark.py: of which device, with which limits, and what it leaves out."""

import inspect
import json

import benchmark
import benchmarks
import pytest
import torch
from benchmarks import CPU, LINES, Line, limits


def test_every_line_takes_a_device_or_says_why_not():
    for entry in LINES.values():
        names = list(inspect.signature(entry.measure).parameters)
        assert names == ([] if entry.processor else ["device"]), entry.name
        assert entry.measure.__doc__, entry.name


@pytest.fixture
def table(monkeypatch, tmp_path, capsys):
    """What is printed of two lines, one of them of the processor alone, and what is kept."""
    seen = []
    ours = Line("ours", lambda device: seen.append(device) or 2.0, "times", at_most=3)
    theirs = Line("theirs", lambda: 0.5, "times", at_least=1, processor="it is NumPy's")
    monkeypatch.setattr(benchmark, "LINES", {"ours": ours, "theirs": theirs})
    monkeypatch.setattr(limits, "seconds", lambda step, repeats: 0.5)

    def run(*words: str):
        seen.clear()
        file = tmp_path / "table.json"
        code = benchmark.main([*words, "--json", str(file)])
        return code, capsys.readouterr().out.splitlines(), json.loads(file.read_text()), seen

    return run


def test_the_table_of_the_processor(table):
    code, lines, kept, seen = table()
    assert code == 1
    assert [line.split() for line in lines[1:]] == [
        ["ours", "2", "times", "<=", "3", "ok"],
        ["theirs", "0.5", "times", ">=", "1", "MISSED"],
    ]
    assert seen == [CPU]
    assert [(line["value"], line["ok"]) for line in kept["lines"]] == [(2.0, True), (0.5, False)]
    n, numbers = limits._SIDES["cpu"], limits._NUMBERS
    of = kept["machine"]["limits"]
    assert of == {"triad": 48 * numbers, "float64": 4 * n**3, "float32": 4 * n**3}
    assert lines[0] == (
        f"the processor, one thread: {48 * numbers / 1e9:.3g} GB/s (triad), {4 * n**3 / 1e9:.3g} "
        f"Gflop/s in float64, {4 * n**3 / 1e9:.3g} Gflop/s in float32 (one product)"
    )
    assert table("ours")[0] == 0


@pytest.mark.parametrize(("name", "number"), [("cuda", 0), ("cuda:1", 1)])
def test_the_table_of_a_gpu(table, monkeypatch, name, number):
    """As it would be there: nothing of it runs."""
    chosen = []
    monkeypatch.setattr(benchmark, "check_device", lambda name: None)
    monkeypatch.setattr(limits, "limits", lambda device: dict.fromkeys(["triad", "float64"], 1e12))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    code, lines, kept, seen = table("--device", name)
    assert code == 0
    assert lines[0].startswith(
        f"cuda:{number}, a GPU: 1e+03 GB/s (triad), 1e+03 Gflop/s in float64"
    )
    assert lines[1].split()[:3] == ["ours", "2", "times"]
    assert lines[2].split(maxsplit=1) == ["theirs", "of the processor alone: it is NumPy's"]
    assert seen == chosen == [torch.device("cuda", number)]
    assert [line["ok"] for line in kept["lines"]] == [True, None]


@pytest.mark.parametrize("name", ["nothing", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_one_sentence(name, capsys):
    with pytest.raises(SystemExit) as exit:
        benchmark.main(["--device", name])
    assert exit.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "device must be one that torch has here, such as cpu or cuda; got " in error


def test_a_clock_waits_for_what_a_gpu_was_told(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    benchmarks.clock()
    assert not waits
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    steps = []
    benchmarks.seconds(lambda: steps.append(len(waits)), 2)
    assert steps == [0, 0, 0, 1, 3]
    assert len(waits) == 4


def test_the_limits_are_of_what_is_timed(monkeypatch):
    """The steps themselves, at a small size: a triad of vectors, a product of two matrices."""
    monkeypatch.setattr(limits, "_NUMBERS", 10)
    monkeypatch.setattr(limits, "_SIDES", {"cpu": 3})
    made = []
    monkeypatch.setattr(limits, "seconds", lambda step, repeats: made.append(step()) or 1.0)
    assert limits.limits(CPU) == {"triad": 240.0, "float64": 54.0, "float32": 54.0}
    assert torch.equal(made[0], torch.full((10,), 4.0, dtype=torch.float64))
    assert [(A.dtype, A.tolist()) for A in made[1:]] == [
        (torch.float64, [[3.0] * 3] * 3),
        (torch.float32, [[3.0] * 3] * 3),
    ]
