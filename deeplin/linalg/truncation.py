"""The nearest matrix of rank r to a point of M_r plus a tangent vector, in factors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from jaxtyping import Bool, Inexact
from torch import Tensor

from deeplin.linalg.hermitian import hermitian_part
from deeplin.linalg.products import plus_tall_times, tall_times
from deeplin.linalg.shards import adjoint_products, tall_qr
from deeplin.linalg.values import values_known

__all__ = ["psd_tangent_step", "tangent_step"]

# After so many iterations the decomposition of the 2r×2r core costs less than to go on.
_ITERATIONS = 16
# The largest ‖Y‖²_F for which the new basis is orthonormal to a few units of round-off.
_STEEP = 10.0


def tangent_step(
    U: Inexact[Tensor, "*batch m r"],
    T: Inexact[Tensor, "*batch r r"],
    V: Inexact[Tensor, "*batch n r"],
    Up: Inexact[Tensor, "*batch m r"],
    Vp: Inexact[Tensor, "*batch n r"],
    *,
    diagonal: bool = False,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(U', S', V'): the nearest matrix of rank r to UTVᴴ + U_pVᴴ + UV_pᴴ.

    U, V orthonormal, U_p ⟂ U, V_p ⟂ V. The dominant singular subspaces are sought as
    U + U_pH_V^{-1} and V + V_pH_U^{-1}, where H_V = T + V_pᴴV_p H_U^{-1} and
    H_U = Tᴴ + U_pᴴU_p H_V^{-1}, by iterating these two equations: r×r solves only, subspace
    iteration in disguise, so that it converges to the dominant subspaces, at the rate
    (σ_{r+1}/σ_r)². What has not converged, is not proved dominant, or is too steep for an
    orthonormal basis by one Cholesky factor goes through QR and SVD, matrix by matrix; under
    torch.func and torch.compile, where no result may decide on the next operation, all do. With a
    `group` each process has some rows of U, V, U_p, V_p and gets those of U', V'.

    Source: the nearest matrix is HLZ Definition 2.3; the iteration is ours.
    Shapes: U', V' as U, V with orthonormal columns; S' (*batch, r, r), with `diagonal` that of the
    singular values, descending.
    Cost: eight products of an m×r (n×r) matrix with r columns, and r×r solves.
    Accuracy: round-off relative to ‖T‖ + ‖U_p‖ + ‖V_p‖; NaN where the core overflows.
    """
    if not values_known():
        return _by_svd(U, T, V, Up, Vp, group)
    Q_U, Q_V = adjoint_products((Up, Up), (Vp, Vp), group=group)
    H_V, H_U, converged, settled = T, T.mH, _never(T), _settled(T)
    for i in range(_ITERATIONS):
        H_U = T.mH + _right_solve(Q_U, H_V)
        previous, H_V = H_V, T + _right_solve(Q_V, H_U)
        if i % 2:
            converged = settled(H_V - previous)
            if bool(converged.all()):
                break
    Z_U, Z_V = _inverse(H_V), _inverse(H_U)
    B_U, L_U, t_U = _basis(U, Up, Z_U, group)
    B_V, L_V, t_V = _basis(V, Vp, Z_V, group)
    S = torch.linalg.solve_triangular(L_V, (L_U.mH @ H_V).mH, upper=False).mH
    # Dominant: what the core has beside S' is Y_U S' Y_Vᴴ up to unitary factors, at most
    # ‖Y_U‖‖Y_V‖σ_1(S'), and σ_r(S') ≥ 1/(‖L_V‖‖H_V^{-1}‖).
    fine, rest = converged & (t_U < _STEEP) & (t_V < _STEEP), (t_U * t_V).sqrt()
    P = Q = None
    if diagonal:
        P, s, Qh = torch.linalg.svd(_known(S, fine))
        S, Q = torch.diag_embed(s).to(S.dtype), Qh.mH
        fine &= rest * s[..., 0] < s[..., -1]
    else:
        norms = torch.linalg.matrix_norm(S) * torch.linalg.matrix_norm(Z_U)
        fine &= rest * (1 + t_V).sqrt() * norms < 1
    new_U, new_V = _orthonormal(B_U, L_U, P), _orthonormal(B_V, L_V, Q)
    if not bool(fine.all()):
        rare = ~fine
        new_U[rare], S[rare], new_V[rare] = _by_svd(
            *(A[rare] for A in (U, T, V, Up, Vp)), group=group
        )
    return new_U, S, new_V


def psd_tangent_step(
    U: Inexact[Tensor, "*batch n r"],
    T: Inexact[Tensor, "*batch r r"],
    Up: Inexact[Tensor, "*batch n r"],
    *,
    diagonal: bool = False,
) -> tuple[Tensor, Tensor]:
    """(U', S'): the nearest semidefinite matrix of rank r to UTUᴴ + U_pUᴴ + UU_pᴴ.

    As `tangent_step`, with H = T + U_pᴴU_p H^{-1}. The core [[T, R^H], [R, 0]] has at most r
    positive eigenvalues, so that a positive definite S' proves that they are the r largest.

    Source: HLZ §5, where the r largest *algebraic* eigenvalues are kept; the iteration is ours.
    Shapes: U' as U with orthonormal columns; S' (*batch, r, r) Hermitian, with `diagonal` that of
    the eigenvalues, descending. Where the core has less than r positive eigenvalues, S' has
    others, too.
    Cost: four products of an n×r matrix with r columns, and r×r solves.
    Accuracy: round-off relative to ‖T‖ + ‖U_p‖; NaN where the core overflows.
    """
    if not values_known():
        return _by_eigh(U, T, Up)
    Q = Up.mH @ Up
    H, converged, settled = T, _never(T), _settled(T)
    for i in range(_ITERATIONS):
        previous, H = H, T + _right_solve(Q, H)
        if i % 2:
            converged = settled(H - previous)
            if bool(converged.all()):
                break
    B, L, t = _basis(U, Up, _inverse(H), None)
    S = hermitian_part(torch.linalg.solve_triangular(L, (L.mH @ H).mH, upper=False).mH)
    positive = torch.linalg.cholesky_ex(S).info == 0
    fine = converged & positive & (t < _STEEP)
    P = None
    if diagonal:
        values, vectors = torch.linalg.eigh(_known(S, fine))
        S, P = torch.diag_embed(values.flip(-1)).to(S.dtype), vectors.flip(-1)
    new_U = _orthonormal(B, L, P)
    if not bool(fine.all()):
        rare = ~fine
        new_U[rare], S[rare] = _by_eigh(U[rare], T[rare], Up[rare])
    return new_U, S


def _right_solve(A: Tensor, H: Tensor) -> Tensor:
    """AH^{-1}; whatever it is for a singular H, that is no convergence."""
    return torch.linalg.solve_ex(H.mH, A.mH).result.mH


def _inverse(H: Tensor) -> Tensor:
    return torch.linalg.inv_ex(H).inverse


def _settled(T: Tensor) -> Callable[[Tensor], Bool[Tensor, "*batch"]]:
    """Whether a change of H is round-off against T; never for NaN."""
    limit = 4 * torch.finfo(T.dtype).eps * torch.linalg.vector_norm(T, dim=(-2, -1))
    return lambda change: torch.linalg.vector_norm(change, dim=(-2, -1)) <= limit


def _never(T: Tensor) -> Bool[Tensor, "*batch"]:
    return torch.zeros(T.shape[:-2], dtype=torch.bool, device=T.device)


def _basis(
    U: Tensor, Up: Tensor, Z: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L, ‖Y‖²) for B = U + Y, Y = U_pZ ⟂ U, and BᴴB = LLᴴ."""
    B = plus_tall_times(U, Up, Z)
    (gram,) = adjoint_products((B, B), group=group)
    L = torch.linalg.cholesky_ex(gram).L
    square = (torch.linalg.matrix_norm(L).square() - L.shape[-1]).clamp_(min=0)
    return B, L, square


def _orthonormal(B: Tensor, L: Tensor, P: Tensor | None) -> Tensor:
    """BL^{-H}P, orthonormal for BᴴB = LLᴴ and unitary P, I if not given."""
    if P is None:
        return torch.linalg.solve_triangular(L.mH, B, upper=True, left=False)
    return tall_times(B, torch.linalg.solve_triangular(L.mH, P, upper=True))


def _known(S: Tensor, fine: Tensor) -> Tensor:
    """S, and zero where it is not known, which LAPACK might refuse."""
    if values_known() and bool(fine.all()):
        return S
    return torch.where(fine[..., None, None], S, torch.zeros_like(S))


def _core(T: Tensor, R_left: Tensor, R_right: Tensor) -> tuple[Tensor, Tensor]:
    """The core between bases with these factors, zero where it overflows, and NaN there, else 0."""
    eye = torch.eye(T.shape[-1], dtype=T.dtype, device=T.device).expand_as(T)
    core = torch.cat([torch.cat([T, eye], -1), torch.cat([eye, torch.zeros_like(T)], -1)], -2)
    core = R_left @ core @ R_right.mH
    finite = torch.isfinite(core).all(-1).all(-1)[..., None]
    known = _known(core, finite[..., 0])
    return known, torch.where(finite, 0.0, math.nan).to(known.real.dtype)


def _by_svd(
    U: Tensor,
    T: Tensor,
    V: Tensor,
    Up: Tensor,
    Vp: Tensor,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor]:
    r = T.shape[-1]
    Q_L, R_L = tall_qr(torch.cat([U, Up], -1), group)
    Q_R, R_R = tall_qr(torch.cat([V, Vp], -1), group)
    core, unknown = _core(T, R_L, R_R)
    P, s, Qh = torch.linalg.svd(core, full_matrices=False)
    S = torch.diag_embed(s[..., :r] + unknown).to(T.dtype)
    return Q_L @ P[..., :r], S, Q_R @ Qh[..., :r, :].mH


def _by_eigh(U: Tensor, T: Tensor, Up: Tensor) -> tuple[Tensor, Tensor]:
    r = T.shape[-1]
    Q, R = torch.linalg.qr(torch.cat([U, Up], -1))
    core, unknown = _core(T, R, R)
    values, vectors = torch.linalg.eigh(hermitian_part(core))
    S = torch.diag_embed(values[..., -r:].flip(-1) + unknown).to(T.dtype)
    return Q @ vectors[..., -r:].flip(-1), S
