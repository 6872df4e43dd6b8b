"""The rate at which the layers' flow arrives, whether they are balanced or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.landscape.curvature import RiemannianHessian
from deeplin.landscape.operators import SymmetricOperator
from deeplin.linalg import matmul
from deeplin.network import end_to_end
from deeplin.problems import Problem

if TYPE_CHECKING:
    from numpy import ndarray

__all__ = ["layer_rate", "slowest_mode"]

_DENSE_DIMENSION = 1500  # up to which all eigenvalues are found


def layer_rate(problem: Problem, layers: Sequence[Tensor]) -> float:
    """ρ, the rate of ‖W(t) − W‖ ~ e^{−ρt} near layers at a minimum, balanced or not.

    The flow of the layers moves W = W_N···W_1 by Ẇ = −𝒜(∇f(W)), 𝒜(Z) = Σ_j A_jA_jᴴ Z E_jᴴE_j,
    A_j = W_N···W_{j+1}, E_j = W_{j−1}···W_1, along the matrices M_k of rank k, the narrowest width.
    At a minimum on M_k its linearisation there is 𝒜·Hess, with the embedded Hessian of f on M_k,
    and ρ is the least eigenvalue. For balanced layers it is `local_rate`.

    Source: linearisation of BRTW (5); the papers plot these rates without predicting them.
    Shapes: W_j (d_j, d_{j−1}), no batch.
    Cost: 𝒜 and, unless f is known in closed form, the Hessian as matrices of the dimension
        k(d_0 + d_N − k) of M_k, twice that for complex layers; all eigenvalues up to 1500, beyond
        it a Cholesky factorisation of each and Lanczos on the inverse.
    Accuracy: the layers' own distance from the minimum, relative to σ_k.
    Raises: ValueError where rank W is less than the narrowest width, where W is no strict minimum
        on M_k, or for a batch.
    """
    return slowest_mode(problem, layers)[0]


def slowest_mode(problem: Problem, layers: Sequence[Tensor]) -> tuple[float, Tensor]:
    """(ρ, ξ): the rate of `layer_rate`, and the tangent matrix ξ along which W moves at it.

    The same sources, shapes, cost and errors.
    """
    if layers[0].ndim != 2:
        raise ValueError(
            f"layer_rate takes one tuple of layers; got a batch {tuple(layers[0].shape[:-2])}: "
            "call it for each."
        )
    k = min(layers[0].shape[-1], *(W_j.shape[-2] for W_j in layers))
    W = end_to_end(layers)
    s = torch.linalg.svdvals(W)
    if not float(s[k - 1]) > 1e-6 * float(s[0]):
        raise ValueError(
            f"layer_rate needs rank W = the narrowest width {k}; got σ_{k}/σ_1 = "
            f"{float(s[k - 1] / s[0]):.1e}: the layers are at a critical point of lower rank."
        )
    H = RiemannianHessian(problem, W, 1, rank=k)
    C, failed = torch.linalg.cholesky_ex(_LayerMetric(layers, H).dense())
    least, most = (C.diagonal() ** 2).aminmax()
    # Whether a factorisation of round-off fails is chance.
    if bool(failed) or not least > H.dim * torch.finfo(H.dtype).eps * most:
        raise ValueError(
            "layer_rate needs layers of which no direction of W is lost in round-off; these differ "
            "by too much in size: take another start."
        )
    if H.dim <= _DENSE_DIMENSION:
        values, vectors = torch.linalg.eigh(C.mT @ H.dense() @ C)
        rate, x, mean = float(values[0]), vectors[:, 0], float(values.mean())
    else:
        rate, x, mean = _least(H, C)
    if not rate > H.dim * torch.finfo(H.dtype).eps * mean:
        raise ValueError(
            "layer_rate needs layers at a strict minimum on M_k; the least eigenvalue at these is "
            "not positive beyond round-off of the others: run the flow to its end, unless "
            "σ_k = σ_{k+1}, where there is none."
        )
    return rate, H.tangent(C @ x)


class _LayerMetric(SymmetricOperator):
    """𝒜 of the layers on the tangent space of M_k at their product, in the coordinates of H.

    Terms with j > p, d_p = k, see only [M; A] = ÛᴴξV, by an m×m matrix from the left and a k×k one
    from the right; the others see only [M, Bᴴ] = Uᴴξ V̂.
    """

    def __init__(self, layers: Sequence[Tensor], H: RiemannianHessian):
        super().__init__(H.shapes, layers[0].dtype, H.device)
        self._k = H.k
        U, V = H.bases
        widths = [layers[0].shape[-1], *(W_j.shape[-2] for W_j in layers)]
        p = widths.index(min(widths))
        before = [V]  # E_jV̂
        for W_j in layers[:-1]:
            before.append(W_j @ before[-1])
        after = U.mH  # ÛᴴA_j
        self._terms: list[tuple[bool, Tensor, Tensor]] = []
        for j in range(len(layers), 0, -1):
            E, left = before[j - 1], j > p
            A, E = (after, E[:, : H.k]) if left else (after[: H.k], E)
            self._terms.append((left, A @ A.mH, E.mH @ E))
            after = after @ layers[j - 1]

    def __matmul__(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        M, A, B = self._parts(x)
        whole = torch.cat([M, A], -2), torch.cat([M, B.mH], -1)
        moved = [torch.zeros_like(part) for part in whole]
        for left, P, Q in self._terms:
            moved[not left] += matmul(P, matmul(whole[not left], Q))
        tall, wide = moved
        k = self._k
        core = tall[..., :k, :] + wide[..., :k]
        return self._vector((core, tall[..., k:, :], wide[..., k:].mH))


def _least(H: RiemannianHessian, C: Tensor) -> tuple[float, Tensor, float]:
    """The least eigenpair of CᵀHC by Lanczos on the inverse, and an estimate of their mean.

    A rate of −inf where H is not positive definite: then it has no Cholesky factor.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    start = torch.randn(H.dim, generator=torch.Generator().manual_seed(0), dtype=H.dtype)
    x = C @ start.to(H.device)
    mean = float(x @ (H @ x)) / float(start @ start)
    inverse = H.inverse(H.dim)
    if inverse is None:
        return -math.inf, x, mean

    def apply(x: ndarray) -> ndarray:
        """C^{-1}H^{-1}C^{-T}x."""
        rows = torch.as_tensor(x.ravel(), dtype=H.dtype, device=H.device)[:, None]
        rows = torch.linalg.solve_triangular(C.mT, rows, upper=True)
        rows = torch.as_tensor(inverse(rows[:, 0].cpu().numpy()), dtype=H.dtype, device=H.device)
        return torch.linalg.solve_triangular(C, rows[:, None], upper=False)[:, 0].cpu().numpy()

    v0 = start.numpy()
    values, vectors = eigsh(
        LinearOperator((H.dim, H.dim), matvec=apply, dtype=v0.dtype),  # pyright: ignore
        k=1,
        v0=v0,
        tol=1e-8,  # pyright: ignore[reportArgumentType]
    )
    vector = torch.as_tensor(vectors[:, 0], dtype=H.dtype, device=H.device)
    return 1 / float(values[0]), vector, mean
