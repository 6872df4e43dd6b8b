"""The data of a completion: the user's own triples, or those of a random matrix of low rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from deeplin.problems.biases import Biases, fit_biases
from deeplin.problems.completion import MatrixCompletion
from deeplin.problems.data import Data
from deeplin.problems.held_out import share_held_out
from deeplin.problems.known_entries import KnownEntries
from deeplin.problems.pairs import Labels, Pairs
from deeplin.problems.preparation import in_dtype
from deeplin.problems.ridge import Ridge
from deeplin.problems.triples import Triples, read_triples

__all__ = ["completion"]

_SHAPE = (200, 200)


def completion(
    path: str | Path | None = None,
    *,
    columns: Sequence[str] | None = None,
    weights: str | None = None,
    separator: str | None = None,
    codes: bool | Literal["auto"] = "auto",
    duplicates: Literal["error", "keep"] = "error",
    shape: Sequence[int] | None = None,
    biases: bool = False,
    ridge: float = 1.0,
    reg: float = 0.0,
    test: float = 0.0,
    rank: int = 10,
    spectrum: Sequence[float] | None = None,
    condition: float = 1.0,
    oversampling: float = 5.0,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Data:
    """The completion of a matrix: of a file of triples, or without a path of a random matrix.

    A file is read as `read_triples` has it. The random matrix, of `shape` (null: 200×200), `rank`,
    `spectrum` or `condition`, has `oversampling` times as many known entries as dimensions, with
    normal errors of deviation `noise` (`MatrixCompletion.planted`).

    Of a share `test` of the entries, chosen by the generator, nothing is used but for the RMSE in
    the problem's `report`. `biases`: a mean, and one number for each row and column, are fitted to
    the others (`fit_biases`, with `ridge`) and taken off; predictions have them again. `reg`: λ of
    ½λ‖W‖², which is added to the loss (`Ridge`).

    Raises: ValueError, with one sentence, as these, and for a share that leaves too few entries.
    """
    if path is None:
        given = _SHAPE if shape is None else (shape[0], shape[1])
        problem, truth = MatrixCompletion.planted(
            given,
            rank,
            spectrum=spectrum,
            condition=condition,
            oversampling=oversampling,
            noise=noise,
            generator=generator,
            dtype=dtype,
        )
        labels = Labels(given[0]), Labels(given[1])
        found = Triples(
            problem.rows, problem.cols, problem.values, None, labels, ("row", "column", "value")
        )
        first = f"a random {given[0]}×{given[1]} matrix of rank {rank}"
    else:
        truth = None
        found = read_triples(
            path,
            columns=columns,
            weights=weights,
            separator=separator,
            codes=codes,
            duplicates=duplicates,
            shape=shape,
        )
        m, n = (labels.size for labels in found.labels)
        first = f"{path}, a {m}×{n} matrix of {', '.join(found.names)}"
    data = _data(found, first, truth, noise, biases, ridge, test, generator, dtype)
    if not reg:
        return data
    note = f"½·{reg:g}·‖W‖² is added to the loss"
    return replace(data, problem=Ridge(data.problem, reg), notes=(*data.notes, note))


def _data(
    found: Triples,
    first: str,
    truth: tuple[Tensor, Tensor, Tensor] | None,
    noise: float,
    biases: bool,
    ridge: float,
    test: float,
    generator: torch.Generator | None,
    dtype: torch.dtype,
) -> Data:
    shape = found.labels[0].size, found.labels[1].size
    entries = (found.rows, found.cols, in_dtype(found.names[2], found.values, dtype))
    weights = None if found.weights is None else found.weights.to(dtype)
    p, held = len(found.rows), None
    notes = [f"{first}, of which {p} entries are known"]
    if test:
        chosen, left = share_held_out(p, test, generator, "entries")
        held = tuple(part[chosen] for part in entries), None if weights is None else weights[chosen]
        rows, cols, values = (part[left] for part in entries)
        weights = None if weights is None else weights[left]
        notes.append(f"{len(chosen)} of them are held out")
    else:
        rows, cols, values = entries
    fitted = None
    if biases:
        fitted = fit_biases(rows, cols, values, shape, weights, ridge)
        values = values - fitted.at(rows, cols)
        notes.append(_told(fitted, found.names, ridge))
    of_test = None
    if held is not None:
        (i, j, v), w = held
        of_test = i, j, v if fitted is None else v - fitted.at(i, j), w
    empty = [size - len(part.unique()) for size, part in zip(shape, (rows, cols), strict=True)]
    if any(empty):
        notes.append(
            f"{empty[0]} rows and {empty[1]} columns have no known entry: of them nothing is "
            "learned" + (" but the mean" if biases else "")
        )
    problem = KnownEntries(
        rows,
        cols,
        values,
        shape,
        weights=weights,
        truth=None if fitted is not None else truth,
        noise=noise,
        held_out=of_test,
    )
    pairs = Pairs(*found.labels, fitted, found.names)
    return Data(problem, notes=tuple(notes), preparation=pairs)


def _told(biases: Biases, names: Sequence[str], ridge: float) -> str:
    spread = [float(part.square().mean().sqrt()) for part in (biases.rows, biases.cols)]
    return (
        f"taken off: the mean {float(biases.mean):.4g} and a bias of each {names[0]} (root mean "
        f"square {spread[0]:.3g}) and {names[1]} ({spread[1]:.3g}), ridge {ridge:g}"
    )
