"""Files of arrays, .npz, .pt and .csv: what they hold, or one sentence why not."""

from __future__ import annotations

import csv
import lzma
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deeplin.problems.memory import ask_for_memory

if TYPE_CHECKING:
    from _csv import Reader

__all__ = ["Contents", "read_file"]

# What zipfile and numpy raise for bytes that are not what they should be.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, TypeError,
    RuntimeError, MemoryError,
)  # fmt: skip
_SHOWN = 4  # names of columns, characters of a cell: what a message lists at most
_CELL = 20


@dataclass(frozen=True)
class Contents:
    """The arrays of a file by their names, and the cells of a header line that was left out."""

    arrays: dict[str, Tensor]
    header: tuple[str, ...] = ()

    def told(self) -> str:
        """What the user should know of how the file was read."""
        if not self.header:
            return ""
        more = ", …" if len(self.header) > _SHOWN else ""
        return f", 1 header line ({', '.join(map(_short, self.header[:_SHOWN]))}{more})"


def read_file(path: Path) -> Contents:
    """The arrays of one file, in the format that its name ends in.

    - `.npz`: all arrays; one alone is x, whatever its name but y.
    - `.pt`: a tensor, x, or a dict with tensors x and y; read with weights_only=True.
    - `.csv`: the table as x; the first line that is not blank is a header where none of its cells
      is a number.

    Raises: FileNotFoundError; ValueError for other kinds of files, for damaged ones and for those
    that do not fit into memory.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a file with the data; there is none.")
    readers = {".npz": _read_npz, ".pt": _read_pt, ".csv": _read_csv}
    if path.suffix not in readers:
        raise ValueError(
            f"a file of data must end in .npz, .pt or .csv; got {path.name}: "
            "numpy.savez('data.npz', x=x, y=y) writes such a file."
        )
    return readers[path.suffix](path)


def _read_npz(path: Path) -> Contents:
    try:
        _check_archive(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: _native(archive[name]) for name in archive.files}
    except _DAMAGE as error:
        raise ValueError(f"{path} cannot be read as an .npz file of numbers: {error}") from error
    if len(arrays) == 1 and "y" not in arrays:
        return Contents({"x": next(iter(arrays.values()))})
    return Contents(arrays)


def _check_archive(path: Path) -> None:
    """Raise ValueError where an array would take more memory than there is, or than is stored."""
    with zipfile.ZipFile(path) as archive:
        ask_for_memory(f"reading {path}", 2 * sum(info.file_size for info in archive.infolist()))
        for info in archive.infolist():
            if info.comment:  # numpy writes none: bits of a length that swallows the next entry
                raise ValueError(f"the directory entry of {info.filename} is damaged.")
            if not info.filename.endswith(".npy"):
                continue
            with archive.open(info) as file:
                version = np.lib.format.read_magic(file)
                if version == (1, 0):
                    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                else:
                    shape, _, dtype = np.lib.format.read_array_header_2_0(file)
                stored = info.file_size - file.tell()
            if not dtype.hasobject and math.prod(shape) * dtype.itemsize != stored:
                raise ValueError(
                    f"{info.filename} claims the shape {shape} of {dtype} and holds {stored} bytes."
                )


def _native(array: np.ndarray) -> Tensor:
    return torch.as_tensor(array.astype(array.dtype.newbyteorder("="), copy=False))


def _read_pt(path: Path) -> Contents:
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                size = sum(info.file_size for info in archive.infolist())
        except zipfile.BadZipFile:
            size = 0  # torch says what is wrong with it
        ask_for_memory(f"reading {path}", 2 * size)
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        raise ValueError(
            f"{path} cannot be read with torch.load(weights_only=True): save a tensor, or a dict "
            "with tensors x and y."
        ) from error
    if isinstance(content, Tensor):
        return Contents({"x": _dense(path, "the tensor", content)})
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must hold a tensor, or a dict with tensors x and y; "
            f"it holds a {type(content).__name__}."
        )
    given = {name: content[name] for name in ("x", "y") if content.get(name) is not None}
    return Contents({name: _dense(path, name, value) for name, value in given.items()})


def _dense(path: Path, name: str, value: object) -> Tensor:
    """The values of a tensor without its history."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name} in {path} must be a tensor; it is a {type(value).__name__}: save "
            "torch.as_tensor of it."
        )
    kinds = {
        "nested": value.is_nested,
        "sparse": value.layout != torch.strided,
        "quantized": value.is_quantized,
        "meta": value.is_meta,
    }
    kind = next((kind for kind, is_it in kinds.items() if is_it), None)
    if kind is not None:
        raise ValueError(
            f"{name} in {path} must be a dense tensor with numbers of its own; it is a {kind} one: "
            "save what its to_dense() or dequantize() gives, or a matrix with a sample per row."
        )
    ask_for_memory(f"{name} in {path}", 2 * value.numel() * value.element_size())
    return value.detach().resolve_conj().resolve_neg()


def _read_csv(path: Path) -> Contents:
    ask_for_memory(f"reading {path}", path.stat().st_size)
    skipped = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            skipped, first = _next_row(rows)
            header = any(map(str.strip, first)) and not any(map(_is_number, first))
            row = first
            if header:
                skipped, row = _next_row(rows)
            if not row:
                raise csv.Error("it has no sample")
        # Of numpy's own only quotes are left, no comments; a byte order mark is none of the text.
        table = np.loadtxt(
            path, delimiter=",", comments=None, quotechar='"', encoding="utf-8-sig",
            skiprows=skipped, ndmin=2,
        )  # fmt: skip
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8; {error.reason} in it.") from error
    except csv.Error as error:
        raise ValueError(
            f"{path} must hold a sample per line, numbers between commas; {error}."
        ) from error
    except (ValueError, MemoryError) as error:
        raise ValueError(_first_fault(path, skipped) or f"{path}: {error}") from error
    return Contents({"x": torch.as_tensor(table)}, tuple(first) if header else ())


def _next_row(rows: Reader) -> tuple[int, list[str]]:
    """(the number of lines before the next one that is not blank, its cells); [] at the end."""
    before = rows.line_num
    for cells in rows:
        if len(cells) > 1 or any(map(str.strip, cells)):
            return before, cells
        before = rows.line_num
    return before, []


def _first_fault(path: Path, skipped: int) -> str | None:
    """Where a table is no table of numbers, in one sentence."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        while rows.line_num < skipped:
            next(rows)
        width = 0
        for cells in filter(None, rows):
            where = f"line {rows.line_num} of {path}"
            width = width or len(cells)
            if len(cells) != width:
                return f"{where} has {len(cells)} cells, the first sample {width}."
            for number, cell in enumerate(cells, 1):
                if not _is_number(cell):
                    return (
                        f"cell {number} of {where} must be a number; it is {_short(cell)!r}: cells "
                        "are separated by commas, and what is missing must be filled in."
                    )
    return None


def _short(cell: str) -> str:
    return cell if len(cell) <= _CELL else f"{cell[:_CELL]}…"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # 1_000 is a number to Python alone
