"""Closed forms of flows, for tests and figures; no flow imports them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "autoencoder_mode",
    "autoencoder_rate",
    "deep_mode_time",
    "gram_flow",
    "infinite_mode_time",
    "oja",
    "special_start_product",
    "two_layer_mode",
    "two_layer_product",
]


def two_layer_mode(
    t: float | Tensor, u0: float | Tensor, s: float | Tensor, lam: float | Tensor = 1.0
) -> Tensor:
    """u(t) for u̇ = 2u(s − λu): a singular value of W aligned with B, N = 2, C = λI.

    Source: [SMG14]; theory: balanced layers, BRTW (9).
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


def deep_mode_time(u: float | Tensor, u0: float | Tensor, s: float, depth: float) -> Tensor:
    """The time t at which u(t) = u for u̇ = N u^{2−2/N}(s − u), u(0) = u_0, N >= 3.

    t = (F(u) − F(u_0))/N with F(u) = u^b/(bs)·₂F₁(1, b; b+1; u/s), b = 2/N − 1: a singular value
    of W aligned with B, C = I.
    Source: BRTW (9) for W(0), B in one basis and C = λI, integrated.
    Raises: ValueError for N <= 2 (N = 2 is `two_layer_mode`).
    """
    if not depth > 2:
        raise ValueError(f"deep_mode_time needs depth > 2; got {depth}: use two_layer_mode.")
    from scipy.special import hyp2f1  # half of what `import deeplin` would load beside torch

    b = 2 / depth - 1

    def F(value: float | Tensor) -> Tensor:
        x = np.asarray(torch.as_tensor(value, dtype=torch.float64))
        return torch.as_tensor(x**b / (b * s) * hyp2f1(1, b, b + 1, x / s))

    return (F(u) - F(u0)) / depth


def infinite_mode_time(u: float | Tensor, u0: float | Tensor, s: float) -> Tensor:
    """The time at which u(t) = u for u̇ = u²(s − u), u(0) = u_0: depth ∞, time scaled by 1/N.

    t = ln[u(u_0 − s)/(u_0(u − s))]/s² + 1/(s u_0) − 1/(s u).
    Source: BRTW (9) divided by N, N → ∞, integrated.
    """
    u, u0 = (torch.as_tensor(v, dtype=torch.float64) for v in (u, u0))
    return torch.log(u * (u0 - s) / (u0 * (u - s))) / s**2 + 1 / (s * u0) - 1 / (s * u)


def two_layer_product(
    t: float,
    W1: Float[Tensor, "d_1 d_0"],
    W2: Float[Tensor, "d_2 d_1"],
    B: Float[Tensor, "d_2 d_0"],
    gap: float = 0.0,
) -> Float[Tensor, "d_2 d_0"]:
    """W_2(t)W_1(t) of the layer flow for N = 2, C = I and W_2ᵀW_2 − W_1W_1ᵀ = gap·I.

    With Z = (W_1ᵀ; W_2) and F = [[−gap/2·I, Bᵀ], [B, gap/2·I]]:
    ZZᵀ(t) = e^{Ft}Z_0[I + Z_0ᵀ(∫_0^t e^{2Fs}ds)Z_0]^{-1}Z_0ᵀe^{Ft}, whose lower left block is W.

    Source: [BDFS22] (gap 0); [DAP24].
    Cost: one eigendecomposition of F.
    """
    d_0, d_2 = W1.shape[1], len(B)
    eye0, eye2 = (torch.eye(d, dtype=B.dtype) for d in (d_0, d_2))
    upper = torch.cat([-0.5 * gap * eye0, B.mT], 1)
    F = torch.cat([upper, torch.cat([B, 0.5 * gap * eye2], 1)])
    return _riccati(t, F, torch.cat([W1.mT, W2]), 1.0)[d_0:, :d_0]


def gram_flow(t: float, X: Float[Tensor, "n n"], V: Float[Tensor, "n r"]) -> Float[Tensor, "n n"]:
    """VVᵀ(t) for V̇ = (X − VVᵀ)V with symmetric X, from any V(0).

    VVᵀ(t) = e^{Xt}V_0[I + 2V_0ᵀ(∫_0^t e^{2Xs}ds)V_0]^{-1}V_0ᵀe^{Xt}.
    Source: a Riccati equation for VVᵀ, solved as in [YHM94].
    """
    return _riccati(t, X, V, 2.0)


def oja(t: float, C: Float[Tensor, "d d"], V: Float[Tensor, "d r"]) -> Float[Tensor, "d d"]:
    """V(t)V(t)ᵀ of Oja's flow V̇ = (I − VVᵀ)CV from any V(0).

    e^{Ct}V_0[I − V_0ᵀV_0 + V_0ᵀe^{2Ct}V_0]^{-1}V_0ᵀe^{Ct}.
    Source: [YHM94], for any V_0.
    """
    values, E = torch.linalg.eigh(C)
    grown = torch.exp(values * t)[:, None] * (E.mT @ V)
    inner = torch.eye(V.shape[1], dtype=V.dtype) - V.mT @ V + grown.mT @ grown
    return E @ grown @ torch.linalg.solve(inner, grown.mT) @ E.mT


def special_start_product(
    t: float, eigenvalues: Float[Tensor, " r"], vectors: Float[Tensor, "d r"]
) -> Float[Tensor, "d d"]:
    """W(t) = −Σ_i u_iu_iᵀ/(2e^{2λ_i t} − 1): two layers from W_1 = U_rᵀ, W_2 = −U_r.

    Source: BRTW Remark 42, BRTW (39), for any r.
    """
    return -(vectors / (2 * torch.exp(2 * eigenvalues * t) - 1)) @ vectors.mT


def _riccati(t: float, F: Tensor, Z: Tensor, weight: float) -> Tensor:
    """e^{Ft}Z[I + w·Zᵀ(∫_0^t e^{2Fs}ds)Z]^{-1}Zᵀe^{Ft} for symmetric F."""
    values, E = torch.linalg.eigh(F)
    Z = E.mT @ Z
    # ∫_0^t e^{2fs} ds = t·(e^{2ft} − 1)/(2ft), with the value t at f = 0.
    x = 2 * values * t
    integral = t * torch.where(x == 0, 1.0, torch.expm1(x) / torch.where(x == 0, 1.0, x))
    inner = torch.eye(Z.shape[1], dtype=Z.dtype) + weight * Z.mT @ (integral[:, None] * Z)
    grown = torch.exp(values * t)[:, None] * Z
    return E @ grown @ torch.linalg.solve(inner, grown.mT) @ E.mT


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
