"""Completions of matrices that nobody would store: known entries to 1e-8, then others, too."""

from __future__ import annotations

import resource
import sys

import torch

from benchmarks import line
from benchmarks.completion import F64, solved
from deeplin.problems import MatrixCompletion
from deeplin.problems.planted import entries_at

_RANK, _GOAL, _FRESH = 10, 1e-8, 100_000


def completed(n: int, oversampling: float, device: torch.device) -> float:
    """Seconds from the triples to a relative residual of 1e-8: sorting, start and steps.

    What the solution says of entries that it has not seen is told, and the memory at its most, on a
    GPU that of its own.
    """
    generator = torch.Generator().manual_seed(0)
    small, _ = MatrixCompletion.planted(
        (400, 400), _RANK, oversampling=5, generator=generator, dtype=F64
    )
    solved(small.to(device), _RANK, 1e-2)  # compiles
    known, (U, sigma, V) = MatrixCompletion.planted(
        (n, n), _RANK, oversampling=oversampling, generator=generator, dtype=F64
    )
    known, (U, sigma, V) = known.to(device), (part.to(device) for part in (U, sigma, V))
    taken, point = solved(known, _RANK, _GOAL)
    rows, cols = torch.randint(n, (2, _FRESH), generator=generator).to(device)
    right = entries_at(rows, cols, U * sigma, V)
    said = entries_at(rows, cols, point.U @ point.S, point.V)
    error = float((said - right).norm() / right.norm())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 1e9
    print(
        f"{len(known.values)} entries, {torch.get_num_threads()} threads: error of fresh entries "
        f"{error:.1e}; {memory:.1f} GB",
        file=sys.stderr,
    )
    return taken


@line("completion-20000", "s", at_most=3)
def completion_20000(device: torch.device) -> float:
    """20000×20000 of rank 10, 2·10⁶ known entries, one thread, to a relative residual 1e-8."""
    return completed(20_000, 5, device)


@line("completion-large", "s", at_most=60, alone=True)
def completion_large(device: torch.device) -> float:
    """10⁵×10⁵ of rank 10, 10⁷ known entries, all cores, to a relative residual 1e-8."""
    return completed(100_000, 5, device)


@line("completion-largest", "s", at_most=720, alone=True, named=True)
def completion_largest(device: torch.device) -> float:
    """10⁶×10⁶ of rank 10, 6·10⁷ known entries, all cores, to 1e-8; measured when named."""
    return completed(1_000_000, 3, device)
