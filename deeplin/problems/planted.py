"""Matrices of low rank made up to be found again, and the places where they are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor

from deeplin.linalg import random_orthogonal

__all__ = ["distinct_places", "entries_at", "planted_factors"]

# Entries whose rows of the factors are gathered at a time.
_CHUNK = 2**18
# With more than this share of all places known, all are put into a random order.
_DENSE = 0.25


def planted_factors(
    shape: tuple[int, int],
    rank: int,
    *,
    spectrum: Sequence[float] | None = None,
    condition: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Inexact[Tensor, "m r"], Float[Tensor, " r"], Inexact[Tensor, "n r"]]:
    """(U, σ, V) of a random W = U diag(σ) Vᴴ of rank r, U and V from the Haar measure.

    The singular values fall in equal ratios from σ_1 to σ_r = σ_1/condition, and are as large as
    makes the mean square of the entries of W one, ‖W‖_F² = mn; or they are the given `spectrum`.

    Shapes: U (m, r), σ (r,) in descending order, V (n, r).
    Cost: O((m + n) r²), nothing m×n.
    Raises: ValueError unless 1 <= rank <= min(m, n) and condition >= 1, and for a spectrum that is
        not `rank` positive numbers.
    """
    m, n = shape
    if isinstance(rank, bool) or rank != int(rank) or not 1 <= rank <= min(m, n):
        raise ValueError(
            f"rank must satisfy 1 <= rank <= min(m, n) = {min(m, n)}; got {rank}, for a matrix of "
            f"shape {m}×{n}."
        )
    dtype = torch.get_default_dtype() if dtype is None else dtype
    real = dtype.to_real()
    if spectrum is not None:
        sigma = torch.tensor([float(v) for v in spectrum], dtype=real)
        if len(sigma) != rank or not bool(((sigma > 0) & torch.isfinite(sigma)).all()):
            raise ValueError(
                f"spectrum must be rank = {rank} positive numbers, the singular values; got "
                f"{sigma.tolist()}."
            )
        sigma = sigma.sort(descending=True).values
    elif not 1 <= condition < float("inf"):
        raise ValueError(
            f"condition must be σ_1/σ_r, a finite number >= 1; got {condition}: condition=1 makes "
            "all singular values equal."
        )
    else:
        ratio = torch.linspace(0, 1, rank, dtype=torch.float64) if rank > 1 else torch.zeros(1)
        falling = float(condition) ** -ratio.double()
        sigma = (falling * ((m * n) ** 0.5 / torch.linalg.vector_norm(falling))).to(real)
    U, V = (random_orthogonal(d, rank, dtype=dtype, generator=generator) for d in (m, n))
    return U, sigma, V


def distinct_places(
    shape: tuple[int, int], count: int, *, generator: torch.Generator | None = None
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """(rows, cols) of `count` different places of an m×n matrix, all such sets equally likely.

    Shapes: rows, cols (count,), row by row.
    Cost: O(p log p) time and O(p) memory, nothing m×n: places are drawn one by one and those that
        were drawn before are dropped, until there are enough; where a quarter of all is wanted all
        are put into a random order.
    Raises: ValueError unless 0 <= count <= mn < 2^63.
    """
    m, n = shape
    if not 0 <= count <= m * n < 2**63:
        raise ValueError(
            f"count must be 0 to mn = {m * n} different places of a matrix of shape {m}×{n}, and "
            f"mn less than 2^63; got {count}."
        )
    if count > _DENSE * m * n:
        places = torch.randperm(m * n, generator=generator)[:count].sort().values
    else:
        places = torch.empty(0, dtype=torch.int64)
        while len(places) < count:  # never more are drawn than are missing, so that none is chosen
            drawn = torch.randint(m * n, (count - len(places),), generator=generator)
            places = torch.cat([places, drawn]).unique()
    rows = torch.div(places, n, rounding_mode="floor")
    return rows, places - n * rows


def entries_at(
    rows: Int[Tensor, " p"],
    cols: Int[Tensor, " p"],
    A: Inexact[Tensor, "*#batch m k"],
    B: Inexact[Tensor, "*#batch n k"],
) -> Inexact[Tensor, "*#batch p"]:
    """(ABᴴ)[rows, cols]. Cost: O(p k) time, the result and a piece of each factor in memory."""
    pieces = zip(rows.split(_CHUNK), cols.split(_CHUNK), strict=True)
    return torch.cat([(A[..., i, :] * B[..., j, :].conj()).sum(-1) for i, j in pieces], -1)
