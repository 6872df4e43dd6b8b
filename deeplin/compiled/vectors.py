"""Loops over rows of whole vectors: the types of numbers and the widths they are built for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from ctypes import CDLL
from functools import cache
from pathlib import Path

import torch

from deeplin.compiled.build import library

__all__ = ["REALS", "VECTOR_BYTES", "loops_for", "macros", "vectors_of", "width_of"]

REALS = {torch.float64: "double", torch.float32: "float"}
VECTOR_BYTES = 32


def vectors_of(columns: int, dtype: torch.dtype) -> int:
    """How many vectors hold a row of so many numbers."""
    return -(-columns * dtype.itemsize // VECTOR_BYTES)


def width_of(columns: int, dtype: torch.dtype) -> int:
    """The columns of whole vectors that hold so many numbers."""
    return vectors_of(columns, dtype) * VECTOR_BYTES // dtype.itemsize


def macros(vectors: int, dtype: torch.dtype) -> list[str]:
    """What a source is told of its rows."""
    return [f"-DREAL={REALS[dtype]}", f"-DVECTORS={vectors}"]


def loops_for(
    source: Path, columns: int, dtype: torch.dtype, headers: Sequence[Path] = ()
) -> CDLL | None:
    """The library of a source for such rows; None where nothing is kept and no compiler makes it.

    The sources are for POSIX, where a long holds an address.
    """
    if os.name != "posix":
        return None
    vectors, compiler = vectors_of(columns, dtype), os.environ.get("CC", "cc")
    return _kept(source, vectors, dtype, tuple(headers), compiler)


@cache
def _kept(
    source: Path, vectors: int, dtype: torch.dtype, headers: tuple[Path, ...], compiler: str
) -> CDLL | None:
    try:
        return library(source, macros(vectors, dtype), headers=headers)
    except ValueError:
        return None
