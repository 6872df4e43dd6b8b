"""Deep linear networks: the module, and the gradient of a loss of its end-to-end matrix."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Inexact
from torch import Tensor, nn

from deeplin.linalg import chain, matmul
from deeplin.problems.contract import Problem
from deeplin.problems.widths import check_widths

__all__ = ["DeepLinear", "balancedness_gap", "end_to_end", "gap_norm", "layer_gradients"]


class DeepLinear(nn.Module):
    """The network x ↦ W_N···W_1 x with W_j ∈ F^{d_j×d_{j−1}}, F = R or C, and no biases.

    A new network has independent Gaussian weights of standard deviation 1/√d_j (complex ones with
    E|w|² = 1/d_j), for which E‖W_N···W_1 x‖² = ‖x‖²; `deeplin.init` has the starts of the papers.

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

    def forward(self, x: Inexact[Tensor, "... d_0"]) -> Inexact[Tensor, "... d_N"]:
        """W x for a sample per row, as `torch.nn.Linear`; layer by layer, in the order of depth."""
        for W_j in self.weights:
            x = x @ W_j.mT
        return x

    def end_to_end(self) -> Inexact[Tensor, "*batch d_N d_0"]:
        """W = W_N···W_1, which acts on columns."""
        return end_to_end(list(self.weights))

    def balancedness_gap(self) -> list[Inexact[Tensor, "*batch d_j d_j"]]:
        """The N − 1 matrices W_{j+1}ᴴW_{j+1} − W_jW_jᴴ, conserved by the gradient flow."""
        return balancedness_gap(list(self.weights))

    def extra_repr(self) -> str:
        batch = f", batch_shape={self.batch_shape}" if self.batch_shape else ""
        return f"widths={list(self.widths)}{batch}"


def end_to_end(weights: Sequence[Tensor]) -> Inexact[Tensor, "*batch d_N d_0"]:
    """W = W_N···W_1 of layers listed from the first to the last. Source: BRTW (1)."""
    return chain(weights)


def balancedness_gap(weights: Sequence[Tensor]) -> list[Inexact[Tensor, "*batch d_j d_j"]]:
    """[W_{j+1}ᴴW_{j+1} − W_jW_jᴴ for j = 1..N−1]; all zero iff the layers are balanced.

    Source: BRTW Definition 1, BRTW Lemma 2(3).
    """
    return [after.mH @ after - before @ before.mH for before, after in itertools.pairwise(weights)]


def gap_norm(weights: Sequence[Tensor]) -> Float[Tensor, "*batch"]:
    """max_j ‖W_{j+1}ᴴW_{j+1} − W_jW_jᴴ‖_F; 0 for balanced layers and for a single layer."""
    norms = [torch.linalg.matrix_norm(gap) for gap in balancedness_gap(weights)]
    if not norms:
        return weights[0].new_zeros(weights[0].shape[:-2], dtype=weights[0].real.dtype)
    return torch.stack(norms).amax(0)


def layer_gradients(
    weights: Sequence[Tensor], G: Inexact[Tensor, "*batch d_N d_0"] | Problem
) -> list[Inexact[Tensor, "*batch d_j d_j1"]]:
    """∇_{W_j}L^N = W_{j+1}ᴴ···W_Nᴴ G W_1ᴴ···W_{j−1}ᴴ for all j, with G = ∇L¹(W_N···W_1).

    G is that matrix, or the loss L¹. The product is split at its narrowest width d_p into
    L = W_N···W_{p+1} and R = W_p···W_1, for all gradients follow from GRᴴ and LᴴG:
    W_{j+1}ᴴ···W_Nᴴ (GRᴴ) W_{p+1}ᴴ···W_{j−1}ᴴ for j > p and W_{j+1}ᴴ···W_pᴴ (LᴴG) W_1ᴴ···W_{j−1}ᴴ
    for j <= p. A problem gives these two by `egrad_pair`, with or without forming G.

    Source: BRTW Lemma 2(1).
    Shapes: G (*batch, d_N, d_0) -> a matrix of the shape of W_j for each j.
    Cost: 3d_p Σ_j d_j d_{j−1} multiplications besides GRᴴ and LᴴG; none with the samples.
    """
    N, p = len(weights), _narrowest(weights)
    left: list[Tensor] = []  # left[i] = W_{p+1+i}···W_{p+1}
    for W_j in weights[p:]:
        left.append(matmul(W_j, left[-1]) if left else W_j)
    right: list[Tensor] = []  # right[i] = W_p···W_{p−i}
    for W_j in reversed(weights[:p]):
        right.append(matmul(right[-1], W_j) if right else W_j)
    GRt, LtG = _gradient_products(G, left[-1:], right[-1:])
    later = [GRt]
    for W_j in reversed(weights[p + 1 :]):
        later.append(matmul(W_j.mH, later[-1]))
    earlier = [LtG]
    for W_j in weights[: max(p - 1, 0)]:
        earlier.append(matmul(earlier[-1], W_j.mH))
    return [
        *(matmul(right[p - 1 - j].mH, earlier[j - 1]) for j in range(1, p)),
        *([earlier[-1]] if p else []),
        *([later[-1]] if p < N else []),
        *(matmul(later[N - j], left[j - p - 2].mH) for j in range(p + 2, N + 1)),
    ]


def _narrowest(weights: Sequence[Tensor]) -> int:
    """The index p of the least width d_p; of equal ones an end, which needs fewer products."""
    widths = [weights[0].shape[-1], *(W_j.shape[-2] for W_j in weights)]
    least = min(widths)
    return len(weights) if widths[-1] == least != widths[0] else widths.index(least)


def _gradient_products(
    G: Tensor | Problem, left: list[Tensor], right: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """(GRᴴ, LᴴG) at W = LR, left = [L] and right = [R]; G for the other half of an empty one."""
    if left and right:
        (L,), (R,) = left, right
        return (matmul(G, R.mH), matmul(L.mH, G)) if isinstance(G, Tensor) else G.egrad_pair(L, R)
    (W,) = left or right
    G = G if isinstance(G, Tensor) else G.egrad(W)
    return G, G
