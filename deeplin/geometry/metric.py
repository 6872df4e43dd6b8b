"""The metric family g_W = ⟨𝒜_W⁻¹·, ·⟩_F of deep linear networks, for every real depth ≥ 1 and ∞.

In the singular basis W = U diag(σ) Vᴴ the operator 𝒜_W is entrywise: it multiplies the core
UᴴZV by c_ij, the columns of (I−UUᴴ)ZV and of (I−VVᴴ)ZᴴU by d_j, and sends the rest to 0. Depth 1 is
the embedded (Frobenius) metric: c = d = 1.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.geometry.coordinates import Point, Tangent
from deeplin.linalg import hermitian_part, power_divided_difference

__all__ = [
    "core_coefficients",
    "gradient_from_partials",
    "metric_inner",
    "metric_inverse",
    "metric_operator",
    "require_metric",
    "side_coefficients",
    "validate_depth",
]


def validate_depth(depth: float) -> float:
    """The depth as given, when it is a real number ≥ 1 or math.inf.

    Raises: TypeError when it is no number, ValueError when it is below 1 or NaN.
    """
    if isinstance(depth, bool) or not isinstance(depth, int | float):
        raise TypeError(
            f"depth must be a real number >= 1 or math.inf; got {depth!r} of type "
            f"{type(depth).__name__}; write depth=2 for a network of two layers."
        )
    if not depth >= 1:
        raise ValueError(
            f"depth must be a real number >= 1 or math.inf; got depth={depth}; "
            "write depth=1 for the embedded metric."
        )
    return depth


def core_coefficients(
    sigma: Float[Tensor, "*batch r"], depth: float
) -> Float[Tensor, "*batch r r"]:
    """The factors c_ij of 𝒜_W on the core UᴴZV.

    c_ij = Σ_{l=1}^N σ_i^{2(N−l)/N} σ_j^{2(l−1)/N} = (σ_i² − σ_j²)/(σ_i^{2/N} − σ_j^{2/N}); at N = ∞
    the limit of c/N, (σ_i² − σ_j²)/(log σ_i² − log σ_j²), the logarithmic mean.

    Source: BRTW (8) in the singular basis; N = ∞: compare BRTW Remark 19.
    Shapes: sigma (*batch, r), non-negative -> (*batch, r, r), symmetric.
    Accuracy: round-off at every gap and every size of σ; differentiable for σ > 0, also where two
        of them are equal.

    >>> core_coefficients(torch.tensor([2.0, 2.0, 1.0]), 2)  # σ_i + σ_j
    tensor([[4., 4., 3.],
            [4., 4., 3.],
            [3., 3., 2.]])
    """
    rows, columns = sigma[..., :, None], sigma[..., None, :]
    if depth == 1:
        return torch.ones_like(rows * columns)
    if depth == 2:
        return rows + columns
    return power_divided_difference(rows, columns, depth)


def side_coefficients(sigma: Float[Tensor, "*batch r"], depth: float) -> Float[Tensor, "*batch r"]:
    """The factors d_j = σ_j^{2−2/N} of 𝒜_W on (I−UUᴴ)ZV and (I−VVᴴ)ZᴴU; 0 for N = ∞.

    Under the scaling 1/N that keeps the core finite, the sides vanish like 1/N: at N = ∞ row and
    column space stand still.

    Source: BRTW (8) in the singular basis.
    Shapes: sigma (*batch, r) -> (*batch, r).
    """
    if math.isinf(depth):
        return torch.zeros_like(sigma)
    return sigma ** (2 - 2 / depth)


def require_metric(point: Point, depth: float) -> None:
    """Does nothing where g_W is a metric at the point.

    Raises: ValueError for depth ∞ unless the points are square matrices of full rank, because
        𝒜_W is not invertible on the tangent space elsewhere.
    """
    m, n, rank = point.U.shape[-2], point.V.shape[-2], point.S.shape[-1]
    if math.isinf(depth) and not (m == n == rank):
        raise ValueError(
            "depth=math.inf is a metric on square matrices of full rank only (elsewhere it is a "
            f"limit of the flow: egrad2rgrad and retr work, inner and metric_inverse do not); got "
            f"rank {rank} in {m}x{n}; use a finite depth."
        )


def _core(point: Point, M: Tensor, factors: Tensor) -> Tensor:
    """P (factors ∘ (PᴴMQ)) Qᴴ: an entrywise action in the singular basis of S."""
    P, _, Q = point.spectrum
    core = P @ (factors * (P.mH @ M @ Q)) @ Q.mH
    return hermitian_part(core) if point.hermitian else core


def _side(basis: Tensor, factors: Tensor, other: Tensor) -> Tensor:
    """The r×r matrix basis diag(factors) otherᴴ."""
    return (basis * factors[..., None, :]) @ other.mH


def _act(point: Point, tangent: Tangent, core: Tensor, side: Tensor) -> Tangent:
    P, _, Q = point.spectrum
    Up = tangent.Up @ _side(Q, side, Q)
    Vp = Up if point.hermitian else tangent.Vp @ _side(P, side, P)
    return Tangent(_core(point, tangent.M, core), Up, Vp)


def metric_operator(point: Point, tangent: Tangent, depth: float) -> Tangent:
    """𝒜_W(ξ), the map from a Euclidean gradient (projected) to the Riemannian one.

    𝒜_W(Z) = Σ_{j=1}^N (WWᴴ)^{(N−j)/N} Z (WᴴW)^{(j−1)/N}

    Source: BRTW (8), (22). 𝒜_W annihilates the normal space (BRTW Lemma 8), so that
        𝒜_W(Z) = 𝒜_W(P_W Z).
    Cost: O((m + n) r² + r³), whatever the depth.
    """
    sigma = point.spectrum[1]
    return _act(point, tangent, core_coefficients(sigma, depth), side_coefficients(sigma, depth))


def metric_inverse(point: Point, tangent: Tangent, depth: float) -> Tangent:
    """𝒜̄_W⁻¹(ξ), the inverse on the tangent space, where g_W(ξ, ·) = ⟨𝒜̄_W⁻¹ξ, ·⟩_F.

    Source: BRTW Lemma 8, (18).
    Cost: O((m + n) r² + r³).
    Raises: ValueError where depth ∞ is no metric.
    """
    require_metric(point, depth)
    sigma = point.spectrum[1]
    side = side_coefficients(sigma, depth)
    inverse_side = side if math.isinf(depth) else 1 / side
    return _act(point, tangent, 1 / core_coefficients(sigma, depth), inverse_side)


def metric_inner(
    point: Point, first: Tangent, second: Tangent, depth: float
) -> Float[Tensor, "*batch"]:
    """g_W(ξ, η) = ⟨𝒜̄_W⁻¹ξ, η⟩_F; the real part of it for complex matrices.

    Source: BRTW Definition 9, (18).
    Cost: O((m + n) r² + r³).
    Accuracy: a sum of terms, no differences; g_W(ξ, ξ) is never negative.
    Raises: ValueError where depth ∞ is no metric.
    """
    require_metric(point, depth)
    P, sigma, Q = point.spectrum

    def product(a: Tensor, b: Tensor, basis: Tensor) -> Tensor:
        a = a @ basis
        b = a if a is b else b @ basis
        return (a.conj() * b).real

    M_first = P.mH @ first.M @ Q
    M_second = M_first if first is second else P.mH @ second.M @ Q
    core = ((M_first.conj() * M_second).real / core_coefficients(sigma, depth)).sum((-2, -1))
    if math.isinf(depth):  # square and of full rank: there are no sides
        return core
    sides = product(first.Up, second.Up, Q).sum(-2)
    sides = 2 * sides if point.hermitian else sides + product(first.Vp, second.Vp, P).sum(-2)
    return core + (sides / side_coefficients(sigma, depth)).sum(-1)


def gradient_from_partials(
    point: Point,
    partial_U: Inexact[Tensor, "*batch m r"],
    partial_V: Inexact[Tensor, "*batch n r"],
    partial_S: Inexact[Tensor, "*batch r r"],
    depth: float,
) -> Tangent:
    """𝒜_W(∇f) from the partial derivatives of f(U S Vᴴ), as autograd gives them.

    With G = ∇f: ∂_U = GVSᴴ, ∂_V = GᴴUS, ∂_S = UᴴGV. In the singular basis of S:
    M = c∘∂_S, U_p = (I−UUᴴ)∂_U Σ^{1−2/N}, V_p = (I−VVᴴ)∂_V Σ^{1−2/N}: no inverse for N ≥ 2. At a
    Hermitian point f(U S Uᴴ) has ∂_U = (G + Gᴴ)US, and half of it is used; ∂_V is not looked at.

    Source: BRTW (22) in factored coordinates; N = 1: the right-hand side of HLZ (1), with its S⁻¹.
    Cost: O((m + n) r² + r³).
    Accuracy: ε‖G‖·σ_1 σ_r^{1−2/N} on the sides, unless S is diagonal: then round-off for every N,
        because the columns of ∂_U and ∂_V carry their own scale. For N = 1, small σ_r and a general
        S take the taped form (``gradient="taped"`` of the factored manifolds).
    """
    P, sigma, Q = point.spectrum
    M = _core(point, partial_S, core_coefficients(sigma, depth))
    power = torch.zeros_like(sigma) if math.isinf(depth) else sigma ** (1 - 2 / depth)
    U_scaled = partial_U @ _side(P, power, Q)
    if point.hermitian:
        U_scaled = U_scaled / 2
        Up = U_scaled - point.U @ (point.U.mH @ U_scaled)
        return Tangent(M, Up, Up)
    V_scaled = partial_V @ _side(Q, power, P)
    Up = U_scaled - point.U @ (point.U.mH @ U_scaled)
    return Tangent(M, Up, V_scaled - point.V @ (point.V.mH @ V_scaled))
