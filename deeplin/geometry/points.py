"""Points to start from: a random one, and a fixed one, in factored coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeplin.geometry.coordinates import Point
from deeplin.linalg import random_orthogonal

__all__ = ["origin_point", "random_point"]


def random_point(
    m: int,
    n: int,
    rank: int,
    *,
    batch_shape: Sequence[int] = (),
    hermitian: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Point:
    """U, V Haar-distributed and singular values uniform in (1/2, 3/2), in descending order.

    Shapes: U (*batch_shape, m, r), S (*batch_shape, r, r) diagonal, V (*batch_shape, n, r).
    Cost: O((m + n) r²).
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype

    def frame(rows: int) -> Tensor:
        return random_orthogonal(
            rows, rank, batch_shape=batch_shape, dtype=dtype, device=device, generator=generator
        )

    U = frame(m)
    V = U if hermitian else frame(n)
    uniform = torch.rand(
        (*batch_shape, rank), dtype=dtype.to_real(), device=device, generator=generator
    )
    sigma = (uniform + 0.5).sort(-1, descending=True).values
    return Point(U, torch.diag_embed(sigma).to(U.dtype), V)


def origin_point(
    m: int,
    n: int,
    rank: int,
    *,
    batch_shape: Sequence[int] = (),
    hermitian: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Point:
    """The matrix with ones in the first r places of the diagonal, and zeros elsewhere.

    Shapes: as ``random_point``.
    """

    def frame(rows: int) -> Tensor:
        eye = torch.eye(rows, rank, dtype=dtype, device=device)
        return eye.expand(*batch_shape, rows, rank)

    U = frame(m)
    return Point(U, frame(rank), U if hermitian else frame(n))
