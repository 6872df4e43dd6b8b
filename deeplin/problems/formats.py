"""Files of arrays and tables: what they hold, or one sentence why not."""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deeplin.problems.memory import ask_for_memory
from deeplin.problems.tables import Mixed, Table, no_column, short
from deeplin.problems.text_tables import read_text

__all__ = ["Contents", "read_file"]

# What zipfile and numpy raise for bytes that are not what they should be.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, TypeError,
    RuntimeError, MemoryError,
)  # fmt: skip
_SHOWN = 4  # names of columns that a message lists at most


@dataclass(frozen=True)
class Contents:
    """The arrays of a file by their names; or its table, and the names that its columns have."""

    arrays: dict[str, Tensor]
    header: tuple[str, ...] = ()
    table: Table | None = None

    def told(self) -> str:
        """What the user should know of how the file was read."""
        if not self.header:
            return ""
        more = ", …" if len(self.header) > _SHOWN else ""
        return f", {len(self.header)} columns ({', '.join(map(short, self.header[:_SHOWN]))}{more})"


def read_file(path: Path, separator: str | None = None, mixed: Mixed = no_column) -> Contents:
    """The arrays, or the table, of one file, in the format that its name ends in.

    - `.npz`: all arrays; one alone is x, whatever its name but y. `.npy`: the array, x.
    - `.pt`: a tensor, x, or a dict with tensors x and y; read with weights_only=True.
    - `.csv`, `.tsv`: the table, as `read_text` has it. `.parquet`: the table, by pandas. `mixed`
      as in `Table.of_cells`.

    Raises: FileNotFoundError; ValueError for other kinds of files, for damaged ones and for those
    that do not fit into memory.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a file with the data; there is none.")
    if path.suffix in (".csv", ".tsv"):
        return _read_text(path, separator, mixed)
    if path.suffix == ".parquet":
        return _read_parquet(path, mixed)
    readers = {".npz": _read_npz, ".npy": _read_npy, ".pt": _read_pt}
    if path.suffix not in readers:
        raise ValueError(
            f"a file of data must end in .csv, .tsv, {', '.join(readers)} or .parquet; "
            f"got {path.name}: numpy.savez('data.npz', x=x, y=y) writes such a file."
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


def _read_npy(path: Path) -> Contents:
    ask_for_memory(f"reading {path}", path.stat().st_size)
    try:
        return Contents({"x": _native(np.load(path, allow_pickle=False))})
    except _DAMAGE as error:
        raise ValueError(f"{path} cannot be read as an .npy file of numbers: {error}") from error


def _read_text(path: Path, separator: str | None, mixed: Mixed) -> Contents:
    table, header = read_text(path, separator, mixed)
    return Contents({}, header, table)


def _read_parquet(path: Path, mixed: Mixed) -> Contents:
    try:
        from pandas import read_parquet  # slow to import, optional, and needed here alone
        from pyarrow import ArrowException
    except ImportError as error:
        raise ValueError(
            f"{path} needs pandas and pyarrow to be read: pip install 'deeplin[data]'."
        ) from error
    try:
        frame = read_parquet(path)
    except (ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a Parquet file: {error}") from error
    table = Table.of_frame(frame, str(path), mixed)
    return Contents({}, tuple(map(str, frame.columns)), table)
