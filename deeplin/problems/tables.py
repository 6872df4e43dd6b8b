"""Tables as people have them: columns of numbers and of words by name, with cells missing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.problems.memory import ask_for_memory

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "Encoding",
    "Labels",
    "Mixed",
    "Table",
    "as_number",
    "distinct",
    "no_column",
    "numbered",
    "short",
]

Labels = int | str | Sequence[str]
# Which columns, by position and name, may hold words and numbers.
Mixed = Callable[[int, str], bool]

# What pandas.read_csv takes for missing.
_MISSING = frozenset(
    (
        "",
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "-NaN",
        "-nan",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "None",
        "n/a",
        "nan",
        "null",
    ),
)
_DECIMAL_COMMA = re.compile(r"[-+]?\d+[,;]\d+")
_CELL = 20  # characters of a cell that a message shows at most


def numbered(name: str, p: int) -> tuple[str, ...]:
    """Names of columns that have none: x1, x2, …"""
    return tuple(f"{name}{i}" for i in range(1, p + 1))


def no_column(position: int, name: str) -> bool:
    """`Mixed` of tables whose columns are of one kind each."""
    return False


def short(cell: str) -> str:
    """A cell as a message shows it."""
    return cell if len(cell) <= _CELL else f"{cell[:_CELL]}…"


def as_number(cell: str) -> float | None:
    """The number that a cell holds, NaN where it is missing; None for a word."""
    cell = cell.strip()
    if cell in _MISSING:
        return math.nan
    try:
        number = float(cell)
    except ValueError:
        return None
    return None if "_" in cell else number  # 1_000 is a number to Python alone


@dataclass(frozen=True)
class Table:
    """Columns by their names, in order: numbers, NaN where one is missing, and words, None there.

    `words` holds the columns of words; `numbers` (m, p) the others, in their order. `lines` are
    those of the file `source`, for messages.
    """

    names: tuple[str, ...]
    numbers: Float[Tensor, "m p"]
    words: Mapping[str, np.ndarray]
    source: str
    lines: Sequence[int] | None = None

    @classmethod
    def of_cells(
        cls,
        names: Sequence[str],
        columns: Sequence[Sequence[object]],
        source: str,
        lines: Sequence[int] | None = None,
        mixed: Mixed = no_column,
    ) -> Table:
        """Columns of numbers where all cells are that or missing, of words where none is a number.

        - `mixed`: which columns, by position and name, are of words where some cells are numbers

        Raises: ValueError, naming column and row, for a column with both.
        """
        whole = cls(tuple(names), torch.empty(len(columns[0]), 0), {}, source, lines)
        numbers, words = [], {}
        for i, (name, cells) in enumerate(zip(names, columns, strict=True)):
            found = [as_number(c) if isinstance(c, str) else _plain(c) for c in cells]
            if None not in found:
                numbers.append(np.array(found, dtype=float))
                continue
            one = next(row for row, number in enumerate(found) if number is None)
            if mixed(i, name):
                kept = [None if c is None or str(c).strip() == "" else str(c) for c in cells]
                words[name] = np.array(kept, dtype=object)
                continue
            if any(number is not None and not math.isnan(number) for number in found):
                raise ValueError(
                    f"{whole.place(name, one)} must be a number, as others of its column are; it "
                    f"is {short(str(cells[one]))!r}."
                )
            if _DECIMAL_COMMA.fullmatch(str(cells[one]).strip()):
                raise ValueError(
                    f"{whole.place(name, one)} must be a number or a word; it is "
                    f"{short(str(cells[one]))!r}: write decimal points, or give the character "
                    "between cells as problem.separator."
                )
            pairs = zip(found, cells, strict=True)
            kept = [None if number is not None else str(cell) for number, cell in pairs]
            words[name] = np.array(kept, dtype=object)
        stacked = np.stack(numbers, 1) if numbers else np.empty((len(columns[0]), 0))
        return replace(whole, numbers=torch.from_numpy(stacked), words=words)

    @classmethod
    def of_numbers(cls, name: str, numbers: Tensor, source: str) -> Table:
        """A table of numbers whose columns have no names."""
        return cls(numbered(name, numbers.shape[1]), numbers, {}, source)

    @classmethod
    def of_frame(
        cls, frame: DataFrame, source: str = "the table", mixed: Mixed = no_column
    ) -> Table:
        """A pandas table, `mixed` as in `of_cells`.

        Raises: ValueError for columns of times and other kinds of cells.
        """
        names, columns = [str(name) for name in frame.columns], []
        numeric = {}
        for i, name in enumerate(names):
            column = frame.iloc[:, i]
            if column.dtype.kind in "biuf" or str(column.dtype) in _NULLABLE:
                values = column.to_numpy(dtype=float, na_value=np.nan)
                numeric[name] = values
                columns.append(values)
            elif column.dtype.kind in "OTU" or str(column.dtype) in ("str", "string", "category"):
                columns.append([None if c is None or c != c else c for c in column.tolist()])
            else:
                raise ValueError(
                    f"column {name!r} of {source} must hold numbers or words; it holds "
                    f"{column.dtype}: convert it, or leave it out."
                )
        if len(numeric) == len(names) and names:
            stacked = np.stack(columns, 1)
            return cls(distinct(names), torch.from_numpy(stacked), {}, source)
        return cls.of_cells(distinct(names), columns, source, mixed=mixed)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def numeric(self) -> tuple[str, ...]:
        """The names of the columns of numbers."""
        return tuple(name for name in self.names if name not in self.words)

    def place(self, name: str, row: int) -> str:
        """Where a cell is, for a message."""
        where = f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"
        return f"column {name!r}, {where} of {self.source},"

    def chosen(self, names: Sequence[str]) -> Table:
        """Some of the columns, in the order given. Raises: ValueError for names of none."""
        for name in names:
            if name not in self.names:
                near = get_close_matches(name, self.names, n=3) or self.names[:5]
                raise ValueError(
                    f"{self.source} has no column {name!r}; near are {', '.join(map(repr, near))}."
                )
        at = {name: i for i, name in enumerate(self.numeric)}
        kept = [at[name] for name in names if name in at]
        return replace(
            self,
            names=tuple(names),
            numbers=self.numbers if kept == list(range(len(at))) else self.numbers[:, kept],
            words={name: self.words[name] for name in names if name in self.words},
        )

    def rows(self, mask: np.ndarray) -> Table:
        """The rows where `mask` is true."""
        lines = self.lines
        if lines is not None:
            lines = [line for line, kept in zip(lines, mask, strict=True) if kept]
        words = {name: cells[mask] for name, cells in self.words.items()}
        return replace(self, numbers=self.numbers[torch.from_numpy(mask)], words=words, lines=lines)

    def without_index(self) -> tuple[Table, str | None]:
        """Without a first column that has no name and counts the rows, as pandas writes it."""
        first = self.names[0] if self.names else ""
        unnamed = first.strip() == "" or first.startswith(("Unnamed: 0", "__index_level_0"))
        if not unnamed or first in self.words or len(self.names) < 2 or len(self) < 2:
            return self, None
        count = torch.arange(len(self)).to(self.numbers)
        if not torch.equal(self.numbers[:, 0], count):
            return self, None
        return self.chosen(self.names[1:]), "its first column, which counts the rows, left out"

    def split(self, labels: Labels) -> tuple[Table, Table | None]:
        """(x, y): the columns that are labels, so many last ones or those of these names, apart.

        Raises: ValueError where they are none of the table's, or leave none for x.
        """
        if isinstance(labels, int):
            if labels == 0:
                return self, None
            if not 0 < labels < len(self.names):
                raise ValueError(
                    "problem.labels must leave columns for x: 0 <= labels < "
                    f"{len(self.names)} for {self.source}; got {labels}."
                )
            chosen = self.names[-labels:]
        else:
            chosen = [labels] if isinstance(labels, str) else list(labels)
        y = self.chosen(chosen)
        x = self.chosen([name for name in self.names if name not in chosen])
        if not x.names:
            raise ValueError(f"problem.labels must leave columns for x; it names all: {chosen}.")
        return x, y

    def with_categories(self, names: Sequence[str]) -> Table:
        """The columns of these names as words, also where they hold whole numbers."""
        words = dict(self.words)
        at = {name: i for i, name in enumerate(self.numeric)}
        for name in names:
            if name not in at:
                continue
            column = self.numbers[:, at[name]].double()
            if bool((column.isfinite() & (column != column.round())).any()):
                raise ValueError(
                    f"problem.categories may name columns of words or whole numbers; {name!r} of "
                    f"{self.source} holds others."
                )
            words[name] = np.array([None if v != v else int(v) for v in column.tolist()], object)
        kept = [i for name, i in at.items() if name not in names]
        return replace(self, numbers=self.numbers[:, kept], words=words)

    def missing(self) -> tuple[np.ndarray, str | None]:
        """(which rows miss a cell, where the first such cell is)."""
        mask = self.numbers.isnan().any(1).numpy(force=True)
        for cells in self.words.values():
            mask = mask | np.array([cell is None for cell in cells])
        if not mask.any():
            return mask, None
        row = int(mask.argmax())
        empty = [name for name, cells in self.words.items() if cells[row] is None]
        nans = self.numbers[row].isnan().tolist()
        empty += [name for name, nan in zip(self.numeric, nans, strict=True) if nan]
        return mask, self.place(min(empty, key=self.names.index), row)


_NULLABLE = (
    *("boolean", "Float32", "Float64"),
    *(f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)),
)


def _plain(cell: object) -> float | None:
    """The number of a cell that is no text, NaN for one that is missing; None for anything else."""
    if cell is None:
        return math.nan
    return float(cell) if isinstance(cell, (bool, int, float, np.number)) else None


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names made distinct as pandas does: a, a.1, a.2."""
    made: list[str] = []
    for name in names:
        count, new = 0, name
        while new in made:
            count += 1
            new = f"{name}.{count}"
        made.append(new)
    return tuple(made)


@dataclass(frozen=True)
class Encoding:
    """How columns become numbers: those of words as one column for each category (one-hot).

    `categories` holds those of each column of words, in order; `first` says that the first has a
    column, too (without it they would add up to a constant, and XXᵀ be singular).
    """

    columns: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...] | tuple[int, ...]]
    first: bool

    @classmethod
    def of(cls, table: Table, *, first: bool) -> Encoding:
        """That of a table's columns. Raises: ValueError for a column of words without any."""
        found = {}
        for name, cells in table.words.items():
            kinds = sorted({cell for cell in cells if cell is not None})
            if not kinds:
                raise ValueError(f"column {name!r} of {table.source} is empty: leave it out.")
            found[name] = tuple(kinds)
        return cls(table.names, found, first)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are made: numbers first, then name=category."""
        numbers = [name for name in self.columns if name not in self.categories]
        start = 0 if self.first else 1
        words = [f"{n}={kind}" for n, kinds in self.categories.items() for kind in kinds[start:]]
        return (*numbers, *words)

    def __call__(self, table: Table) -> Float[Tensor, "m p"]:
        """The numbers of a table with these columns, whatever others it has.

        Where a word is missing its columns are NaN.

        Raises: ValueError, naming column and row, for a word that is no category, and for numbers
            where there were words.
        """
        table = table.chosen(self.columns).with_categories(
            [n for n, kinds in self.categories.items() if isinstance(kinds[0], int)]
        )
        if set(table.words) != set(self.categories):
            name = next(iter(set(table.words) ^ set(self.categories)))
            was, now = ("words", "numbers") if name in self.categories else ("numbers", "words")
            raise ValueError(f"column {name!r} of {table.source} must hold {was}; it holds {now}.")
        if not self.categories:
            return table.numbers
        from sklearn.preprocessing import OneHotEncoder  # slow to import, and needed here alone

        blocks = [table.numbers.double()]
        for name, kinds in self.categories.items():
            cells = table.words[name]
            known = np.array([cell is None or cell in kinds for cell in cells])
            if not known.all():
                row = int((~known).argmax())
                raise ValueError(
                    f"{table.place(name, row)} must be one of {', '.join(map(str, kinds[:8]))}"
                    f"{', …' if len(kinds) > 8 else ''}; it is {short(str(cells[row]))!r}."
                )
            size = len(table) * len(kinds) * 8
            ask_for_memory(f"a column for each of {len(kinds)} categories of {name!r}", size)
            drop = None if self.first else "first"
            encoder = OneHotEncoder(
                categories=[list(kinds)],  # pyright: ignore[reportArgumentType]
                drop=drop,
                sparse_output=False,
            )
            empty = np.array([cell is None for cell in cells])
            whole = np.where(empty, kinds[0], cells).astype(object)
            made = torch.from_numpy(encoder.fit_transform(whole[:, None]))
            made[torch.from_numpy(empty)] = math.nan
            blocks.append(made)
        return torch.cat(blocks, 1)

    def state_dict(self) -> dict[str, object]:
        kinds = {name: list(found) for name, found in self.categories.items()}
        return {"columns": list(self.columns), "categories": kinds, "first": self.first}

    @classmethod
    def from_state_dict(cls, saved: Mapping[str, object]) -> Encoding:
        columns, kinds = saved["columns"], saved["categories"]
        assert isinstance(columns, list)
        assert isinstance(kinds, dict)
        found = {str(name): tuple(of) for name, of in kinds.items()}
        return cls(tuple(columns), found, bool(saved["first"]))
