"""Files of triples (row, column, value): the known entries of a matrix."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from deeplin.problems.formats import read_file
from deeplin.problems.memory import ask_for_memory
from deeplin.problems.pairs import Labels
from deeplin.problems.tables import Table

__all__ = ["Triples", "read_triples"]

# Whole numbers are labels, not indices, where more than so many times as many are meant as occur.
_SPARSE = 2
_NAMES = ("row", "column", "value")
# What is in a row of the file, for a message: (name of a column, row from 0) -> words.
Place = Callable[[str, int], str]


@dataclass(frozen=True)
class Triples:
    """Known entries: values at (rows, cols) of a matrix, and what rows and columns are called.

    Shapes: rows, cols, values and weights (p,).
    """

    rows: Int[Tensor, " p"]
    cols: Int[Tensor, " p"]
    values: Float[Tensor, " p"]
    weights: Float[Tensor, " p"] | None
    labels: tuple[Labels, Labels]
    names: tuple[str, str, str]


def read_triples(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    weights: str | None = None,
    separator: str | None = None,
    codes: bool | str = "auto",
    duplicates: str = "error",
    shape: Sequence[int] | None = None,
) -> Triples:
    """The triples of one file.

    - `.csv`, `.tsv`, `.parquet`: a table, of which `columns` are row, column and value, by default
      the first three; `weights` a column of weights
    - `.npz`: arrays rows, cols, values and perhaps weights (p,), or of another name `weights`; or
      what scipy.sparse.save_npz writes, whose stored entries are known, zeros among them

    Words are coded: they are numbered in their order, and columns of words and numbers are words.
    Whole numbers are indices from 0, unless
    `codes` is true, or "auto" and more than twice as many are meant as occur; the indices of
    a file of scipy.sparse always are that. `shape` is that of the matrix; by default it ends at the
    last index. With duplicates = "keep" an entry that is listed twice counts twice.

    Raises: FileNotFoundError; ValueError, with one sentence that says where, for files that cannot
        be read, missing cells, values that are not finite, negative weights, indices that are
        negative, no whole numbers or outside the shape, entries listed twice, and files without an
        entry.
    """
    path = Path(path)
    if path.suffix == ".npz" and path.is_file() and (sparse := _sparse(path)) is not None:
        rows, cols, values, size = sparse
        given, names, place, codes = None, _NAMES, _numbered(path), False
        shape = size if shape is None else shape
    else:
        numbers = {weights} if columns is None else {weights, *columns[2:]}

        def mixed(position: int, name: str) -> bool:
            return name not in numbers and (columns is not None or position != 2)

        contents = read_file(path, separator, mixed)
        if contents.table is None:
            rows, cols, values, given = _arrays(path, contents.arrays, weights)
            names, place = _NAMES, _numbered(path)
        else:
            table, _ = contents.table.without_index()
            rows, cols, values, given, names = _columns(table, columns, weights)
            place = _of_table(table)
    if not len(values):
        raise ValueError(f"{path} must hold known entries; it holds none.")
    _check_numbers("value", values, place, lambda v: np.isfinite(v), "finite")
    if given is not None:
        _check_numbers(
            "weight", given, place, lambda v: np.isfinite(v) & (v >= 0), "finite and >= 0"
        )
    sizes = (None, None) if shape is None else tuple(shape)
    row_labels, i = _coded(names[0], rows, codes, sizes[0], place)
    col_labels, j = _coded(names[1], cols, codes, sizes[1], place)
    if duplicates == "error":
        _check_once(i, j, col_labels.size, (rows, cols), place)
    return Triples(
        i,
        j,
        torch.from_numpy(values.astype(float)),
        None if given is None else torch.from_numpy(given.astype(float)),
        (row_labels, col_labels),
        names,
    )


def _sparse(
    path: Path,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]] | None:
    """(rows, cols, values, shape) of what scipy.sparse has saved; None for another archive."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        if "format.npy" not in archive.namelist():
            return None
        size = sum(info.file_size for info in archive.infolist())
    ask_for_memory(f"reading {path}", 3 * size)
    from scipy.sparse import load_npz

    try:
        matrix = load_npz(path).tocoo()
    except Exception as error:  # numpy, zipfile and scipy raise many kinds for a damaged file
        raise ValueError(f"{path} cannot be read by scipy.sparse.load_npz: {error}") from error
    if matrix.data.dtype.kind not in "biuf":
        raise ValueError(f"{path} must hold real numbers; it holds {matrix.data.dtype}.")
    return matrix.row, matrix.col, matrix.data, matrix.shape


def _arrays(
    path: Path, arrays: dict[str, Tensor], weights: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """(rows, cols, values, weights) of an archive of arrays."""
    wanted = ["rows", "cols", "values", *([] if weights is None else [weights])]
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise ValueError(
            f"{path} must hold arrays rows, cols and values{f' and {weights}' if weights else ''}; "
            f"it holds {', '.join(sorted(arrays)) or 'nothing'}: numpy.savez('{path.name}', "
            "rows=rows, cols=cols, values=values) writes them."
        )
    found = [arrays[name] for name in wanted]
    if weights is None and "weights" in arrays:
        found.append(arrays["weights"])
    shapes = {tuple(array.shape) for array in found}
    if len(shapes) > 1 or any(array.ndim != 1 or array.is_complex() for array in found):
        told = ", ".join(str(tuple(array.shape)) for array in found)
        raise ValueError(
            f"the arrays in {path} must be real, of one dimension and equally long; got {told}."
        )
    rows, cols, values, *given = (array.numpy() for array in found)
    return rows, cols, values, given[0] if given else None


def _columns(
    table: Table, columns: Sequence[str] | None, weights: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, tuple[str, str, str]]:
    """(rows, cols, values, weights, names) of a table."""
    others = [name for name in table.names if name != weights]
    if columns is None and len(others) < 3:
        raise ValueError(
            f"{table.source} must have three columns, row, column and value; it has "
            f"{', '.join(table.names) or 'none'}."
        )
    chosen = list(others[:3] if columns is None else columns)
    if len(chosen) != 3:
        raise ValueError(
            "problem.columns must be three names, of row, column and value, such as "
            f"[user,item,rating]; got {chosen}."
        )
    part = table.chosen([*chosen, *([] if weights is None else [weights])])
    where = part.missing()[1]
    if where is not None:
        raise ValueError(f"{where} is missing: fill it in, or leave the row out of the file.")
    at = {name: i for i, name in enumerate(part.numeric)}

    def cells(name: str, *, words: bool) -> np.ndarray:
        if name in at:
            return part.numbers[:, at[name]].numpy(force=True)
        if not words:
            raise ValueError(f"column {name!r} of {part.source} must hold numbers; it holds words.")
        return part.words[name].astype(str)

    rows, cols = (cells(name, words=True) for name in chosen[:2])
    given = None if weights is None else cells(weights, words=False)
    row, column, value = chosen
    return rows, cols, cells(value, words=False), given, (row, column, value)


def _numbered(path: Path) -> Place:
    return lambda name, row: f"{name} {row + 1} of {path}"


def _of_table(table: Table) -> Place:
    return lambda name, row: table.place(name, row).removesuffix(",")


def _check_numbers(
    name: str,
    values: np.ndarray,
    place: Place,
    fits: Callable[[np.ndarray], np.ndarray],
    must: str,
) -> None:
    """Raise ValueError, which says where, unless all values fit."""
    bad = ~fits(values)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"{place(name, row)} must be {must}; it is {values[row]:g}: leave the row out of the "
            "file."
        )


def _coded(
    name: str, cells: np.ndarray, codes: bool | str, size: int | None, place: Place
) -> tuple[Labels, Int[Tensor, " p"]]:
    """What rows, or columns, are called, and the number of each cell."""
    if cells.dtype.kind == "U":
        return _of_size(name, *Labels.coded(cells), size)
    whole = np.isfinite(cells) & (cells == np.round(cells))
    if not whole.all():
        row = int((~whole).argmax())
        raise ValueError(
            f"{place(name, row)} must be a whole number, or a word as all of its column; it is "
            f"{cells[row]:g}."
        )
    index = cells.astype(np.int64)
    if codes is True:
        return _of_size(name, *Labels.coded(index), size)
    if index.min() < 0:
        row = int(index.argmin())
        raise ValueError(
            f"{place(name, row)} must be an index >= 0; it is {index[row]}: with "
            "problem.codes=true whole numbers are labels."
        )
    least = int(index.max()) + 1
    if codes == "auto" and size is None and least > _SPARSE * len(np.unique(index)):
        return Labels.coded(index)
    if size is not None and least > size:
        row = int(index.argmax())
        raise ValueError(
            f"{place(name, row)} must be an index below {size}, the size that problem.shape "
            f"gives; it is {index[row]}: with problem.shape=null the data decide."
        )
    return Labels(least if size is None else size), torch.from_numpy(index)


def _of_size(name: str, labels: Labels, numbers: Tensor, size: int | None) -> tuple[Labels, Tensor]:
    if size is not None and size != labels.size:
        raise ValueError(
            f"problem.shape must be null where {name} is coded, or have the {labels.size} labels "
            f"that there are; got {size}."
        )
    return labels, numbers


def _check_once(
    i: Tensor, j: Tensor, n: int, cells: tuple[np.ndarray, np.ndarray], place: Place
) -> None:
    """Raise ValueError, which says where, for an entry that is listed twice."""
    key, order = (i * n + j).sort(stable=True)
    twice = (key.diff() == 0).nonzero()
    if len(twice):
        at = int(twice[0])
        first, second = int(order[at]), int(order[at + 1])
        shown = [f"{of[first]:.0f}" if of.dtype.kind == "f" else of[first] for of in cells]
        raise ValueError(
            f"each entry must be listed once; ({shown[0]}, {shown[1]}) is in rows "
            f"{first + 1} and {second + 1}, and {len(twice)} are listed again in all: leave one "
            "out, or let each count with problem.duplicates=keep."
        )
