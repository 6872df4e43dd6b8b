"""The ledger: every statement of the papers beside the tests that hold it to a number.

`ledger()` runs the tests that carry `@pytest.mark.statement(...)`, unless the result of the same
sources is at hand, and joins them with the list of statements, with the verdicts of the experiments
and with how many mutations of each the tests caught; `ledger_text` shows it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from reproduction.statements import PAPERS, STATEMENTS, Statement

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "runs" / "reproduce" / "ledger.json"
MUTATED = ROOT / "runs" / "reproduce" / "mutations.json"
# A change of any of these makes the tests run again.
SOURCES = ("tests/**/*.py", "deeplin/**/*.py", "conf/**/*.yaml", "pyproject.toml")
SELECTION = "statement and not slow"

# What the marked tests import beyond the package itself: pip install ".[test]".
NEEDS = ("pytest", "xdist", "hypothesis", "mpmath")
OURS = ", ours"  # ends the source of a claim that is not the paper's

# source -> (what the experiment measured, in a sentence; "holds", "fails", "unfinished", or
# "refuted": a claim that the theory knows to be wrong has failed as it must)
Verdicts = Mapping[str, Sequence[tuple[str, str]]]
# source -> test runs: {"test", "outcome", and what was seen: "residual", "bound",
# "numbers": {name: [least, greatest]}}
Results = Mapping[str, Sequence[Mapping]]


class NoLedger(RuntimeError):
    """The tests could not be run; the message is a sentence that says what they need."""


class Judged(Protocol):
    """A claim of an experiment with its verdict."""

    @property
    def whose(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def statement(self) -> str: ...
    @property
    def measured(self) -> str: ...
    @property
    def holds(self) -> bool | None: ...
    @property
    def wrong(self) -> str: ...


@dataclass(frozen=True)
class Row:
    """A statement, what holds it to what, the number seen, and how it ended.

    `residual` is that of the comparison nearest to its bound, of all tests of the statement;
    `verdict` is "holds", "fails", "refuted", "unfinished", "unchecked" (then `reason` says why) or
    "nothing".
    `mutations` are how many errors, put into what stands behind the statement one at a time, failed
    one of its tests, and how many were tried; None where that was not run at these sources.
    A row of an error holds if the paper is wrong in the way it says.
    """

    part: str
    source: str
    says: str
    checked: str
    by: tuple[str, ...] = ()
    residual: float | None = None
    bound: float | None = None
    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    verdict: str = "nothing"
    reason: str = ""
    mutations: tuple[int, int] | None = None

    @property
    def caught(self) -> str:
        """Of how many mutations how many failed the row; "?" if it has tests and none was tried."""
        if self.mutations is not None:
            return f"{self.mutations[0]} of {self.mutations[1]}"
        return "?" if set(self.by) - {"experiment"} else ""

    @property
    def seen(self) -> str:
        """The residual beside its bound, empty where the comparison is not of that kind."""
        if self.residual is None or self.bound is None:
            return ""
        return f"{self.residual:.2g} ≤ {self.bound:.2g}"

    @property
    def numbers_text(self) -> str:
        return "; ".join(
            f"{name}: " + " to ".join(dict.fromkeys((f"{low:.7g}", f"{high:.7g}")))
            for name, (low, high) in self.numbers.items()
        )


# -- the tests -------------------------------------------------------------------------------------


def sources_key() -> str:
    """A hash of everything that the tests' results depend on."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {SELECTION}".encode())
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def run_tests(file: Path = FILE, fresh: bool = False) -> Results:
    """What the marked tests saw: from `file` if the sources are those of that run, or run now.

    Raises: NoLedger where they cannot be run.
    """
    kept = None if fresh else at_hand(file)
    return (
        _run(file, ["-m", SELECTION], "tests of the papers' statements") if kept is None else kept
    )


def run_mutations(file: Path = MUTATED, fresh: bool = False) -> Results:
    """How many mutations of each statement its tests caught, of how many; as `run_tests`.

    Raises: NoLedger where they cannot be run.
    """
    kept = None if fresh else at_hand(file)
    return (
        _run(file, ["-m", "slow", "tests/test_mutations.py"], "mutations") if kept is None else kept
    )


def at_hand(file: Path) -> Results | None:
    """What is kept in a file of `run_tests` or `run_mutations`, if it is of these sources."""
    if not file.is_file():
        return None
    kept = json.loads(file.read_text())
    return kept["statements"] if kept.get("key") == sources_key() else None


def _run(file: Path, selection: Sequence[str], what: str) -> Results:
    """Runs tests and keeps what they saw, by statement."""
    if absent := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise NoLedger(
            f"The ledger runs the tests of the statements, which need {', '.join(absent)}: type "
            'pip install -c constraints.txt -e ".[test]", then python scripts/reproduce.py ledger.'
        )
    key = sources_key()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial.json")
    partial.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", *selection]
    print(f"Running the {what} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    # Their progress goes to the screen, the ledger alone to the standard output.
    done = subprocess.run([*command, f"--ledger={partial}"], cwd=ROOT, stdout=sys.stderr)
    if not partial.is_file():
        raise NoLedger(
            f"The {what} did not run to their end (pytest: {done.returncode}, its output is "
            "above): mend that, then type python scripts/reproduce.py ledger."
        )
    statements = json.loads(partial.read_text())
    partial.unlink()
    kept = {"key": key, "commit": commit(), "seconds": round(time.perf_counter() - start, 1)}
    file.write_text(json.dumps({**kept, "statements": statements}, indent=1) + "\n")
    return statements


def markers(folder: Path = ROOT / "tests") -> dict[str, list[str]]:
    """source -> tests that carry it as a marker, read from the files without running them."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            # Above the test, or among its parameters.
            for mark in (inner for outer in node.decorator_list for inner in ast.walk(outer)):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.statement":
                    found.setdefault(ast.literal_eval(mark.args[0]), []).append(
                        f"{path.stem}::{node.name}"
                    )
    return found


# -- the rows --------------------------------------------------------------------------------------


def gathered(claims: Iterable[Judged]) -> dict[str, list[tuple[str, str]]]:
    """The claims of experiments by their sources, ours apart: they decide no statement of a paper.

    One known to be wrong fails if it holds.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for claim in claims:
        if claim.holds is None:
            verdict = "unfinished"
        elif claim.wrong:
            verdict = "fails" if claim.holds else "refuted"
        else:
            verdict = "holds" if claim.holds else "fails"
        text = f"{claim.statement}: {claim.measured}"
        source = claim.source + (OURS if claim.whose == "ours" else "")
        found.setdefault(source, []).append((text, verdict))
    return found


def ledger(
    verdicts: Verdicts | None = None,
    *,
    results: Results | None = None,
    mutated: Results | None = None,
    statements: Iterable[Statement] = STATEMENTS,
    fresh: bool = False,
    mutate: bool = False,
) -> list[Row]:
    """A row for every statement, then one for every claim of an experiment beyond them.

    Of these the papers' come first, then ours. Mutations are run where `mutate` says so; else what
    is at hand of them is shown.
    """
    verdicts = {} if verdicts is None else verdicts
    results = run_tests(fresh=fresh) if results is None else results
    if mutated is None:
        mutated = run_mutations(fresh=fresh) if mutate else at_hand(MUTATED)
    parts = {s.source: part for part, group in PAPERS.items() for s in group}
    rows = [
        _row(
            parts.get(s.source, s.source.split()[0]),
            s,
            results.get(s.source, ()),
            verdicts.get(s.source, ()),
            _mutations((mutated or {}).get(s.source, ())),
        )
        for s in statements
    ]
    known = {s.source for s in statements}
    others = [
        Row(
            "Ours" if source.endswith(OURS) else "Experiments",
            source.removesuffix(OURS),
            text,
            "",
            ("experiment",),
            verdict=verdict,
        )
        for source, claims in verdicts.items()
        if source not in known
        for text, verdict in claims
    ]
    return rows + sorted(others, key=lambda row: row.part)


def _mutations(runs: Sequence[Mapping]) -> tuple[int, int] | None:
    """(caught, tried) of a row."""
    for run in runs:
        seen = run.get("numbers", {})
        return int(seen["mutations caught"][0]), int(seen["mutations"][0])
    return None


def _row(
    part: str,
    statement: Statement,
    runs: Sequence[Mapping],
    claims: Sequence[tuple[str, str]],
    mutations: tuple[int, int] | None,
) -> Row:
    by = Counter(run["test"].partition("[")[0].removeprefix("tests/") for run in runs)
    names = tuple(f"{name} ×{n}" if n > 1 else name for name, n in by.items())
    names += ("experiment",) * bool(claims)
    numbers: dict[str, tuple[float, float]] = {}
    worst: Mapping = {}
    for run in runs:
        for name, values in run.get("numbers", {}).items():
            numbers[name] = (
                min(*values, *numbers.get(name, ())),
                max(*values, *numbers.get(name, ())),
            )
        # Across multiplication: bounds may be 0. A residual that is nan is the worst.
        if "residual" in run and (
            not worst or not run["residual"] * worst["bound"] <= worst["residual"] * run["bound"]
        ):
            worst = run
    endings = {run["outcome"] for run in runs if run["outcome"] != "skipped"}
    endings |= {verdict for _, verdict in claims}
    if endings - {"passed", "holds", "unfinished", "refuted"}:
        verdict = "fails"
    elif "unfinished" in endings:
        verdict = "unfinished"
    elif endings:
        verdict = "refuted" if endings == {"refuted"} else "holds"
    else:
        verdict = "unchecked" if statement.unchecked else "nothing"
    return Row(
        part,
        statement.source,
        statement.says,
        statement.checked,
        names,
        worst.get("residual"),
        worst.get("bound"),
        numbers,
        verdict,
        statement.unchecked or "; ".join(text for text, _ in claims),
        mutations,
    )


def missing(rows: Iterable[Row]) -> list[str]:
    """The statements that have neither a test, nor a verdict, nor a reason for having none."""
    return [row.source for row in rows if row.verdict == "nothing"]


def failures(rows: Iterable[Row]) -> list[str]:
    return [row.source for row in rows if row.verdict == "fails"]
