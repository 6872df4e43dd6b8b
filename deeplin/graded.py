"""Singular value decompositions that keep the small singular values as accurate as the large."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["graded_svd"]

# Down to this ratio σ_k/σ_1 LAPACK's absolute accuracy eps·σ_1 is relative accuracy enough.
_LAPACK_RATIO = 1e-2
_MAX_SWEEPS = 30


def graded_svd(
    A: Float[Tensor, "*batch k k"], s: Float[Tensor, "*batch k"], B: Float[Tensor, "*batch k k"]
) -> tuple[Tensor, Tensor, Tensor]:
    """The decomposition A diag(s) Bᵀ = P diag(σ) Qᵀ with every σ_i to full relative accuracy.

    A and B are upper triangular and well conditioned, s > 0 descends, over hundreds of orders of
    magnitude if need be. B's triangle makes A diag(s) Bᵀ = F diag(s) with F bounded and well
    conditioned; one-sided Jacobi rotations of its columns, norms and directions kept apart,
    perturb every σ_i by a few units in its own last place. An SVD of the product itself would
    lose whatever is below eps·σ_1, sign of the determinant included.

    Source: Demmel, Gu, Eisenstat, Slapničar, Veselić, Drmač 1999, Algorithm 3.1.
    Shapes: P, Q (*batch, k, k) orthogonal; σ (*batch, k), descending.
    Cost: O(k³); spectra within a factor 100 go to LAPACK, others through a few Jacobi sweeps.
    Accuracy: relative, about eps·cond(A)·cond(B) for every σ_i above the underflow threshold.
    """
    if s.shape[-1] == 1:
        value = A[..., 0] * s * B[..., 0]
        one = torch.ones_like(A)
        return torch.where(value < 0, -1.0, 1.0)[..., None].to(A) * one, value.abs(), one
    if bool((s[..., -1] > _LAPACK_RATIO * s[..., 0]).all()):
        core = (A * s[..., None, :]) @ B.mT
        if bool(torch.isfinite(core).all()):
            P, sigma, Qh = torch.linalg.svd(core)
            return P, sigma, Qh.mT
    ratios = (s[..., :, None] / s[..., None, :]).clamp(max=1.0)
    return _jacobi(A @ (B.mT * ratios), s)


def _jacobi(F: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD of F diag(d) by one-sided Jacobi rotations of its columns.

    Columns i and j at norms a, b and cosine γ are rotated by t = tan θ, the smaller root of
    t² + 2ζt − 1 = 0 with ζ = (b/a − a/b)/(2γ).
    """
    k = d.shape[-1]
    Q = torch.eye(k, dtype=F.dtype, device=F.device).expand_as(F).contiguous()
    tolerance = torch.finfo(F.dtype).eps ** 0.5 / k
    rounds = _rounds(k)
    F = F.clone()
    for _ in range(_MAX_SWEEPS):
        largest = None
        for first, second in rounds:
            x, y = F[..., first], F[..., second]
            d_x, d_y = d[..., first], d[..., second]
            norm_x, norm_y = (torch.linalg.vector_norm(v, dim=-2) for v in (x, y))
            cosine = (x * y).sum(-2) / (norm_x * norm_y)
            worst = cosine.abs().amax()
            largest = worst if largest is None else torch.maximum(largest, worst)
            relative = d_y / d_x
            ratio = relative * norm_y / norm_x
            zeta = (ratio - 1 / ratio) / (2 * torch.where(cosine == 0, 1.0, cosine))
            t = torch.where(zeta < 0, -1.0, 1.0) / (zeta.abs() + torch.hypot(zeta, zeta.new_ones(())))
            t = torch.where(cosine == 0, 0.0, t)
            c = torch.rsqrt(1 + t * t)
            sine = c * t
            F[..., first] = c[..., None, :] * x - (sine * relative)[..., None, :] * y
            F[..., second] = (sine / relative)[..., None, :] * x + c[..., None, :] * y
            q_x, q_y = Q[..., first], Q[..., second]
            Q[..., first] = c[..., None, :] * q_x - sine[..., None, :] * q_y
            Q[..., second] = sine[..., None, :] * q_x + c[..., None, :] * q_y
        # Convergence is quadratic, and one rotation is exact for one pair; NaN ends it too.
        if k == 2 or largest is None or not bool(largest > tolerance):
            break
    norms = torch.linalg.vector_norm(F, dim=-2)
    sigma, order = (norms * d).sort(dim=-1, descending=True)
    columns = order[..., None, :].expand_as(F)
    P = (F / norms[..., None, :]).gather(-1, columns)
    return P, sigma, Q.gather(-1, columns)


@lru_cache
def _rounds(k: int) -> tuple[tuple[list[int], list[int]], ...]:
    """All pairs of 0..k−1 in rounds of disjoint pairs: a round-robin tournament."""
    players = list(range(k + k % 2))
    rounds = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        pairs = [(min(p), max(p)) for p in pairs if max(p) < k]
        rounds.append(([i for i, _ in pairs], [j for _, j in pairs]))
        players = [players[0], players[-1], *players[1:-1]]
    return tuple(rounds)
