"""Gram matrices of the rows of a thin matrix that stand at the places of each row, inverted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.linalg import values_known
from deeplin.sampled import kernels
from deeplin.sampled.pattern import Pattern
from deeplin.sampled.products import adjoint_times, sparse_times

__all__ = ["Grams"]


@dataclass(frozen=True)
class Grams:
    """G_i = Σ_j w_ij B_jᴴB_j over the places (i, j), the rows B_j.

    They are the Hessians of ½Σ w_ij |⟨A_i, B_j⟩ − x_ij|² in A_i.

    Shapes: stored (*batch, m, r, w); of compiled ones w ≥ r, and what is below the diagonal is not
        there.
    """

    stored: Inexact[Tensor, "*batch m r w"]
    compiled: bool

    @staticmethod
    def of(
        pattern: Pattern,
        B: Inexact[Tensor, "*batch n r"],
        weights: Float[Tensor, "*#batch p"] | None,
        *,
        adjoint: bool = False,
        rows: slice = slice(None),
    ) -> Grams:
        """Those of some rows i of a pattern; with `adjoint` of its transpose's.

        In compiled loops where `sample` has them and r ≤ 32 (64 in float32). No derivatives.

        Shapes: weights (*batch, p) or (p,), in the order of the pattern; B (*batch, n, r), with
            `adjoint` (*batch, m, r).
        Cost: O(p r²/2).
        """
        given = (B,) if weights is None else (B, weights)
        if not _compiled(pattern, *given):
            return Grams(_grams(pattern, B, weights, adjoint)[..., rows, :, :], False)
        w = None if weights is None else _flat(weights, 1).contiguous()
        places = pattern.second if adjoint else pattern.first
        stored = kernels.grams(places, _flat(B, 2), w, range(places.rows)[rows])
        return Grams(stored.reshape(*B.shape[:-2], *stored.shape[1:]), True)

    def traces(self) -> Float[Tensor, "*batch"]:
        """Σ_i tr G_i."""
        return self.stored.diagonal(dim1=-2, dim2=-1).real.sum((-2, -1))

    def inverse(self, shift: Float[Tensor, "*batch"]) -> Callable[[Tensor, Tensor], Tensor]:
        """(X, Q) ↦ the rows X_i Q(G_i + shift·1)⁻¹Qᴴ; what is stored may be used up.

        Shapes: X (*batch, m, r), Q (*batch, r, r).

        Cost: O(m r³), then O(m r²) for each X.
        """
        stored = self.stored
        if not self.compiled:
            eye = torch.eye(stored.shape[-1], dtype=stored.dtype, device=stored.device)
            shifted = stored + shift[..., None, None, None] * eye
            inverses = torch.cholesky_inverse(torch.linalg.cholesky_ex(shifted).L)
            return lambda X, Q: ((X @ Q)[..., None, :] @ inverses).squeeze(-2) @ Q.mH
        blocks = _flat(stored, 3)
        kernels.invert(blocks, shift.flatten())
        return lambda X, Q: kernels.block_times(_flat(X, 2), blocks, _flat(Q, 2)).view(X.shape)


def _flat(tensor: Tensor, dims: int) -> Tensor:
    """With one batch dimension before so many others."""
    batch, own = tensor.shape[:-dims], tensor.shape[-dims:]
    return tensor.reshape(batch.numel(), *own)


def _compiled(pattern: Pattern, *tensors: Tensor) -> bool:
    widest = 32 * kernels.WIDEST // tensors[0].element_size()
    return (
        pattern.compiled
        and values_known()
        and tensors[0].shape[-1] <= widest
        and kernels.fits(*tensors)
    )


def _grams(
    pattern: Pattern, B: Tensor, weights: Tensor | None, adjoint: bool
) -> Inexact[Tensor, "*batch m r r"]:
    """As products of the weights with the rows of all B_jᴴB_j."""
    r = B.shape[-1]
    if weights is None:
        weights = B.real.new_ones(pattern.size)
    squares = (B.conj()[..., :, None] * B[..., None, :]).flatten(-2)
    times = adjoint_times if adjoint else sparse_times
    return times(pattern, weights.to(B.dtype), squares).unflatten(-1, (r, r))
