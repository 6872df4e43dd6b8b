"""Leading singular vectors of a matrix that is known by its products with thin ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.linalg.shards import tall_qr

__all__ = ["leading_svd"]


def leading_svd(
    times: Callable[[Tensor], Tensor],
    adjoint_times: Callable[[Tensor], Tensor],
    start: Inexact[Tensor, "*batch n k"],
    rank: int,
    *,
    rtol: float = 1e-2,
    iterations: int = 50,
    group: dist.ProcessGroup | None = None,
) -> tuple[Inexact[Tensor, "*batch m r"], Float[Tensor, "*batch r"], Inexact[Tensor, "*batch n r"]]:
    """(U, σ, V) of the r largest singular values of A, by subspace iteration with k ≥ r columns.

    P ↦ orth(Aᴴ orth(AP)) until no σ_i, i ≤ r, grows by more than rtol·σ_1, or for so many
    iterations. The error of σ_i falls by (σ_{k+1}/σ_i)⁴ each, that of its vectors by the root.

    With a `group` each process has some rows of all tall matrices here.

    Source: [HMT11], Algorithms 4.4 and 5.1.
    Shapes: `times` maps (*batch, n, k) to (*batch, m, k) by A, `adjoint_times` back by Aᴴ; `start`
        random, k >= r.
    Cost: two products with k columns and two QR decompositions an iteration.
    Accuracy: σ from below; U and V orthonormal to round-off, AV = Uσ where σ has converged.
    """
    V = tall_qr(start, group)[0]
    U, V, sigma = _turned(times, adjoint_times, V, group)
    for _ in range(iterations - 1):
        before = sigma[..., :rank]
        U, V, sigma = _turned(times, adjoint_times, V, group)
        change = (sigma[..., :rank] - before).abs()
        if bool((change <= rtol * sigma[..., :1]).all()):
            break
    return U[..., :rank], sigma[..., :rank], V[..., :rank]


def _turned(
    times: Callable[[Tensor], Tensor],
    adjoint_times: Callable[[Tensor], Tensor],
    V: Tensor,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(U, V⁺, σ): U spans AV; AᴴU is written as V⁺σPᴴ, and U turned by P."""
    U = tall_qr(times(V), group)[0]
    V, R = tall_qr(adjoint_times(U), group)
    X, sigma, Yh = torch.linalg.svd(R)  # AᴴU = V R = (V X) σ Yᴴ, hence UᴴA = Y σ (V X)ᴴ
    return U @ Yh.mH, V @ X, sigma
