"""Files of samples that are read one at a time, by one process or by several, each its share."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from deeplin.linalg import agreed, gathered
from deeplin.problems.data import Data
from deeplin.problems.least_squares import LeastSquares
from deeplin.problems.preparation import Pair, Preparation
from deeplin.problems.tables import Encoding, Table

__all__ = ["streamed"]


class Reads(Protocol):
    """What reads a file as (x, y); `told` and `notes` are what it saw there."""

    missing: str
    told: str
    notes: tuple[str, ...]

    def __call__(self, path: Path, /) -> tuple[Table, Table | None]: ...


def streamed(
    pattern: str,
    read: Reads,
    dtype: torch.dtype,
    standardize: bool,
    normalize: bool,
    group: dist.ProcessGroup | None = None,
) -> Data:
    """The moments of all samples of the files of a pattern, in two passes of one file at a time.

    With a group each of its processes reads every p-th file, and all get the same data, those of
    one process up to the order of sums.

    Raises: FileNotFoundError where there is no file; ValueError for files that do not fit each
        other, in all processes of a group.
    """
    files, x, y = _opened(pattern, read, group)
    names, columns = (x.names, None if y is None else y.names), _columns(x, y)
    mine = files if group is None else files[dist.get_rank(group) :: dist.get_world_size(group)]
    seen: dict[str, tuple[str, tuple[str, ...]]] = {}

    def shards() -> Iterator[Pair]:
        for file in mine:
            read.notes = ()
            x, y = read(file)
            seen[file.name] = read.told, read.notes
            for side in (x, y):
                if side is not None and side.words:
                    raise ValueError(
                        f"column {next(iter(side.words))!r} of {file} holds words or classes, "
                        "which a stream of files cannot number: store them one-hot, or all "
                        "samples in one file."
                    )
            if _columns(x, y) != columns:
                raise ValueError(_misfit(files[0], columns, file, _columns(x, y)))
            yield x.numbers, None if y is None else y.numbers

    done, told = Preparation.fitted(
        shards,
        names,
        standardize=standardize,
        normalize=normalize,
        fill=read.missing == "mean",
        group=group,
    )
    prepared = (done(x, y, dtype) for x, y in shards())
    batches = (x if y is None else (x, y) for x, y in prepared)
    problem = LeastSquares.from_batches(batches, group)
    by = ""
    if group is not None:
        for others in gathered(seen, group):
            seen |= others
        by = f" by {dist.get_world_size(group)} processes"
    note = f"streamed from {len(files)} files{by}: moments only, no mini-batches"
    heard = [(file.name, *seen[file.name]) for file in files]
    named = [f"{name}{header}" for name, header, _ in heard if header]
    if named:
        note += f"; {len(named)} of them with names, {named[0]}"
    read.notes = ()
    noted = [f"{name}: {one}" for name, _, notes in heard for one in notes]
    if noted:
        told = (f"{noted[0]}{f', and {len(noted) - 1} more such' if len(noted) > 1 else ''}", *told)
    encoding = Encoding(x.names, {}, first=False)
    return Data(problem, notes=(note, *told), preparation=replace(done, encoding=encoding))


def _opened(
    pattern: str, read: Reads, group: dist.ProcessGroup | None
) -> tuple[list[Path], Table, Table | None]:
    """The files of a pattern, and the first of them as (x, y)."""

    def opened() -> tuple[list[Path], Table, Table | None]:
        files = sorted(map(Path, glob.glob(pattern)))
        if not files:
            raise FileNotFoundError(f"no file matches problem.path={pattern}.")
        return files, *read(files[0])

    files, x, y = agreed(group, opened)
    seen = [] if group is None else gathered([file.name for file in files], group)
    if any(names != seen[0] for names in seen):
        counts = " and ".join(dict.fromkeys(str(len(names)) for names in seen))
        raise ValueError(
            f"all processes must find the same files {pattern}; they find {counts}: keep them "
            "where all can read them."
        )
    return files, x, y


def _columns(x: Table, y: Table | None) -> tuple[int, int | None]:
    return len(x.names), None if y is None else len(y.names)


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
