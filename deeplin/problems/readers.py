"""A user's own data: files of samples, read whole or as a stream of shards."""

from __future__ import annotations

import csv
import glob
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deeplin.problems.data import Data, Standardizer, one_hot, prepare
from deeplin.problems.least_squares import LeastSquares

__all__ = ["from_file", "read_arrays"]


def from_file(
    path: str | Path,
    *,
    labels: int = 0,
    standardize: bool = True,
    normalize: bool = True,
    singular: str = "keep",
    dtype: torch.dtype = torch.float64,
) -> Data:
    """A user's data: a sample per row, as an autoencoder or with labels.

    - `.npz`: array `x` (m, d_x), or the only array there; labels in `y` if it is there.
    - `.pt`: a tensor, or a dict with `x` and optionally `y`; read with weights_only=True.
    - `.csv`: numbers, with a header line or not.
    - a pattern such as `shards/*.npz`: files read one at a time in two passes, never all at once.

    Where there is no `y`, the last `labels` columns of x are the labels; with labels = 0 the
    problem is an autoencoder. Integer classes in one dimension become one-hot. `standardize` and
    `normalize` as in `deeplin.problems.data.prepare`.

    Raises: FileNotFoundError, or ValueError for other kinds of files, missing arrays, NaN, shapes.
    """
    path = str(path)
    if any(mark in path for mark in "*?["):
        files = sorted(glob.glob(path))
        if not files:
            raise FileNotFoundError(f"no file matches problem.path={path}.")
        data = _prepare_stream([Path(f) for f in files], labels, dtype, standardize, normalize)
    else:
        x, y = read_arrays(Path(path), dtype, labels)
        data = prepare(x, y, standardize=standardize, normalize=normalize)
    first = f"{path}, {data.problem.m} samples"
    return replace(data, notes=(first, *data.notes)).regularised(singular)


def _prepare_stream(
    files: list[Path], labels: int, dtype: torch.dtype, standardize: bool, normalize: bool
) -> Data:
    def shards() -> Iterator[tuple[Tensor, Tensor | None]]:
        for file in files:
            yield read_arrays(file, dtype, labels, may_be_classes=False)

    transform = Standardizer(shards(), standardize, normalize)
    transformed = (transform(x, y) for x, y in shards())
    problem = LeastSquares.from_batches(x if y is None else (x, y) for x, y in transformed)
    note = f"streamed from {len(files)} files: moments only, no mini-batches"
    return Data(problem, notes=(note, *transform.notes))


def read_arrays(
    path: Path, dtype: torch.dtype, labels: int = 0, *, may_be_classes: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The arrays (x, y) of one file, as matrices; y = None where there are no labels."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a file with the data; there is none.")
    readers = {".npz": _read_npz, ".pt": _read_pt, ".csv": _read_csv}
    if path.suffix not in readers:
        raise ValueError(
            f"a file of data must end in .npz, .pt or .csv; got {path.name}: "
            "numpy.savez('data.npz', x=x, y=y) writes such a file."
        )
    arrays = readers[path.suffix](path)
    if "x" not in arrays:
        raise ValueError(
            f"{path} must hold an array named x (m, d_x), and y for labels; "
            f"it holds {sorted(arrays) or 'nothing'}."
        )
    x = _as_matrix(path, "x", arrays["x"]).to(dtype)
    y = arrays.get("y")
    if labels and y is None:
        if not 0 < labels < x.shape[1]:
            raise ValueError(
                f"problem.labels must leave columns for x: 0 <= labels < {x.shape[1]} for {path}; "
                f"got {labels}."
            )
        x, y = x[:, :-labels], x[:, -labels:]
    if y is None:
        return x, None
    if y.ndim == 1 and not y.is_floating_point():
        if not may_be_classes:
            raise ValueError(
                f"y in {path} holds integer classes, which a stream of files cannot number: "
                "store them one-hot."
            )
        return x, one_hot(y, dtype)
    return x, _as_matrix(path, "y", y[:, None] if y.ndim == 1 else y).to(dtype)


def _as_matrix(path: Path, name: str, array: Tensor) -> Tensor:
    if array.ndim != 2 or 0 in array.shape or array.is_complex():
        raise ValueError(
            f"{name} in {path} must be a real, non-empty matrix with a sample per row; got shape "
            f"{tuple(array.shape)}, {array.dtype}."
        )
    return array


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: torch.as_tensor(archive[name]) for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as an .npz file of numbers: {error}") from error
    return {"x": next(iter(arrays.values()))} if len(arrays) == 1 else arrays


def _read_pt(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        raise ValueError(
            f"{path} cannot be read with torch.load(weights_only=True): save a tensor, or a dict "
            "with tensors x and y."
        ) from error
    if isinstance(content, Tensor):
        return {"x": content}
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must hold a tensor, or a dict with tensors x and y; "
            f"it holds a {type(content).__name__}."
        )
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _read_csv(path: Path) -> dict[str, Tensor]:
    with path.open(newline="") as file:
        first = next(csv.reader(file), [])
    if not first:
        raise ValueError(f"{path} is empty: it must hold a sample per line.")
    header = int(not all(_is_number(cell) for cell in first))
    try:
        table = np.loadtxt(path, delimiter=",", skiprows=header, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} must hold only numbers below its header: {error}") from error
    return {"x": torch.as_tensor(table)}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
