"""Samples that no memory holds: what their moments cost beside reading and one product."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import torch

from benchmarks import clock, line
from deeplin.problems import LeastSquares

BLOCK, FEATURES, LABELS = 10_000, 500, 10


def blocks(samples: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(x, y) of so many normal samples, drawn block by block: what stands for reading them."""
    generator = torch.Generator(device).manual_seed(0)
    for _ in range(samples // BLOCK):
        x, y = (
            torch.randn(BLOCK, d, dtype=torch.float64, device=device, generator=generator)
            for d in (FEATURES, LABELS)
        )
        yield x, y


def one_product(samples: int, device: torch.device) -> torch.Tensor:
    """XᵀX by one addmm a block, and nothing else."""
    C = torch.zeros(FEATURES, FEATURES, dtype=torch.float64, device=device)
    for x, _ in blocks(samples, device):
        C.addmm_(x.mT, x)
    return C


def moments(samples: int, device: torch.device) -> LeastSquares:
    return LeastSquares.from_batches(blocks(samples, device))


def _share(samples: int, tries: int, device: torch.device) -> float:
    now = time.process_time if device.type == "cpu" else clock
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(tries):
        for call, record in zip((one_product, moments), times, strict=True):
            begin = now()
            call(samples, device)
            record.append(now() - begin)
    theirs, ours = map(min, times)
    print(f"{samples} samples: one addmm {theirs:.1f} s, moments {ours:.1f} s", file=sys.stderr)
    return theirs / ours


@line("stream", "of full speed", at_least=0.8)
def stream(device: torch.device) -> float:
    """Processor time of drawing 10⁶ samples of 500 features and one addmm over that of moments.

    A tenth of `stream-full`, by the same blocks: what a sample costs is the same. On a GPU
    it is wall time.
    """
    return _share(1_000_000, 2, device)


@line("stream-full", "of full speed", at_least=0.8, named=True)
def stream_full(device: torch.device) -> float:
    """`stream` for 10⁷ samples, 5·10¹² operations in each of two passes; measured when named."""
    return _share(10_000_000, 1, device)
