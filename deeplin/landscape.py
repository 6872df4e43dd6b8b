"""Critical points of the loss, their Hessians and the local rates of the flow."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from deeplin.linalg import power_divided_difference
from deeplin.problems import LeastSquares

__all__ = ["RiemannianHessian", "local_rate"]

# Up to this dimension of the tangent space the Hessian is formed; beyond it, Lanczos.
_DENSE_DIMENSION = 1500


class RiemannianHessian:
    """Hess^g L¹ = 𝒜_W ∘ Hess at a critical point W of rank k, as a symmetric operator.

    The embedded Hessian is ξ ↦ P_W(ξC) + P_U^⊥ G V_p Σ^{-1} Vᵀ + U Σ^{-1} U_pᵀ G P_V^⊥ for
    ξ = UMVᵀ + U_pVᵀ + UV_pᵀ and G = ∇L¹(W). It is represented by 𝒜^{1/2} Hess 𝒜^{1/2}, which has
    the eigenvalues of Hess^g, in the coordinates (M, A, B) with U_p = U_⊥A, V_p = V_⊥B.

    Source: BRTW §6.3 (any metric has the same critical points); HLZ (4), corrected.
    Shapes: W (d_y, d_x) of numerical rank k; coordinates (*batch, k(d_y + d_x − k)).
    Cost: one full SVD; then O((d_x² + d_x d_y) k) for each application.
    Raises: ValueError for depth < 1 or infinite, or k = 0.
    """

    def __init__(self, problem: LeastSquares, W: Float[Tensor, "d_y d_x"], depth: float):
        if not 1 <= depth < math.inf:
            raise ValueError(f"depth must be a finite number >= 1; got {depth}.")
        U, s, Vh = torch.linalg.svd(W, full_matrices=True)
        k = int((s > max(W.shape) * torch.finfo(s.dtype).eps * s[0]).sum())
        if k == 0:
            raise ValueError("W must not be 0: M_0 is a single point and has no Hessian.")
        s, V = s[:k], Vh.mT
        self.k, self.sigma = k, s
        self._C11, self._C21, self._C22 = (
            V[:, :k].mT @ problem.C @ V[:, :k],
            V[:, k:].mT @ problem.C @ V[:, :k],
            V[:, k:].mT @ problem.C @ V[:, k:],
        )
        self._G22 = U[:, k:].mT @ problem.egrad(W) @ V[:, k:]
        self._core = power_divided_difference(s[:, None], s[None, :], depth).sqrt()
        self._sides = s ** (1 - 1 / depth)
        self.shapes = ((k, k), (U.shape[0] - k, k), (V.shape[0] - k, k))
        self.dim = sum(rows * columns for rows, columns in self.shapes)

    def __matmul__(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        M, A, B = (
            part.reshape(*x.shape[:-1], *shape)
            for part, shape in zip(
                x.split([p * q for p, q in self.shapes], dim=-1), self.shapes, strict=True
            )
        )
        M, A, B = M * self._core, A * self._sides, B * self._sides
        core = M @ self._C11 + B.mT @ self._C21
        left = A @ self._C11 + self._G22 @ B / self.sigma
        right = self._C21 @ M.mT + self._C22 @ B + self._G22.mT @ A / self.sigma
        parts = (core * self._core, left * self._sides, right * self._sides)
        return torch.cat([part.flatten(-2) for part in parts], dim=-1)

    def smallest_eigenvalue(self) -> float:
        """The least eigenvalue: dense up to dimension 1500, by Lanczos (ARPACK) beyond."""
        dtype, device = self.sigma.dtype, self.sigma.device
        if self.dim <= _DENSE_DIMENSION:
            H = self @ torch.eye(self.dim, dtype=dtype, device=device)
            return float(torch.linalg.eigvalsh(0.5 * (H + H.mT))[0])

        def apply(x):
            return (self @ torch.as_tensor(x.ravel(), dtype=dtype, device=device)).cpu().numpy()

        start = torch.ones(self.dim, dtype=dtype).numpy()
        shape = (self.dim, self.dim)
        operator = LinearOperator(shape, matvec=apply, dtype=start.dtype)  # pyright: ignore
        options = {"which": "SA", "v0": start, "tol": 1e-8, "return_eigenvectors": False}
        values = eigsh(operator, k=1, **options)
        return float(values[0])


def local_rate(problem: LeastSquares, W: Float[Tensor, "d_y d_x"], depth: float) -> float:
    """ρ, the rate of ‖W(t) − W‖ ~ e^{−ρt} near a minimum W on M_k, for balanced layers.

    The smallest eigenvalue of Hess^g L¹ in the metric of the given depth. For an autoencoder it
    does not depend on the depth: ρ = min_{a≤r<b} ½(λ_a + λ_b − √((λ_a − λ_b)² + 4λ_b²)).

    Source: linearisation of BRTW (9) at a critical point; the papers only plot rates.
    Cost: a dense eigenproblem of dimension k(d_y + d_x − k), or Lanczos if that is large.
    """
    return RiemannianHessian(problem, W, depth).smallest_eigenvalue()
