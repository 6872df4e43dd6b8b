"""Widths of deep linear networks: those of the papers' experiments, and what widths must be."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["check_widths", "grid_widths"]


def grid_widths(d_in: int, d_out: int, depth: int, rank: int) -> list[int]:
    """(d_0, …, d_N): d_0 = d_in and d_j = [r + (d_out − r)(j − 1)/(N − 1)] for j = 1..N.

    [·] rounds half up. So d_1 = r, d_N = d_out and the widths in between grow evenly.

    Source: BRTW §7.1.1, there with d_in = d_out.
    Raises: ValueError unless depth >= 2 and 1 <= rank <= min(d_in, d_out).
    """
    if depth != int(depth) or depth < 2:
        raise ValueError(
            "depth must be an integer >= 2 for the grid of widths; "
            f"got {depth}: give widths=[d_0, d_1] for a single layer."
        )
    if rank != int(rank) or not 1 <= rank <= min(d_in, d_out):
        raise ValueError(
            f"rank must satisfy 1 <= rank <= min(d_x, d_y) = {min(d_in, d_out)}; got {rank}."
        )
    steps = (rank + (d_out - rank) * (j - 1) / (depth - 1) for j in range(1, depth + 1))
    return [d_in, *(math.floor(d + 0.5) for d in steps)]


def check_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """The widths (d_0, …, d_N) as a tuple of positive integers, at least two of them."""
    widths = tuple(widths)
    if len(widths) < 2 or any(
        isinstance(d, bool) or not isinstance(d, int) or d < 1 for d in widths
    ):
        raise ValueError(
            "widths must be at least two positive integers d_0, …, d_N; "
            f"got {list(widths)}: for instance widths=[64, 10, 64]."
        )
    return widths
