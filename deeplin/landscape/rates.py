"""The rate at which the layers' flow arrives, whether they are balanced or not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deeplin.network import end_to_end
from deeplin.problems import LeastSquares

__all__ = ["layer_rate"]


def layer_rate(problem: LeastSquares, layers: Sequence[Tensor]) -> float:
    """ρ, the rate of ‖W(t) − W‖ ~ e^{−ρt} near layers at a minimum, balanced or not.

    With the narrowest width k = d_p = rank W split W = LR, L = W_N···W_{p+1}, R = W_p···W_1. The
    flow of the layers moves them by L̇ = −K_L(GRᵀ), Ṙ = −K_R(LᵀG), G = ∇L¹(W), where
    K_L(Z) = Σ_{j>p} A_jA_jᵀ Z E_jᵀE_j, A_j = W_N···W_{j+1}, E_j = W_{j−1}···W_{p+1}, and K_R alike.
    At a minimum GRᵀ = 0 = LᵀG, so that only these two vary there and the linearisation is K·H, with
    H the Hessian of (L, R) ↦ L¹(LR). It has k² zeros, those of LR = LMM^{−1}R; the next eigenvalue
    is ρ. For balanced layers it is `local_rate`.

    Source: linearisation of BRTW (5); the papers plot these rates without predicting them.
    Shapes: W_j (d_j, d_{j−1}), no batch.
    Cost: a dense symmetric eigenproblem of dimension k(d_0 + d_N).
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
    H = _hessian(problem, L, R)
    if not left:  # W = R: nothing multiplies from the left
        n = k * k
        H, blocks = H[n:, n:], [_transport(right)]
    else:
        blocks = [_transport(left), _transport(right)]
    start = 0
    for block in blocks:  # CᵀHC, K = CCᵀ: similar to KH and symmetric
        C, end = torch.linalg.cholesky(block), start + len(block)
        H[start:end] = C.mT @ H[start:end]
        H[:, start:end] = H[:, start:end] @ C
        start = end
    zeros = k * k if left else 0
    return float(torch.linalg.eigvalsh(H)[zeros])


def _transport(layers: Sequence[Tensor]) -> Tensor:
    """The matrix of Z ↦ Σ_j A_jA_jᵀ Z E_jᵀE_j, A_j the layers after j, E_j those before it."""
    before = [torch.eye(layers[0].shape[-1], dtype=layers[0].dtype, device=layers[0].device)]
    for W_j in layers[:-1]:
        before.append(W_j @ before[-1])
    after = torch.eye(layers[-1].shape[-2], dtype=layers[0].dtype, device=layers[0].device)
    total = 0
    for W_j, E in zip(reversed(layers), reversed(before), strict=True):
        total = total + torch.kron(after @ after.mT, E.mT @ E)
        after = after @ W_j
    assert isinstance(total, Tensor)
    return total


def _hessian(problem: LeastSquares, L: Tensor, R: Tensor) -> Tensor:
    """The Hessian of (L, R) ↦ L¹(LR), entries of L, then of R, each row by row."""
    (d_y, k), d_x = L.shape, R.shape[-1]
    C, G = problem.C, problem.egrad(L @ R)
    eye_k = torch.eye(k, dtype=L.dtype, device=L.device)
    eye_y = torch.eye(d_y, dtype=L.dtype, device=L.device)
    mixed = torch.einsum("aj,ib->aijb", L, R @ C) + torch.einsum("ij,ab->aijb", eye_k, G)
    mixed = mixed.reshape(d_y * k, k * d_x)
    top = torch.cat([torch.kron(eye_y, R @ C @ R.mT), mixed], 1)
    return torch.cat([top, torch.cat([mixed.mT, torch.kron(L.mT @ L, C)], 1)])
