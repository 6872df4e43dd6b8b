"""The ledger of statements: complete, without drift, and readable."""

import ast
import html.parser
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from reproduction import ledger as book
from reproduction import ledger_text
from reproduction.statement import label_of
from reproduction.statements import PAPERS, STATEMENTS, Statement

ROOT = Path(__file__).resolve().parent.parent


def claims_of_experiments():
    """Every source that the scripts of the experiments name."""
    found = set()
    for path in (ROOT / "scripts" / "reproduction").rglob("*.py"):
        if not path.stem.startswith("statement"):
            constants = (
                n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)
            )
            found |= {c.value for c in constants if str(c.value).startswith(("BRTW ", "HLZ "))}
    return found


def test_every_marker_is_a_statement_and_every_statement_has_a_test():
    marked, known = set(book.markers()), {s.source for s in STATEMENTS}
    assert marked - known == set(), "markers of no statement"
    held = marked | claims_of_experiments()
    assert [s.source for s in STATEMENTS if not s.unchecked and s.source not in held] == []
    assert [s.source for s in STATEMENTS if s.unchecked and s.source in marked] == []


def test_every_number_of_the_papers_is_there_once_and_in_order():
    """BRTW numbers its statements from 1 to 50; HLZ by section."""
    sources = [s.source for s in STATEMENTS]
    assert len(set(sources)) == len(sources)

    def numbers(part):
        kinds = ("Definition", "Lemma", "Theorem", "Prop.", "Remark", "Corollary", "Conjecture")
        found = []
        for s in PAPERS[part]:
            _, kind, *rest = s.source.split(" ", 2)
            if kind in (*kinds, "Example"):
                found.append(rest[0].split("(")[0])
        return list(dict.fromkeys(found))

    assert numbers("BRTW") == [str(n) for n in range(1, 51)]
    sections = {"1": 1, "2": 13, "3": 8, "4": 2, "A": 1, "B": 2}
    expected = [f"{section}.{n}" for section, last in sections.items() for n in range(1, last + 1)]
    assert numbers("HLZ") == expected


def test_errors_slips_and_cautions_are_apart():
    """E1 to E11, S1, C1 to C3, each in its own part, and no other statement is labelled."""
    expected = {
        "Errors": [f"E{n}" for n in range(1, 12)],
        "Slips": ["S1"],
        "Cautions": ["C1", "C2", "C3"],
    }
    for part, group in PAPERS.items():
        labels = [label_of(s.source) for s in group]
        found = sorted(set(labels) - {""}, key=lambda label: int(label[1:]))
        assert found == expected.get(part, []), part
        assert "" not in labels or part not in expected, part


def test_every_error_shows_its_number():
    """Of the tests of an error, a slip or a caution one at least notes a number for the ledger."""
    noted = set()
    for path in (ROOT / "tests").glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                called = (c.func for c in ast.walk(node) if isinstance(c, ast.Call))
                if any(isinstance(f, ast.Attribute) and f.attr == "number" for f in called):
                    noted.add(f"{path.stem}::{node.name}")
    for source, tests in book.markers().items():
        assert not label_of(source) or noted & set(tests), source


def test_a_statement_is_checked_or_has_a_reason():
    for options in ({}, {"checked": "a", "unchecked": "b"}):
        with pytest.raises(ValueError, match="either"):
            Statement("BRTW Lemma 0", "Nothing.", **options)


EXAMPLES = (
    Statement("BRTW Lemma 1", "A | B.", "Their difference."),
    Statement("BRTW Lemma 2", "C < D.", "Their order."),
    Statement("BRTW Lemma 3", "For almost all E.", unchecked="measure zero"),
    Statement("BRTW Lemma 4", "F.", "G."),
    Statement("BRTW Lemma 5", "H.", "A run."),
)
RESULTS = {
    "BRTW Lemma 1": [
        {"test": "tests/test_a.py::test_x[1]", "residual": 1e-9, "bound": 1.0},
        {"test": "tests/test_a.py::test_x[2]", "residual": 1e-9, "bound": 1e-8},
        {"test": "tests/test_b.py::test_y[a]", "numbers": {"stretch": [1.5, 1.5], "N": [2, 3]}},
        {"test": "tests/test_b.py::test_y[b]", "numbers": {"stretch": [1.5, 1.5], "N": [1, 1]}},
    ],
    "BRTW Lemma 2": [
        {"test": "tests/test_a.py::test_z", "outcome": "failed"},
        {"test": "tests/test_a.py::test_x"},
    ],
}
RESULTS = {k: [{"outcome": "passed", **run} for run in runs] for k, runs in RESULTS.items()}
VERDICTS = {
    "BRTW Lemma 5": [("The loss is 0.5.", "unfinished")],
    "BRTW Fig. 7": [("The rate is 0.04.", "holds"), ("It shrinks with d.", "fails")],
}


@pytest.fixture
def rows():
    return book.ledger(VERDICTS, results=RESULTS, statements=EXAMPLES)


def test_rows(rows):
    first = rows[0]
    assert (first.residual, first.bound) == (1e-9, 1e-8), "the one nearest to its bound"
    assert first.seen == "1e-09 ≤ 1e-08"
    assert first.by == ("test_a.py::test_x ×2", "test_b.py::test_y ×2")
    assert first.numbers == {"stretch": (1.5, 1.5), "N": (1, 3)}
    verdicts = [row.verdict for row in rows]
    assert verdicts == ["holds", "fails", "unchecked", "nothing", "unfinished", "holds", "fails"]
    assert rows[2].reason == "measure zero"
    assert rows[4].by == ("experiment",)
    assert [row.part for row in rows[5:]] == ["Experiments"] * 2
    assert book.missing(rows) == ["BRTW Lemma 4"]
    assert book.failures(rows) == ["BRTW Lemma 2", "BRTW Fig. 7"]


def test_claims_of_experiments():
    """What is known to be wrong must fail; a statement does not fail with it."""

    def claim(holds, wrong="", whose="paper"):
        return SimpleNamespace(
            whose=whose,
            source="BRTW Lemma 1",
            statement="A",
            measured="1",
            holds=holds,
            wrong=wrong,
        )

    for claims, verdict in (
        ([claim(True)], "holds"),
        ([claim(None), claim(True)], "unfinished"),
        ([claim(True), claim(False)], "fails"),
        ([claim(False, "erratum")], "refuted"),
        ([claim(True), claim(False, "erratum")], "holds"),
        ([claim(True, "erratum")], "fails"),
    ):
        gathered = book.gathered(claims)
        (row,) = book.ledger(gathered, results={}, statements=EXAMPLES[:1])
        assert (row.verdict, row.by) == (verdict, ("experiment",))
        assert gathered["BRTW Lemma 1"][0][0] == "A: 1"
    # Ours decide no statement of a paper: they have rows of their own.
    gathered = book.gathered([claim(False, whose="ours"), claim(True)])
    paper, ours = book.ledger(gathered, results={}, statements=EXAMPLES[:1])
    assert (paper.part, paper.verdict) == ("BRTW", "holds")
    assert (ours.part, ours.source, ours.verdict) == ("Ours", "BRTW Lemma 1", "fails")


def test_a_residual_that_is_no_number_is_the_worst():
    runs = [
        {"test": "t", "outcome": "passed", "residual": 1.0, "bound": 0.0},
        {"test": "t", "outcome": "failed", "residual": float("nan"), "bound": 1.0},
    ]
    (row,) = book.ledger(results={"BRTW Lemma 1": runs}, statements=EXAMPLES[:1])
    assert row.residual != row.residual
    assert row.verdict == "fails"


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.verdicts = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if ("class", "verdict fails") in attrs:
            self.verdicts.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_renderings(rows):
    screen = ledger_text.text(rows)
    assert max(map(len, screen.splitlines())) <= 100
    assert "FAIL  BRTW Lemma 2" in screen
    assert "unchecked: measure zero" in screen
    assert "stretch: 1.5; N: 1 to 3" in screen
    table = ledger_text.markdown(rows)
    assert "| BRTW Lemma 1 | A \\| B. | Their difference. | test\\_a::test\\_x ×2, " in table
    assert "test\\_y ×2 | 1e-09 ≤ 1e-08; stretch: 1.5; N: 1 to 3 | ? | holds |" in table
    lines = [line.replace("\\|", "") for line in table.splitlines() if "|" in line]
    assert {line.count("|") for line in lines} == {8}
    parser = Tags()
    parser.feed(ledger_text.fragment(rows))
    assert parser.open == []
    assert parser.verdicts == ["td", "td"]
    assert "C &lt; D." in ledger_text.fragment(rows)
    told = ledger_text.summary(rows)
    assert "5 rows: 1 holds, 1 fails, 1 unfinished, 1 unchecked, 1 nothing." in told
    labelled = [book.Row("Errors", f"HLZ Lemma {n}, E{n}", "A.", "B.") for n in (1, 2, 2)]
    assert "(E1, E2): 3 rows: 3 nothing." in ledger_text.summary(labelled)
    assert "nor a reason: BRTW Lemma 4." in told


def mutated(caught, of):
    numbers = {"mutations": [of, of], "mutations caught": [caught, caught]}
    return [{"test": "t", "outcome": "passed", "numbers": numbers}]


def test_mutations_are_counted_where_they_were_run(rows):
    """A row counts if every mutation of it failed it, and there was one."""
    assert [row.caught for row in rows] == ["?", "?", "", "", "", "", ""]
    assert "type python scripts/reproduce.py mutations" in ledger_text.summary(rows)
    for first, second, told in (
        ((2, 2), (1, 1), "2 of 2 rows fail whenever what stands behind them is broken: 3 of 3"),
        ((2, 2), (0, 1), "1 of 2 rows fail whenever what stands behind them is broken: 2 of 3"),
        ((1, 2), (1, 1), "1 of 2 rows fail whenever what stands behind them is broken: 2 of 3"),
        ((2, 2), None, "1 of 2 rows fail whenever what stands behind them is broken: 2 of 2"),
    ):
        runs = {"BRTW Lemma 1": mutated(*first)}
        if second is not None:
            runs["BRTW Lemma 2"] = mutated(*second)
        found = book.ledger(results=RESULTS, mutated=runs, statements=EXAMPLES)
        assert found[0].caught == f"{first[0]} of {first[1]}"
        summary = ledger_text.summary(found)
        assert told in summary
        none = second is None or second[0] == 0
        assert ("No mutation makes these fail: BRTW Lemma 2." in summary) == none
    assert "2 of 2" in ledger_text.text(found)
    assert max(map(len, ledger_text.text(found).splitlines())) <= 100
    assert "<td>2 of 2</td>" in ledger_text.fragment(found)


def test_results_are_kept_until_a_source_changes(tmp_path, monkeypatch):
    file, calls = tmp_path / "kept" / "ledger.json", []

    def pytest_run(command, **options):
        calls.append(command)
        target = next(word for word in command if word.startswith("--ledger="))
        Path(target.removeprefix("--ledger=")).write_text(json.dumps(RESULTS))
        return type("Done", (), {"returncode": 0, "stdout": "abc\n"})()

    monkeypatch.setattr(book, "commit", lambda: "abc")
    monkeypatch.setattr(book.subprocess, "run", pytest_run)
    assert book.run_tests(file) == book.run_tests(file) == RESULTS
    assert len(calls) == 1
    book.run_tests(file, fresh=True)
    assert book.run_mutations(tmp_path / "other.json") == RESULTS
    assert calls.pop()[-4:-1] == ["-m", "slow", "tests/test_mutations.py"]
    monkeypatch.setattr(book, "SELECTION", "another")
    book.run_tests(file)
    assert len(calls) == 3
    monkeypatch.setattr(
        book.subprocess, "run", lambda *a, **k: type("Done", (), {"returncode": 2})()
    )
    with pytest.raises(book.NoLedger, match="did not run to their end"):
        book.run_tests(file, fresh=True)
    monkeypatch.setattr(book, "NEEDS", ("pytest", "no_such_module"))
    with pytest.raises(book.NoLedger, match=r"need no_such_module: type pip install .*\[test\]"):
        book.run_tests(file, fresh=True)


def test_exit_status(monkeypatch, capsys):
    monkeypatch.setattr(book, "run_tests", lambda fresh: {})
    monkeypatch.setattr(book, "run_mutations", lambda fresh: {"BRTW Lemma 7": mutated(1, 1)})
    assert ledger_text.show(mutate=True) == 0
    assert "1 of 1" in capsys.readouterr().out
    assert ledger_text.show() == 0
    out = capsys.readouterr().out
    assert "nor a reason: BRTW Definition 1" in out
    monkeypatch.setattr(book, "run_tests", lambda fresh: {"BRTW Lemma 7": RESULTS["BRTW Lemma 2"]})
    assert ledger_text.show() == 1


MARKED = """
import pytest

@pytest.mark.statement("A")
@pytest.mark.statement("B")
@pytest.mark.parametrize("n", [1, 2])
def test_two(seen, n):
    seen(1e-3 * n, 1.0)
    seen.of("B")(-0.5, 1.0)
    seen.number("N", n)

@pytest.mark.statement("A")
def test_false(seen):
    seen(2.0, 1.0)

def test_unmarked():
    pass
"""


def test_the_option_writes_what_was_seen(tmp_path):
    """With a worker, from which the reports travel."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_marked.py").write_text(MARKED)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    statement(name): a statement\n")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", "--ledger=out/ledger.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    written = json.loads((tmp_path / "out" / "ledger.json").read_text())
    false, one, two = written["A"]
    assert (false["outcome"], false["residual"], false["bound"]) == ("failed", 2.0, 1.0)
    assert (one["outcome"], one["residual"]) == ("passed", 1e-3)
    assert two["numbers"] == {"N": [2.0, 2.0]}
    assert two["test"] == "test_marked.py::test_two[2]"
    assert [run["residual"] for run in written["B"]] == [0.5, 0.5]
    assert set(written) == {"A", "B"}


def test_the_fixture_keeps_the_comparison_nearest_to_its_bound(request, seen):
    seen(1e-3, 1.0)
    seen(-1e-9, 1e-8)
    seen.ratio(2.0, 2.0 + 1e-12, rel=1e-9)
    seen.number("N", 2)
    seen.number("N", 1)
    seen.of("BRTW Lemma 1", "BRTW Lemma 2")(0.5, 1.0)
    notes = dict(request.node.user_properties)["seen"]
    assert notes[""] == {"residual": 1e-9, "bound": 1e-8, "numbers": {"N": [1.0, 2.0]}}
    assert notes["BRTW Lemma 1"] == notes["BRTW Lemma 2"] == {"residual": 0.5, "bound": 1.0}
    for wrong in (
        lambda: seen(-2.0, 1.0),
        lambda: seen(float("nan"), 1.0),
        lambda: seen.below(1.0, 1.0),
        lambda: seen.at_most(1.1, 1.0),
        lambda: seen.ratio(1.1, 1.0, rel=0.01),
    ):
        with pytest.raises(AssertionError):
            wrong()
