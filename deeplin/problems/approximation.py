"""Low-rank approximation of a matrix: loss, gradient, known optimum."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.linalg import matmul, tall_times
from deeplin.problems.autograd import half_square
from deeplin.problems.contract import Problem
from deeplin.problems.spectrum import Spectrum

__all__ = ["MatrixApproximation"]


class MatrixApproximation(Problem):
    """f(W) = ½‖W − X‖_F², the distance to a given matrix.

    Source: HLZ §1; the best matrix of rank k: [EY36].
    Shapes: X (*batch, m, n), real or complex; W broadcasts against it.

    >>> problem = MatrixApproximation(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    >>> problem.optimal_loss(2)
    tensor(0.5000)
    """

    def __init__(self, X: Inexact[Tensor, "*#batch m n"]):
        if not isinstance(X, Tensor) or not (X.is_floating_point() or X.is_complex()):
            given = f"dtype {X.dtype}" if isinstance(X, Tensor) else type(X).__name__
            raise TypeError(
                f"MatrixApproximation(X) needs a floating-point or complex tensor; got {given}: "
                "convert it with torch.as_tensor(X, dtype=torch.float64)."
            )
        if X.ndim < 2:
            raise ValueError(
                f"MatrixApproximation(X) needs a matrix X of shape (*batch, m, n); got {X.shape}."
            )
        self.X = X
        self.shape = (X.shape[-2], X.shape[-1])

    def loss(self, W: Inexact[Tensor, "*#batch m n"]) -> Float[Tensor, "*#batch"]:
        """½‖W − X‖_F²."""
        return half_square(W - self.X, (-2, -1))

    def egrad(self, W: Inexact[Tensor, "*#batch m n"]) -> Inexact[Tensor, "*#batch m n"]:
        """∇f(W) = W − X."""
        return W - self.X

    def egrad_times(
        self, A: Tensor, B: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Inexact[Tensor, "*#batch m p"], Inexact[Tensor, "*#batch n q"]]:
        """(GP, GᴴQ) of G = ABᴴ − X.

        Shapes: A (*batch, m, k), B (*batch, n, k), P (*batch, n, p), Q (*batch, m, q).
        Cost: two products of X, with p and q columns.
        """
        GP = A @ (B.mH @ P) - matmul(self.X, P)
        return GP, B @ (A.mH @ Q) - matmul(self.X.mH, Q)

    def egrad_products(self, U: Tensor, S: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        """(GV, GᴴU) of G = ∇f(USVᴴ) at orthonormal U and V, without forming G.

        Shapes: U (*batch, m, k), V (*batch, n, k), S (*batch, k, k) or its diagonal (*batch, k).
        Cost: two products of X with k columns.
        """
        if S.ndim < V.ndim:
            US, VS = U * S[..., None, :], V * S.conj()[..., None, :]
        else:
            US, VS = tall_times(U, S), tall_times(V, S.mH)
        return US - matmul(self.X, V), VS - matmul(self.X.mH, U)

    def egrad_split(self, S: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        """(K, N) with GV = UK − N for G = ∇f(USVᴴ), V orthonormal: K = S, N = XV."""
        return S, matmul(self.X, V)

    def pair_loss(self, A: Tensor, B: Tensor) -> Float[Tensor, "*#batch"]:
        """f(A Bᴴ), to be taped through factors.

        Shapes: A (*batch, m, q), B (*batch, n, q).
        """
        return self.loss(A @ B.mH)

    def hessian_times(
        self, A: Tensor, B: Tensor, left: Tensor, right: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Inexact[Tensor, "*#batch m p"], Inexact[Tensor, "*#batch n q"]]:
        """(ξP, ξᴴQ), ξ = left·rightᴴ: the Hessian is the identity."""
        batch = torch.broadcast_shapes(A.shape[:-2], self.X.shape[:-2])
        HP, HhQ = left @ (right.mH @ P), right @ (left.mH @ Q)
        return _in_batch(HP, batch), _in_batch(HhQ, batch)

    def curvature(self, W: Inexact[Tensor, "*#batch m n"]) -> float:
        """1: the Hessian is the identity."""
        return 1.0

    def pair_curvature(self, A: Tensor, B: Tensor) -> float:
        """1: the Hessian is the identity."""
        return 1.0

    @property
    def singular_values(self) -> Float[Tensor, "*batch k"]:
        """The singular values of X, in descending order."""
        return torch.linalg.svdvals(self.X)

    @cached_property
    def optimum(self) -> Spectrum:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The SVD of X and all that follows from it: minimizers, losses, critical points."""
        return Spectrum.of_matrix(self.X)

    def minimizer(self, k: int) -> Inexact[Tensor, "*batch m n"]:
        """A nearest matrix of rank at most k, unique where σ_k > σ_{k+1}."""
        return self.optimum.minimizer(min(k, self.optimum.rank))

    def optimal_loss(self, k: int) -> Float[Tensor, "*batch"]:
        """½Σ_{i>k} σ_i², the least loss at rank k."""
        return self.optimum.optimal_loss(k)


def _in_batch(M: Tensor, batch: torch.Size) -> Tensor:
    return M.expand(*torch.broadcast_shapes(batch, M.shape[:-2]), *M.shape[-2:])
