"""Riemannian Hessians on rank-r matrices, as Hessian-vector products in factored form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from deeplin.geometry.connection import christoffel_terms
from deeplin.geometry.coordinates import Point, Tangent, project_products
from deeplin.geometry.metric import DepthMetric, Metric, metric_operator
from deeplin.linalg import adjoint_products

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
    point: Point, tangent: Tangent, H: Tangent, GVp: Tensor, GhUp: Tensor
) -> Tangent:
    """Hess f(W)[ξ] for the embedded metric (depth 1), at every point.

    P_W(D∇f[ξ]) + P_U^⊥ G V_p S⁻ᴴ Vᴴ + U S⁻ᴴ U_pᴴ G P_V^⊥, G = ∇f(W): the second and third term are
    the curvature of the manifold, and have the S⁻¹ that HLZ studies.

    Source: [Van13], §2.3. HLZ (4) has mismatched shapes and
        signs that flip between displays.
    Shapes: H the projection of D∇f[ξ]; GVp = G V_p (*batch, m, r), GhUp = Gᴴ U_p (*batch, n, r).
    Cost: O((m + n) r² + r³).
    Accuracy: ε·σ_1/σ_r relative on the curvature terms.
    """
    if point.hermitian:
        GVp = (GVp + GhUp) / 2
    left = torch.linalg.solve(point.S.mH, GVp, left=False)
    if point.hermitian:
        Up = H.Up + left - point.U @ (point.U.mH @ left)
        return Tangent(H.M, Up, Up)
    right = torch.linalg.solve(point.S, GhUp, left=False)
    Q, P = adjoint_products((point.U, left), (point.V, right), group=point.group)
    return Tangent(H.M, H.Up + left - point.U @ Q, H.Vp + right - point.V @ P)


def hessian_of_products(
    point: Point,
    tangent: Tangent,
    G: Tangent,
    H: Tangent,
    GVp: Tensor,
    GhUp: Tensor,
    metric: Metric,
) -> Tangent:
    """`riemannian_hessian` from products: G and H the projections of ∇f(W) and of D∇f(W)[ξ].

    Shapes: GVp = G V_p (*batch, m, r), GhUp = Gᴴ U_p (*batch, n, r), G here ∇f(W) itself.
    """
    embedded = embedded_hessian(point, tangent, H, GVp, GhUp)
    if metric == DepthMetric(1):
        return embedded
    main = metric_operator(point, embedded, metric)
    terms = christoffel_terms(point, tangent, G, metric)
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
    H = project_products(point, ehess @ V, ehess.mH @ U)
    GVp, GhUp = egrad @ tangent.Vp, egrad.mH @ tangent.Up
    return hessian_of_products(point, tangent, G, H, GVp, GhUp, metric)


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
    H = project_products(point, HV.detach(), HhU.detach())
    return hessian_of_products(point, tangent, G, H, GVp.detach(), GhUp.detach(), metric)
