"""A user's own data: tables and files of samples, read whole or as a stream of shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor

from deeplin.problems.data import Data, prepare
from deeplin.problems.formats import Contents, read_file
from deeplin.problems.preparation import in_dtype
from deeplin.problems.streams import streamed
from deeplin.problems.tables import Encoding, Labels, Table

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["from_file", "from_frame", "is_pattern", "read_matrices"]

MISSING_CHOICES = ("error", "drop", "mean")
_FEW = 20  # whole numbers that look like classes


def from_file(
    path: str | Path | None,
    *,
    labels: Labels = 0,
    separator: str | None = None,
    missing: str = "error",
    categories: Sequence[str] = (),
    standardize: bool = True,
    normalize: bool = True,
    singular: str = "keep",
    test: float = 0.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    group: dist.ProcessGroup | None = None,
) -> Data:
    """A user's data: a sample per row, as an autoencoder or with labels.

    - `.npz`: array `x` (m, d_x), or the only array there; labels in `y` if it is there. `.npy`: x.
    - `.pt`: a tensor, or a dict with `x` and optionally `y`; read with weights_only=True.
    - `.csv`, `.tsv`: a table as `read_text` has it, cells between `separator`s; `.parquet`: by
      pandas. A first column without a name that counts the rows is no data.
    - a pattern such as `shards/*.npz`: files read one at a time in two passes, never all at once;
      with a `group` of torch.distributed by all its processes, each its share, all get the same.

    Where there is no `y`, the columns `labels` are the labels, so many last ones or those of these
    names; with labels = 0 the problem is an autoencoder. Columns of words become one-hot, those of
    x without their first category; so do whole numbers in the columns `categories`, and integer
    classes in one dimension. Rows where a cell is missing are an error, dropped, or, `missing` =
    "mean", have the mean of their column (labels never). `standardize`, `normalize` and `test` as
    in `deeplin.problems.data.prepare`, in the precision of the file.

    Raises: FileNotFoundError, or ValueError for other kinds of files, damaged ones, those larger
    than the memory, missing arrays, cells and columns, NaN, shapes, and for files of a pattern that
    do not fit each other.
    """
    if path is None:
        raise ValueError(
            "problem=file needs problem.path=<file>.csv, .tsv, .parquet, .npz, .npy or .pt, or a "
            "pattern of files."
        )
    path = Path(path)
    _check(missing)
    if is_pattern(path):
        if test:
            raise ValueError(
                f"problem.test={test:g} needs the samples in memory, not a stream of files: hold a "
                "file back, and predict its samples with deeplin.load(<folder>).predict(x)."
            )
        read = _Reader(labels, separator, missing, tuple(categories))
        data = streamed(str(path), read, dtype, standardize, normalize, group)
        first = f"{path}, {data.least_squares.m} samples"
    else:
        read = _Reader(labels, separator, missing, tuple(categories))
        x, y = read(path)
        data = _prepared(
            x, y, missing, standardize=standardize, normalize=normalize, dtype=dtype, test=test,
            generator=generator,
        )  # fmt: skip
        first = f"{path}, {len(x)} samples{read.told}"
    return replace(data, notes=(first, *read.notes, *data.notes)).regularised(singular)


def from_frame(
    frame: DataFrame,
    labels: Labels = 0,
    *,
    missing: str = "error",
    categories: Sequence[str] = (),
    standardize: bool = True,
    normalize: bool = True,
    singular: str = "keep",
    test: float = 0.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Data:
    """The same of a pandas table, a sample per row: its `problem`, and its `preparation`.

    The options are those of `from_file`.

    Raises: ValueError, naming the column, for cells that are neither numbers nor words, and as
    `from_file`.

    >>> import pandas
    >>> frame = pandas.DataFrame({"size": [1, 2, 3, 4], "kind": ["a", "b", "a", "b"]})
    >>> from_frame(frame.assign(price=[2.0, 3.0, 4.0, 6.0]), labels="price").problem
    LeastSquares(least squares, d_x=2, d_y=1, 4 samples)
    """
    _check(missing)
    read = _Reader(labels, None, missing, tuple(categories))
    x, y = read.split(Table.of_frame(frame))
    data = _prepared(
        x, y, missing, standardize=standardize, normalize=normalize, dtype=dtype, test=test,
        generator=generator,
    )  # fmt: skip
    return replace(data, notes=(*read.notes, *data.notes)).regularised(singular)


def is_pattern(path: str | Path) -> bool:
    """Whether a path stands for the files that match it."""
    return not Path(path).is_file() and any(mark in str(path) for mark in "*?[")


def _check(missing: str) -> None:
    if missing not in MISSING_CHOICES:
        raise ValueError(
            f"problem.missing must be one of {', '.join(MISSING_CHOICES)}; got {missing!r}."
        )


class _Reader:
    """Files as tables (x, y) without what is not to be missing; `told`, `notes` what was seen."""

    def __init__(
        self, labels: Labels, separator: str | None, missing: str, categories: tuple[str, ...]
    ):
        self.labels, self.separator, self.missing = labels, separator, missing
        self.categories = categories
        self.told, self.notes = "", cast(tuple[str, ...], ())

    def __call__(self, path: Path) -> tuple[Table, Table | None]:
        contents = read_file(path, self.separator)
        self.told = contents.told()
        if contents.table is not None:
            return self.split(contents.table)
        x, y = _arrays(path, contents)
        if y is None:
            return self.split(x)
        return self._complete(x.with_categories(self.categories), y)

    def split(self, table: Table) -> tuple[Table, Table | None]:
        """(x, y) of one table."""
        table, index = table.without_index()
        self.told += "" if index is None else f", {index}"
        for name in self.categories:
            table.chosen([name])  # says if there is none
        x, y = table.with_categories(self.categories).split(self.labels)
        if y is not None and not y.words and not self.categories:
            self.notes = _classes_perhaps(y)
        return self._complete(x, y)

    def _complete(self, x: Table, y: Table | None) -> tuple[Table, Table | None]:
        for side in (x, y):
            if side is not None and bool(side.numbers.isinf().any()):
                row, column = side.numbers.isinf().nonzero()[0].tolist()
                place = side.place(side.numeric[column], row)
                raise ValueError(f"{place} must be finite; it is ±inf: clean the file.")
        missing_x, where_x = x.missing()
        missing_y, where_y = (missing_x & False, None) if y is None else y.missing()
        where = where_x or where_y
        if where is None:
            return x, y
        count = int((missing_x | missing_y).sum())
        if self.missing == "error":
            more = f" and cells of {count - 1} other rows are" if count > 1 else " is"
            raise ValueError(
                f"{where}{more} missing: fill in what it must hold, or use problem.missing=drop or "
                "problem.missing=mean."
            )
        left_out = missing_x | missing_y if self.missing == "drop" else missing_y
        if left_out.any():
            what = "a cell" if self.missing == "drop" else "a label"
            self.notes += (f"{int(left_out.sum())} rows that miss {what} were left out",)
        if left_out.all():
            raise ValueError(f"every row of {x.source} misses a cell: leave out a column.")
        filled = int((missing_x & ~left_out).sum())
        if filled:
            self.notes += (f"cells that {filled} rows miss were taken for their column's mean",)
        return x.rows(~left_out), None if y is None else y.rows(~left_out)


def _classes_perhaps(y: Table) -> tuple[str, ...]:
    """A sentence where a column of labels looks like the numbers of classes."""
    values = y.numbers
    if len(y.names) > 1 or not torch.equal(values, values.round()):
        return ()
    kinds = values.unique()
    if not 2 < len(kinds) <= _FEW or len(kinds) == len(values):
        return ()
    name = ", ".join(y.names)
    return (
        f"{name} takes {len(kinds)} whole numbers and is fitted as a number: "
        f"problem.categories=[{name}] makes classes of them",
    )


def _prepared(
    x: Table,
    y: Table | None,
    missing: str,
    *,
    standardize: bool,
    normalize: bool,
    test: float,
    generator: torch.Generator | None,
    dtype: torch.dtype,
) -> Data:
    of_x, of_y = Encoding.of(x, first=False), None if y is None else Encoding.of(y, first=True)
    classes = None
    if of_y is not None and len(of_y.columns) == len(of_y.categories) == 1:
        (classes,) = of_y.categories.values()
    data = prepare(
        of_x(x),
        None if y is None or of_y is None else of_y(y),
        standardize=standardize,
        normalize=normalize,
        dtype=dtype,
        classes=classes,
        names=(of_x.names, None if of_y is None else of_y.names),
        fill=missing == "mean",
        test=test,
        generator=generator,
    )
    assert data.preparation is not None
    notes = _told(of_x, of_y, classes)
    preparation = replace(data.preparation, encoding=of_x)
    return replace(data, notes=(*notes, *data.notes), preparation=preparation)


def _told(x: Encoding, y: Encoding | None, classes: Sequence[object] | None) -> list[str]:
    """What became of columns of words."""
    notes = []
    if x.categories:
        kinds = [f"{name} ({len(found)} categories)" for name, found in x.categories.items()]
        notes.append(f"one-hot, without their first category: {', '.join(kinds)}")
    if classes is not None:
        notes.append(f"{len(classes)} classes, one-hot: {', '.join(map(str, classes[:6]))}")
    elif y is not None and y.categories:
        notes.append(f"one-hot labels: {', '.join(y.categories)}")
    return notes


def _arrays(path: Path, contents: Contents) -> tuple[Table, Table | None]:
    """(x, y) of a file of arrays; integers in one dimension are classes."""
    arrays = contents.arrays
    if "x" not in arrays:
        raise ValueError(
            f"{path} must hold an array named x (m, d_x), and y for labels; "
            f"it holds {sorted(arrays) or 'nothing'}."
        )
    x = Table.of_numbers("x", _as_samples(path, "x", arrays["x"]), str(path))
    y = arrays.get("y")
    if y is None:
        return x, None
    classes = y.ndim == 1 and not y.is_floating_point() and not y.is_complex()
    labels = Table.of_numbers(
        "y", _as_samples(path, "y", y[:, None] if y.ndim == 1 else y), str(path)
    )
    if len(x) != len(labels):
        raise ValueError(
            f"x and y in {path} must have equally many rows; got {len(x)} and {len(labels)}."
        )
    return x, labels.with_categories(labels.names) if classes else labels


def _as_samples(path: Path, name: str, array: Tensor) -> Tensor:
    """A matrix of numbers, float32 where they are that, and else float64."""
    if array.ndim != 2 or 0 in array.shape or array.is_complex():
        raise ValueError(
            f"{name} in {path} must be a real, non-empty matrix with a sample per row; got shape "
            f"{tuple(array.shape)}, {array.dtype}."
        )
    return array if array.dtype == torch.float32 else array.double()


def _finite(path: Path, name: str, array: Tensor) -> Tensor:
    bad = int((~torch.isfinite(array)).sum())
    if bad:
        raise ValueError(
            f"{name} in {path} must be finite; {bad} of {array.numel()} entries are NaN or ±inf: "
            "clean the file."
        )
    return array


def read_matrices(path: Path, dtype: torch.dtype) -> Tensor:
    """The array x of a file, or its only one: a matrix, or a stack of them, of the given dtype.

    Raises: as `from_file`; ValueError for a complex array where the dtype is real.
    """
    arrays = read_file(path).arrays
    if "x" not in arrays:
        raise ValueError(
            f"{path} must hold one array, or one that is named x; it holds "
            f"{sorted(arrays) or 'nothing'}."
        )
    array = arrays["x"]
    if array.ndim < 2 or 0 in array.shape or (array.is_complex() and not dtype.is_complex):
        kind = "complex or real" if dtype.is_complex else "real"
        raise ValueError(
            f"{path} must hold a {kind}, non-empty matrix, or a stack of them; got shape "
            f"{tuple(array.shape)}, {array.dtype}."
        )
    return in_dtype("W(0)", _finite(path, "x", array), dtype)
