"""Riemannian Hessians on rank-r matrices, as Hessian-vector products in factored form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from deeplin.geometry.connection import MetricDerivative, christoffel_terms
from deeplin.geometry.coordinates import Point, Tangent, project_products
from deeplin.geometry.metric import DepthMetric, Metric, metric_operator
from deeplin.linalg import adjoint_products, hermitian_part, plus_tall_times

__all__ = [
    "Matrix",
    "PairLoss",
    "embedded_hessian",
    "hessian_of_products",
    "hessian_vector_product",
    "riemannian_hessian",
]

PairLoss = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class Matrix(Protocol):
    """What a Hessian needs of an m×n matrix: its products, and those of its adjoint."""

    def __matmul__(self, other: Tensor, /) -> Tensor: ...

    @property
    def mH(self) -> Matrix: ...


def embedded_hessian(
    point: Point,
    HV: Tensor,
    HhU: Tensor,
    GVp: Tensor,
    GhUp: Tensor,
    inverse: Tensor | None = None,
) -> Tangent:
    """Hess f(W)[ξ] for the embedded metric (depth 1), at every point.

    P_W(H) + P_U^⊥ G V_p S⁻ᴴ Vᴴ + U S⁻ᴴ U_pᴴ G P_V^⊥, H = D∇f(W)[ξ], G = ∇f(W): the second and
    third term are the curvature of the manifold, and have the S⁻¹ that HLZ studies.

    Source: [Van13], §2.3. HLZ (4) has mismatched shapes and
        signs that flip between displays.
    Shapes: HV, GVp = G V_p (*batch, m, r), HhU = HᴴU, GhUp = Gᴴ U_p (*batch, n, r); inverse = S⁻¹,
        for who has it; else two systems are solved.
    Cost: O((m + n) r² + r³).
    Accuracy: ε·σ_1/σ_r relative on the curvature terms.
    """
    if inverse is None:
        left = HV + torch.linalg.solve(point.S.mH, GVp, left=False)
        right = HhU + torch.linalg.solve(point.S, GhUp, left=False)
    else:
        left = plus_tall_times(HV, GVp, inverse.mH)
        right = plus_tall_times(HhU, GhUp, inverse)
    if point.hermitian:
        core, bent = ((HV + HhU) / 2, (left + right) / 2)
        Up = plus_tall_times(bent, point.U, point.U.mH @ bent, alpha=-1)
        return Tangent(hermitian_part(point.U.mH @ core), Up, Up)
    pairs = (point.U, HV), (point.U, left), (point.V, right)
    core, Q, P = adjoint_products(*pairs, group=point.group)
    Up = plus_tall_times(left, point.U, Q, alpha=-1)
    return Tangent(core, Up, plus_tall_times(right, point.V, P, alpha=-1))


def hessian_of_products(
    point: Point,
    tangent: Tangent,
    G: Tangent,
    HV: Tensor,
    HhU: Tensor,
    GVp: Tensor,
    GhUp: Tensor,
    metric: Metric,
    inverse: Tensor | None = None,
    derivative: MetricDerivative | None = None,
) -> Tangent:
    """`riemannian_hessian` from products: G the projection of ∇f(W), else as `embedded_hessian`.

    The derivative as in `christoffel_terms`.
    """
    embedded = embedded_hessian(point, HV, HhU, GVp, GhUp, inverse)
    if metric == DepthMetric(1):
        return embedded
    main = metric_operator(point, embedded, metric)
    terms = christoffel_terms(point, tangent, G, metric, derivative)
    Up = main.Up + terms.Up
    return Tangent(main.M + terms.M, Up, Up if point.hermitian else main.Vp + terms.Vp)


def riemannian_hessian(
    point: Point, egrad: Matrix, ehess: Matrix, tangent: Tangent, metric: Metric
) -> Tangent:
    """Hess^g f(W)[ξ] = ∇^g_ξ grad^g f from G = ∇f(W) and D∇f(W)[ξ], at every point.

    𝒜_W(Hess f(W)[ξ]) with the embedded Hessian, and the ``christoffel_terms`` of the metric, which
    vanish at critical points and for depth 1.

    Source: [Van13], §2.3, for depth 1; otherwise ours.
    Cost: O((m + n) r² + r³) and the products of G and D∇f[ξ] with r columns.
    Accuracy: ε·σ_1/σ_r relative on the terms with G.
    Raises: ValueError where depth ∞ is no metric.
    """
    U, V = point.U, point.V
    G = project_products(point, egrad @ V, egrad.mH @ U)
    H = ehess @ V, ehess.mH @ U
    GVp, GhUp = egrad @ tangent.Vp, egrad.mH @ tangent.Up
    return hessian_of_products(point, tangent, G, *H, GVp, GhUp, metric)


def hessian_vector_product(
    point: Point, loss: PairLoss, tangent: Tangent, metric: Metric
) -> Tangent:
    """Hess^g f(W)[ξ] by autograd, for f given as loss(A, B) = f(A Bᴴ).

    The loss is taped at A = [US+K, U, K', U_p], B = [V, L, V_p, L'] with K = L = K' = L' = 0, whose
    product is W: ∂_K = GV, ∂_L = GᴴU, ∂_K' = GV_p, ∂_L' = GᴴU_p, and the derivative of ∂_K, ∂_L
    along (UM + U_p, V_p), which is ξ, gives (D∇f[ξ])V and (D∇f[ξ])ᴴU.

    Shapes: A (*batch, m, 4r), B (*batch, n, 4r); the loss is a number per matrix, or their sum.
    Cost: a double backward pass of the loss; nothing m×n unless the loss forms it.
    Raises: as ``riemannian_hessian``.
    """
    U, V = point.U, point.V
    with torch.enable_grad():
        shape_left = torch.broadcast_shapes(U.shape, tangent.Up.shape)
        shape_right = torch.broadcast_shapes(V.shape, tangent.Vp.shape)
        K, K2 = (U.new_zeros(shape_left, requires_grad=True) for _ in range(2))
        L, L2 = (V.new_zeros(shape_right, requires_grad=True) for _ in range(2))
        Up, Vp = tangent.Up.detach(), tangent.Vp.detach()
        A = torch.cat([U @ point.S + K, U.expand(shape_left), K2, Up.expand(shape_left)], -1)
        B = torch.cat([V.expand(shape_right), L, Vp.expand(shape_right), L2], -1)
        GV, GhU, GVp, GhUp = torch.autograd.grad(
            loss(A, B).sum(), (K, L, K2, L2), create_graph=True
        )
        left = U @ tangent.M.detach() + Up
        slope = (GV.conj() * left).real.sum() + (GhU.conj() * Vp).real.sum()
        HV: Tensor | None = None
        HhU: Tensor | None = None
        if slope.requires_grad:
            HV, HhU = torch.autograd.grad(slope, (K, L), allow_unused=True)
    HV = torch.zeros_like(K) if HV is None else HV
    HhU = torch.zeros_like(L) if HhU is None else HhU
    G = project_products(point, GV.detach(), GhU.detach())
    H, across = (HV.detach(), HhU.detach()), (GVp.detach(), GhUp.detach())
    return hessian_of_products(point, tangent, G, *H, *across, metric)
