"""The eigenvalue of largest modulus of a symmetric operator that is known by its products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

__all__ = ["largest_modulus"]


def largest_modulus(
    operator: Callable[[Tensor], Tensor],
    start: Inexact[Tensor, "*batch m n"],
    *,
    iterations: int = 40,
    rtol: float = 1e-2,
) -> Float[Tensor, "*batch"]:
    """max |λ| of an operator H that is symmetric in Re⟨x, y⟩, by Lanczos from a given start.

    Lanczos, not power iteration: from a random start of dimension d the part along the eigenvector
    that is sought is 1/√d, and a power iteration looks converged on the bulk of the spectrum long
    before that part has grown.

    Shapes: `operator` maps (*batch, m, n) to the same; `start` is random, zero for no matrix.
    Cost: at most `iterations` products with H; vectors are not kept.
    Accuracy: from below, within rtol where the residual falls under rtol·|λ|; NaN where a product
        is not finite. Copies of converged eigenvalues, which Lanczos without reorthogonalisation
        makes, do no harm to the largest.
    """
    v, before = start / _norm(start), torch.zeros_like(start)
    link = _norm(before)
    diagonal: list[Tensor] = []
    links: list[Tensor] = []
    estimate = link[..., 0, 0]
    for _ in range(iterations):
        w = operator(v) - link * before
        along = (v.conj() * w).real.sum((-2, -1), keepdim=True)
        w = w - along * v
        link = _norm(w)
        diagonal.append(along[..., 0, 0])
        if not bool((torch.isfinite(along) & torch.isfinite(link)).all()):
            return torch.full_like(estimate, torch.nan)
        T = torch.diag_embed(torch.stack(diagonal, -1))
        if links:
            T = T + torch.diag_embed(torch.stack(links, -1), -1)  # eigh reads the lower triangle
        values, vectors = torch.linalg.eigh(T)
        index = values.abs().argmax(-1, keepdim=True)
        estimate = values.gather(-1, index)[..., 0].abs()
        last = vectors[..., -1, :].gather(-1, index)[..., 0].abs()
        if bool((link[..., 0, 0] * last <= rtol * estimate).all()):
            break
        links.append(link[..., 0, 0])
        before, v = v, w / torch.where(link > 0, link, 1.0)
    return estimate


def _norm(A: Tensor) -> Tensor:
    return torch.linalg.vector_norm(A, dim=(-2, -1), keepdim=True)
