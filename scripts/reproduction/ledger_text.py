"""The ledger's rows as a table on the screen, in Markdown and in HTML."""

from __future__ import annotations

import html
import sys
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby, zip_longest

from reproduction.ledger import NoLedger, Row, Verdicts, failures, ledger, missing
from reproduction.statement import label_of

TITLES = {
    "BRTW": "Bah, Rauhut, Terstiege, Westdickenberg (2020)",
    "HLZ": "Hou, Li, Zhang (2021)",
    "Errors": "Errors of the papers (a row holds if the paper is wrong in this way)",
    "Slips": "Slips of the pen (a row holds if the reading that it gives is right)",
    "Cautions": "Our own cautions, no errors: the papers are right, or silent",
    "Experiments": "The papers' claims on their figures",
    "Ours": "Our own claims on their figures",
}
# Columns of the screen: name and width, 100 characters with the spaces between them.
SCREEN = (
    ("", 4),
    ("statement", 19),
    ("says", 31),
    ("seen ≤ bound", 17),
    ("by", 13),
    ("caught", 6),
)
MARKS = {
    "holds": "ok",
    "fails": "FAIL",
    "refuted": "no",
    "unfinished": "...",
    "unchecked": "-",
    "nothing": "??",
}
HEADERS = (
    "Statement",
    "It says",
    "We check",
    "By",
    "Seen ≤ bound",
    "Mutations caught",
    "Verdict",
)


def parts(rows: Iterable[Row]) -> Iterable[tuple[str, list[Row]]]:
    for part, group in groupby(rows, key=lambda row: row.part):
        yield TITLES.get(part, part), list(group)


def text(rows: Iterable[Row]) -> str:
    """A table of 100 columns."""
    lines = []
    for title, group in parts(rows):
        lines += [title, "-" * 100, _line(name for name, _ in SCREEN), "-" * 100]
        for row in group:
            cells = [MARKS[row.verdict], row.source, row.says, row.seen, _short(row), row.caught]
            wrapped = [
                textwrap.wrap(cell, width, break_long_words=True)
                for cell, (_, width) in zip(cells, SCREEN, strict=True)
            ]
            lines += [_line(cells) for cells in zip_longest(*wrapped, fillvalue="")]
            notes = [row.numbers_text] if row.numbers else []
            notes += [f"unchecked: {row.reason}"] if row.verdict == "unchecked" else []
            for note in notes:
                lines += textwrap.wrap(note, 94, initial_indent=" " * 5, subsequent_indent=" " * 5)
        lines.append("")
    return "\n".join(lines).rstrip()


def _line(cells: Iterable[str]) -> str:
    padded = (
        cell + " " * (width - sum(not unicodedata.combining(c) for c in cell))
        for cell, (_, width) in zip(cells, SCREEN, strict=True)
    )
    return "  ".join(padded).rstrip()


def _short(row: Row) -> str:
    """The files of the tests with the number of tests in each."""
    stems = (name.partition(".py::")[0].removeprefix("test_") for name in row.by)
    files = Counter(stem.replace("_", " ") for stem in stems)  # with spaces, to wrap
    return ", ".join(f"{file} ×{n}" if n > 1 else file for file, n in files.items())


def _cells(row: Row) -> Sequence[str]:
    seen = "; ".join(part for part in (row.seen, row.numbers_text) if part)
    check = f"not checked: {row.reason}" if row.verdict == "unchecked" else row.checked
    by = ", ".join(name.replace(".py::", "::") for name in row.by)
    return row.source, row.says, check, by, seen, row.caught, row.verdict


def markdown(rows: Iterable[Row]) -> str:
    """A table for every part, with a heading of the third level."""
    lines = []
    for title, group in parts(rows):
        lines += [f"### {title}", "", f"| {' | '.join(HEADERS)} |", "|---" * len(HEADERS) + "|"]
        for row in group:
            cells = [_escaped(cell) for cell in _cells(row)]
            cells[-1] = f"**{cells[-1]}**" if row.verdict in ("fails", "nothing") else cells[-1]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _escaped(cell: str) -> str:
    """Without the characters that Markdown would read as its own."""
    for character in "\\|*_<":
        cell = cell.replace(character, "\\" + character)
    return cell


def fragment(rows: Iterable[Row]) -> str:
    """HTML: for every part an <h3> and a table, which may scroll; verdicts have their own class."""
    lines = []
    for title, group in parts(rows):
        lines += [f"<h3>{html.escape(title)}</h3>", '<div class="scroll">']
        lines += ['<table class="ledger">', "<thead><tr>"]
        lines += [f"<th>{header}</th>" for header in HEADERS]
        lines += ["</tr></thead>", "<tbody>"]
        for row in group:
            *cells, verdict = (html.escape(cell) for cell in _cells(row))
            told = "".join(f"<td>{cell}</td>" for cell in cells)
            lines.append(f'<tr>{told}<td class="verdict {verdict}">{verdict}</td></tr>')
        lines += ["</tbody>", "</table>", "</div>"]
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """How many statements hold in each part, and the numbers of those that have nothing."""
    lines = []
    for title, group in parts(rows):
        counts = Counter(row.verdict for row in group)
        told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in MARKS if counts[verdict])
        labels = dict.fromkeys(label for row in group if (label := label_of(row.source)))
        listed = f" ({', '.join(labels)})" if labels else ""
        lines.append(f"{title}{listed}: {len(group)} rows: {told}.")
    for names, sentence in (
        (failures(rows), "These fail"),
        (missing(rows), "These have neither a test, nor an experiment, nor a reason"),
    ):
        if names:
            lines.append(f"{sentence}: {', '.join(names)}.")
    lines += _mutations(rows)
    if not missing(rows):
        lines.append("Every number has a test, an experiment or a reason why it has none.")
    lines.append(
        "Statements on almost all starts, on all functions or on existence are held to examples:\n"
        "“holds” says that none of them contradicts."
    )
    return "\n".join(lines)


def _mutations(rows: Sequence[Row]) -> list[str]:
    """Whether the checks can fail: how many rows do when a formula behind them is broken."""
    tested = [row for row in rows if row.caught]
    tried = {row.source: row.mutations for row in tested if row.mutations is not None}
    if not tried:
        told = "Mutations are not run at these sources: type python scripts/reproduce.py mutations."
        return [told] if tested else []
    caught, of = (sum(counts) for counts in zip(*tried.values(), strict=True))
    rows_caught = sum(a == b > 0 for a, b in tried.values())
    told = f"{rows_caught} of {len(tested)} rows fail whenever what stands behind them is broken: "
    lines = [f"{told}{caught} of {of} mutations caught."]
    if missed := [row.source for row in tested if tried.get(row.source, (0, 1))[0] == 0]:
        lines.append(f"No mutation makes these fail: {', '.join(missed)}.")
    return lines


def show(verdicts: Verdicts | None = None, *, fresh: bool = False, mutate: bool = False) -> int:
    """Prints the ledger; 1 if a statement fails, 2 if it could not be made."""
    try:
        rows = ledger(verdicts, fresh=fresh, mutate=mutate)
    except NoLedger as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text(rows))
    print()
    print(summary(rows))
    return 1 if failures(rows) else 0
