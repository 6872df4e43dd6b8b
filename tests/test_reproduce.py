"""Every figure's experiment is composed, run at a small size, drawn, and judged as it should be."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import reproduce
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from reproduction import SUBJECTS, Claim, Subject, brtw_limits
from reproduction.hlz import gradient_norm, slopes
from reproduction.report import headline, verdict_of
from reproduction.runs import compositions, execute, finished, folder_of
from runner import ROOT

from deeplin.loop import History, Kind, Result
from deeplin.runner.checkpoints import Checkpoint
from deeplin.runner.configurations import CONF
from deeplin.runner.folder import FORMAT, RunFolder
from deeplin.runner.outcomes import NOT_BEGUN, Ended

FILES = sorted((ROOT / "conf" / "experiment").glob("*/*.yaml"))
FILES.append(ROOT / "conf" / "experiment" / "bridge.yaml")
# Runs that the configurations must make at the papers' sizes: how many, N and d among them.
SIZES = {
    "brtw/fig01": (75, {2, 5, 10, 20}, {4, 40, 100, 200}),
    "brtw/fig02": (35, {2, 20}, {4, 40, 200}),
    "brtw/fig03": (30, {2}, {10, 20, 40}),
    "brtw/fig04": (30, {2, 3}, {10, 20, 40}),
    "brtw/fig05": (40, {2, 5}, {4, 40, 100}),
    "brtw/fig06": (35, {2, 10}, {4, 40, 100}),
    "brtw/fig07": (40, {2, 5, 10, 20}, {20, 200}),
    "brtw/fig08": (35, {2, 5, 10, 20}, {20, 200}),
    "brtw/fig09": (40, {2, 5, 10, 20}, {20, 200}),
    "brtw/fig10": (35, {2, 5, 10, 20}, {20, 200}),
    "brtw/fig11": (40, {2, 5, 10, 20}, {20}),
    "brtw/fig12": (40, {2, 5, 10, 20}, {20, 200}),
    "brtw/teacher": (60, {2, 5, 10, 20}, {20}),
}


def test_every_experiment_has_a_subject_and_a_header():
    names = {str(path.relative_to(ROOT / "conf/experiment").with_suffix("")) for path in FILES}
    assert names == set(SUBJECTS)
    for path in FILES:
        header = path.read_text().split("\n\n")[0]
        name = path.relative_to(ROOT / "conf/experiment").with_suffix("")
        assert f"python scripts/train.py experiment={name} " in header, path
        assert "minute" in header or "seconds" in header, path


@pytest.mark.parametrize("name", SUBJECTS)
def test_configurations_compose_at_the_papers_sizes(name):
    runs = [run.cfg for run in compositions(name)]
    if name in SIZES:
        count, depths, sizes = SIZES[name]
        assert len(runs) == count
        assert {cfg.network.depth for cfg in runs} == depths
        assert sizes <= {cfg.problem.d for cfg in runs}
        # The same seeds for every curve: none is chosen.
        curves = {}
        for cfg in runs:
            seed, cfg.seed, cfg.problem.seed = cfg.seed, 0, 0
            options = json.dumps(OmegaConf.to_container(cfg), sort_keys=True)
            curves.setdefault(options, []).append(seed)
        assert set(map(tuple, map(sorted, curves.values()))) == {(0, 1, 2, 3, 4)}
    if name.startswith("hlz/fig2") or name.startswith("hlz/fig3"):
        assert [(cfg.repeats, cfg.problem.n, cfg.network.rank) for cfg in runs] == [(100, 100, 5)]
    assert all(cfg.method.t1 in ("auto", "40/rho") or cfg.method.t1 > 0 for cfg in runs)


def test_shared_runs_are_one(tmp_path):
    first = {folder_of(run, tmp_path) for run in compositions("brtw/fig01")}
    second = {folder_of(run, tmp_path) for run in compositions("brtw/fig02")}
    assert second < first
    assert {folder_of(run, tmp_path) for run in compositions("brtw/fig12")} == {
        folder_of(run, tmp_path) for run in compositions("brtw/fig09")
    }


@pytest.mark.parametrize("name", ["brtw/fig03", "hlz/example11", "bridge"])
def test_a_run_is_a_job_of_the_experiments_sweep(name):
    """What its words compose, as train.py does, is its configuration: so is its folder."""
    planned = compositions(name, SUBJECTS[name].quick)
    for run in (planned[0], planned[-1]):
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            composed = compose("train", list(run.words))
        assert OmegaConf.to_container(composed, resolve=True) == OmegaConf.to_container(run.cfg)


# Figures that draw the same runs.
TOGETHER = ["brtw/fig01 brtw/fig02", "brtw/fig09 brtw/fig12"]
ALONE = [name for name in SUBJECTS if name not in " ".join(TOGETHER).split()]


# More than ten seconds each; `reproduce.py --quick` runs them, too.
LONG = ["brtw/fig09 brtw/fig12", "brtw/fig03", "brtw/fig04", "brtw/teacher", "bridge"]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(names, marks=[pytest.mark.slow] if names in LONG else [])
        for names in (*TOGETHER, *ALONE)
    ],
)
def test_quick(names, tmp_path, capsys):
    """`--quick` of each: figures, data and report are written, and no verdict is unexpected."""
    arguments = [*names.split(), "--quick", "--processes", "1", "--root", str(tmp_path)]
    assert reproduce.main(arguments) == 0
    (report,) = tmp_path.glob("*/report.html")
    for name in names.split():
        stem = report.parent / "figures" / name.replace("/", "-")
        assert stem.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
        assert stem.with_suffix(".pdf").read_bytes()[:4] == b"%PDF"
        data = np.load(stem.with_suffix(".npz"))
        assert len(data["run 0|t"]) == len(data["run 0|loss"]) > 10
    page = report.read_text()
    assert "data:image/png;base64," in page
    assert "src='http" not in page
    claims = json.loads((report.parent / "claims.json").read_text())["claims"]
    assert claims
    assert all(claim["measured"] for claim in claims)
    assert all(claim["whose"] in ("paper", "ours") for claim in claims)
    assert capsys.readouterr().out.count(" 0 against expectation") == 2  # papers' and ours


def test_finished_runs_are_not_run_again_and_stopped_ones_go_on(tmp_path):
    planned = compositions("hlz/example11")[1]
    folder = folder_of(planned, tmp_path)
    short = OmegaConf.merge(planned.cfg, {"stop": {"max_steps": 40}})
    folder.mkdir()
    from deeplin.runner.run import run

    run(short, folder)  # type: ignore[arg-type]
    assert finished(folder)
    before = (folder / "checkpoint.pt").stat().st_mtime_ns
    assert execute([planned], tmp_path) == []
    assert (folder / "checkpoint.pt").stat().st_mtime_ns == before


def test_whether_a_run_is_finished_is_asked_of_the_kind(tmp_path):
    """Whatever its sentence says; and both files must tell the same end."""
    files = RunFolder(tmp_path)
    files.write_config(compositions("hlz/example11")[0].cfg)
    for kind in Kind:
        sentence = "interrupted, converged, reached"
        files.save_checkpoint(Checkpoint({}, History(), 0.0, Result(kind, sentence)))
        summary = {"result": sentence, "verdict": "", "steps": 0, "flow_time": 0.0}
        files.write_json("summary.json", {**summary, "result_kind": kind})
        assert finished(tmp_path) is (kind is not Kind.INTERRUPTED)
        other = Kind.TIME if kind is not Kind.TIME else Kind.STEPS
        files.write_json("summary.json", {**summary, "result_kind": other})
        assert not finished(tmp_path)


DAMAGE = {
    "config.yaml": (b"", b"a: [", f"format: {FORMAT}\nflow: auto\n".encode()),
    "checkpoint.pt": (b"", b"PK"),
    "summary.json": (b"", b"{}", b'{"result": 1'),
    "provenance.json": (b"[]", b"{"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_job_is_run_again(tmp_path, name):
    """And nothing else of the whole report suffers."""
    run = compositions("hlz/example11", {"stop.max_steps": "9"})[1]
    folder = folder_of(run, tmp_path)
    assert execute([run], tmp_path) == []
    kept = (folder / name).read_bytes()
    for damaged in (*DAMAGE[name], kept[: len(kept) // 2], None):
        (folder / name).unlink()
        if damaged is not None:
            (folder / name).write_bytes(damaged)
        assert finished(folder) is (name == "provenance.json" and damaged is None)
        assert execute([run], tmp_path) == []
        assert finished(folder)
        assert RunFolder(folder).read_status() == {"status": 0}
    if name == "checkpoint.pt":
        assert "It is run again here." in (folder / "log.txt").read_text()


def test_options_that_cannot_be(tmp_path, capsys):
    (tmp_path / "file").touch()
    for words, sentence in (
        (["--processes", "0"], "--processes must be >= 1; got 0"),
        (["--processes", "-1"], "--processes must be >= 1; got -1"),
        (["--root", str(tmp_path / "file")], "--root must be a folder that can be written"),
        (["--root", str(tmp_path / "file" / "a")], "--root must be a folder that can be written"),
        (
            ["--quick", "seed=1"],
            "what is reproduced has the options of its files; hydra/launcher=<name>",
        ),
        (["hydra/launcher=jobli"], "the nearest valid names are hydra/launcher=joblib"),
        (["hydra/launcher=joblib", "hydra.launcher.n_job=1"], "n_job"),
    ):
        words = [*words] if "--root" in words else [*words, "--root", str(tmp_path)]
        assert reproduce.main(["brtw/fig07", *words]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1


def test_a_report_states_the_code_of_its_runs(tmp_path, capsys):
    """Not that of the call that finds them finished."""
    words = ["hlz/example11", "--quick", "--processes", "1", "--root", str(tmp_path)]
    assert reproduce.main(words) == 0
    assert "other code" not in capsys.readouterr().out
    changed = sorted(tmp_path.glob("jobs/*/provenance.json"))[:2]
    for path in changed:
        sessions = json.loads(path.read_text())["sessions"]
        sessions[0].update(commit="0ld", code="0ld code")
        sessions[0]["versions"]["torch"] = "1.0"
        path.write_text(json.dumps({"sessions": sessions}))
    (first,) = tmp_path.glob("*/report.md")
    first.unlink()
    assert reproduce.main(words) == 0
    assert "2 of 4 runs were made with other code than this report" in capsys.readouterr().out
    (report,) = tmp_path.glob("*/report.md")
    assert "2 by commit 0ld, code 0ld code, torch 1.0" in report.read_text()


def test_a_run_that_cannot_be_made_is_a_sentence(tmp_path):
    """The others are made, and the folder says it, too."""
    good, bad = (
        compositions("hlz/example11", {"stop.max_steps": "9", "network.rank": rank})[1]
        for rank in ("2", "9")
    )
    (sentence,) = execute([bad, good], tmp_path)
    assert sentence.startswith(f"{folder_of(bad, tmp_path)}: rank must satisfy")
    assert RunFolder(folder_of(bad, tmp_path)).read_status()["status"] == 2
    assert finished(folder_of(good, tmp_path))


def test_the_longest_runs_are_begun_first(tmp_path, monkeypatch):
    """Each once; those that were not begun are one sentence."""
    planned = compositions("brtw/fig01", SUBJECTS["brtw/fig01"].quick)
    seen, ends = [], [Ended(0, 0.0), Ended(None, math.inf, sentence=NOT_BEGUN)]
    for end, said in zip(ends, (0, 1), strict=True):
        seen.clear()
        launched = lambda jobs, *_, end=end: seen.extend(jobs) or [end] * len(jobs)  # noqa: E731
        monkeypatch.setattr("reproduction.runs.launched", launched)
        failures = execute([*planned, planned[0]], tmp_path)
        assert len(failures) == said
        assert {job.name for job in seen} == {folder_of(run, tmp_path).name for run in planned}
        sizes = {run.words: run.cfg.problem.d * run.cfg.network.depth for run in planned}
        of_jobs = [sizes[job.words] for job in seen]
        assert of_jobs == sorted(of_jobs, reverse=True)
        assert len(set(of_jobs)) > 1
    assert failures == [f"{len(planned)} runs were not begun: the same command begins them"]


def test_one_more_subject_keeps_the_ledger_in_the_full_report(tmp_path, monkeypatch):
    """Everything that is registered is everything, of whatever paper; one less is a part."""
    more = Subject("ours/new", "One more figure", lambda runs: None, lambda runs, others: [])
    monkeypatch.setitem(SUBJECTS, more.name, more)
    monkeypatch.setattr(reproduce, "compositions", lambda name, changes: [])
    monkeypatch.setattr(reproduce, "ledger", lambda verdicts, mutate: [])
    for names, whole in (
        ([], True),
        (["brtw", "hlz"], False),
        (["ours", "bridge", "brtw", "hlz"], True),
    ):
        root = tmp_path / "-".join(["all", *names])
        assert reproduce.main([*names, "--processes", "1", "--root", str(root)]) == 0
        (saved,) = root.glob("*/claims.json")
        assert json.loads(saved.read_text())["whole"] is whole, names


WITHOUT_PYTEST = """
import importlib.util, sys
sys.path.insert(0, {scripts!r})
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name in ("pytest", "xdist") else found(name, *a)
import reproduce
from pathlib import Path
from reproduction import Subject, SUBJECTS, ledger
ledger.run_tests.__defaults__ = (Path({root!r}) / "no.json", False)
SUBJECTS.clear()
SUBJECTS["ours/a"] = Subject("ours/a", "A figure", lambda runs: None, lambda runs, others: [])
reproduce.compositions = lambda name, changes: []
arguments = ["--processes", "1", "--root", {root!r}]
sys.exit(10 * reproduce.main(["ledger", *arguments]) + reproduce.main(arguments))
"""


def test_without_pytest_the_report_is_whole_and_the_ledger_says_what_it_needs(tmp_path):
    """As after `pip install -e .`: no traceback; 2 for the ledger alone, 0 for the full report."""
    scripts, root = str(ROOT / "scripts"), str(tmp_path)
    code = WITHOUT_PYTEST.format(scripts=scripts, root=root)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 20, done.stderr
    needs = "need pytest, xdist: type pip install"
    assert done.stderr.count(needs) == done.stdout.count(needs) == 1
    assert "Traceback" not in done.stderr
    (page,) = tmp_path.glob("*/report.html")
    (text,) = tmp_path.glob("*/report.md")
    for file in (page, text):
        assert "ours/a: A figure" in file.read_text()
        assert needs in file.read_text()
    assert json.loads((page.parent / "claims.json").read_text())["whole"] is True


def test_the_report_is_written_before_the_ledger_is_made(tmp_path, monkeypatch):
    """What stops the ledger, a signal too, leaves a report behind."""

    def stopped(verdicts, mutate):
        assert len(list(tmp_path.glob("*/report.html"))) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "compositions", lambda name, changes: [])
    monkeypatch.setattr(reproduce, "ledger", stopped)
    assert reproduce.main(["--processes", "1", "--root", str(tmp_path)]) == 130
    (page,) = tmp_path.glob("*/report.html")
    assert "Not made yet: python scripts/reproduce.py ledger" in page.read_text()


def test_unknown_names(capsys):
    assert reproduce.main(["brtw/fig99"]) == 2
    assert (
        "there is no experiment brtw/fig99; choose among brtw, hlz, ledger, mutations, bridge"
        in capsys.readouterr().err
    )


def test_verdicts():
    holds, fails = (Claim("paper", "s", "c", "1", "2", value) for value in (True, False))
    known, news = (Claim("paper", "s", "c", "1", "2", v, wrong="why") for v in (False, True))
    open_ = Claim("paper", "s", "c", "1", "2", None)
    ours = [Claim("ours", "s", "c", "1", "2", value) for value in (True, True, False)]
    assert [c.expected for c in (holds, fails, known, news, open_)] == [
        True, False, True, False, False,
    ]  # fmt: skip
    assert verdict_of(known) == "fails, as known"
    assert verdict_of(news) == "holds, against theory"
    assert headline([holds, *ours, fails, known, news, open_]) == (
        "Papers' claims: 5: 1 hold, 1 fail as known to be wrong (s), 2 against expectation, "
        "1 unfinished. Ours: 3: 2 hold, 1 against expectation, 0 unfinished."
    )
    with pytest.raises(ValueError, match="only a paper's claim can be known to be wrong"):
        Claim("ours", "s", "c", "1", "2", False, wrong="why")
    with pytest.raises(ValueError, match="whose must be paper or ours"):
        Claim("theirs", "s", "c", "1", "2", True)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Rates:
    """A run's rates: predicted, fitted to the distance, and along the slowest mode."""

    predicted_rate: float | None
    measured_rate: float | None
    alone: float | None = None


@pytest.mark.parametrize(
    ("runs", "verdicts"),
    [
        ([Rates(1.0, 1.0)], ["holds"]),  # W(t) was not recorded: one side
        ([Rates(1.0, 1.05)], ["holds"]),
        ([Rates(1.0, 0.96)], ["fails"]),
        ([Rates(1.0, 1.0), Rates(1.0, 0.96)], ["fails"]),  # of all seeds
        ([Rates(1.0, 1.0), Rates(None, 1.0)], ["unfinished"]),
        ([Rates(1.0, 0.96), Rates(None, 1.0)], ["fails"]),
        ([Rates(1.0, 1.2, 1.02)], ["holds", "holds"]),
        ([Rates(1.0, 1.2, 1.04)], ["holds", "fails"]),
        ([Rates(1.0, 1.2, 0.96)], ["holds", "fails"]),
        ([Rates(1.0, 1.2, 1.02), Rates(1.0, 1.2, 1.04)], ["holds", "fails"]),
    ],
)
def test_verdicts_on_rates(runs, verdicts, monkeypatch):
    monkeypatch.setattr(brtw_limits, "mode_rate", lambda run: run.alone)
    assert [claim.verdict for claim in brtw_limits.rate_claims("s", runs, "w")] == verdicts


def test_slopes_and_the_drawn_gradient():
    k = np.arange(100)
    values = np.stack([10.0 ** (-0.1 * k), 3 * 10.0 ** (-0.2 * k)], 1)
    np.testing.assert_allclose(slopes(values, k, 1e-9), [-0.1, -0.2], rtol=1e-9)
    x, y = 0.3, 0.2  # against the projection of dense matrices
    v = np.array([0, y, x]) / math.hypot(x, y)
    Z = np.diag([2.0, 0, 0]) + math.hypot(x, y) * np.outer(v, v)
    U = np.stack([[1.0, 0, 0], v], 1)
    P = U @ U.T
    E = Z - np.diag([2.0, 1, 0])
    projected = P @ E + E @ P - P @ E @ P
    assert gradient_norm(np.array(x), np.array(y)) == pytest.approx(np.linalg.norm(projected))
