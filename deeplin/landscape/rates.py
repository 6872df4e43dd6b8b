"""The rate at which the layers' flow arrives, whether they are balanced or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.landscape.operators import SymmetricOperator
from deeplin.network import end_to_end
from deeplin.problems import Problem

if TYPE_CHECKING:
    from numpy import ndarray

__all__ = ["layer_rate", "slowest_mode"]

_DENSE_DIMENSION = 1500  # up to which all eigenvalues are found


def layer_rate(problem: Problem, layers: Sequence[Tensor]) -> float:
    """ρ, the rate of ‖W(t) − W‖ ~ e^{−ρt} near layers at a minimum, balanced or not.

    With the narrowest width k = d_p = rank W split W = LR, L = W_N···W_{p+1}, R = W_p···W_1. The
    flow of the layers moves them by L̇ = −K_L(GRᴴ), Ṙ = −K_R(LᴴG), G = ∇f(W), where
    K_L(Z) = Σ_{j>p} A_jA_jᴴ Z E_jᴴE_j, A_j = W_N···W_{j+1}, E_j = W_{j−1}···W_{p+1}, and K_R alike.
    At a minimum GRᴴ = 0 = LᴴG, so that only these two vary there and the linearisation is K·H, with
    H the Hessian of (L, R) ↦ f(LR). It has k² zeros (2k² for complex layers), those of
    LR = LMM^{−1}R; the next eigenvalue is ρ. For balanced layers it is `local_rate`.

    Source: linearisation of BRTW (5); the papers plot these rates without predicting them.
    Shapes: W_j (d_j, d_{j−1}), no batch.
    Cost: as many Hessian products of the problem as the dimension k(d_0 + d_N), twice that for
        complex layers; then a dense eigenproblem up to 1500, beyond it one Cholesky factorisation
        and Lanczos on the inverse.
    Accuracy: the layers' own distance from the minimum, relative to σ_k.
    Raises: ValueError where rank W is less than the narrowest width, or for a batch.
    """
    return slowest_mode(problem, layers)[0]


def slowest_mode(problem: Problem, layers: Sequence[Tensor]) -> tuple[float, Tensor]:
    """(ρ, ξ): the rate of `layer_rate`, and the direction L̇R + LṘ in which W moves at it.

    The same sources, shapes, cost and errors.
    """
    if layers[0].ndim != 2:
        raise ValueError(
            f"layer_rate takes one tuple of layers; got a batch {tuple(layers[0].shape[:-2])}: "
            "call it for each."
        )
    p = min(range(1, len(layers) + 1), key=lambda j: layers[j - 1].shape[-2])
    right, left = list(layers[:p]), list(layers[p:])
    R = end_to_end(right)
    k = R.shape[-2]
    L = end_to_end(left) if left else torch.eye(k, dtype=R.dtype, device=R.device)
    s = torch.linalg.svdvals(L @ R)
    if not float(s[k - 1]) > 1e-6 * float(s[0]):
        raise ValueError(
            f"layer_rate needs rank W = the narrowest width {k}; got σ_{k}/σ_1 = "
            f"{float(s[k - 1] / s[0]):.1e}: the layers are at a critical point of lower rank."
        )
    factors = [torch.linalg.cholesky(_transport(part)) for part in (left, right) if part]
    H = _PairHessian(problem, L, R, factors)
    zeros = k * k * (1 + R.is_complex()) if left else 0  # W = R: nothing multiplies from the left
    if H.dim <= _DENSE_DIMENSION:
        values, vectors = torch.linalg.eigh(H.scaled())
        return float(values[zeros]), H.moved(H.unscaled(vectors[:, zeros]))
    rate, direction = _least_beyond_zeros(H)
    return rate, H.moved(direction)


class _PairHessian(SymmetricOperator):
    """H, the Hessian of (L, R) ↦ f(LR), or of R alone; `factors` C of the blocks of K = CCᴴ."""

    def __init__(self, problem: Problem, L: Tensor, R: Tensor, factors: list[Tensor]):
        self._problem, self._L, self._R, self._factors = problem, L, R, factors
        self._G = problem.egrad(L @ R)
        shapes = [(A.shape[0], A.shape[1]) for A in (L, R)]
        super().__init__(shapes[-len(factors) :], R.dtype, R.device)

    def __matmul__(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        moved = self._parts(x)
        L, R, batch = self._L, self._R, x.shape[:-1]
        L_dot = moved[0] if len(moved) == 2 else L.new_zeros(*batch, *L.shape)
        R_dot = moved[-1]
        left = torch.cat([L_dot, L.expand(*batch, *L.shape)], -1)
        right = torch.cat([R.mH.expand(*batch, *R.mH.shape), R_dot.mH], -1)
        HRh, HhL = self._problem.hessian_times(L, R.mH, left, right, R.mH, L)
        pulled = (HRh + self._G @ R_dot.mH, HhL.mH + L_dot.mH @ self._G)
        return self._vector(pulled[-len(moved) :])

    def scaled(self) -> Float[Tensor, "dim dim"]:
        """CᴴHC, similar to KH and symmetric."""

        def pulled(rows: Tensor) -> Tensor:
            parts = zip(self._parts(rows), self._factors, strict=True)
            return self._vector(
                [(part.flatten(-2) @ C.conj()).reshape(part.shape) for part, C in parts]
            )

        return pulled(pulled(self.dense()).mT.contiguous())

    def unscaled(self, x: Float[Tensor, " dim"]) -> Float[Tensor, " dim"]:
        """Cx, the direction of an eigenvector x of CᴴHC."""
        parts = zip(self._parts(x), self._factors, strict=True)
        return self._vector([(C @ part.flatten()).reshape(part.shape) for part, C in parts])

    def moved(self, x: Float[Tensor, " dim"]) -> Inexact[Tensor, "m n"]:
        """L̇R + LṘ of a direction."""
        parts = self._parts(x)
        along = self._L @ parts[-1]
        return along + parts[0] @ self._R if len(parts) == 2 else along

    def inverse_transport(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """K^{-1}x."""
        parts = zip(self._parts(x), self._factors, strict=True)
        return self._vector(
            [
                torch.cholesky_solve(part.flatten(-2).reshape(-1, len(C)).mT, C).mT.reshape(
                    part.shape
                )
                for part, C in parts
            ]
        )

    def still(self) -> Float[Tensor, "zeros dim"]:
        """Directions (LM, −MR), along which LR stands still; none of R alone."""
        if len(self.shapes) == 1:
            return torch.zeros(0, self.dim, dtype=self.dtype, device=self.device)
        k = self._R.shape[-2]
        M = torch.eye(k * k, dtype=self._R.dtype, device=self.device).reshape(-1, k, k)
        M = torch.cat([M, 1j * M]) if M.is_complex() else M
        return self._vector((self._L @ M, -M @ self._R))


def _least_beyond_zeros(H: _PairHessian) -> tuple[float, Tensor]:
    """The least eigenpair of Hy = ρK^{-1}y but the zeros, which s(K^{-1}Z)(K^{-1}Z)ᵀ moves to s.

    Z spans the null space, K^{-1}-orthonormal; all other eigenvectors are K^{-1}-orthogonal to it.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    A, Z = H.dense(), H.still()
    curvature = float(A.diagonal().max())  # s: of the size of H, so that the sum is no worse
    moved = H.inverse_transport(Z)
    root = torch.linalg.cholesky(Z @ moved.mT)
    moved = torch.linalg.solve_triangular(root, moved, upper=False)
    A = torch.linalg.cholesky(A.addmm_(moved.mT, moved, alpha=curvature))

    def of_vectors(function: Callable[[Tensor], Tensor]) -> LinearOperator:
        def apply(x: ndarray) -> ndarray:
            return (
                function(torch.as_tensor(x.ravel(), dtype=H.dtype, device=H.device)).cpu().numpy()
            )

        kind = torch.empty(0, dtype=H.dtype).numpy().dtype
        return LinearOperator((H.dim, H.dim), matvec=apply, dtype=kind)  # pyright: ignore

    values, vectors = eigsh(
        of_vectors(lambda x: H @ x),
        k=1,
        M=of_vectors(H.inverse_transport),
        sigma=0.0,
        OPinv=of_vectors(lambda x: torch.cholesky_solve(x[:, None], A)[:, 0]),
        v0=torch.randn(H.dim, generator=torch.Generator().manual_seed(0), dtype=H.dtype).numpy(),
        tol=1e-8,  # pyright: ignore[reportArgumentType]
    )
    return float(values[0]), torch.as_tensor(vectors[:, 0], dtype=H.dtype, device=H.device)


def _transport(layers: Sequence[Tensor]) -> Inexact[Tensor, "c c"]:
    """The matrix of Z ↦ Σ_j A_jA_jᴴ Z E_jᴴE_j, A_j the layers after j, E_j those before it."""
    before = [torch.eye(layers[0].shape[-1], dtype=layers[0].dtype, device=layers[0].device)]
    for W_j in layers[:-1]:
        before.append(W_j @ before[-1])
    after = torch.eye(layers[-1].shape[-2], dtype=layers[0].dtype, device=layers[0].device)
    total = torch.zeros((), dtype=after.dtype, device=after.device)
    for W_j, E in zip(reversed(layers), reversed(before), strict=True):
        total = total + torch.kron(after @ after.mH, (E.mH @ E).mT.contiguous())
        after = after @ W_j
    return total
