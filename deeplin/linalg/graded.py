"""Singular value decompositions that keep the small singular values as accurate as the large."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.linalg.values import values_known

__all__ = ["graded_svd"]

_MAX_SWEEPS = 30
# Where convergence cannot be looked at; up to k = 64 the slowest draws took eight.
_BLIND_SWEEPS = 10


def graded_svd(
    A: Inexact[Tensor, "*batch k k"],
    log_s: Float[Tensor, "*batch k"],
    B: Inexact[Tensor, "*batch k k"],
    *,
    spread: float = 1e2,
) -> tuple[Inexact[Tensor, "*batch k k"], Float[Tensor, "*batch k"], Inexact[Tensor, "*batch k k"]]:
    """The decomposition A diag(s) Bᴴ = P diag(σ) Qᴴ with every σ_i to full relative accuracy.

    A and B are upper triangular and well conditioned; s > 0, given by its logarithm as σ is
    returned, descends (neighbours may be out of order by a moderate factor) over any number of
    orders of magnitude. B's triangle makes A diag(s) Bᴴ = F diag(s) with F bounded and well
    conditioned; one-sided Jacobi rotations of its columns, norms and directions kept apart,
    perturb every σ_i by a few units in its own last place. An SVD of the product itself would
    lose whatever is below eps·σ_1, sign of the determinant included.

    Source: [DGE99], Algorithm 3.1.
    Shapes: P, Q (*batch, k, k) unitary; log σ (*batch, k), descending.
    Cost: O(k³); spectra within the factor `spread` go to LAPACK, whose accuracy eps·σ_1 is good
    enough for them, others through a few Jacobi sweeps. Under torch.func and torch.compile all go
    through the same number of sweeps, ten.
    Accuracy: about eps·cond(A)·cond(B), absolute in log σ; up to `spread` times that by LAPACK.
    """
    if log_s.shape[-1] == 1:
        value = A * B.conj()
        one = torch.ones_like(A)
        sign = torch.where(value == 0, one, value.sgn())
        return sign, log_s + value[..., 0].abs().log(), one
    top = log_s[..., :1]
    if values_known() and bool((log_s.amin(-1) > top[..., 0] - math.log(spread)).all()):
        core = (A * (log_s - top).exp()[..., None, :]) @ B.mH
        if bool(torch.isfinite(core).all()):
            P, sigma, Qh = torch.linalg.svd(core)
            return P, top + sigma.log(), Qh.mH
    ratios = (log_s[..., :, None] - log_s[..., None, :]).clamp(max=50.0).exp()
    return _jacobi(A @ (B.mH * ratios.tril()), log_s)


def _jacobi(F: Tensor, log_d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD of F diag(d) by one-sided Jacobi rotations of its columns.

    Columns i and j at norms a, b and cosine γ are rotated by t = tan θ, the smaller root of
    t² + 2ζt − 1 = 0 with ζ = (b/a − a/b)/(2|γ|), times the sign or phase of γ.
    """
    k = log_d.shape[-1]
    Q = torch.zeros_like(F) + torch.eye(k, dtype=F.dtype, device=F.device)
    tolerance = torch.finfo(F.dtype).eps ** 0.5 / k
    # t is γ·b/a to round-off long before b/a leaves the format: nothing depends on it there.
    far = -0.4 * math.log(torch.finfo(F.dtype).max)
    F = F.clone()
    known = values_known()
    rounds = _kept_rounds(k) if known else _rounds(k)  # a trace looks into no cache
    for _ in range(_MAX_SWEEPS if known else _BLIND_SWEEPS):
        largest = None
        for first, second in rounds:
            x, y = F[..., first], F[..., second]
            squares = _squares(x), _squares(y)
            cosine = (x.conj() * y).sum(-2) * (squares[0] * squares[1]).rsqrt()
            size = cosine.abs()
            if known:
                worst = size.amax()
                largest = worst if largest is None else torch.maximum(largest, worst)
            relative = (log_d[..., second] - log_d[..., first]).clamp(far, -far).exp()
            ratio = relative * (squares[1] / squares[0]).sqrt()
            zeta = 0.5 * (ratio - 1 / ratio)
            # (ζ, γ) scaled by γ: t = γ/(|ζ'| + √(ζ'² + γ²)) in the sign of ζ', 0 for γ = 0.
            sign = torch.where(zeta < 0, -1.0, 1.0)
            length = zeta.abs() + torch.hypot(zeta, size)
            t = sign * cosine / length.clamp(min=torch.finfo(F.dtype).tiny)
            c = torch.rsqrt(1 + (t.conj() * t).real)
            sine = c * t
            F[..., first] = c[..., None, :] * x - (sine.conj() * relative)[..., None, :] * y
            F[..., second] = (sine / relative)[..., None, :] * x + c[..., None, :] * y
            q_x, q_y = Q[..., first], Q[..., second]
            Q[..., first] = c[..., None, :] * q_x - sine.conj()[..., None, :] * q_y
            Q[..., second] = sine[..., None, :] * q_x + c[..., None, :] * q_y
        # Convergence is quadratic, and one rotation is exact for one pair; NaN ends it too.
        if k == 2 or (largest is not None and not bool(largest > tolerance)):
            break
    norms = torch.linalg.vector_norm(F, dim=-2)
    log_sigma, order = (norms.log() + log_d).sort(dim=-1, descending=True)
    columns = order[..., None, :].expand_as(F)
    P = (F / norms[..., None, :]).gather(-1, columns)
    return P, log_sigma, Q.gather(-1, columns)


def _squares(x: Tensor) -> Tensor:
    """The squared norms of the columns."""
    return (x.conj() * x).real.sum(-2) if x.is_complex() else x.square().sum(-2)


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


_kept_rounds = lru_cache(_rounds)
