"""Layers at a minimum of lower rank: whether the Hessian of L^N has a negative direction there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deeplin.landscape.criticality import natural_size
from deeplin.network import end_to_end
from deeplin.problems.spectrum import Nearest, Spectrum

__all__ = ["is_tightened", "noise_of", "snapped"]


def snapped(optimum: Spectrum, layers: Sequence[Tensor], near: Nearest) -> list[Tensor]:
    """The layers without the singular values that count as 0 in `classify`.

    Shapes: as given, (*batch, d_j, d_{j−1}). Cost: one SVD for each layer.
    """
    size, noise, out = _sizes(optimum, layers), noise_of(optimum, near.distance), []
    for W_j in layers:
        U, s, Vh = torch.linalg.svd(W_j, full_matrices=False)
        kept = s > (noise ** (1 / len(layers)) * size)[..., None]
        out.append((U * torch.where(kept, s, 0.0)[..., None, :]) @ Vh)
    return out


def noise_of(optimum: Spectrum, distance: Tensor) -> Tensor:
    """What a W as near as this to its W_J may have in place of singular values 0, relatively."""
    return (10 * distance / optimum.scale).clamp(min=1e3 * torch.finfo(distance.dtype).eps)


def is_tightened(
    optimum: Spectrum, layers: list[Tensor], k: Tensor, noise: Tensor
) -> Bool[Tensor, " batch"]:
    """Whether no pair i < j gives the Hessian a negative direction.

    Shapes: layers (batch, d_j, d_{j−1}), k and noise (batch).
    """
    depth = len(layers)
    layers = _equal_norms(layers, k)
    size = _sizes(optimum, layers)
    # G at W_J itself: that at W may have noise along the singular directions of W.
    near = optimum.nearest(end_to_end(layers))
    s_out = torch.where(near.modes, 0.0, optimum.s)
    G = optimum.times_root(-(near.U * s_out[..., None, :]) @ near.V.mH)
    largest = torch.linalg.matrix_norm(G, 2)
    after: list[Tensor | None] = [None]  # after[n] = W_N···W_{N−n+1}
    for W_j in reversed(layers[1:]):
        previous = after[-1]
        after.append(W_j if previous is None else previous @ W_j)
    strict = torch.zeros_like(k, dtype=torch.bool)
    before: Tensor | None = None  # W_{i−1}···W_1
    for i in range(1, depth):
        right = G if before is None else G @ before.mH
        block: Tensor | None = None  # W_{j−1}···W_{i+1}
        for j in range(i + 1, depth + 1):
            left = after[depth - j]
            K = right if left is None else left.mH @ right
            missing = depth - j + i - 1
            zero = noise ** (missing / depth) * size**missing * largest
            touches = torch.linalg.matrix_norm(K, 2) > (zero if missing else 0.0)
            if block is None:
                rank = torch.full_like(k, layers[i - 1].shape[-2])
            else:
                length = j - 1 - i
                zero = noise ** (length / depth) * size**length
                rank = (torch.linalg.svdvals(block) > zero[..., None]).sum(-1)
            strict |= touches & (rank > k)
            if j < depth + 1:
                block = layers[j - 1] if block is None else layers[j - 1] @ block
        before = layers[i - 1] if before is None else layers[i - 1] @ before
    return ~strict


def _equal_norms(layers: Sequence[Tensor], k: Tensor) -> list[Tensor]:
    """Layers scaled to equal spectral norms without changing W ≠ 0; as they are where k = 0.

    Such a scaling keeps all ranks and carries critical points to critical points.
    """
    norms = torch.stack([torch.linalg.matrix_norm(W_j, 2) for W_j in layers])
    positive = torch.where(k > 0, norms, torch.ones_like(norms))
    mean = positive.log().mean(0).exp()
    factors = torch.where(k > 0, mean / positive, torch.ones_like(norms))
    return [W_j * c[..., None, None] for W_j, c in zip(layers, factors, strict=True)]


def _sizes(optimum: Spectrum, layers: Sequence[Tensor]) -> Float[Tensor, "*batch"]:
    """The natural size of the layers: the larger of their norms and of ‖BC⁺‖^{1/N}."""
    norms = torch.stack([torch.linalg.matrix_norm(W_j, 2) for W_j in layers])
    return norms.amax(0).clamp(min=natural_size(optimum) ** (1 / len(layers)))
