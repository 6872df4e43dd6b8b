"""What a point is: minimum, strict or non-strict saddle, on M_k and for the layers; batched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deeplin.landscape.critical import GLOBAL, KINDS, MINIMUM, NON_STRICT, NOT_CRITICAL, STRICT
from deeplin.landscape.frame import Frame, Nearest, Problem
from deeplin.network import DeepLinear, end_to_end, layer_gradients

__all__ = ["classify", "is_critical", "layers_of", "snapped"]


def classify(
    problem: Problem, point: Tensor | DeepLinear | Sequence[Tensor], tol: float = 1e-6
) -> Any:
    """What a W, or a tuple of layers, is in the landscape of the loss.

    For W, on the manifold M_k of the nearest critical point W_J, k = |J|: "global minimum" (over
    all ranks: k = q), "minimum on M_k" (J picks the k largest σ_j), "strict saddle" (any other J).
    For layers, with r = min_j d_j: "global minimum" of L^N iff W is the minimum on M_k with
    k = min(r, q); "strict saddle" where the Hessian of L^N has a negative eigenvalue: for any J
    that is not optimal, and for N = 2 at all others; else "non-strict saddle", as 0 for N ≥ 3.
    "not critical" for what is not within `tol` of a critical point, such as the end of an
    unfinished run.

    A minimum on M_k with k < min(r, q) is strict for N ≥ 3 iff for some i < j the block
    W_{j−1}···W_{i+1} has rank > k and (W_N···W_{j+1})ᵀ ∇L¹(W) (W_{i−1}···W_1)ᵀ ≠ 0; no Hessian is
    formed.

    Source: BRTW Prop. 32, 33, 35, 36, 38; the rank condition is Achour, Malgouyres, Gerchinovitz
    2024 ("tightened" points), there for distinct σ_j.
    Shapes: W (*batch, d_y, d_x) or layers (*batch, d_j, d_{j−1}); returns a string, or nested lists
    of them in the shape of the batch.
    Cost: a small matrix product each, and for layers O(N²) SVDs of blocks where rank decides.
    Accuracy: a point counts as critical if ‖(W − W_J)C^{1/2}‖_F <= tol·σ_1 and, for layers, each
    ‖∇_{W_j}L^N‖ is at most tol times its natural size (see `is_critical`). Singular values of a
    product of n layers count as 0 below δ^{n/N} of their natural size, δ ten times the distance of
    W from W_J: balanced layers of such a W have them.
    Raises: ValueError for tol outside (0, 1) and for shapes that do not fit.

    >>> from deeplin import autoencoder
    >>> problem = autoencoder(torch.diag(torch.tensor([2.0, 1.0])))
    >>> classify(problem, problem.critical_point([2]))
    'strict saddle'
    >>> classify(problem, [torch.zeros(2, 2)] * 3)
    'non-strict saddle'
    """
    check_tol(tol)
    frame, layers = Frame.of(problem), layers_of(point)
    W = end_to_end(layers) if layers else point
    assert isinstance(W, Tensor)
    if W.shape[-2:] != (len(frame.U), len(frame.V)):
        raise ValueError(
            f"the point must be a W of shape (*batch, {len(frame.U)}, {len(frame.V)}) or layers "
            f"with that product; got {tuple(W.shape)}."
        )
    near = frame.nearest(W)
    critical = near.distance <= tol * frame.scale
    if layers:
        critical &= is_critical(problem, layers, tol)
        highest = min(frame.q, *(min(W_j.shape[-2:]) for W_j in layers))
    else:
        highest = frame.q
    code = torch.full_like(near.rank, KINDS.index(STRICT))
    code[near.optimal] = KINDS.index(MINIMUM)
    code[near.optimal & (near.rank == highest)] = KINDS.index(GLOBAL)
    if layers:
        deficient = near.optimal & (near.rank < highest) & critical
        strict = torch.ones_like(deficient)
        if len(layers) > 2 and bool(deficient.any()):
            chosen = [W_j[deficient] if W_j.ndim > 2 else W_j[None] for W_j in layers]
            ranks = near.rank[deficient] if near.rank.ndim else near.rank[None]
            distance = near.distance[deficient] if near.rank.ndim else near.distance[None]
            noise = _noise(frame, distance)
            strict[deficient] = ~_is_tightened(frame, chosen, ranks, noise)
        code[deficient] = KINDS.index(NON_STRICT)
        code[deficient & strict] = KINDS.index(STRICT)
    code[~critical] = KINDS.index(NOT_CRITICAL)
    return _names(code.tolist())


def is_critical(
    problem: Problem, layers: DeepLinear | Sequence[Tensor], tol: float = 1e-6
) -> Bool[Tensor, "*batch"]:
    """Whether a tuple of layers is a critical point of L^N.

    ‖∇_{W_j}L^N‖_F <= tol·σ_1·‖C^{1/2}‖·a^{N−1} for every j, where a is the larger of the layers'
    norms and the N-th root of that of BC⁺: the natural size of a gradient.

    Source: BRTW Lemma 2(1). Shapes: layers (*batch, d_j, d_{j−1}) -> (*batch).
    Cost: one gradient. Raises: ValueError for tol outside (0, 1).
    """
    check_tol(tol)
    frame, weights = Frame.of(problem), layers_of(layers)
    gradients = layer_gradients(weights, problem.egrad(end_to_end(weights)))
    largest = torch.stack([torch.linalg.matrix_norm(W_j) for W_j in weights]).amax(0)
    size = largest.clamp(min=_natural_size(frame, len(weights))) ** (len(weights) - 1)
    allowed = tol * frame.scale * float(torch.linalg.matrix_norm(frame.root, 2)) * size
    norms = torch.stack([torch.linalg.matrix_norm(G_j) for G_j in gradients])
    return (norms <= allowed).all(0)


def layers_of(point: Tensor | DeepLinear | Sequence[Tensor]) -> list[Tensor]:
    """The layers of a network or a sequence, of one batch shape; none for a single matrix."""
    if isinstance(point, Tensor):
        return []
    weights = point.weights if isinstance(point, DeepLinear) else point
    if any(W_j.is_complex() for W_j in weights):
        raise TypeError(
            "layers must be real layers W_j; complex problems are classified by W alone."
        )
    batch = torch.broadcast_shapes(*(W_j.shape[:-2] for W_j in weights))
    return [W_j.detach().expand(*batch, *W_j.shape[-2:]) for W_j in weights]


def snapped(frame: Frame, layers: Sequence[Tensor], near: Nearest) -> list[Tensor]:
    """The layers without the singular values that count as 0 in `classify`.

    Shapes: as given, (*batch, d_j, d_{j−1}). Cost: one SVD for each layer.
    """
    size, noise, out = _sizes(frame, layers), _noise(frame, near.distance), []
    for W_j in layers:
        U, s, Vh = torch.linalg.svd(W_j, full_matrices=False)
        kept = s > (noise ** (1 / len(layers)) * size)[..., None]
        out.append((U * torch.where(kept, s, 0.0)[..., None, :]) @ Vh)
    return out


def _noise(frame: Frame, distance: Tensor) -> Tensor:
    """What a W as near as this to its W_J may have in place of singular values 0, relatively."""
    return (10 * distance / frame.scale).clamp(min=1e3 * torch.finfo(distance.dtype).eps)


def _is_tightened(
    frame: Frame, layers: list[Tensor], k: Tensor, noise: Tensor
) -> Bool[Tensor, " batch"]:
    """Whether no pair i < j gives the Hessian a negative direction.

    Shapes: layers (batch, d_j, d_{j−1}), k and noise (batch).
    """
    depth = len(layers)
    layers = _equal_norms(layers, k)
    size = _sizes(frame, layers)
    # G at W_J itself: that at W may have noise along the singular directions of W.
    near = frame.nearest(end_to_end(layers))
    s_out = torch.where(near.modes, 0.0, frame.s)
    G = -(near.U * s_out[..., None, :]) @ near.V.mH @ frame.root
    largest = torch.linalg.matrix_norm(G, 2)
    after: list[Tensor | None] = [None]  # after[n] = W_N···W_{N−n+1}
    for W_j in reversed(layers[1:]):
        previous = after[-1]
        after.append(W_j if previous is None else previous @ W_j)
    strict = torch.zeros_like(k, dtype=torch.bool)
    before: Tensor | None = None  # W_{i−1}···W_1
    for i in range(1, depth):
        right = G if before is None else G @ before.mT
        block: Tensor | None = None  # W_{j−1}···W_{i+1}
        for j in range(i + 1, depth + 1):
            left = after[depth - j]
            K = right if left is None else left.mT @ right
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


def _natural_size(frame: Frame, depth: int) -> float:
    """‖BC⁺‖^{1/N}, the norm of balanced layers of the best W; 1 where B = 0."""
    if frame.q == 0:
        return 1.0
    solution = (frame.U * frame.s) @ frame.V.mH @ frame.inverse_root
    return float(torch.linalg.matrix_norm(solution, 2)) ** (1 / depth)


def _sizes(frame: Frame, layers: Sequence[Tensor]) -> Float[Tensor, "*batch"]:
    """The natural size of the layers: the larger of their norms and of `_natural_size`."""
    norms = torch.stack([torch.linalg.matrix_norm(W_j, 2) for W_j in layers])
    return norms.amax(0).clamp(min=_natural_size(frame, len(layers)))


def _names(codes: Any) -> Any:
    return [_names(c) for c in codes] if isinstance(codes, list) else KINDS[codes]


def check_tol(tol: float) -> None:
    """Raise ValueError unless a tolerance is a positive number."""
    if not 0 < tol < 1:
        raise ValueError(f"tol must satisfy 0 < tol < 1; got {tol}: for instance tol=1e-6.")
