"""Points of M_r near a spurious critical point: where its escape is watched from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.landscape.spurious import SpuriousPoint, spurious_points
from deeplin.linalg import orthonormal_factor

__all__ = ["fan_around", "neighbours_of", "spurious_point"]


def spurious_point(X: Inexact[Tensor, "m n"], keep: Sequence[int]) -> SpuriousPoint:
    """Z_# = Σ_{i∈keep} d_i u_i v_iᴴ of a matrix X; indices from 1 for the largest d_i.

    Source: HLZ Definition 2.5.
    Raises: ValueError unless keep is a proper subset of 1..rank X.
    """
    wanted = tuple(sorted(set(keep)))
    for point in spurious_points(X):
        if wanted == point.J:
            return point
    raise ValueError(
        "keep must name some, not all, of the singular values of X, from 1 for the largest, and of "
        f"equal ones the first; got {list(keep)}: for instance [1]."
    )


def neighbours_of(
    point: SpuriousPoint,
    radius: float,
    rank: int,
    count: int,
    *,
    generator: torch.Generator | None = None,
) -> Inexact[Tensor, "count m n"]:
    """Points of rank r at the distance ρ from Z_#, on the semidefinite cone where Z_# is one of it.

    Z = YYᴴ, Y = [(U_1D_1 + τE)D_1^{-1/2}, τ^{1/2}QΛ^{1/2}], Z_# = U_1D_1U_1ᴴ of rank s, so that
    Z = Z_# + τ(EU_1ᴴ + U_1Eᴴ + QΛQᴴ) + τ²ED_1^{-1}Eᴴ, with

    - E Gaussian, E‖E‖² = ½: the kept part turns and stretches,
    - Q r − s orthonormal columns, uniform among those orthogonal to U_1,
    - Λ diagonal, √(r − s)·λ_i uniform in (1/2, 3/2): none of them is round-off,
    - τ the number for which ‖Z − Z_#‖_F = ρ, the radius.

    Semidefinite and of rank at most r whatever ρ is; of rank r for every ρ below the least kept
    d_i, and almost surely beyond. Of a Z_# = U_1D_1V_1ᴴ that is not semidefinite Z = YY'ᴴ, Y' drawn
    likewise around V_1.

    Source: HLZ §5, which leaves radius and law open: this law is ours.
    Shapes: count matrices of the shape of Z_#.
    Cost: count QR decompositions of n×(r − s) matrices, and 60 evaluations of a quartic in τ.
    Raises: ValueError unless radius > 0 and s < rank <= min(m, n).
    """
    _check_radius(radius)
    m, n, s = point.U.shape[0], point.V.shape[0], point.rank
    if not s < rank <= min(m, n):
        raise ValueError(
            f"neighbours of rank r of a Z_# of rank s = {s} need s < r <= min(m, n) = {min(m, n)}; "
            f"got rank={rank}."
        )
    hermitian = torch.equal(point.U_missing, point.V_missing)
    weights = torch.rand(count, rank - s, dtype=point.d.dtype, generator=generator) + 0.5
    weights = weights / math.sqrt(rank - s)
    E, Q = _around(point.U, rank - s, count, generator)
    E_V, Q_V = (E, Q) if hermitian else _around(point.V, rank - s, count, generator)
    U, V, d = point.U.cpu(), point.V.cpu(), point.d.cpu()
    first = E @ V.mH + U @ E_V.mH + (Q * weights[:, None, :]) @ Q_V.mH
    second = (E / d) @ E_V.mH
    tau = _at_distance(radius, first, second)[:, None, None]

    def factor(kept: Tensor, E: Tensor, Q: Tensor) -> Tensor:
        return torch.cat([(kept * d + tau * E) / d.sqrt(), (tau * weights[:, None]).sqrt() * Q], -1)

    return factor(U, E, Q) @ factor(V, E_V, Q_V).mH


def _around(
    frame: Tensor, extra: int, count: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """(E, Q) around the orthonormal columns of a frame, as in `neighbours_of`, on the CPU."""
    frame = frame.cpu()
    n, s = frame.shape
    E = torch.randn(count, n, s, dtype=frame.dtype, generator=generator) / math.sqrt(2 * n * s or 1)
    G = torch.randn(count, n, extra, dtype=frame.dtype, generator=generator)
    for _ in range(2):  # twice is enough for orthogonality to round-off
        G = G - frame @ (frame.mH @ G)
    return E, orthonormal_factor(G)[0]


def _at_distance(radius: float, first: Tensor, second: Tensor) -> Tensor:
    """The τ with ‖τ·first + τ²·second‖_F = radius, by bisection of its quartic; one for each."""

    def inner(A: Tensor, B: Tensor) -> Tensor:
        return (A.conj() * B).real.sum((-2, -1))

    a, b, c = inner(first, first), inner(first, second), inner(second, second)

    def distance(tau: Tensor) -> Tensor:
        return tau * (a + tau * (2 * b + tau * c)).clamp(min=0).sqrt()

    high = radius / a.sqrt()
    while bool((distance(high) < radius).any()):
        high = torch.where(distance(high) < radius, 2 * high, high)
    low = torch.zeros_like(high)
    for _ in range(60):
        middle = 0.5 * (low + high)
        short = distance(middle) < radius
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return 0.5 * (low + high)


def fan_around(point: SpuriousPoint, radius: float, count: int) -> Float[Tensor, "count n n"]:
    """Z_# + ρvvᵀ, v = cos θ w + sin θ u: θ from 0 evenly to π/2, u the eigenvector that Z_# misses.

    w is orthogonal to the range of X. θ = 0 is the one direction along which descent stays at Z_#.

    Source: HLZ Example 1.1, HLZ Fig. 1.
    Raises: ValueError unless radius > 0, Z_# is of rank r − 1 and r < n.
    """
    _check_radius(radius)
    n, r = point.U.shape[0], point.rank + 1
    if len(point.missing) != 1 or r >= n:
        raise ValueError(
            "a fan needs a Z_# that misses one eigenvalue of an X of rank r < n; got "
            f"{len(point.missing)} missing, r = {point.rank + len(point.missing)}, n = {n}."
        )
    frame = torch.cat([point.U, point.U_missing], -1)
    w = torch.linalg.qr(frame, mode="complete").Q[:, r]
    theta = torch.linspace(0, math.pi / 2, count, dtype=point.U.dtype)
    v = theta.cos()[:, None] * w + theta.sin()[:, None] * point.U_missing[:, 0]
    return point.dense() + radius * v[:, :, None] * v[:, None, :]


def _check_radius(radius: float) -> None:
    if not radius > 0:
        raise ValueError(f"radius must be positive; got {radius}.")
