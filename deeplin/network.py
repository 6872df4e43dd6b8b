"""Deep linear networks: the module, and the gradient of a loss of its end-to-end matrix."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deeplin.linalg import chain

__all__ = ["DeepLinear", "balancedness_gap", "end_to_end", "grid_widths", "layer_gradients"]


class DeepLinear(nn.Module):
    """The network x ↦ W_N···W_1 x with W_j ∈ R^{d_j×d_{j−1}} and no biases.

    A new network has independent Gaussian weights of standard deviation 1/√d_j, for which
    E‖W_N···W_1 x‖² = ‖x‖²; `deeplin.init` has the starts of the papers.

    Source: BRTW (1).
    Shapes: widths = (d_0, …, d_N); weights[j−1] = W_j is (*batch_shape, d_j, d_{j−1}).
    Cost: a forward pass costs Σ_j d_j d_{j−1} per sample; `end_to_end` about d_0 d_N min_j d_j.
    Raises: ValueError for fewer than two widths or widths that are no positive integers.

    >>> net = DeepLinear([4, 2, 3], dtype=torch.float64)
    >>> net(torch.ones(5, 4, dtype=torch.float64)).shape
    torch.Size([5, 3])
    >>> net.end_to_end().shape
    torch.Size([3, 4])
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        batch_shape: Sequence[int] = (),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.widths = check_widths(widths)
        self.batch_shape = tuple(batch_shape)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty((*self.batch_shape, d_out, d_in), dtype=dtype, device=device))
            for d_in, d_out in zip(self.widths[:-1], self.widths[1:], strict=True)
        )
        for W_j in self.weights:
            nn.init.normal_(W_j, std=W_j.shape[-2] ** -0.5)

    @property
    def depth(self) -> int:
        """N, the number of layers."""
        return len(self.weights)

    def forward(self, x: Float[Tensor, "... d_0"]) -> Float[Tensor, "... d_N"]:
        """W x for a sample per row, as `torch.nn.Linear`; layer by layer, in the order of depth."""
        for W_j in self.weights:
            x = x @ W_j.mT
        return x

    def end_to_end(self) -> Float[Tensor, "*batch d_N d_0"]:
        """W = W_N···W_1, which acts on columns."""
        return end_to_end(list(self.weights))

    def balancedness_gap(self) -> list[Float[Tensor, "*batch d_j d_j"]]:
        """The N − 1 matrices W_{j+1}ᵀW_{j+1} − W_jW_jᵀ, conserved by the gradient flow."""
        return balancedness_gap(list(self.weights))

    def extra_repr(self) -> str:
        batch = f", batch_shape={self.batch_shape}" if self.batch_shape else ""
        return f"widths={list(self.widths)}{batch}"


def end_to_end(weights: Sequence[Tensor]) -> Float[Tensor, "*batch d_N d_0"]:
    """W = W_N···W_1 of layers listed from the first to the last. Source: BRTW (1)."""
    return chain(weights)


def balancedness_gap(weights: Sequence[Tensor]) -> list[Float[Tensor, "*batch d_j d_j"]]:
    """[W_{j+1}ᵀW_{j+1} − W_jW_jᵀ for j = 1..N−1]; all zero iff the layers are balanced.

    Source: BRTW Definition 1, Lemma 2(3).
    """
    return [after.mT @ after - before @ before.mT for before, after in itertools.pairwise(weights)]


def layer_gradients(
    weights: Sequence[Tensor],
    G: Float[Tensor, "*batch d_N d_0"] | Callable[[Tensor], Tensor],
) -> list[Float[Tensor, "*batch d_j d_j1"]]:
    """∇_{W_j}L^N = W_{j+1}ᵀ···W_Nᵀ G W_1ᵀ···W_{j−1}ᵀ for all j, with G = ∇L¹(W_N···W_1).

    G is that matrix, or the function that gives it for W = W_N···W_1, whose product is then shared.

    Source: BRTW Lemma 2(1).
    Shapes: G (*batch, d_N, d_0) -> a matrix of the shape of W_j for each j.
    Cost: two sweeps of N matrix products, none with the samples.
    """
    prefixes = [None, weights[0]]  # prefixes[j−1] = W_{j−1}···W_1
    for W_j in weights[1:-1]:
        prefixes.append(W_j @ prefixes[-1])
    if not isinstance(G, Tensor):
        G = G(weights[0] if len(weights) == 1 else weights[-1] @ prefixes[-1])
    gradients = []
    for W_j, prefix in zip(reversed(weights), reversed(prefixes[: len(weights)]), strict=True):
        gradients.append(G if prefix is None else G @ prefix.mT)
        G = W_j.mT @ G
    return gradients[::-1]


def grid_widths(d_in: int, d_out: int, depth: int, rank: int) -> list[int]:
    """(d_0, …, d_N): d_0 = d_in and d_j = [r + (d_out − r)(j − 1)/(N − 1)] for j = 1..N.

    [·] rounds half up. So d_1 = r, d_N = d_out and the widths in between grow evenly.

    Source: BRTW §7.1.1, there with d_in = d_out.
    Raises: ValueError unless depth >= 2 and 1 <= rank <= min(d_in, d_out).
    """
    if depth != int(depth) or depth < 2:
        raise ValueError(
            "depth must be an integer >= 2 for the grid of widths; "
            f"got {depth}: give widths=[d_0, d_1] for a single layer."
        )
    if rank != int(rank) or not 1 <= rank <= min(d_in, d_out):
        raise ValueError(
            f"rank must satisfy 1 <= rank <= min(d_x, d_y) = {min(d_in, d_out)}; got {rank}."
        )
    steps = (rank + (d_out - rank) * (j - 1) / (depth - 1) for j in range(1, depth + 1))
    return [d_in, *(math.floor(d + 0.5) for d in steps)]


def check_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """The widths (d_0, …, d_N) as a tuple of positive integers, at least two of them."""
    widths = tuple(widths)
    if len(widths) < 2 or any(
        isinstance(d, bool) or not isinstance(d, int) or d < 1 for d in widths
    ):
        raise ValueError(
            "widths must be at least two positive integers d_0, …, d_N; "
            f"got {list(widths)}: for instance widths=[64, 10, 64]."
        )
    return widths
