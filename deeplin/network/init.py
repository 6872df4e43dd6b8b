"""Initial values of deep linear networks: in place, on every trajectory of a batch.

Each start states the balancedness gap W_{j+1}ᴴW_{j+1} − W_jW_jᴴ and the scale of W(0) that it has.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.linalg import random_orthogonal
from deeplin.network.deep_linear import DeepLinear

__all__ = [
    "balanced_",
    "balanced_factors_",
    "gaussian_",
    "identity_",
    "orthogonal_balanced_",
    "special_",
]


def balanced_(
    net: DeepLinear,
    W: Inexact[Tensor, "*batch d_N d_0"],
    *,
    rotate: bool = False,
    generator: torch.Generator | None = None,
) -> DeepLinear:
    """Balanced layers whose product is W = UΣVᴴ: W_1 = Σ^{1/N}Vᴴ, W_j = Σ^{1/N}, W_N = UΣ^{1/N}.

    The hidden widths beyond k = rank W are filled with zeros; `rotate` draws instead a random
    k-dimensional subspace of each hidden layer, W_j = O_jΣ^{1/N}O_{j−1}ᴴ.

    Source: the proof of BRTW Prop. 12.
    Shapes: W (*batch, d_N, d_0), broadcast over the batch of the network.
    Cost: one SVD of W.
    Accuracy: gap 0 and product W, to round-off. Singular values below round-off are dropped: their
    N-th root would not be.
    Raises: ValueError if W does not fit, is not finite, or its rank exceeds the smallest width.
    """
    d_in, d_out, first = net.widths[0], net.widths[-1], net.weights[0]
    if W.shape[-2:] != (d_out, d_in):
        raise ValueError(f"W(0) must be (d_N, d_0) = {(d_out, d_in)}; got shape {tuple(W.shape)}.")
    batch = net.batch_shape
    if W.ndim - 2 > len(batch) or any(
        given not in (1, size)
        for given, size in zip(reversed(W.shape[:-2]), reversed(batch), strict=False)
    ):
        raise ValueError(
            f"W(0) must be one matrix, or a stack of shape {tuple(batch)} with one for each "
            f"trajectory; got a stack of shape {tuple(W.shape[:-2])}."
        )
    if W.is_complex() and not first.is_complex():
        raise ValueError(
            "W(0) must be real for real layers; it is complex: make the network with "
            "dtype=torch.complex128."
        )
    if not bool(torch.isfinite(W).all()):
        raise ValueError("W(0) must be finite; it has entries that are NaN or ±inf.")
    W = W.to(dtype=first.dtype, device=first.device)
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    return _balanced_of(net, U, s, Vh, rotate, generator)


def balanced_factors_(
    net: DeepLinear,
    U: Inexact[Tensor, "*batch d_N k"],
    s: Float[Tensor, "*batch k"],
    V: Inexact[Tensor, "*batch d_0 k"],
) -> DeepLinear:
    """The same of W = U diag(s) Vᴴ, which is not formed: U, V orthonormal, s descending.

    Raises: ValueError if the factors do not fit, or their rank exceeds the smallest width.
    """
    given, ends = (U.shape[-2], V.shape[-2]), (net.widths[-1], net.widths[0])
    if given != ends or not U.shape[-1] == s.shape[-1] == V.shape[-1]:
        raise ValueError(
            f"U, s, V must be (d_N, k), (k,), (d_0, k) with (d_N, d_0) = {ends}; got "
            f"{tuple(U.shape)}, {tuple(s.shape)}, {tuple(V.shape)}."
        )
    like = net.weights[0]
    U, Vh = (A.to(dtype=like.dtype, device=like.device) for A in (U, V.mH))
    return _balanced_of(net, U, s.to(dtype=like.real.dtype, device=like.device), Vh, False, None)


def _balanced_of(
    net: DeepLinear,
    U: Tensor,
    s: Tensor,
    Vh: Tensor,
    rotate: bool,
    generator: torch.Generator | None,
) -> DeepLinear:
    d_in, d_out = net.widths[0], net.widths[-1]
    kept = s > max(d_in, d_out) * torch.finfo(s.dtype).eps * s[..., :1]
    k = int(kept.sum(-1).max())
    if k > min(net.widths):
        raise ValueError(
            f"W(0) must have rank <= the smallest width {min(net.widths)}; it has rank {k}: "
            "widen the layers or truncate W(0)."
        )
    root = torch.where(kept, s, 0.0)[..., :k] ** (1 / net.depth)
    bases = _hidden_bases(net, k, rotate, generator)
    factors = [Vh[..., :k, :].mH, *bases, U[..., :k]]
    return _set(
        net,
        [(after * root[..., None, :]) @ before.mH for before, after in itertools.pairwise(factors)],
    )


def orthogonal_balanced_(
    net: DeepLinear,
    *,
    scale: float = 1.0,
    tied: bool = False,
    rank: int | None = None,
    generator: torch.Generator | None = None,
) -> DeepLinear:
    """Balanced layers W_j = s^{1/N} U_jU_{j−1}ᴴ from random U_j with k orthonormal columns.

    The product is W(0) = s U_NU_0ᴴ: k singular values equal to the scale s, gap 0. With `tied`
    ends, U_0 = U_N, W(0) is s times an orthogonal projection and u_iᴴW(0)u_i > 0 holds almost
    surely: condition (37), which the paper's own independent ends meet with probability 2^{−k}.

    Source: BRTW §7.1.1 (s = 1, k = min_j d_j).
    Cost: N + 1 QR decompositions.
    Raises: ValueError for scale <= 0, a rank above the smallest width, tied ends of unequal width.
    """
    k = _check_rank(net, rank)
    check_scale(scale)
    if tied and net.widths[0] != net.widths[-1]:
        raise ValueError(
            "tied=True needs d_0 = d_N, the shape of an autoencoder; got "
            f"{net.widths[0]} and {net.widths[-1]}: use tied=False."
        )
    bases = [_orthonormal(net, d, k, generator) for d in net.widths]
    if tied:
        bases[-1] = bases[0]
    root = scale ** (1 / net.depth)
    return _set(net, [root * after @ before.mH for before, after in itertools.pairwise(bases)])


def gaussian_(
    net: DeepLinear,
    std: float | Sequence[float] | Literal["fan_max"] | None = None,
    *,
    generator: torch.Generator | None = None,
) -> DeepLinear:
    """Independent Gaussian entries, of standard deviation std_j in layer j; not balanced.

    std = None takes 1/√d_j; "fan_max" takes 1/√max(d_j, d_{j−1}), the same for layers that widen,
    while a first layer that narrows d_0 to r has norm about 1 instead of √(d_0/r): with 1/√d_j
    such a network is so far from balanced that its flow arrives tens of times later.

    Scale: E‖W(0)‖_F² = d_0 Π_j d_j std_j², so d_0 by default. Gap, with a = std_{j+1}²,
    b = std_j², p = d_j: E‖W_{j+1}ᴴW_{j+1} − W_jW_jᴴ‖_F² =
    a²d_{j+1}p(d_{j+1}+p+1) + b²d_{j−1}p(d_{j−1}+p+1) − 2ab d_{j+1}d_{j−1}p for real entries; for
    complex ones, of E|w|² = std_j², without the two 1's.

    Source: BRTW §7.1.2, where the scale is left open, and §7.2 (1/√d_j).
    Raises: ValueError for a std that is not positive or a list of another length than depth.
    """
    if std is None:
        stds = [d**-0.5 for d in net.widths[1:]]
    elif std == "fan_max":
        stds = [max(pair) ** -0.5 for pair in itertools.pairwise(net.widths)]
    elif isinstance(std, Sequence):
        stds = list(std)
    else:
        stds = [std] * net.depth
    if len(stds) != net.depth or any(not s > 0 for s in stds):
        raise ValueError(
            f"std must be a positive number, a list of depth = {net.depth} of them, or fan_max; "
            f"got {std}."
        )
    return _set(
        net,
        [
            s * torch.randn(W_j.shape, dtype=W_j.dtype, device=W_j.device, generator=generator)
            for s, W_j in zip(stds, net.weights, strict=True)
        ],
    )


def identity_(net: DeepLinear, *, scale: float = 1.0, rank: int | None = None) -> DeepLinear:
    """Layers s^{1/N} [I_k 0; 0 0]: W(0) = s [I_k 0; 0 0], gap 0, k = min_j d_j unless given.

    Every layer has the same k ones: identities as large as each layer allows are not balanced.

    Raises: ValueError for scale <= 0 or a rank above the smallest width.
    """
    k = _check_rank(net, rank)
    check_scale(scale)
    layers = []
    for W_j in net.weights:
        layer = torch.zeros_like(W_j)
        layer[..., range(k), range(k)] = scale ** (1 / net.depth)
        layers.append(layer)
    return _set(net, layers)


def special_(net: DeepLinear, V: Inexact[Tensor, "d k"], *, scale: float = 1.0) -> DeepLinear:
    """The balanced start W_1 = V_kᴴ, W_j = I_k, W_N = −V_k, times s^{1/N}, that violates (37).

    W(0) = −s V_kV_kᴴ, gap 0. With V_k the leading eigenvectors of XXᴴ the exact flow tends to 0
    instead of V_kV_kᴴ: for N = 2 as −1/(2e^{2λ_i t} − 1) along each u_i.

    Source: BRTW Remark 42, BRTW Fig. 4.
    Shapes: V (d, k) with orthonormal columns, d = d_0 = d_N, k <= min_j d_j.
    Raises: ValueError where V does not fit the network, scale <= 0.
    """
    check_scale(scale)
    d, k = V.shape
    if not net.widths[0] == net.widths[-1] == d or k > min(net.widths):
        raise ValueError(
            "the special start needs V of shape (d, k) with d = d_0 = d_N and k <= min widths; got "
            f"V {tuple(V.shape)} for widths {list(net.widths)}."
        )
    first = net.weights[0]
    V = V.to(dtype=first.dtype, device=first.device)
    factors = [V, *_hidden_bases(net, k, False, None), -V]
    root = scale ** (1 / net.depth)
    return _set(
        net,
        [root * after @ before.mH for before, after in itertools.pairwise(factors)],
    )


def _set(net: DeepLinear, layers: Sequence[Tensor]) -> DeepLinear:
    with torch.no_grad():
        for W_j, value in zip(net.weights, layers, strict=True):
            W_j.copy_(value.expand_as(W_j))
    return net


def _orthonormal(net: DeepLinear, d: int, k: int, generator: torch.Generator | None) -> Tensor:
    first = net.weights[0]
    return random_orthogonal(
        d,
        k,
        batch_shape=net.batch_shape,
        dtype=first.dtype,
        device=first.device,
        generator=generator,
    )


def _hidden_bases(
    net: DeepLinear, k: int, rotate: bool, generator: torch.Generator | None
) -> list[Tensor]:
    if rotate:
        return [_orthonormal(net, d, k, generator) for d in net.widths[1:-1]]
    first = net.weights[0]
    return [torch.eye(d, k, dtype=first.dtype, device=first.device) for d in net.widths[1:-1]]


def _check_rank(net: DeepLinear, rank: int | None) -> int:
    if rank is None:
        return min(net.widths)
    if not 1 <= rank <= min(net.widths):
        raise ValueError(
            f"rank must satisfy 1 <= rank <= min widths = {min(net.widths)}; got {rank}."
        )
    return rank


def check_scale(scale: float) -> None:
    """Raise ValueError unless the scale of a start is positive."""
    if not scale > 0:
        raise ValueError(f"scale must be positive; got {scale}.")
