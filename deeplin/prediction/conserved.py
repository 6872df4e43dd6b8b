"""What a balanced flow keeps besides the rank: signs of determinants, invariant subspaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Inexact, Int
from torch import Tensor

from deeplin.linalg import product_svdvals
from deeplin.network import gap_norm
from deeplin.problems.spectrum import Spectrum

__all__ = ["Reach", "are_balanced", "rank_and_balance", "ranks_of", "reach"]


def are_balanced(layers: Sequence[Tensor]) -> bool:
    """Whether layers are balanced, all of a batch, to 1000 round-offs of ‖W_j‖²."""
    eps = torch.finfo(layers[0].dtype).eps
    round_off = 1e3 * eps * max(float(W_j.norm() ** 2) for W_j in layers)
    return bool((gap_norm(layers) <= round_off).all())


def ranks_of(layers: Sequence[Tensor]) -> Int[Tensor, "*batch"]:
    """The numerical rank of W = W_N···W_1 for each trajectory: σ_i > max(m, n)·eps·σ_1."""
    s = product_svdvals(layers)
    size = max(layers[-1].shape[-2], layers[0].shape[-1])
    return (s > size * torch.finfo(s.dtype).eps * s[..., :1]).sum(-1)


def rank_and_balance(layers: Sequence[Tensor]) -> tuple[int, bool]:
    """The rank that the flow of layers keeps, and whether they are balanced, to round-off.

    Balanced layers keep the rank of W(0) (BRTW Prop. 12), of a batch the least; for others it is
    the smallest width.
    """
    if not are_balanced(layers):
        return min(layers[0].shape[-1], *(W_j.shape[-2] for W_j in layers)), False
    return int(ranks_of(layers).min()), True


@dataclass(frozen=True, eq=False)
class Reach:
    """Where balanced flows can go, the trajectories laid flat.

    - `modes`: J of the W_J with the least loss that what is conserved leaves in reach
    - `blocks`: into how many parts that never meet W(t) is divided, those of W(0) = 0 left out
    - `negative`: whether a part of full rank has a determinant of the sign that its optimum has not
    - `scalar`: whether every part is a single entry
    - `sign`: that of det W(0) for real square W of full rank, else 0
    """

    modes: Bool[Tensor, "*batch q"]
    blocks: Int[Tensor, "*batch"]
    negative: Bool[Tensor, "*batch"]
    scalar: Bool[Tensor, "*batch"]
    sign: Int[Tensor, "*batch"]

    def of(self, i: int) -> Reach:
        """That of trajectory i alone."""
        return Reach(self.modes[i], self.blocks[i], self.negative[i], self.scalar[i], self.sign[i])


def reach(
    optimum: Spectrum, W: Inexact[Tensor, "batch m n"], ranks: Int[Tensor, " batch"]
) -> Reach:
    """What is conserved by the flow of balanced layers from W(0), and what it leaves in reach.

    In the singular bases of Q = UΣVᴴ, completed, join u_i and v_j where u_iᴴW(0)v_j ≠ 0, v_i and
    v_j where v_iᴴCv_j ≠ 0, and u_j with v_j. The parts that hang together are invariant: there
    W, C and B are block diagonal, hence 𝒜_W(WC − B) is, and each block is a flow of its own with a
    rank of its own. A real block that is square and of full rank k keeps the sign of its
    determinant, too (N >= 2); the optimum Σ_cC_c^{-1/2} has the sign +. So the infimum of the
    loss over what can be reached is that of W_J, J the k_c largest σ_j of each block, one less
    where the sign is −. With one block alone: for k = d_x = d_y the sign of det W, for smaller k
    nothing but the rank. Entries below 10·max(m, n)·eps of the norm count as 0; within equal σ_j
    the basis is that of the Hermitian part of UᴴW(0)V.

    For unbalanced layers nothing of this holds: with d = 1, N = 2, W = W_2W_1 changes its sign
    where W_1 passes 0 (BRTW Remark 14).

    Source: BRTW Prop. 12, block by block; BRTW Remark 42 is the case of 1×1 blocks with the sign −.
        Signs and blocks are ours.
    Cost: O(mnq) and the singular values of the blocks.
    """
    m, n, q = W.shape[-2], W.shape[-1], optimum.rank
    near = optimum.nearest(W)
    U, V = near.U.expand(len(W), m, q), near.V.expand(len(W), n, q)
    M = U.mH @ W @ V
    left, right = W @ V - U @ M, U.mH @ W - M @ V.mH
    round_off = 10 * max(m, n) * torch.finfo(M.dtype).eps
    zero = round_off * torch.linalg.matrix_norm(W)[:, None, None]
    # q modes, then all that is left of U, then all that is left of V
    joined = torch.zeros(len(W), q + 2, q + 2, dtype=torch.bool, device=W.device)
    joined[:, :q, :q] = M.abs() > zero
    joined[:, :q, q] = torch.linalg.vector_norm(left, dim=-2) > zero[..., 0]
    joined[:, :q, q + 1] = torch.linalg.vector_norm(right, dim=-1) > zero[..., 0]
    corner = W - U @ (U.mH @ W) - left @ V.mH
    joined[:, q, q + 1] = torch.linalg.matrix_norm(corner) > zero[:, 0, 0]
    if optimum.C is not None:
        C = optimum.C.to(M.dtype)
        CV = C @ V
        VCV, still = V.mH @ CV, round_off * torch.linalg.matrix_norm(C)
        joined[:, :q, :q] |= VCV.abs() > still
        joined[:, :q, q + 1] |= torch.linalg.vector_norm(CV - V @ VCV, dim=-2) > still
    labels = _components(joined)
    modes = torch.zeros(len(W), q, dtype=torch.bool, device=W.device)
    blocks, negative, scalar = (torch.zeros_like(ranks) for _ in range(3))
    patterns, pattern_of = labels.unique(dim=0, return_inverse=True)
    noise = max(m, n) * torch.finfo(M.dtype).eps * torch.linalg.matrix_norm(W, 2)
    for number, pattern in enumerate(patterns.tolist()):
        members = (pattern_of == number).nonzero().ravel()
        parts = _parts(pattern, q, m > q, n > q)
        for J, beyond_U, beyond_V in parts:
            if len(parts) == 1:
                k = ranks[members]
            else:
                W_c, M_c, U_c, V_c = (A[members] for A in (W, M, U, V))
                s = torch.linalg.svdvals(_block(W_c, M_c, U_c, V_c, J, beyond_U, beyond_V))
                k = (s > noise[members, None]).sum(-1)
            reached = k.clamp(max=len(J))
            if J and not (beyond_U or beyond_V):
                full = k == len(J)
                if not W.is_complex():
                    core = M[members][:, J][:, :, J]
                    wrong = full & (torch.linalg.slogdet(core).sign < 0)
                    reached = reached - wrong.to(reached)
                    negative[members] |= wrong.to(negative)
            blocks[members] += (k > 0).to(blocks)
            if len(J) + beyond_U + beyond_V > 1:
                scalar[members] += (k > 0).to(scalar)
            where = torch.arange(len(J), device=W.device) < reached[:, None]
            modes[members[:, None], torch.tensor(J, device=W.device, dtype=torch.long)] = where
    sign = torch.zeros_like(ranks)
    if m == n and not W.is_complex():
        full = ranks == n
        sign = torch.where(full, torch.linalg.slogdet(W).sign.to(sign), sign)
    return Reach(modes, blocks, negative > 0, scalar == 0, sign)


def _components(joined: Bool[Tensor, "batch p p"]) -> Int[Tensor, "batch p"]:
    """For each node of a graph the least node that it hangs together with."""
    p = joined.shape[-1]
    nodes = torch.arange(p, device=joined.device)
    joined = joined | joined.mT | torch.eye(p, dtype=torch.bool, device=joined.device)
    labels = nodes.expand(len(joined), p)
    while True:
        least = torch.where(joined, labels[:, None, :], p).amin(-1)
        if torch.equal(least, labels):
            return labels
        labels = least


def _parts(
    pattern: Sequence[int], q: int, has_U: bool, has_V: bool
) -> list[tuple[list[int], bool, bool]]:
    """(its modes from 0, whether what is left of U belongs to it, of V), for each part."""
    parts = []
    for label in sorted(set(pattern)):
        J = [j for j in range(q) if pattern[j] == label]
        beyond_U, beyond_V = has_U and pattern[q] == label, has_V and pattern[q + 1] == label
        if J or (beyond_U and beyond_V):
            parts.append((J, beyond_U, beyond_V))
    return parts


def _block(
    W: Tensor, M: Tensor, U: Tensor, V: Tensor, J: list[int], beyond_U: bool, beyond_V: bool
) -> Tensor:
    """The block of W of a part; with what is left of U and V as a matrix of W's own shape."""
    if not (beyond_U or beyond_V):
        return M[:, J][:, :, J]

    def projected(basis: Tensor, beyond: bool, A: Tensor) -> Tensor:
        inside = basis[..., J] @ (basis[..., J].mH @ A)
        return inside + (A - basis @ (basis.mH @ A) if beyond else 0.0)

    return projected(V, beyond_V, projected(U, beyond_U, W).mH)
