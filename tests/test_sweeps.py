"""Sweeps: how folders are called, the table of all jobs, the objective, Optuna's sweeper."""

import csv
import importlib.util
import json
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from runner import SMALL, train

from deeplin.runner import cli
from deeplin.runner.names import job_folder, named, run_folder
from deeplin.runner.overrides import whole
from deeplin.runner.sweeps import objective_of

SHORT = [*SMALL, "method.t1=1"]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


# -- names -----------------------------------------------------------------------------------------


def test_names_are_short_safe_and_tell_apart():
    words = ["network.depth=2", "method.dt=1e-3", "problem=gaussian"]
    assert named(words, ["problem"]) == "depth=2,dt=1e-3"
    assert named(["problem.seed=1", "seed=2"]) == "problem.seed=1,seed=2"
    odd = [
        ["problem.path='/a/wine.csv'"],
        ["problem.path='/b/wine.csv'"],
        ["problem.path=données.npz"],
        ["problem.path='x $(rm) &.npz'"],
        ["init.matrix=" + str([[0.1] * 40] * 40)],
        ["init.matrix=" + str([[0.1] * 40] * 39)],
        ["method.dt=0.36078893712483806"],
        ["method.dt=0.36078893712483807"],
    ]
    names = [named(words) for words in odd]
    assert len(set(names)) == len(names)
    assert all(len(name) < 80 and not set(name) & set("/\\ $&()'\"*?;<>|é") for name in names)
    assert names[0].startswith("path=wine-")
    assert names[6].startswith("dt=0.3608-")


def test_the_folder_of_a_single_run_has_its_moment():
    words = ["problem=gaussian", "network.depth=5"]
    assert run_folder(None, "gaussian", "12-00", words) == "runs/gaussian/depth=5_12-00"
    assert run_folder(None, "digits", "12-00", []) == "runs/digits/12-00"
    assert run_folder("a/b", "digits", "12-00", ["resume=a/b"]) == "a/b"


def test_a_folder_that_was_printed_can_be_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(*SHORT, "stop.max_steps=2", "network.depth=2") == 0
    (folder,) = Path("runs/gaussian").iterdir()
    assert folder.name.startswith("d=6,rank=2,method=rk4,")
    assert train(f"resume={folder}", "stop.max_steps=4") == 0
    assert len(list(Path("runs/gaussian").iterdir())) == 1
    assert OmegaConf.load(folder / "config.yaml").stop.max_steps == 4
    assert whole(f"resume={folder}") == f'resume="{folder}"'
    assert whole("resume=runs/nowhere,else") == "resume=runs/nowhere,else"


# -- the table -------------------------------------------------------------------------------------


def test_a_table_of_all_jobs(tmp_path, capsys):
    words = [*SHORT, "-m", "network.rank=2,9", "seed=0,1", f"hydra.sweep.dir={tmp_path}"]
    assert train(*words) == 2
    said = capsys.readouterr()
    assert said.out.count("4 jobs in ") == 1
    assert "[rank=2,seed=1] deeplin: gaussian, " in said.out
    assert "[rank=9,seed=0] error: rank must satisfy" in said.err
    jobs = table(tmp_path)
    assert [job["job"] for job in jobs] == list("0123")
    assert [(job["network.rank"], job["seed"]) for job in jobs] == [
        (rank, seed) for rank in "29" for seed in "01"
    ]
    assert [job["folder"] for job in jobs][:2] == ["rank=2,seed=0", "rank=2,seed=1"]
    assert [job["status"] for job in jobs] == ["0", "0", "2", "2"]
    assert "rank must satisfy" in jobs[2]["error"]
    summary = OmegaConf.load(tmp_path / "rank=2,seed=1" / "summary.json")
    assert float(jobs[1]["loss"]) == summary.loss != float(jobs[0]["loss"])
    assert float(jobs[1]["objective"]) == summary.relative_excess_loss
    assert float(jobs[3]["objective"]) == math.inf
    lines = said.out.splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith("job "))
    assert lines[start].split()[:3] == ["job", "rank", "seed"]
    assert lines[start + 2].split()[:3] == ["1", "2", "1"]
    assert "unfinished" in lines[start + 2]
    assert "status 2: rank must satisfy" in lines[start + 3]


def test_another_sweep_in_the_same_folder(tmp_path, capsys):
    """What is constant is no part of the name, unless another sweep has taken it."""
    words = [*SHORT, "-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}"]
    for depth in (2, 3, 2, 3):
        assert train(*words, f"network.depth={depth}") == 0
    assert capsys.readouterr().out.count("is finished already") == 4
    folders = sorted(p.parent.name for p in tmp_path.glob("*/summary.json"))
    assert len(folders) == 4
    assert {"seed=0", "seed=1"} < set(folders)
    constant = ["network.depth", *(word.split("=")[0] for word in SHORT)]
    typed = [*SHORT, "network.depth=2", "seed=0"]
    assert job_folder(typed, constant, str(tmp_path)) == "seed=0"
    assert job_folder(["network.depth=4", "seed=0"], constant, str(tmp_path)) != "seed=0"


def test_a_sweep_that_is_stopped_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "run", lambda cfg, folder: 130 if cfg.seed == 1 else 0)
    words = [*SHORT, "-m", "seed=0,1,2", f"hydra.sweep.dir={tmp_path}"]
    assert train(*words) == 130
    out = capsys.readouterr().out
    assert "3 jobs in " in out
    assert [job["status"] for job in table(tmp_path)] == ["0", "130", ""]
    assert table(tmp_path)[2]["error"] == "not begun"
    assert out.splitlines()[-1].endswith(f"seed=0,1,2 hydra.sweep.dir={tmp_path}")


# -- the objective ---------------------------------------------------------------------------------


def test_the_objective_is_a_number_of_the_summary():
    summary = {"loss": 2.0, "relative_excess_loss": 1e-9, "steps": 7, "distance_to_limit": None}
    assert objective_of("auto", summary) == 1e-9
    assert objective_of("auto", {**summary, "relative_excess_loss": None}) == 2.0
    assert objective_of("steps", summary) == 7.0
    assert objective_of("held_out", summary) == math.inf
    assert objective_of("held_out", {**summary, "test_r2": 0.9}) == pytest.approx(0.1)
    assert objective_of("held_out", {**summary, "test_rmse": 0.4}) == 0.4
    assert objective_of("distance_to_limit", summary) == math.inf


def test_what_only_a_sampler_can_draw(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train(*SHORT, "-m", "method.dt=interval(0.1,0.2)") == 2
    assert "from which hydra/sweeper=optuna draws with -m" in capsys.readouterr().err


OPTUNA = (
    importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper")
    if (importlib.util.find_spec("hydra_plugins"))
    else None
)


@pytest.mark.slow
@pytest.mark.skipif(OPTUNA is None, reason="hydra-optuna-sweeper is not installed: .[cluster]")
@pytest.mark.filterwarnings("ignore")  # optuna 2.10's own
def test_optuna_makes_the_objective_small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1"]
    words += ["hydra.sweep.dir=sweep", "objective=loss", "method.dt=interval(0.01,0.1)"]
    assert train(*SHORT, *words) == 0
    jobs = table(tmp_path / "sweep")
    assert len(jobs) == 4
    best = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    losses = [float(job["loss"]) for job in jobs]
    assert best.best_value == min(losses)
    least = jobs[losses.index(min(losses))]
    assert best.best_params["method.dt"] == float(least["method.dt"])
    assert all(job["folder"].startswith("dt=0.0") for job in jobs)


@pytest.mark.slow
@pytest.mark.skipif(OPTUNA is None, reason="hydra-optuna-sweeper is not installed: .[cluster]")
@pytest.mark.filterwarnings("ignore")
def test_a_study_in_a_file_goes_on(tmp_path, monkeypatch, capsys):
    """The trial that was cut off comes first, with its own value, in its own folder."""
    import optuna

    monkeypatch.chdir(tmp_path)
    made, whole_run = [], cli.run

    def run(cfg, folder):
        made.append((cfg.method.dt, folder.name))
        if len(made) == 3:
            whole_run(OmegaConf.merge(cfg, {"stop": {"max_steps": 5}}), folder, draw=False)
            (folder / "status.json").unlink()
            raise SystemExit(137)  # as a kill does, past all that could tell the study
        return whole_run(cfg, folder, draw=False)

    monkeypatch.setattr(cli, "run", run)
    words = [
        *SHORT,
        "-m",
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_jobs=1",
        "hydra.sweep.dir=sweep",
    ]
    words += ["hydra.sweeper.storage=sqlite:///a/study.db", "objective=loss"]
    words += ["method.dt=interval(0.01,0.1)"]
    assert train(*words) == 2
    assert "hydra.sweeper.study_name=<name>" in capsys.readouterr().err
    words.append("hydra.sweeper.study_name=dt")
    assert train(*words, "hydra.sweeper.n_trials=4") == 137
    assert [job["status"] for job in table(tmp_path / "sweep")] == ["0", "0", ""]
    assert train(*words, "hydra.sweeper.n_trials=4") == 0
    assert "2 of 4 trials of the study dt are done" in capsys.readouterr().out
    assert len(made) == 5
    assert made[3] == made[2]
    assert len(set(made)) == 4
    trials = optuna.load_study(study_name="dt", storage="sqlite:///a/study.db").trials
    ended = [trial for trial in trials if trial.state is optuna.trial.TrialState.COMPLETE]
    assert [trial.params["method.dt"] for trial in ended] == [dt for dt, _ in made[:2] + made[3:]]
    for trial, (_, name) in zip(ended, made[:2] + made[3:], strict=True):
        assert trial.value == OmegaConf.load(tmp_path / "sweep" / name / "summary.json").loss
    assert train(*words, "hydra.sweeper.n_trials=4") == 0
    assert "4 of 4 trials of the study dt are done: hydra.sweeper.n_trials=<more>" in (
        capsys.readouterr().out
    )
    assert len(made) == 5
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["study.db"]


@pytest.mark.skipif(OPTUNA is None, reason="hydra-optuna-sweeper is not installed: .[cluster]")
def test_one_command_at_a_time_searches(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    held = json.dumps({"pid": 1, "host": "elsewhere", "boot": "another"})
    (tmp_path / ".study.db.dt").mkdir()
    (tmp_path / ".study.db.dt" / ".lock").write_text(held)
    words = ["hydra/sweeper=optuna", "hydra.sweeper.storage=sqlite:///study.db"]
    words += ["hydra.sweeper.study_name=dt", "method.dt=interval(0.01,0.1)"]
    assert train(*SHORT, "-m", *words) == 2
    error = capsys.readouterr().err
    assert "another command is at work on the study dt in study.db" in error
    assert not (tmp_path / "study.db").exists()
