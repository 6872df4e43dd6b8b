"""What a metric's dependence on the base point adds to the Hessian: Christoffel terms of g_W.

With 𝒜_W entrywise in the singular basis (c_ij on the core, d_j on the sides) its covariant
derivative along the embedded connection is entrywise, too, in first divided differences of c and d
in σ². These are evaluated without dividing by gaps, and no derivative of a singular vector enters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.geometry.coordinates import Point, Tangent
from deeplin.geometry.metric import Metric
from deeplin.linalg import hermitian_part, power_divided_difference

__all__ = ["MetricDerivative", "christoffel_terms", "squares_quotient"]

# Over log σ from a to 2a this many nodes give round-off for a function that is analytic in
# |Im log σ| < π/2, as functions of σ² + u with u ≥ 0 and powers of σ are.
_COUNT = 10
_NEAR = 0.5


def _gauss_legendre(count: int) -> tuple[list[float], list[float]]:
    """Nodes in (−1, 1), and weights with the sum 1. Source: [GW69]."""
    k = torch.arange(1, count, dtype=torch.float64)
    off = k / (4 * k**2 - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes.tolist(), (vectors[0] ** 2).tolist()


_NODES, _WEIGHTS = _gauss_legendre(_COUNT)


def squares_quotient(
    f: Callable[[Tensor], Tensor], a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """(f(a) − f(b))/(a² − b²), f'(a)/(2a) at a = b, for a function f applied entry by entry.

    Where a and b are within a factor of 2 it is the mean of df/dlog σ over log σ between them,
    by quadrature, divided by twice the logarithmic mean of a² and b²; elsewhere the quotient.

    Shapes: a, b > 0 of one shape.
    Cost: 12 evaluations of f, 10 of them with a forward derivative.
    Accuracy: round-off of f(a)/a² where f is analytic in |Im log σ| < π/2.
    """
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    near = low > _NEAR * high
    end = torch.where(near, low, high)
    middle, half = (high * end).sqrt(), (high / end).log() / 2
    column = (_COUNT, *(1,) * a.ndim)
    nodes, weights = (a.new_tensor(part).view(column) for part in (_NODES, _WEIGHTS))
    points = middle * (half * nodes).exp()
    slopes = torch.func.jvp(f, (points,), (points,))[1]
    mean = (weights * slopes).sum(0)
    integral = mean / (2 * power_divided_difference(high, end, math.inf))
    gap = torch.where(near, torch.ones_like(a), (high - low) * (high + low))
    return torch.where(near, integral, (f(high) - f(low)) / gap)


def _pair(metric: Metric, a: Tensor, b: Tensor) -> Tensor:
    """c(a, b) entry by entry."""
    return metric.core(torch.stack(torch.broadcast_tensors(a, b), -1))[..., 0, 1]


@dataclass(frozen=True)
class MetricDerivative:
    """∇𝒜, the covariant derivative of W ↦ 𝒜_W by the embedded connection, in the singular basis.

    For tangents in the basis of W = U diag(σ) Vᴴ, R = MΣ + ΣMᴴ and L = ΣM + MᴴΣ (the cores of
    the derivatives of WWᴴ and WᴴW along ξ), X with coordinates (X, X_u, X_v), ξ with (M, A, B):
    core  Σ_k R_ik T_ikl X_kl + Σ_k X_ik L_kl T_kli + E∘(AᴴX_u) + (E∘(BᴴX_v))ᴴ,
    sides A(E∘X) + X_u(L∘D)  and  B(E∘Xᴴ) + X_v(R∘D),
    T_ikl = (c_il − c_kl)/(σ_i² − σ_k²), D_kl = (d_k − d_l)/(σ_k² − σ_l²), E_kl = (c_kl − d_l)/σ_k.
    Needs c_ij = c(σ_i, σ_j) and d_j = d(σ_j), smooth functions.

    Source: ours; the divided differences are those of Daletskii and Krein.
    Shapes: T (*batch, r, r, r), the others (*batch, r, r), d a row; the sides of a tangent may be
        (I−UUᴴ)ξV or their coordinates in any orthonormal basis.
    Cost: about 50·r³ values of c, once; O((m + n) r² + r³) for each use.
    """

    sigma: Float[Tensor, "*batch r"]
    core: Float[Tensor, "*batch r r"]
    side: Float[Tensor, "*batch 1 r"]
    core_quotient: Float[Tensor, "*batch r r r"]
    side_quotient: Float[Tensor, "*batch r r"]
    gap: Float[Tensor, "*batch r r"]

    @classmethod
    def of(cls, metric: Metric, sigma: Float[Tensor, "*batch r"]) -> MetricDerivative:
        """c, d, T, D and E of a metric at singular values σ > 0."""
        rows, columns = torch.broadcast_tensors(sigma[..., :, None], sigma[..., None, :])
        others = sigma[..., None, None, :]
        cube = (*rows.shape, sigma.shape[-1])
        T = squares_quotient(
            lambda s: _pair(metric, s, others),
            rows[..., None].expand(cube),
            columns[..., None].expand(cube),
        )
        D = squares_quotient(lambda s: metric.side(s[..., None])[..., 0], rows, columns)
        c, d = metric.core(sigma), metric.side(sigma)[..., None, :]
        return cls(sigma, c, d, T, D, (c - d) / rows)

    def along(self, xi: Tangent, X: Tangent) -> Tangent:
        """(∇_ξ𝒜)X."""
        scaled = xi.M * self.sigma[..., None, :]
        R = scaled + scaled.mH
        scaled = self.sigma[..., :, None] * xi.M
        L = scaled + scaled.mH
        T, D, E = self.core_quotient.to(R.dtype), self.side_quotient, self.gap
        core = torch.einsum("...ik,...ikl,...kl->...il", R, T, X.M)
        core = core + torch.einsum("...ik,...kl,...kli->...il", X.M, L, T)
        core = core + E * (xi.Up.mH @ X.Up) + (E * (xi.Vp.mH @ X.Vp)).mH
        Up = xi.Up @ (E * X.M) + X.Up @ (L * D)
        return Tangent(core, Up, xi.Vp @ (E * X.M.mH) + X.Vp @ (R * D))

    def by_direction(self, a: Tangent, b: Tangent) -> Tangent:
        """The ζ with ⟨ζ, ξ⟩ = ⟨(∇_ξ𝒜)a, b⟩ for every ξ."""
        T, D, E = self.core_quotient.to(a.M.dtype), self.side_quotient, self.gap
        to_R = torch.einsum("...ikl,...il,...kl->...ik", T, b.M, a.M.conj())
        to_R = to_R + D * (a.Vp.mH @ b.Vp)
        to_L = torch.einsum("...kli,...ik,...il->...kl", T, a.M.conj(), b.M)
        to_L = to_L + D * (a.Up.mH @ b.Up)
        core = (to_R + to_R.mH) * self.sigma[..., None, :]
        core = core + self.sigma[..., :, None] * (to_L + to_L.mH)
        Up = a.Up @ (E * b.M).mH + b.Up @ (E * a.M).mH
        return Tangent(core, Up, a.Vp @ (E * b.M.mH).mH + b.Vp @ (E * a.M.mH).mH)

    def christoffel(self, xi: Tangent, p: Tangent) -> Tangent:
        """`christoffel_terms` of ξ and p = P_W(∇f), all in the singular basis."""
        gamma = Tangent(self.core * p.M, self.side * p.Up, self.side * p.Vp)
        inverse_side = torch.where(self.side > 0, 1 / self.side, 0.0)  # 0 where there are no sides
        momentum = Tangent(xi.M / self.core, inverse_side * xi.Up, inverse_side * xi.Vp)
        first, second = self.along(xi, p), self.along(gamma, momentum)
        third = self.by_direction(momentum, p)
        return Tangent(
            (first.M - second.M + self.core * third.M) / 2,
            (first.Up - second.Up + self.side * third.Up) / 2,
            (first.Vp - second.Vp + self.side * third.Vp) / 2,
        )


def christoffel_terms(
    point: Point,
    xi: Tangent,
    gradient: Tangent,
    metric: Metric,
    derivative: MetricDerivative | None = None,
) -> Tangent:
    """What Hess^g f[ξ] has besides 𝒜_W(Hess f[ξ]), p = P_W(∇f) given.

    ½(∇_ξ𝒜)p − ½(∇_γ𝒜)𝒜̄⁻¹ξ + ½𝒜ζ, γ = 𝒜p and ⟨ζ, η⟩ = ⟨(∇_η𝒜)𝒜̄⁻¹ξ, p⟩: Koszul's formula for g_W
    relative to the embedded connection, with df = g(γ, ·). It is 0 at critical points. For many ξ
    at one point the `derivative` is computed once, `MetricDerivative.of(metric, σ)`.

    Source: ours.
    Cost: O((m + n) r² + r³), with about 50·r³ values of c unless the derivative is given.
    Accuracy: round-off for ξ = 𝒜_W(Z), as steps are; ε·σ_1/σ_r relative for any ξ.
    Raises: ValueError where depth ∞ is no metric, and at a point that processes share.
    """
    if point.group is not None:
        raise ValueError(
            "Hessians at a point that processes share are known for the embedded metric alone; got "
            f"{metric}: take depth=1, or conjugate gradients."
        )
    metric.require(point)
    P, sigma, Q = point.spectrum
    xi, p = (Tangent(P.mH @ v.M @ Q, v.Up @ Q, v.Vp @ P) for v in (xi, gradient))
    derivative = MetricDerivative.of(metric, sigma) if derivative is None else derivative
    terms = derivative.christoffel(xi, p)
    M, Up = P @ terms.M @ Q.mH, terms.Up @ Q.mH
    if point.hermitian:
        return Tangent(hermitian_part(M), Up, Up)
    return Tangent(M, Up, terms.Vp @ P.mH)
