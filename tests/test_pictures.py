"""The figure of a paper's experiment, drawn from its runs by `train.py experiment=…` alone."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import reproduce
from reproduction import SUBJECTS
from reproduction.pictures import drawn_from
from runner import train

from deeplin.runner import cli
from deeplin.runner.configurations import CONF, Configurations
from deeplin.runner.experiments import _DRAWN, show_pictures

NAME = "hlz/example11"
WORDS = (f"experiment={NAME}", "stop.max_steps=60", "hydra.sweep.dir=sweep")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Where the experiment's sweep was made, as typed, and what its pictures were made of."""
    folder, calls = tmp_path_factory.mktemp("swept"), []

    def noted(*arguments):
        calls.append(arguments)
        show_pictures(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(cli, "show_pictures", noted)
        assert train(*WORDS) == 0
        (arguments,) = calls
        folders = [Path(job.folder) for job in arguments[0]]
        yield SimpleNamespace(arguments=arguments, folders=folders)


def test_a_sweep_draws_the_figure_of_the_report(sweep, tmp_path):
    """Of the sweep in the configuration's file; picture and data are those of reproduce.py."""
    assert len(sweep.folders) == 4
    assert set(sweep.folders) == {path.parent for path in Path("sweep").glob("*/summary.json")}
    drawn = Path("sweep/figures/hlz-example11")
    assert drawn.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert drawn.with_suffix(".pdf").read_bytes()[:4] == b"%PDF"
    reported = reproduce.chapter(NAME, sweep.folders, tmp_path, quick=False).figure
    assert reported.read_bytes() == drawn.with_suffix(".png").read_bytes()
    data, expected = (np.load(p.with_suffix(".npz")) for p in (drawn, reported))
    assert set(data) == set(expected)
    assert all(np.array_equal(data[name], expected[name]) for name in data)


def test_it_says_where_the_figure_is_and_of_how_many_runs(sweep, capsys, monkeypatch):
    """Of those that are finished."""
    jobs, chosen, arguments, _ = sweep.arguments
    monkeypatch.setattr("reproduction.pictures._save", lambda figure, runs, stem: stem)

    def draw(name, folders, into):
        return drawn_from(name, [*folders[1:], Path("nowhere")], into)

    show_pictures(jobs, chosen, arguments, draw)
    assert capsys.readouterr().out == (
        f"\n{NAME}, {SUBJECTS[NAME].title}, drawn from 3 runs of 4:\n"
        "    sweep/figures/hlz-example11\n"
    )
    assert drawn_from(NAME, [Path("nowhere")], Path()) is None
    assert drawn_from("plateaus", sweep.folders, Path()) is None


def test_what_cannot_be_drawn_is_one_sentence(sweep, capsys, monkeypatch):
    def fails(runs):
        raise IndexError("no panel for it")

    monkeypatch.setitem(SUBJECTS, NAME, SimpleNamespace(title="t", draw=fails))
    show_pictures(*sweep.arguments)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{NAME} cannot be drawn from these runs (IndexError: no panel for it)" in error


def test_the_installed_package_says_what_draws_it(sweep, capsys):
    jobs, chosen, arguments, _ = sweep.arguments
    show_pictures(jobs, chosen, arguments, None)
    typed = f"python scripts/train.py {' '.join(WORDS)}"
    assert capsys.readouterr().out.endswith(f"repository draws:\n    {typed}\n")
    names = Configurations(CONF).groups()["experiment"]
    assert {name for name in names if name.startswith(_DRAWN)} == set(SUBJECTS)
