"""Docstrings cite in one spelling, numbers and keys that exist; the index of them is up to date."""

from pathlib import Path

import index
import pytest
from reproduction.equations import EQUATIONS, LOCATOR, known
from runner import ROOT

FILES = sorted((ROOT / "deeplin").rglob("*.py"))


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_every_locator_exists(path):
    locators = known()
    assert [found for found in index.citations(path) if found[0] not in locators] == []


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_papers_are_cited_in_one_spelling(path):
    assert index.misspelt(path) == []


def test_every_key_is_in_the_bibliography_and_every_entry_is_used():
    listed = index.bibliography()
    used = {key for path in FILES for key in index.keys_of(path.read_text())}
    assert len(set(listed)) == len(listed)
    assert listed == sorted(listed, key=str.lower)
    assert used == set(listed)


def test_the_index_is_up_to_date():
    """After a change of docstrings: python scripts/index.py --write."""
    assert index.FILE.read_text() == index.index()


def test_the_lists_of_the_papers_are_whole():
    """BRTW has 53 numbered equations, HLZ 4 and two with names; every statement is a locator."""
    assert [key for key in EQUATIONS if key.startswith("BRTW")] == [
        f"BRTW ({i})" for i in range(1, 54)
    ]
    assert len(EQUATIONS) == 59
    assert all(LOCATOR.fullmatch(key) for key in known())
    assert {
        "BRTW Prop. 32",
        "BRTW Prop. 32(1)",
        "HLZ Lemma 2.1(3)",
        "HLZ Fig. 3d",
    } <= known().keys()


EXAMPLE = '''"""After BRTW (8)."""

class A:
    """Source: BRTW Prop. 32(1), HLZ
    Lemma 3.8 and HLZ (DLRA*); BRTW (99)."""

    def f(self):
        # As in BRTW
        # §7.1.1.
        pass
'''


def test_citations_are_found_where_they_stand(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text(EXAMPLE)
    assert index.citations(tmp_path / "a.py") == [
        ("BRTW (8)", "a"),
        ("BRTW Prop. 32(1)", "a.A"),
        ("HLZ Lemma 3.8", "a.A"),
        ("HLZ (DLRA*)", "a.A"),
        ("BRTW (99)", "a.A"),
        ("BRTW §7.1.1", "a.A.f"),
    ]
    assert "BRTW (99)" not in known()
    assert index.misspelt(tmp_path / "a.py") == []


@pytest.mark.parametrize(
    "text",
    [
        "the curve of Prop. 33 through",
        "Source: BRTW (25), (26).",
        "BRTW Proposition 32",
        "HLZ Def. 2.3",
        "Source: BRTW, proof of BRTW Prop. 12.",
        "Source: HLZ (1), Lemma 2.6",
        "Koch, Lubich 2007 (coordinates)",
        "after Saxe (2014)",
    ],
)
def test_other_spellings_are_found(tmp_path, text):
    (tmp_path / "a.py").write_text(f'"""{"x " * 20}{text}"""\n')
    assert len(index.misspelt(tmp_path / "a.py")) == 1
