"""Points in factored coordinates: a random one, a fixed one, those of a dense matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.geometry.coordinates import Point
from deeplin.linalg import hermitian_part, product_svd, random_orthogonal

__all__ = ["low_rank_factors", "nearest_point", "origin_point", "random_point"]


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


def nearest_point(W: Inexact[Tensor, "*batch m n"], rank: int, *, hermitian: bool = False) -> Point:
    """The matrix of the given rank nearest to W, with S diagonal and descending.

    Hermitian: the r largest *algebraic* eigenvalues of ½(W + Wᴴ), so that the point is the nearest
    positive semidefinite one if r of them are positive. W enters detached.

    Source: HLZ Definition 2.3 (Eckart, Young); Hermitian: HLZ §5.
    Cost: an SVD, O(m n min(m, n)), or an eigendecomposition.
    """
    if hermitian:
        values, vectors = torch.linalg.eigh(hermitian_part(W.detach()))
        U = vectors[..., -rank:].flip(-1)
        return Point(U, torch.diag_embed(values[..., -rank:].flip(-1)).to(U.dtype), U)
    U, sigma, Vh = torch.linalg.svd(W.detach(), full_matrices=False)
    S = torch.diag_embed(sigma[..., :rank]).to(U.dtype)
    return Point(U[..., :rank], S, Vh[..., :rank, :].mH)


def low_rank_factors(
    W: Inexact[Tensor, "*batch m n"] | Sequence[Tensor], rank: int | None = None
) -> tuple[Inexact[Tensor, "*batch m k"], Float[Tensor, "*batch k"], Inexact[Tensor, "*batch n k"]]:
    """(U, s, V), W ≈ U diag(s) Vᴴ: a start of the given rank k, by default W's numerical rank.

    The best approximation of rank k, of a W that has at least that rank: a start is never filled
    up with singular vectors of round-off. W may be given by matrices whose product it is, the first
    to be applied first.

    Source: HLZ Definition 2.3 (Eckart, Young).
    Shapes: U, V column by column in memory, the layout of `linalg.tall_times`.
    Cost: an SVD, O(m n min(m, n)); of a product that of `linalg.product_svd`.
    Raises: ValueError if rank is not 1 <= rank <= min(m, n), or W has fewer singular values above
        round-off; without a rank, if those of a batch differ.
    """
    U, s, Vh = product_svd([W] if isinstance(W, Tensor) else W)
    m, n = U.shape[-2], Vh.shape[-1]
    noise = max(m, n) * torch.finfo(s.dtype).eps * s[..., :1]
    ranks = (s > noise).sum(-1)
    k = int(ranks.max()) if rank is None else rank
    if not 1 <= k <= min(m, n):
        raise ValueError(f"rank must satisfy 1 <= rank <= min(m, n) = {min(m, n)}; got rank={k}.")
    if int(ranks.min()) < k:
        if rank is None:
            raise ValueError(
                "the matrices of a batch must have one rank in common here; those of W(0) have "
                f"ranks from {int(ranks.min())} to {k}: split the batch, or give the rank to "
                "truncate to."
            )
        raise ValueError(
            f"W(0) must have rank {k}; its numerical rank is {int(ranks.min())}: give that as rank."
        )
    V = Vh[..., :k, :].conj().resolve_conj().contiguous().mT
    return U[..., :k].mT.contiguous().mT, s[..., :k].contiguous(), V
