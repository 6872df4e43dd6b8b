"""The rate at which the layers' flow arrives, whether they are balanced or not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.landscape.operators import SymmetricOperator
from deeplin.network import end_to_end
from deeplin.problems import Problem

__all__ = ["layer_rate"]


def layer_rate(problem: Problem, layers: Sequence[Tensor]) -> float:
    """ρ, the rate of ‖W(t) − W‖ ~ e^{−ρt} near layers at a minimum, balanced or not.

    With the narrowest width k = d_p = rank W split W = LR, L = W_N···W_{p+1}, R = W_p···W_1. The
    flow of the layers moves them by L̇ = −K_L(GRᴴ), Ṙ = −K_R(LᴴG), G = ∇f(W), where
    K_L(Z) = Σ_{j>p} A_jA_jᴴ Z E_jᴴE_j, A_j = W_N···W_{j+1}, E_j = W_{j−1}···W_{p+1}, and K_R alike.
    At a minimum GRᴴ = 0 = LᴴG, so that only these two vary there and the linearisation is K·H, with
    H the Hessian of (L, R) ↦ f(LR). It has k² zeros (2k² for complex layers), those of
    LR = LMM^{−1}R; the next eigenvalue is ρ. For balanced layers it is `local_rate`.

    Source: linearisation of BRTW (5); the papers plot these rates without predicting them.
    Shapes: W_j (d_j, d_{j−1}), no batch.
    Cost: a dense symmetric eigenproblem of dimension k(d_0 + d_N), twice that for complex layers,
        after as many Hessian products of the problem.
    Accuracy: the layers' own distance from the minimum, relative to σ_k.
    Raises: ValueError where rank W is less than the narrowest width, or for a batch.
    """
    if layers[0].ndim != 2:
        raise ValueError(
            f"layer_rate takes one tuple of layers; got a batch {tuple(layers[0].shape[:-2])}: "
            "call it for each."
        )
    p = min(range(1, len(layers) + 1), key=lambda j: layers[j - 1].shape[-2])
    right, left = list(layers[:p]), list(layers[p:])
    R = end_to_end(right)
    k = R.shape[-2]
    L = end_to_end(left) if left else torch.eye(k, dtype=R.dtype, device=R.device)
    s = torch.linalg.svdvals(L @ R)
    if not float(s[k - 1]) > 1e-6 * float(s[0]):
        raise ValueError(
            f"layer_rate needs rank W = the narrowest width {k}; got σ_{k}/σ_1 = "
            f"{float(s[k - 1] / s[0]):.1e}: the layers are at a critical point of lower rank."
        )
    # CᴴHC, K = CCᴴ: similar to KH and symmetric.
    factors = [torch.linalg.cholesky(_transport(part)) for part in (left, right) if part]
    zeros = k * k * (1 + R.is_complex()) if left else 0  # W = R: nothing multiplies from the left
    return float(torch.linalg.eigvalsh(_PairHessian(problem, L, R, factors).dense())[zeros])


class _PairHessian(SymmetricOperator):
    """CᴴHC, H the Hessian of (L, R) ↦ f(LR), or of R alone, C block diagonal on their entries."""

    def __init__(self, problem: Problem, L: Tensor, R: Tensor, factors: list[Tensor]):
        self._problem, self._L, self._R, self._factors = problem, L, R, factors
        self._G = problem.egrad(L @ R)
        shapes = [(A.shape[0], A.shape[1]) for A in (L, R)]
        super().__init__(shapes[-len(factors) :], R.dtype, R.device)

    def _through(self, parts: Sequence[Tensor], factors: list[Tensor]) -> list[Tensor]:
        return [
            (part.flatten(-2) @ factor.mT).reshape(part.shape)
            for part, factor in zip(parts, factors, strict=True)
        ]

    def __matmul__(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        moved = self._through(self._parts(x), self._factors)
        L, R, batch = self._L, self._R, x.shape[:-1]
        L_dot = moved[0] if len(moved) == 2 else L.new_zeros(*batch, *L.shape)
        R_dot = moved[-1]
        left = torch.cat([L_dot, L.expand(*batch, *L.shape)], -1)
        right = torch.cat([R.mH.expand(*batch, *R.mH.shape), R_dot.mH], -1)
        HRh, HhL = self._problem.hessian_times(L, R.mH, left, right, R.mH, L)
        pulled = (HRh + self._G @ R_dot.mH, HhL.mH + L_dot.mH @ self._G)
        adjoints = [factor.mH for factor in self._factors]
        return self._vector(self._through(pulled[-len(moved) :], adjoints))


def _transport(layers: Sequence[Tensor]) -> Inexact[Tensor, "c c"]:
    """The matrix of Z ↦ Σ_j A_jA_jᴴ Z E_jᴴE_j, A_j the layers after j, E_j those before it."""
    before = [torch.eye(layers[0].shape[-1], dtype=layers[0].dtype, device=layers[0].device)]
    for W_j in layers[:-1]:
        before.append(W_j @ before[-1])
    after = torch.eye(layers[-1].shape[-2], dtype=layers[0].dtype, device=layers[0].device)
    total = torch.zeros((), dtype=after.dtype, device=after.device)
    for W_j, E in zip(reversed(layers), reversed(before), strict=True):
        total = total + torch.kron(after @ after.mH, (E.mH @ E).mT.contiguous())
        after = after @ W_j
    return total
