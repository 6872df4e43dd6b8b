"""Run every figure and numbered claim of both papers, with a verdict beside each.

python scripts/reproduce.py                     all of them
python scripts/reproduce.py brtw/fig07 hlz      some, or those of one paper
python scripts/reproduce.py --quick             at reduced sizes, a few minutes
python scripts/reproduce.py ledger              every numbered statement and what checks it
python scripts/reproduce.py mutations           the same, with every check seen to fail
python scripts/reproduce.py --list              the names
python scripts/reproduce.py hydra/launcher=submitit_slurm hydra.launcher.partition=cpu    as a sweep

Runs that are finished already are not run again; Ctrl-C keeps what was done. The report goes to
runs/reproduce/<time>/report.html and report.md. Exit status 1 if a claim fails that should hold.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import cast

from joblib import Parallel, delayed
from reproduction import SUBJECTS, Claim, Subject
from reproduction.ledger import NoLedger, Row, gathered, ledger
from reproduction.ledger import failures as failing
from reproduction.ledger_text import show, summary
from reproduction.pictures import picture
from reproduction.report import Chapter, Report, headline, origins_of, verdict_of, work_of
from reproduction.runs import Run, compositions, execute, finished_runs, folder_of
from tqdm import tqdm

from deeplin.runner.command_line import check_words
from deeplin.runner.configurations import CONF, Configurations
from deeplin.runner.provenance import provenance
from deeplin.runner.signals import abandonable, number_of
from deeplin.runner.terminal import patient

ROOT = Path(__file__).resolve().parents[1] / "runs" / "reproduce"
# How the words begin that choose the launcher of the runs, and set its options.
LAUNCHER = (
    "hydra/launcher=",
    "hydra.launcher.",
    "+hydra.launcher.",
    "hydra.sweeper.max_batch_size=",
)
ALONE = ("hydra/launcher=basic",)  # one run after the other, in this process


def selected(names: Sequence[str]) -> list[Subject]:
    """The subjects of the given names or groups (brtw, hlz); all without names.

    Raises: ValueError for a name that is none of them.
    """
    known = sorted(SUBJECTS.items())
    if not names:
        return [s for _, s in known]
    chosen = []
    for name in names:
        found = [s for key, s in known if key == name or key.startswith(f"{name}/")]
        if not found:
            groups = dict.fromkeys(key.partition("/")[0] for key, _ in known if "/" in key)
            choices = [*groups, "ledger", "mutations", *(key for key, _ in known)]
            raise ValueError(f"there is no experiment {name}; choose among {', '.join(choices)}.")
        chosen += [s for s in found if s not in chosen]
    return chosen


def chapter(name: str, folders: Sequence[Path], folder: Path, quick: bool) -> Chapter:
    """The figure, in a folder, and the claims of an experiment from its finished runs."""
    subject = SUBJECTS[name]

    def runs_of(other: str) -> list[Run]:
        planned = compositions(other, SUBJECTS[other].quick if quick else None)
        return finished_runs([folder_of(run, folders[0].parent) for run in planned])

    expected, runs = len(folders), finished_runs(folders)
    claims: list[Claim] = []
    if len(runs) < expected:
        missing = f"{expected - len(runs)} of {expected} runs are not finished"
        claims.append(Claim("ours", name, subject.title, missing, "all", None))
    png = None
    if runs:
        png = picture(name, runs, folder)
        claims += subject.claims(runs, runs_of)
    return Chapter(name, subject.title, work_of(name, runs), claims, png, origins_of(runs))


def reproduce(
    subjects: Sequence[Subject],
    quick: bool,
    processes: int,
    root: Path,
    launcher: Sequence[str] = ALONE,
) -> int:
    """Run, draw, judge, report; the exit status. A run of everything has the ledger, too.

    The runs are jobs of a launcher, as those of a sweep; figures are drawn by so many processes.
    The report is written before the ledger is made, which may need more than is installed.
    """
    start, jobs = time.monotonic(), root / "jobs"
    partial = {s.name for s in subjects} < set(SUBJECTS)
    plan = {s.name: compositions(s.name, s.quick if quick else None) for s in subjects}
    failures = execute([run for all_of in plan.values() for run in all_of], jobs, launcher)
    folder = root / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder.mkdir(parents=True, exist_ok=True)
    told = functools.partial(chapter, folder=folder, quick=quick)
    folders = [[folder_of(run, jobs) for run in all_of] for all_of in plan.values()]
    chapters = _told(told, plan, folders, processes)
    claims = [claim for c in chapters for claim in c.claims]
    report = Report(chapters, provenance(), time.monotonic() - start, not (quick or partial))
    report.write(folder)
    for claim in claims:
        told = f"{claim.source}: {claim.statement}: {claim.measured}"
        print(f"{verdict_of(claim):22}{claim.whose:7}{told}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    print(f"\n{headline(claims)}")
    if report.older():
        print(report.older())
    print(f"Report: {_short(folder / 'report.html')}", flush=True)
    rows = with_ledger(report, folder, start) if report.whole else None
    failed = any(c.holds is not None and not c.expected for c in claims)
    return int(bool(failures) or failed or bool(rows and failing(rows)))


def _told(
    told: Callable[[str, Sequence[Path]], Chapter],
    names: Iterable[str],
    folders: Sequence[Sequence[Path]],
    processes: int,
) -> list[Chapter]:
    """The chapters, made side by side; one after the other if one of the workers was killed."""

    def listed(chapters: Iterable[Chapter]) -> list[Chapter]:
        return list(tqdm(chapters, total=len(folders), unit="figure", disable=None))

    if processes > 1:
        with contextlib.suppress(BrokenProcessPool):
            side_by_side = Parallel(processes, return_as="generator")
            made = side_by_side(map(delayed(told), names, folders))
            return listed(cast(Iterable[Chapter], made))
    return listed(map(told, names, folders))


def with_ledger(report: Report, folder: Path, start: float) -> Sequence[Row] | None:
    """The rows of the ledger, added to a report; None, with the reason there, if it needs more."""
    try:
        rows = ledger(gathered(report.claims), mutate=True)
    except NoLedger as error:
        print(error)
        dataclasses.replace(report, no_ledger=str(error)).write(folder)
        return None
    dataclasses.replace(report, wall=time.monotonic() - start, ledger=rows).write(folder)
    print(summary(rows))
    return rows


def last_claims(root: Path) -> list[Claim]:
    """The claims of the newest report of everything; none if there is none yet."""
    for file in sorted(root.glob("*/claims.json"), reverse=True):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged, or of an older one
            saved = json.loads(file.read_bytes())
            if saved["whole"]:
                return [Claim(**claim) for claim in saved["claims"]]
    return []


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _check(processes: int, root: Path, launcher: Sequence[str]) -> None:
    """Raise ValueError for options that cannot be."""
    if processes < 1:
        raise ValueError(f"--processes must be >= 1; got {processes}: all cores without it.")
    try:
        root.mkdir(parents=True, exist_ok=True)
        writable = os.access(root, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(f"--root must be a folder that can be written; got {root}.")
    if tuple(launcher) == ALONE:
        return
    for word in launcher:
        if not word.startswith(LAUNCHER):
            raise ValueError(
                "what is reproduced has the options of its files; hydra/launcher=<name> and "
                f"hydra.launcher.<option>=<value> say how the runs are launched; got {word}."
            )
    check_words(launcher, Configurations(CONF), sweep=True)


def _launcher(words: Sequence[str], processes: int) -> list[str]:
    """The words of the launcher: by default joblib with so many processes, none with one."""
    if not any(word.startswith("hydra/launcher=") for word in words):
        words = [*ALONE, *words] if processes == 1 else ["hydra/launcher=joblib", *words]
    if "hydra/launcher=joblib" not in words:
        return list(words)
    # Of an option that is given twice the last value counts. One run at a time, for each process
    # the longest of those that are left.
    return [f"hydra.launcher.n_jobs={processes}", "hydra.launcher.batch_size=1", *words]


def main(arguments: Sequence[str] | None = None) -> int:
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="*",
        help="experiments, brtw, hlz, ledger, mutations; hydra/launcher=joblib, submitit_local, "
        "submitit_slurm or ray, and hydra.launcher.<option>=<value>",
    )
    parser.add_argument("--quick", action="store_true", help="reduced sizes, a few minutes")
    parser.add_argument("--list", action="store_true", help="print the names of the experiments")
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        help="of this machine: figures at a time, and runs, unless another launcher is named; all "
        "cores",
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="where runs and reports go")
    options = parser.parse_intermixed_args(arguments)
    if options.list:
        for name, subject in sorted(SUBJECTS.items()):
            print(f"{name:16}{subject.title}")
        return 0
    if options.names in (["ledger"], ["mutations"]):
        claims = gathered(last_claims(options.root))
        return show(claims, mutate=options.names == ["mutations"])
    names = [word for word in options.names if "=" not in word]
    words = [word for word in options.names if "=" in word]
    try:
        subjects = selected(names)
        launcher = _launcher(words, options.processes)
        _check(options.processes, options.root, launcher)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        with abandonable():
            return reproduce(subjects, options.quick, options.processes, options.root, launcher)
    except KeyboardInterrupt as stop:
        print("interrupted: the same command goes on from here.", file=sys.stderr)
        return 128 + number_of(stop)


if __name__ == "__main__":
    with patient():
        status = main()
    sys.exit(status)
