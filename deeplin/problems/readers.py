"""A user's own data: files of samples, read whole or as a stream of shards."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from deeplin.problems.data import Data, one_hot, prepare
from deeplin.problems.formats import Contents, read_file
from deeplin.problems.least_squares import LeastSquares
from deeplin.problems.preparation import Classes, Pair, Preparation, in_dtype

__all__ = ["from_file", "read_matrices"]


def from_file(
    path: str | Path,
    *,
    labels: int = 0,
    standardize: bool = True,
    normalize: bool = True,
    singular: str = "keep",
    test: float = 0.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Data:
    """A user's data: a sample per row, as an autoencoder or with labels.

    - `.npz`: array `x` (m, d_x), or the only array there; labels in `y` if it is there.
    - `.pt`: a tensor, or a dict with `x` and optionally `y`; read with weights_only=True.
    - `.csv`: numbers, below one header line where no cell of the first line is a number.
    - a pattern such as `shards/*.npz`: files read one at a time in two passes, never all at once.

    Where there is no `y`, the last `labels` columns of x are the labels; with labels = 0 the
    problem is an autoencoder. Integer classes in one dimension become one-hot. `standardize`,
    `normalize` and `test` as in `deeplin.problems.data.prepare`, in the precision of the file.

    Raises: FileNotFoundError, or ValueError for other kinds of files, damaged ones, those larger
    than the memory, missing arrays, NaN, shapes, and for files of a pattern that do not fit each
    other.
    """
    path = Path(path)
    if not path.is_file() and any(mark in str(path) for mark in "*?["):
        files = sorted(map(Path, glob.glob(str(path))))
        if not files:
            raise FileNotFoundError(f"no file matches problem.path={path}.")
        if test:
            raise ValueError(
                f"problem.test={test:g} needs the samples in memory, not a stream of files: hold a "
                "file back, and predict its samples with deeplin.load(<folder>).predict(x)."
            )
        data = _prepare_stream(files, labels, dtype, standardize, normalize)
        told = ""
    else:
        contents = read_file(path)
        x, y, classes = _samples(path, contents, labels)
        data = prepare(
            x,
            y,
            standardize=standardize,
            normalize=normalize,
            dtype=dtype,
            classes=classes,
            test=test,
            generator=generator,
        )
        told = contents.told()
    first = f"{path}, {data.least_squares.m} samples{told}"
    return replace(data, notes=(first, *data.notes)).regularised(singular)


def _prepare_stream(
    files: list[Path], labels: int, dtype: torch.dtype, standardize: bool, normalize: bool
) -> Data:
    headers = {file: "" for file in files}

    def shards() -> Iterator[Pair]:
        first = None
        for file in files:
            contents = read_file(file)
            headers[file] = contents.told()
            x, y, _ = _samples(file, contents, labels, may_be_classes=False)
            columns = x.shape[1], None if y is None else y.shape[1]
            first = first or (file, columns)
            if columns != first[1]:
                raise ValueError(_misfit(*first, file, columns))
            yield x, y

    done, notes = Preparation.fitted(shards, standardize=standardize, normalize=normalize)
    prepared = (done(x, y, dtype) for x, y in shards())
    problem = LeastSquares.from_batches(x if y is None else (x, y) for x, y in prepared)
    note = f"streamed from {len(files)} files: moments only, no mini-batches"
    told = [f"{file.name}{header}" for file, header in headers.items() if header]
    if told:
        note += f"; {len(told)} of them with a header, {told[0]}"
    return Data(problem, notes=(note, *notes), preparation=done)


def _misfit(
    first: Path, kept: tuple[int, int | None], file: Path, given: tuple[int, int | None]
) -> str:
    """What two files of one pattern do not have in common."""

    def labels(columns: int | None) -> str:
        return "no y" if columns is None else f"y of {columns} columns"

    if kept[0] != given[0]:
        what = f"x of {kept[0]} and {given[0]} columns"
    else:
        what = f"{labels(kept[1])} and {labels(given[1])}"
    return f"all files of a pattern must have the same columns: {first} and {file} have {what}."


def _samples(
    path: Path, contents: Contents, labels: int, *, may_be_classes: bool = True
) -> tuple[Tensor, Tensor | None, Classes | None]:
    """(x, y, classes) of a file, finite matrices; y = None where there are no labels."""
    arrays = contents.arrays
    if "x" not in arrays:
        raise ValueError(
            f"{path} must hold an array named x (m, d_x), and y for labels; "
            f"it holds {sorted(arrays) or 'nothing'}."
        )
    x, y = _as_samples(path, "x", arrays["x"]), arrays.get("y")
    if labels and y is None:
        if not 0 < labels < x.shape[1]:
            raise ValueError(
                f"problem.labels must leave columns for x: 0 <= labels < {x.shape[1]} for {path}; "
                f"got {labels}."
            )
        return x[:, :-labels], x[:, -labels:], None
    if y is None:
        return x, None, None
    classes = None
    if y.ndim == 1 and not y.is_floating_point() and not y.is_complex():
        if not may_be_classes:
            raise ValueError(
                f"y in {path} holds integer classes, which a stream of files cannot number: "
                "store them one-hot."
            )
        y, classes = one_hot(y, x.dtype)
    y = _as_samples(path, "y", y[:, None] if y.ndim == 1 else y)
    if len(x) != len(y):
        raise ValueError(
            f"x and y in {path} must have equally many rows; got {len(x)} and {len(y)}."
        )
    return x, y, classes


def _as_samples(path: Path, name: str, array: Tensor) -> Tensor:
    """A matrix of finite numbers, float32 where they are that, and else float64."""
    if array.ndim != 2 or 0 in array.shape or array.is_complex():
        raise ValueError(
            f"{name} in {path} must be a real, non-empty matrix with a sample per row; got shape "
            f"{tuple(array.shape)}, {array.dtype}."
        )
    return _finite(path, name, array if array.dtype == torch.float32 else array.double())


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
