"""The nearest matrix of rank r to a point of M_r plus a tangent vector, in factors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deeplin.linalg import plus_tall_times

__all__ = ["psd_tangent_step", "tangent_step"]

# After so many iterations the decomposition of the 2r×2r core costs less than to go on.
_ITERATIONS = 16
# The largest ‖Y‖²_F for which the new basis is orthonormal to a few units of round-off.
_STEEP = 10.0


def tangent_step(
    U: Float[Tensor, "*batch m r"],
    T: Float[Tensor, "*batch r r"],
    V: Float[Tensor, "*batch n r"],
    Up: Float[Tensor, "*batch m r"],
    Vp: Float[Tensor, "*batch n r"],
) -> tuple[Tensor, Tensor, Tensor]:
    """(U', S', V'): the nearest matrix of rank r to UTVᵀ + U_pVᵀ + UV_pᵀ.

    U, V orthonormal, U_p ⟂ U, V_p ⟂ V. The dominant singular subspaces are sought as
    U + U_pH_V^{-1} and V + V_pH_U^{-1}, where H_V = T + V_pᵀV_p H_U^{-1} and
    H_U = Tᵀ + U_pᵀU_p H_V^{-1}, by iterating these two equations: r×r solves only, subspace
    iteration in disguise, so that it converges to the dominant subspaces, at the rate
    (σ_{r+1}/σ_r)². What has not converged, is not proved dominant, or is too steep for an
    orthonormal basis by one Cholesky factor goes through QR and SVD, matrix by matrix.

    Source: the nearest matrix is HLZ Definition 2.3; the iteration is ours.
    Shapes: U', V' as U, V with orthonormal columns; S' (*batch, r, r), not diagonal.
    Cost: eight products of an m×r (n×r) matrix with r columns, and r×r solves.
    Accuracy: round-off relative to ‖T‖ + ‖U_p‖ + ‖V_p‖.
    """
    Q_U, Q_V = Up.mT @ Up, Vp.mT @ Vp
    H_V, H_U, converged, settled = T, T.mT, _never(T), _settled(T)
    for i in range(_ITERATIONS):
        H_U = T.mT + _right_solve(Q_U, H_V)
        previous, H_V = H_V, T + _right_solve(Q_V, H_U)
        if i % 2:
            converged = settled(H_V - previous)
            if bool(converged.all()):
                break
    Z_U, Z_V = _inverse(H_V), _inverse(H_U)
    new_U, L_U, t_U = _based(U, Up, Z_U)
    new_V, L_V, t_V = _based(V, Vp, Z_V)
    S = torch.linalg.solve_triangular(L_V, (L_U.mT @ H_V).mT, upper=False).mT
    # Dominant: the rest of the core, −Y_U H_Uᵀ(I + Y_VᵀY_V)Y_Vᵀ and smaller, is below
    # σ_r(S') ≥ 1/(‖L_V‖‖H_V^{-1}‖).
    rest = (t_U * t_V).sqrt() * (1 + t_V) ** 1.5
    dominant = rest * torch.linalg.matrix_norm(H_U) * torch.linalg.matrix_norm(Z_U) < 1
    fine = converged & dominant & (t_U < _STEEP) & (t_V < _STEEP)
    if not bool(fine.all()):
        rare = ~fine
        new_U[rare], S[rare], new_V[rare] = _by_svd(*(A[rare] for A in (U, T, V, Up, Vp)))
    return new_U, S, new_V


def psd_tangent_step(
    U: Float[Tensor, "*batch n r"], T: Float[Tensor, "*batch r r"], Up: Float[Tensor, "*batch n r"]
) -> tuple[Tensor, Tensor]:
    """(U', S'): the nearest semidefinite matrix of rank r to UTUᵀ + U_pUᵀ + UU_pᵀ.

    As `tangent_step`, with H = T + U_pᵀU_p H^{-1}. The core [[T, R^T], [R, 0]] has at most r
    positive eigenvalues, so that a positive definite S' proves that they are the r largest.

    Source: HLZ §5, where the r largest *algebraic* eigenvalues are kept; the iteration is ours.
    Shapes: U' as U with orthonormal columns; S' (*batch, r, r) symmetric, not diagonal.
    Cost: four products of an n×r matrix with r columns, and r×r solves.
    Accuracy: round-off relative to ‖T‖ + ‖U_p‖.
    """
    Q = Up.mT @ Up
    H, converged, settled = T, _never(T), _settled(T)
    for i in range(_ITERATIONS):
        previous, H = H, T + _right_solve(Q, H)
        if i % 2:
            converged = settled(H - previous)
            if bool(converged.all()):
                break
    new_U, L, t = _based(U, Up, _inverse(H))
    S = torch.linalg.solve_triangular(L, (L.mT @ H).mT, upper=False).mT
    S = 0.5 * (S + S.mT)
    positive = torch.linalg.cholesky_ex(S).info == 0
    fine = converged & positive & (t < _STEEP)
    if not bool(fine.all()):
        rare = ~fine
        new_U[rare], S[rare] = _by_eigh(U[rare], T[rare], Up[rare])
    return new_U, S


def _right_solve(A: Tensor, H: Tensor) -> Tensor:
    """A H^{-1}; whatever it is for a singular H, that is no convergence."""
    return torch.linalg.solve_ex(H.mT, A.mT).result.mT


def _inverse(H: Tensor) -> Tensor:
    return torch.linalg.inv_ex(H).inverse


def _settled(T: Tensor) -> Callable[[Tensor], Bool[Tensor, "*batch"]]:
    """Whether a change of H is round-off against T; never for NaN."""
    limit = 4 * torch.finfo(T.dtype).eps * torch.linalg.vector_norm(T, dim=(-2, -1))
    return lambda change: torch.linalg.vector_norm(change, dim=(-2, -1)) <= limit


def _never(T: Tensor) -> Bool[Tensor, "*batch"]:
    return torch.zeros(T.shape[:-2], dtype=torch.bool, device=T.device)


def _based(U: Tensor, Up: Tensor, Z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(BL^{-T}, L, ‖Y‖²) for B = U + Y, Y = U_pZ ⟂ U: an orthonormal basis by BᵀB = LLᵀ."""
    B = plus_tall_times(U, Up, Z)
    L = torch.linalg.cholesky_ex(B.mT @ B).L
    square = (torch.linalg.matrix_norm(L).square() - L.shape[-1]).clamp_(min=0)
    return torch.linalg.solve_triangular(L.mT, B, upper=True, left=False), L, square


def _core(T: Tensor, R_left: Tensor, R_right: Tensor) -> Tensor:
    eye = torch.eye(T.shape[-1], dtype=T.dtype, device=T.device).expand_as(T)
    core = torch.cat([torch.cat([T, eye], -1), torch.cat([eye, torch.zeros_like(T)], -1)], -2)
    return R_left @ core @ R_right.mT


def _by_svd(
    U: Tensor, T: Tensor, V: Tensor, Up: Tensor, Vp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r = T.shape[-1]
    Q_L, R_L = torch.linalg.qr(torch.cat([U, Up], -1))
    Q_R, R_R = torch.linalg.qr(torch.cat([V, Vp], -1))
    P, s, Qh = torch.linalg.svd(_core(T, R_L, R_R), full_matrices=False)
    return Q_L @ P[..., :r], torch.diag_embed(s[..., :r]), Q_R @ Qh[..., :r, :].mT


def _by_eigh(U: Tensor, T: Tensor, Up: Tensor) -> tuple[Tensor, Tensor]:
    r = T.shape[-1]
    Q, R = torch.linalg.qr(torch.cat([U, Up], -1))
    core = _core(T, R, R)
    values, vectors = torch.linalg.eigh(0.5 * (core + core.mT))
    return Q @ vectors[..., -r:].flip(-1), torch.diag_embed(values[..., -r:].flip(-1))
