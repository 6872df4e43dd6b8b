"""Whether a matrix or a tuple of layers is a critical point, against the natural size there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deeplin.landscape.closed_form import known
from deeplin.network import DeepLinear, end_to_end, layer_gradients
from deeplin.problems import Problem, Spectrum

__all__ = ["check_tol", "is_critical", "layers_of", "natural_size", "numerical_rank"]


def is_critical(
    problem: Problem, point: Tensor | DeepLinear | Sequence[Tensor], tol: float = 1e-6
) -> Bool[Tensor, "*batch"]:
    """Whether a W is a critical point on its M_k, or a tuple of layers one of L^N.

    Layers: ‖∇_{W_j}L^N‖_F <= tol·g·a^{N−1} for every j, where a is the larger of the layers' norms
    and w^{1/N}. W: ‖P_W∇f(W)‖_F <= tol·g, k the numerical rank of W. The natural sizes, g of a
    gradient and w of a matrix, are σ_1·‖C^{1/2}‖ and ‖BC⁺‖ where the critical points are known in
    closed form, and W is then critical if ‖(W − W_J)C^{1/2}‖_F <= tol·σ_1 for some J; else they are
    measured there: g = max(‖∇f(W)‖, λ‖W‖) and w = max(‖W‖, ‖∇f(W)‖/λ), λ = ‖Hess f(W)‖.

    Source: BRTW Lemma 2(1), BRTW Prop. 32.
    Shapes: W (*batch, d_y, d_x) or layers (*batch, d_j, d_{j−1}) -> (*batch).
    Cost: one gradient; for W an SVD or a product with C^{1/2}; where λ is measured, the power
        iteration of `Problem.curvature`.
    Raises: ValueError for tol outside (0, 1).
    """
    check_tol(tol)
    layers, optimum = layers_of(point), known(problem)
    if layers:
        return _layers_are_critical(problem, optimum, layers, tol)
    assert isinstance(point, Tensor)
    if optimum is not None:
        return optimum.nearest(point).distance <= tol * optimum.scale
    W = point.detach()
    G = problem.egrad(W)
    gradient, _ = _measured_sizes(problem, W, G)
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    kept = (torch.arange(s.shape[-1], device=s.device) < numerical_rank(W, s)[..., None]).to(s)
    U, V = U * kept[..., None, :], Vh.mH * kept[..., None, :]
    UhG = U.mH @ G
    right, left = torch.linalg.matrix_norm(G @ V), torch.linalg.matrix_norm(UhG - UhG @ V @ V.mH)
    return torch.hypot(left, right) <= tol * gradient


def _layers_are_critical(
    problem: Problem, optimum: Spectrum | None, layers: list[Tensor], tol: float
) -> Bool[Tensor, "*batch"]:
    W = end_to_end(layers)
    G = problem.egrad(W)
    if optimum is None:
        gradient, matrix = _measured_sizes(problem, W, G)
    else:
        gradient = torch.as_tensor(optimum.scale * optimum.root_norm)
        matrix = torch.as_tensor(natural_size(optimum))
    norms = torch.stack([torch.linalg.matrix_norm(W_j) for W_j in layers]).amax(0)
    size = torch.maximum(norms, matrix.to(norms) ** (1 / len(layers)))
    allowed = tol * gradient.to(norms) * size ** (len(layers) - 1)
    gradients = layer_gradients(layers, G)
    return (torch.stack([torch.linalg.matrix_norm(G_j) for G_j in gradients]) <= allowed).all(0)


def _measured_sizes(problem: Problem, W: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """(max(‖G‖, λ‖W‖), max(‖W‖, ‖G‖/λ)): the sizes of a gradient and of a W at which it changes."""
    size_G, size_W = torch.linalg.matrix_norm(G), torch.linalg.matrix_norm(W)
    curvature = problem.curvature(W)
    step = size_G / curvature if curvature > 0 else torch.zeros_like(size_G)
    return torch.maximum(size_G, curvature * size_W), torch.maximum(size_W, step)


def natural_size(optimum: Spectrum) -> float:
    """‖BC⁺‖, the norm of the best W; 1 where B = 0."""
    if optimum.rank == 0:
        return 1.0
    return float(torch.linalg.matrix_norm(optimum.U @ optimum.right.mH, 2))


def numerical_rank(W: Tensor, s: Float[Tensor, "*batch k"]) -> Tensor:
    """How many of the singular values s of W exceed max(m, n)·eps·σ_1."""
    return (s > max(W.shape[-2:]) * torch.finfo(s.dtype).eps * s[..., :1]).sum(-1)


def layers_of(point: Tensor | DeepLinear | Sequence[Tensor]) -> list[Tensor]:
    """The layers of a network or a sequence, of one batch shape; none for a single matrix."""
    if isinstance(point, Tensor):
        return []
    weights = point.weights if isinstance(point, DeepLinear) else point
    batch = torch.broadcast_shapes(*(W_j.shape[:-2] for W_j in weights))
    return [W_j.detach().expand(*batch, *W_j.shape[-2:]) for W_j in weights]


def check_tol(tol: float) -> None:
    """Raise ValueError unless a tolerance is a positive number."""
    if not 0 < tol < 1:
        raise ValueError(f"tol must satisfy 0 < tol < 1; got {tol}: for instance tol=1e-6.")
