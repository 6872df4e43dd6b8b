"""Powers and divided differences of spectra, elementwise."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["expm1_ratio", "power_divided_difference"]

# Below this |z| a series replaces the quotient (eᶻ−1)/z: at 0 the quotient is 0/0, and near 0 its
# derivative by autograd loses digits to cancellation.
_SERIES_RADIUS = 0.25
_SERIES_TERMS = 13


def expm1_ratio(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The entire function E(z) = (eᶻ − 1)/z with E(0) = 1, smooth under autograd.

    Shapes: any; elementwise.
    Accuracy: a few units in the last place, in value and first derivative, for z < 700.
    """
    small = z.abs() < _SERIES_RADIUS
    near = torch.where(small, z, torch.zeros_like(z))
    series = torch.zeros_like(z)
    for n in range(_SERIES_TERMS, 0, -1):
        series = series * near + 1.0 / math.factorial(n)
    far = torch.where(small, torch.ones_like(z), z)
    return torch.where(small, series, torch.expm1(far) / far)


def power_divided_difference(
    a: Float[Tensor, "*#shape"], b: Float[Tensor, "*#shape"], depth: float
) -> Float[Tensor, "*shape"]:
    """c(a, b) = (a² − b²)/(a^{2/N} − b^{2/N}), the eigenvalues of 𝒜_W on the core of W.

    For integer N this is Σ_{l=1}^N a^{2(N−l)/N} b^{2(l−1)/N}. It is computed, for every real
    N ≥ 1, as N·h^{2−2/N}·E(2x)/E(2x/N) with h = max(a, b), x = log(min(a, b)/h) and
    E(z) = (eᶻ−1)/z: no cancellation at a = b, no sum over N. N = ∞ gives the limit of c/N, the
    logarithmic mean h²·E(2x) of a² and b².

    Source: BRTW (8) in the singular basis of W; N = ∞: BRTW Remark 19.
    Shapes: a and b, non-negative, broadcast against each other.
    Accuracy: round-off, uniformly in a/b and N; differentiable for a, b > 0, a = b included.
    """
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    h = torch.where(high > 0, high, torch.ones_like(high))
    # Where low = 0 the ratio of the E's has the limit 1/N, set below; x is any finite number there.
    ratio = torch.where(low > 0, low, h) / h
    gap = (torch.where(low > 0, low, h) - h) / h  # exact numerator for ratio > 1/2 (Sterbenz)
    x = torch.where(ratio > 0.5, torch.log1p(gap.clamp(min=-0.75)), torch.log(ratio))
    if math.isinf(depth):
        return high**2 * torch.where(low > 0, expm1_ratio(2 * x), torch.zeros_like(x))
    quotient = torch.where(
        low > 0,
        expm1_ratio(2 * x) / expm1_ratio(2 * x / depth),
        torch.full_like(x, 1 / depth),
    )
    return depth * high ** (2 - 2 / depth) * quotient
