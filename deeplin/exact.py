"""Closed forms of flows, for tests and figures; no flow imports them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["autoencoder_mode", "autoencoder_rate", "two_layer_mode", "two_layer_product"]


def two_layer_mode(
    t: float | Tensor, u0: float | Tensor, s: float | Tensor, lam: float | Tensor = 1.0
) -> Tensor:
    """u(t) for u̇ = 2u(s − λu): a singular value of W aligned with B, N = 2, C = λI.

    Source: Saxe, McClelland, Ganguli 2014; theory: balanced layers, BRTW (9).
    """
    t, u0, s = (torch.as_tensor(v, dtype=torch.float64) for v in (t, u0, s))
    growth = torch.exp(-2 * s * t)
    return (s / lam) / (1 + (s / (lam * u0) - 1) * growth)


def autoencoder_mode(
    t: float | Tensor, u0: float | Tensor, lam: float | Tensor, depth: int
) -> Tensor:
    """u(t) for u̇ = Nλu^{2−2/N}(1 − u), N = 1 or 2: an aligned mode of an autoencoder.

    N = 1: 1 − (1 − u_0)e^{−λt}. N = 2: 1/(1 + (1/u_0 − 1)e^{−2λt}).
    Source: BRTW (9) with W(0), C diagonal in one basis.
    """
    t, u0, lam = (torch.as_tensor(v, dtype=torch.float64) for v in (t, u0, lam))
    if depth == 1:
        return 1 - (1 - u0) * torch.exp(-lam * t)
    if depth == 2:
        return 1 / (1 + (1 / u0 - 1) * torch.exp(-2 * lam * t))
    raise ValueError(f"autoencoder_mode has a closed form for depth 1 and 2; got depth={depth}.")


def two_layer_product(
    t: float,
    W1: Float[Tensor, "d_1 d_0"],
    W2: Float[Tensor, "d_2 d_1"],
    B: Float[Tensor, "d_2 d_0"],
) -> Float[Tensor, "d_2 d_0"]:
    """W_2(t)W_1(t) of the layer flow for N = 2, C = I and a balanced start.

    With Z = (W_1ᵀ; W_2) and F = [[0, Bᵀ], [B, 0]]:
    ZZᵀ(t) = e^{Ft}Z_0[I + Z_0ᵀ(∫_0^t e^{2Fs}ds)Z_0]^{-1}Z_0ᵀe^{Ft}, whose lower left block is W.

    Source: Braun, Dominé, Fitzgerald, Saxe 2022.
    Cost: one eigendecomposition of F.
    """
    d_0 = W1.shape[1]
    zero0, zero2 = B.new_zeros(d_0, d_0), B.new_zeros(len(B), len(B))
    F = torch.cat([torch.cat([zero0, B.mT], 1), torch.cat([B, zero2], 1)])
    values, E = torch.linalg.eigh(F)
    Z = E.mT @ torch.cat([W1.mT, W2])
    # ∫_0^t e^{2fs} ds = t·(e^{2ft} − 1)/(2ft), with the value t at f = 0.
    x = 2 * values * t
    integral = t * torch.where(x == 0, 1.0, torch.expm1(x) / torch.where(x == 0, 1.0, x))
    inner = torch.eye(Z.shape[1], dtype=Z.dtype) + Z.mT @ (integral[:, None] * Z)
    grown = torch.exp(values * t)[:, None] * Z
    ZZ = E @ grown @ torch.linalg.solve(inner, grown.mT) @ E.mT
    return ZZ[d_0:, :d_0]


def autoencoder_rate(eigenvalues: Float[Tensor, " d"], rank: int) -> Tensor:
    """ρ = min_{a≤r<b} ½(λ_a + λ_b − √((λ_a − λ_b)² + 4λ_b²)), the local rate at U_rU_rᵀ.

    Independent of the depth. For r = d, where no b is left, ρ is not given by this formula.
    Source: linearisation of BRTW (9) for Y = X.
    """
    lam = eigenvalues.sort(descending=True).values
    a, b = lam[:rank, None], lam[None, rank:]
    # The difference of two nearly equal numbers, rationalised: (ab − b²)·2/(a + b + root).
    root = ((a - b) ** 2 + 4 * b**2).sqrt()
    return (2 * b * (a - b) / (a + b + root)).min()
