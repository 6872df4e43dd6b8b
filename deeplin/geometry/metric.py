"""The metric family g_W = ⟨𝒜_W⁻¹·, ·⟩_F of deep linear networks, for every real depth ≥ 1 and ∞.

In the singular basis W = U diag(σ) Vᴴ the operator 𝒜_W is entrywise: it multiplies the core
UᴴZV by c_ij, the columns of (I−UUᴴ)ZV and of (I−VVᴴ)ZᴴU by d_j, and sends the rest to 0. Depth 1 is
the embedded (Frobenius) metric: c = d = 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.geometry.coordinates import Point, Tangent
from deeplin.linalg import (
    expm1_ratio,
    hermitian_part,
    plus_tall_times,
    power_divided_difference,
    sum_over,
)

__all__ = [
    "DepthMetric",
    "Metric",
    "as_metric",
    "gradient_from_partials",
    "metric_inner",
    "metric_inverse",
    "metric_operator",
]


class Metric(ABC):
    """A metric g_W = ⟨𝒜_W⁻¹·, ·⟩_F on matrices of rank r that is entrywise in the singular basis.

    In W = U diag(σ) Vᴴ the operator 𝒜_W multiplies the core UᴴZV by c_ij, column j of (I−UUᴴ)ZV and
    of (I−VVᴴ)ZᴴU by d_j, and sends the rest to 0. `core` and `side` are required; from them follow
    the manifold, the flow, the Hessian and the local rate of the metric. A metric is a value.

    >>> class ScaledGD(Metric):  # ∇f VVᴴ + UUᴴ ∇f: [TMC21]
    ...     def core(self, sigma):
    ...         return 2 * torch.ones_like(sigma[..., :, None] * sigma[..., None, :])
    ...     def side(self, sigma):
    ...         return torch.ones_like(sigma)
    >>> ScaledGD().growth(torch.zeros(1))
    (tensor([[1.]]), tensor([[1.]]))
    """

    @abstractmethod
    def core(self, sigma: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r r"]:
        """c_ij = c(σ_i, σ_j) > 0, a symmetric smooth function of two singular values alone."""

    @abstractmethod
    def side(self, sigma: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        """d_j = d(σ_j) > 0, a smooth function of one singular value alone."""

    def side_ratio(self, sigma: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        """d_j/σ_j, which takes the partial derivative by U to the gradient's U_p."""
        return self.side(sigma) / sigma

    def growth(
        self, log_sigma: Float[Tensor, "*batch r"]
    ) -> tuple[Float[Tensor, "*batch 1 r"], Float[Tensor, "*batch r r"]]:
        """(d_j/σ_j, c_ij/(σ_i + σ_j)) from log σ: the rates at which the flow multiplies W.

        As long as σ itself is a number; a metric that can do without overrides this.
        """
        sigma = log_sigma.exp()
        total = sigma[..., :, None] + sigma[..., None, :]
        return self.side_ratio(sigma)[..., None, :], self.core(sigma) / total

    def require(self, point: Point) -> None:  # noqa: B027
        """Does nothing where g_W is a metric at the point; raises ValueError elsewhere."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *sorted(vars(self).items())))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({values})"


class DepthMetric(Metric):
    """The metric of a deep linear network of depth N, a real number ≥ 1 or ∞.

    c_ij = Σ_{l=1}^N σ_i^{2(N−l)/N} σ_j^{2(l−1)/N} = (σ_i² − σ_j²)/(σ_i^{2/N} − σ_j^{2/N}) and
    d_j = σ_j^{2−2/N}. N = 1 is the embedded (Frobenius) metric, c = d = 1. At N = ∞ c is the limit
    of c/N, (σ_i² − σ_j²)/(log σ_i² − log σ_j²), the logarithmic mean, and d = 0: under the scaling
    1/N that keeps the core finite, row and column space stand still. That is a metric on square
    matrices of full rank only.

    Source: BRTW (8) in the singular basis; N = ∞: compare BRTW Remark 19.
    Accuracy: round-off at every gap and every size of σ; differentiable for σ > 0, also where two
        of them are equal.
    Raises: TypeError when the depth is no number, ValueError when it is below 1 or NaN.

    >>> DepthMetric(2).core(torch.tensor([2.0, 2.0, 1.0]))  # σ_i + σ_j
    tensor([[4., 4., 3.],
            [4., 4., 3.],
            [3., 3., 2.]])
    """

    def __init__(self, depth: float):
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
        self.depth = depth

    def core(self, sigma: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r r"]:
        rows, columns = sigma[..., :, None], sigma[..., None, :]
        if self.depth == 1:
            return torch.ones_like(rows * columns)
        if self.depth == 2:
            return rows + columns
        return power_divided_difference(rows, columns, self.depth)

    def side(self, sigma: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        if math.isinf(self.depth):
            return torch.zeros_like(sigma)
        return sigma ** (2 - 2 / self.depth)

    def side_ratio(self, sigma: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        if math.isinf(self.depth):
            return torch.zeros_like(sigma)
        return sigma ** (1 - 2 / self.depth)

    def growth(
        self, log_sigma: Float[Tensor, "*batch r"]
    ) -> tuple[Float[Tensor, "*batch 1 r"], Float[Tensor, "*batch r r"]]:
        """The row σ_j^{1−2/N} and the matrix (σ_i − σ_j)/(σ_i^{2/N} − σ_j^{2/N}), for any log σ.

        The matrix is h^{1−2/N} expm1(x)/expm1(2x/N), h = max(σ_i, σ_j) and x = log(min/max), which
        comes from the logarithms, so that nothing cancels; N/2·h^{1−2/N} at x = 0. For N = ∞ it is
        h expm1(x)/(2x).
        """
        infinite = math.isinf(self.depth)
        power = 1.0 if infinite else 1 - 2 / self.depth
        row = log_sigma.unsqueeze(-2)
        p = (power * row).exp()
        if row.shape[-1] == 1:
            return (torch.zeros_like(p), p / 2) if infinite else (p, self.depth / 2 * p)
        difference = row - row.mT
        larger = torch.maximum if power >= 0 else torch.minimum
        if torch.compiler.is_compiling():
            # Compilers make e^x − 1 of expm1, which has no digits at small x: the entire E instead.
            x = torch.minimum(difference, difference.mT)
            core = expm1_ratio(x) / 2 if infinite else expm1_ratio(x) * (self.depth / 2)
            core = core if infinite else core / expm1_ratio(x * (2 / self.depth))
            return torch.zeros_like(p) if infinite else p, larger(p, p.mT) * core
        # At an x as small as this the quotient has its limit for x = 0 to the last digit.
        x = torch.minimum(difference, difference.mT).clamp(max=-1e-30)
        divisor = 2 * x if infinite else torch.expm1(x * (2 / self.depth))
        core = larger(p, p.mT) * torch.expm1(x) / divisor
        return torch.zeros_like(p) if infinite else p, core

    def require(self, point: Point) -> None:
        """Raises ValueError for depth ∞ unless the points are square matrices of full rank.

        Elsewhere 𝒜_W is not invertible on the tangent space.
        """
        m, n, rank = point.U.shape[-2], point.V.shape[-2], point.S.shape[-1]
        if math.isinf(self.depth) and not (m == n == rank):
            raise ValueError(
                "depth=math.inf is a metric on square matrices of full rank only (elsewhere it is "
                "a limit of the flow: egrad2rgrad and retr work, inner and metric_inverse do not); "
                f"got rank {rank} in {m}x{n}; use a finite depth."
            )


def as_metric(depth: float | Metric) -> Metric:
    """The metric given, or that of a depth."""
    return depth if isinstance(depth, Metric) else DepthMetric(depth)


def _is_embedded(metric: Metric) -> bool:
    """Whether 𝒜_W is the projection itself: no spectrum is needed."""
    return isinstance(metric, DepthMetric) and metric.depth == 1


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


def metric_operator(point: Point, tangent: Tangent, metric: Metric) -> Tangent:
    """𝒜_W(ξ), the map from a Euclidean gradient (projected) to the Riemannian one.

    𝒜_W(Z) = Σ_{j=1}^N (WWᴴ)^{(N−j)/N} Z (WᴴW)^{(j−1)/N}

    Source: BRTW (8), BRTW (22). 𝒜_W annihilates the normal space (BRTW Lemma 8), so that
        𝒜_W(Z) = 𝒜_W(P_W Z).
    Cost: O((m + n) r² + r³), whatever the depth; none at depth 1, where 𝒜_W(ξ) = ξ.
    """
    if _is_embedded(metric):
        return tangent
    sigma = point.spectrum[1]
    return _act(point, tangent, metric.core(sigma), metric.side(sigma))


def metric_inverse(point: Point, tangent: Tangent, metric: Metric) -> Tangent:
    """𝒜̄_W⁻¹(ξ), the inverse on the tangent space, where g_W(ξ, ·) = ⟨𝒜̄_W⁻¹ξ, ·⟩_F.

    Source: BRTW Lemma 8, BRTW (18).
    Cost: O((m + n) r² + r³).
    Raises: ValueError where depth ∞ is no metric.
    """
    metric.require(point)
    if _is_embedded(metric):
        return tangent
    sigma = point.spectrum[1]
    side = metric.side(sigma)
    inverse_side = torch.where(side > 0, 1 / side, 0.0)  # 0 only where there are no sides
    return _act(point, tangent, 1 / metric.core(sigma), inverse_side)


def metric_inner(
    point: Point, first: Tangent, second: Tangent, metric: Metric
) -> Float[Tensor, "*batch"]:
    """g_W(ξ, η) = ⟨𝒜̄_W⁻¹ξ, η⟩_F; the real part of it for complex matrices.

    Source: BRTW Definition 9, BRTW (18).
    Cost: O((m + n) r² + r³).
    Accuracy: a sum of terms, no differences; g_W(ξ, ξ) is never negative, and inf where it is
        beyond the number format.
    Raises: ValueError where depth ∞ is no metric.
    """
    metric.require(point)
    P, sigma, Q = point.spectrum

    def product(a: Tensor, b: Tensor, basis: Tensor) -> Tensor:
        a = a @ basis
        b = a if a is b else b @ basis
        return (a.conj() * b).real

    M_first = P.mH @ first.M @ Q
    M_second = M_first if first is second else P.mH @ second.M @ Q
    least = math.ulp(0.0) if sigma.dtype == torch.float64 else 1.5e-45  # not 0/0 where c is less
    core = ((M_first.conj() * M_second).real / metric.core(sigma).clamp(min=least)).sum((-2, -1))
    no_sides = point.U.shape[-2] == point.V.shape[-2] == sigma.shape[-1]
    if no_sides and point.group is None:
        return core
    sides = product(first.Up, second.Up, Q).sum(-2)
    sides = 2 * sides if point.hermitian else sides + product(first.Vp, second.Vp, P).sum(-2)
    (sides,) = sum_over(point.group, sides)
    return core + (sides / metric.side(sigma).clamp(min=least)).sum(-1)


def gradient_from_partials(
    point: Point,
    partial_U: Inexact[Tensor, "*batch m r"],
    partial_V: Inexact[Tensor, "*batch n r"],
    partial_S: Inexact[Tensor, "*batch r r"],
    metric: Metric,
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
    M = _core(point, partial_S, metric.core(sigma))
    ratio = metric.side_ratio(sigma)
    U_scaled = partial_U @ _side(P, ratio, Q)
    if point.hermitian:
        U_scaled = U_scaled / 2
        Up = plus_tall_times(U_scaled, point.U, point.U.mH @ U_scaled, alpha=-1)
        return Tangent(M, Up, Up)
    V_scaled = partial_V @ _side(Q, ratio, P)
    Up = plus_tall_times(U_scaled, point.U, point.U.mH @ U_scaled, alpha=-1)
    return Tangent(M, Up, plus_tall_times(V_scaled, point.V, point.V.mH @ V_scaled, alpha=-1))
