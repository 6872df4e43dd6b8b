"""Singular value decompositions that keep the small singular values as accurate as the large."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["graded_svd"]

_MAX_SWEEPS = 30


def graded_svd(
    A: Float[Tensor, "*batch k k"],
    log_s: Float[Tensor, "*batch k"],
    B: Float[Tensor, "*batch k k"],
    *,
    spread: float = 1e2,
) -> tuple[Tensor, Tensor, Tensor]:
    """The decomposition A diag(s) Bᵀ = P diag(σ) Qᵀ with every σ_i to full relative accuracy.

    A and B are upper triangular and well conditioned; s > 0, given by its logarithm as σ is
    returned, descends (neighbours may be out of order by a moderate factor) over any number of
    orders of magnitude. B's triangle makes A diag(s) Bᵀ = F diag(s) with F bounded and well
    conditioned; one-sided Jacobi rotations of its columns, norms and directions kept apart,
    perturb every σ_i by a few units in its own last place. An SVD of the product itself would
    lose whatever is below eps·σ_1, sign of the determinant included.

    Source: Demmel, Gu, Eisenstat, Slapničar, Veselić, Drmač 1999, Algorithm 3.1.
    Shapes: P, Q (*batch, k, k) orthogonal; log σ (*batch, k), descending.
    Cost: O(k³); spectra within the factor `spread` go to LAPACK, whose accuracy eps·σ_1 is good
    enough for them, others through a few Jacobi sweeps.
    Accuracy: about eps·cond(A)·cond(B), absolute in log σ; up to `spread` times that by LAPACK.
    """
    if log_s.shape[-1] == 1:
        value = A[..., 0] * B[..., 0]
        one = torch.ones_like(A)
        sign = torch.where(value < 0, -1.0, 1.0)[..., None].to(A)
        return sign * one, log_s + value.abs().log(), one
    top = log_s[..., :1]
    if bool((log_s.amin(-1) > top[..., 0] - math.log(spread)).all()):
        core = (A * (log_s - top).exp()[..., None, :]) @ B.mT
        if bool(torch.isfinite(core).all()):
            P, sigma, Qh = torch.linalg.svd(core)
            return P, top + sigma.log(), Qh.mT
    ratios = (log_s[..., :, None] - log_s[..., None, :]).clamp(max=50.0).exp()
    return _jacobi(A @ (B.mT * ratios.tril()), log_s)


def _jacobi(F: Tensor, log_d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD of F diag(d) by one-sided Jacobi rotations of its columns.

    Columns i and j at norms a, b and cosine γ are rotated by t = tan θ, the smaller root of
    t² + 2ζt − 1 = 0 with ζ = (b/a − a/b)/(2γ).
    """
    k = log_d.shape[-1]
    Q = torch.eye(k, dtype=F.dtype, device=F.device).expand_as(F).contiguous()
    tolerance = torch.finfo(F.dtype).eps ** 0.5 / k
    # t is γ·b/a to round-off long before b/a leaves the format: nothing depends on it there.
    far = -0.4 * math.log(torch.finfo(F.dtype).max)
    rounds = _rounds(k)
    F = F.clone()
    for _ in range(_MAX_SWEEPS):
        largest = None
        for first, second in rounds:
            x, y = F[..., first], F[..., second]
            squares = x.square().sum(-2), y.square().sum(-2)
            cosine = (x * y).sum(-2) * (squares[0] * squares[1]).rsqrt()
            worst = cosine.abs().amax()
            largest = worst if largest is None else torch.maximum(largest, worst)
            relative = (log_d[..., second] - log_d[..., first]).clamp(far, -far).exp()
            ratio = relative * (squares[1] / squares[0]).sqrt()
            zeta = 0.5 * (ratio - 1 / ratio)
            # (ζ, γ) scaled by γ: t = γ/(|ζ'| + √(ζ'² + γ²)) in the sign of ζ', 0 for γ = 0.
            sign = torch.where(zeta < 0, -1.0, 1.0)
            length = zeta.abs() + torch.hypot(zeta, cosine)
            t = sign * cosine / length.clamp(min=torch.finfo(F.dtype).tiny)
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
    log_sigma, order = (norms.log() + log_d).sort(dim=-1, descending=True)
    columns = order[..., None, :].expand_as(F)
    P = (F / norms[..., None, :]).gather(-1, columns)
    return P, log_sigma, Q.gather(-1, columns)


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
