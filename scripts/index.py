"""Where the code has what the papers number: the index from equations and statements to functions.

python scripts/index.py            prints it
python scripts/index.py --write    writes .github/INDEX.md

It is made from the docstrings and comments of deeplin/, which cite in one spelling, as in
`BRTW Prop. 32`, `BRTW (23)`, `HLZ Lemma 3.8`; other papers by the keys of CONTRIBUTING.md's list.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from reproduction.equations import LOCATOR, known

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / ".github" / "INDEX.md"
PACKAGE = ROOT / "deeplin"
PAGE = ROOT / ".github" / "CONTRIBUTING.md"

KEY = re.compile(r"\[([A-Z][A-Za-z]*[0-9]{2})\]")
_KIND = r"(?:Definition|Lemma|Theorem|Proposition|Prop\.|Remark|Corollary|Conjecture|Example|Fig\.)"
# What is not the one spelling: a number whose paper is not named in front of it, another word for
# its kind, and a year, which only the bibliography has.
_ALONE = re.compile(rf"(?<!BRTW )(?<!HLZ )(?<!\] )\b{_KIND}\s+[0-9A]")
_LISTED = re.compile(r"\s*(?:,|;|and|or|to|–|:)\s*\((?:[0-9]{1,2}|DLRA\*?)\)")
_OTHER = re.compile(
    r"\b(?:Def|Cor|Thm|Eq|Eqn|Sec|Conj|Rem)\.\s*[0-9(]|\bProposition [0-9]"
    r"|\b(?:BRTW|HLZ)(?:,|'s| section| equation| Section)\s*(?:§|\(|[0-9]|proof)"
)
_YEAR = re.compile(r"\b[A-Z][a-zéč]+,? \(?(?:19|20)[0-9]{2}\)?(?![0-9])")

TITLE = """# Index: what the papers number, and where it is

Written by `python scripts/index.py --write` from the docstrings of `deeplin/`. Papers:
[CONTRIBUTING.md](CONTRIBUTING.md#bibliography).
"""


def words_of(path: Path) -> str:
    """A file's text with its line breaks, the marks of comments left out."""
    return re.sub(r"^(\s*)# ?", r"\1", path.read_text(), flags=re.M)


def name_at(tree: ast.AST, line: int) -> str:
    """The dotted name of the innermost class or function around a line; empty at the top."""
    parts, node = [], tree
    while True:
        inner = (
            child
            for child in ast.walk(node)
            if isinstance(child, ast.FunctionDef | ast.ClassDef)
            and child is not node
            and child.lineno <= line <= (child.end_lineno or line)
        )
        found = next(inner, None)
        if found is None:
            return ".".join(parts)
        parts.append(found.name)
        node = found


def citations(path: Path) -> list[tuple[str, str]]:
    """(locator, the dotted name of what cites it), in the order of a file."""
    text, tree = words_of(path), ast.parse(path.read_text())
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    found = []
    for match in LOCATOR.finditer(text):
        inside = name_at(tree, text.count("\n", 0, match.start()) + 1)
        found.append((f"{match[1]} {' '.join(match[2].split())}", f"{module}.{inside}".strip(".")))
    return found


def misspelt(path: Path) -> list[str]:
    """The places of a file that cite in another spelling."""
    text = words_of(path)
    flat = re.sub(r"\s+", " ", text)
    found = [flat[m.start() - 20 : m.end() + 20] for m in _ALONE.finditer(flat)]
    found += [flat[m.start() : m.end() + 20] for m in _OTHER.finditer(flat)]
    found += [flat[m.start() - 30 : m.end() + 10] for m in _YEAR.finditer(flat)]
    for match in LOCATOR.finditer(flat):
        if _LISTED.match(flat, match.end()):
            found.append(flat[match.start() : match.end() + 20])
    return found


def keys_of(text: str) -> list[str]:
    """The keys of papers in a text, `[SSV98]`."""
    return KEY.findall(text)


def bibliography() -> list[str]:
    """The keys of CONTRIBUTING.md's list."""
    return re.findall(rf"^- {KEY.pattern}", PAGE.read_text().split("## Bibliography")[1], re.M)


def index() -> str:
    """The page: for each paper a table of what is cited, in the paper's order, and where."""
    places: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for locator, name in citations(path):
            places.setdefault(locator, []).append(name)
    lines = [TITLE]
    for paper in ("BRTW", "HLZ"):
        lines += [f"## {paper}", "", "| number | what it is | code |", "|---|---|---|"]
        for locator, says in known().items():
            if locator.startswith(f"{paper} ") and locator in places:
                names = ", ".join(f"`{name}`" for name in dict.fromkeys(places[locator]))
                escaped = says.replace("|", "\\|").replace("*", "\\*")
                lines.append(f"| {locator} | {escaped} | {names} |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write .github/INDEX.md")
    if parser.parse_args(arguments).write:
        FILE.write_text(index())
    else:
        print(index(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
