"""Samples that no memory holds: what their moments cost beside reading and one product."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import torch

from benchmarks import line
from deeplin.problems import LeastSquares

BLOCK, FEATURES, LABELS = 10_000, 500, 10


def blocks(samples: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(x, y) of so many normal samples, drawn block by block: what stands for reading them."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(samples // BLOCK):
        x, y = (
            torch.randn(BLOCK, d, dtype=torch.float64, generator=generator)
            for d in (FEATURES, LABELS)
        )
        yield x, y


def one_product(samples: int) -> torch.Tensor:
    """XᵀX by one addmm a block, and nothing else."""
    C = torch.zeros(FEATURES, FEATURES, dtype=torch.float64)
    for x, _ in blocks(samples):
        C.addmm_(x.mT, x)
    return C


def _share(samples: int, tries: int) -> float:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(tries):
        for call, record in zip(
            (one_product, lambda count: LeastSquares.from_batches(blocks(count))),
            times,
            strict=True,
        ):
            begin = time.process_time()
            call(samples)
            record.append(time.process_time() - begin)
    theirs, ours = map(min, times)
    print(f"{samples} samples: one addmm {theirs:.1f} s, moments {ours:.1f} s", file=sys.stderr)
    return theirs / ours


@line("stream", "of full speed", at_least=0.8)
def stream() -> float:
    """Processor time of drawing 10⁶ samples of 500 features and one addmm over that of moments.

    A tenth of `stream-full`, by the same blocks: what a sample costs is the same.
    """
    return _share(1_000_000, 2)


@line("stream-full", "of full speed", at_least=0.8, named=True)
def stream_full() -> float:
    """`stream` for 10⁷ samples, 5·10¹² operations in each of two passes; measured when named."""
    return _share(10_000_000, 1)
