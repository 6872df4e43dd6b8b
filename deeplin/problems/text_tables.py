"""Tables of text: what stands between the cells, what is a header, what is in the columns."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from deeplin.problems.memory import ask_for_memory
from deeplin.problems.tables import Mixed, Table, as_number, distinct, no_column, numbered

if TYPE_CHECKING:
    from _csv import Reader

__all__ = ["read_text"]

_SEPARATORS = ",;\t|"
_LOOKED_AT = 20  # lines, for what separates their cells


def read_text(
    path: Path, separator: str | None = None, mixed: Mixed = no_column
) -> tuple[Table, tuple[str, ...]]:
    """The table of a text file, and the cells of its header line, () where it has none.

    The first line that is not blank is a header where none of its cells is a number, and one that
    is missing at most where the column has no name. Cells are separated by `separator`, by default
    by that of comma, semicolon, tab and bar for which most cells of the first lines are numbers.
    `mixed` as in `Table.of_cells`.

    Cost: numpy's reader where all cells are numbers, else that of Python and 100 ns a cell.
    Raises: ValueError with line and column for what is no table.
    """
    ask_for_memory(f"reading {path}", path.stat().st_size)
    try:
        mark = separator or _separator(path)
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, delimiter=mark)
            skipped, first = _next_row(rows)
            header = any(map(str.strip, first)) and not any(map(_is_number, first))
            row = first
            if header:
                skipped, row = _next_row(rows)
            if not row:
                raise csv.Error("it has no sample")
        names = distinct(first) if header else numbered("x", len(first))
        table = _of_numbers(path, mark, skipped, names)
        table = table or _of_cells(path, mark, skipped, names, mixed)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8; {error.reason} in it.") from error
    except csv.Error as error:
        raise ValueError(f"{path} must hold a sample per line; {error}.") from error
    return table, tuple(first) if header else ()


def _separator(path: Path) -> str:
    """The one by which all first lines have equally many cells, and most of them are numbers."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = list(itertools.islice(filter(str.strip, file), _LOOKED_AT))
    found, most = ",", 0
    for mark in _SEPARATORS:
        try:
            rows = [row for row in csv.reader(lines, delimiter=mark) if row]
        except csv.Error:
            continue
        width = len(rows[-1]) if rows else 0
        numbers = sum(as_number(cell) is not None for row in rows for cell in row)
        count = 1 + numbers if width > 1 and all(len(row) == width for row in rows) else 0
        if count > most:
            found, most = mark, count
    return found


def _is_number(cell: str) -> bool:
    return bool(cell.strip()) and as_number(cell) is not None


def _next_row(rows: Reader) -> tuple[int, list[str]]:
    """(the number of lines before the next one that is not blank, its cells); [] at the end."""
    before = rows.line_num
    for cells in rows:
        if len(cells) > 1 or any(map(str.strip, cells)):
            return before, cells
        before = rows.line_num
    return before, []


def _of_numbers(path: Path, mark: str, skipped: int, names: tuple[str, ...]) -> Table | None:
    """A table of nothing but numbers; None where it is another."""
    try:
        # Of numpy's own only quotes are left, no comments; a byte order mark is none of the text.
        numbers = np.loadtxt(
            path, delimiter=mark, comments=None, quotechar='"', encoding="utf-8-sig",
            skiprows=skipped, ndmin=2,
        )  # fmt: skip
    except (ValueError, MemoryError):
        return None
    if np.isnan(numbers).any() or numbers.shape[1] != len(names):
        return None
    return Table(names, torch.from_numpy(numbers), {}, str(path))


def _of_cells(path: Path, mark: str, skipped: int, names: tuple[str, ...], mixed: Mixed) -> Table:
    """A table of any cells."""
    lines, rows = [], []
    for line, cells in _cells(path, mark, skipped):
        if len(cells) != len(names):
            of = "the header" if skipped and lines == [] else "the first line"
            raise csv.Error(
                f"line {line} has {len(cells)} cells, {of} {len(names)}, with {mark!r} between them"
            )
        if any("\0" in cell for cell in cells):
            cell = next(i for i, cell in enumerate(cells) if "\0" in cell)
            raise csv.Error(f"column {names[cell]!r}, line {line} has a zero byte")
        lines.append(line)
        rows.append(cells)
    return Table.of_cells(names, list(zip(*rows, strict=True)), str(path), lines, mixed)


def _cells(path: Path, mark: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every line below the header that is not blank."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, delimiter=mark)
        while rows.line_num < skipped:
            next(rows)
        for cells in rows:
            if len(cells) > 1 or any(map(str.strip, cells)):
                yield rows.line_num, cells
