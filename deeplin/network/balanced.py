"""Balanced layers: the exact reduction of their hidden widths, and the way back to balance."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deeplin.linalg import orthonormal_factor, product_svdvals
from deeplin.network.deep_linear import DeepLinear, balancedness_gap, end_to_end

__all__ = [
    "check_balanced",
    "compress",
    "is_balanced",
    "product_ranks",
    "rebalance",
    "relative_gap",
]

Layers = tuple[Tensor, ...]


def product_ranks(layers: Sequence[Tensor]) -> Int[Tensor, "*batch"]:
    """rank W_N···W_1 of each trajectory, which the gradient flow keeps where they are balanced.

    The number of singular values above max(d_0, d_N)·eps·σ_1.

    Source: BRTW Prop. 12.
    Shapes: layers (*batch, d_j, d_{j−1}).
    """
    s = product_svdvals(layers)
    noise = max(layers[-1].shape[-2], layers[0].shape[-1]) * torch.finfo(s.dtype).eps
    return (s > noise * s[..., :1]).sum(-1)


def relative_gap(layers: Sequence[Tensor]) -> Float[Tensor, "*batch"]:
    """max_j ‖W_{j+1}ᴴW_{j+1} − W_jW_jᴴ‖_F over the largest ‖W_j‖_F²; 0 for one layer."""
    layers = [W_j.detach() for W_j in layers]
    sizes = torch.stack([torch.linalg.matrix_norm(W_j).square() for W_j in layers]).amax(0)
    gaps = [torch.linalg.matrix_norm(gap) for gap in balancedness_gap(layers)]
    if not gaps:
        return torch.zeros_like(sizes)
    return (torch.stack(gaps).amax(0) / sizes).nan_to_num(nan=0.0)


def is_balanced(layers: Sequence[Tensor], rtol: float | None = None) -> bool:
    """Whether the relative gap of every trajectory is round-off: up to 1e-8, or 100 eps."""
    rtol = max(1e-8, 100 * torch.finfo(layers[0].dtype).eps) if rtol is None else rtol
    return float(relative_gap(layers).max()) <= rtol


def check_balanced(layers: Sequence[Tensor], who: str, rtol: float | None = None) -> None:
    """Does nothing for layers that are balanced; raises ValueError for others."""
    if not is_balanced(layers, rtol):
        raise ValueError(
            f"{who} needs balanced layers, W_{{j+1}}ᴴW_{{j+1}} = W_jW_jᴴ for every j; the largest "
            f"gap is {float(relative_gap(layers).max()):.2g} of the largest ‖W_j‖²: start from "
            "deeplin.init.balanced_(net, W), init=balanced, or follow the layers themselves, "
            "flow=layers with method=dopri5."
        )


def compress(layers: DeepLinear | Sequence[Tensor], *, rtol: float | None = None) -> Layers:
    """Balanced layers of hidden widths k = rank W with the same W(t) under the gradient flow.

    W_1 = Σ^{1/N}Vᴴ, W_j = Σ^{1/N}, W_N = UΣ^{1/N} for W_N···W_1 = UΣVᴴ: an exact reduction, not
    an approximation. Σ^{1/N} and V are taken from W_1 itself and U follows through the layers, so
    that no fractional power of round-off is taken.

    Source: the proof of BRTW Prop. 12.
    Shapes: layers (*batch, d_j, d_{j−1}) -> (*batch, k, d_0), (*batch, k, k) …, (*batch, d_N, k);
    k is the largest rank of the batch; a trajectory of a lower one keeps it, by zeros that stay.
    Cost: one SVD of W_1 and N thin products.
    Raises: ValueError if the layers are not balanced, by `is_balanced`.
    """
    weights = [
        W_j.detach() for W_j in (layers.weights if isinstance(layers, DeepLinear) else layers)
    ]
    check_balanced(weights, "compress", rtol)
    frame, root, Vh = torch.linalg.svd(weights[0], full_matrices=False)
    noise = 10 * max(weights[0].shape[-2:]) * torch.finfo(root.dtype).eps * root[..., :1]
    kept = root > noise
    k = max(1, int(kept.sum(-1).max()))
    root = torch.where(kept, root, 0.0)[..., :k]
    inverse = torch.where(kept[..., :k], 1 / torch.where(root > 0, root, 1.0), 0.0)
    frame = frame[..., :k]
    for W_j in weights[1:]:
        frame = (W_j @ frame) * inverse[..., None, :]
    if len(weights) == 1:
        return (weights[0].clone(),)
    middle = [torch.diag_embed(root).to(Vh) for _ in weights[2:]]
    return (root[..., :, None] * Vh[..., :k, :], *middle, frame * root[..., None, :])


def rebalance(layers: Sequence[Tensor], rank: int) -> Layers:
    """Exactly balanced layers of the same product, in the hidden bases of the given ones.

    W_j = O_jΣ^{1/N}O_{j−1}ᴴ with W = UΣVᴴ of the given rank, O_0 = V, O_N = U and O_j the
    orthonormal factor of W_jO_{j−1}: for layers that are balanced up to a drift δ a change of
    size δ, and none in W.

    Source: the proof of BRTW Prop. 12.
    Shapes: (*batch, d_j, d_{j−1}) -> the same.
    Cost: an SVD of W and N − 1 thin QR decompositions.
    Accuracy: gaps of a few eps·‖W_j‖².
    Raises: ValueError unless 1 <= rank <= min_j d_j.
    """
    widths = [layers[0].shape[-1], *(W_j.shape[-2] for W_j in layers)]
    if not 1 <= rank <= min(widths):
        raise ValueError(
            f"rebalance(rank=...) must satisfy 1 <= rank <= min_j d_j = {min(widths)}; got {rank}."
        )
    U, s, Vh = torch.linalg.svd(end_to_end(layers), full_matrices=False)
    root = s[..., :rank] ** (1 / len(layers))
    frames = [Vh[..., :rank, :].mH]
    for W_j in layers[:-1]:
        frames.append(orthonormal_factor(W_j @ frames[-1])[0])  # R > 0: no change of sign
    frames.append(U[..., :rank])
    return tuple(
        (after * root[..., None, :]) @ before.mH for before, after in itertools.pairwise(frames)
    )
