"""Low-rank approximation and completion of one matrix: losses, gradients, known optima."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor

from deeplin.linalg import matmul, tall_times
from deeplin.problems.contract import Problem
from deeplin.problems.spectrum import Spectrum

__all__ = ["MatrixApproximation", "MatrixCompletion"]


class MatrixApproximation(Problem):
    """f(W) = ½‖W − X‖_F², the distance to a given matrix.

    Source: HLZ §1; the best matrix of rank k: Eckart, Young 1936.
    Shapes: X (*batch, m, n), real or complex; W broadcasts against it.

    >>> problem = MatrixApproximation(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    >>> problem.optimal_loss(2)
    tensor(0.5000)
    """

    def __init__(self, X: Inexact[Tensor, "*batch m n"]):
        if X.ndim < 2:
            raise ValueError(
                f"MatrixApproximation(X) needs a matrix X of shape (*batch, m, n); got {X.shape}."
            )
        self.X = X
        self.shape = (X.shape[-2], X.shape[-1])

    def loss(self, W: Inexact[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
        """½‖W − X‖_F²."""
        return 0.5 * torch.linalg.vector_norm(W - self.X, dim=(-2, -1)) ** 2

    def egrad(self, W: Inexact[Tensor, "*batch m n"]) -> Inexact[Tensor, "*batch m n"]:
        """∇f(W) = W − X."""
        return W - self.X

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

    def pair_loss(self, A: Tensor, B: Tensor) -> Float[Tensor, "*batch"]:
        """f(A Bᴴ), to be taped through factors.

        Shapes: A (*batch, m, q), B (*batch, n, q).
        """
        return self.loss(A @ B.mH)

    @property
    def singular_values(self) -> Float[Tensor, "*batch k"]:
        """The singular values of X, in descending order."""
        return torch.linalg.svdvals(self.X)

    @cached_property
    def optimum(self) -> Spectrum:
        """The SVD of X and all that follows from it: minimizers, losses, critical points."""
        return Spectrum.of_matrix(self.X)

    def minimizer(self, k: int) -> Inexact[Tensor, "*batch m n"]:
        """A nearest matrix of rank at most k, unique where σ_k > σ_{k+1}."""
        return self.optimum.minimizer(min(k, self.optimum.rank))

    def optimal_loss(self, k: int) -> Float[Tensor, "*batch"]:
        """½Σ_{i>k} σ_i², the least loss at rank k."""
        return self.optimum.optimal_loss(k)


class MatrixCompletion(Problem):
    """f(W) = ½Σ_l (W[rows_l, cols_l] − values_l)², the error on the entries that are known.

    Shapes: rows, cols (p,), values (*batch, p), shape (m, n).
    Cost: O(p q) for a factor pair of q columns; nothing m×n but in ``egrad``.

    >>> problem = MatrixCompletion([0, 1], [1, 0], torch.tensor([2.0, 3.0]), (2, 2))
    >>> problem.loss(torch.tensor([[9.0, 2.0], [1.0, 9.0]]))
    tensor(2.)
    """

    def __init__(
        self,
        rows: Int[Tensor, " p"] | Sequence[int],
        cols: Int[Tensor, " p"] | Sequence[int],
        values: Inexact[Tensor, "*batch p"],
        shape: tuple[int, int],
    ):
        self.rows = torch.as_tensor(rows, device=values.device)
        self.cols = torch.as_tensor(cols, device=values.device)
        self.values, self.shape = values, (shape[0], shape[1])
        count = values.shape[-1] if values.ndim else 0
        if not self.rows.shape == self.cols.shape == (count,):
            raise ValueError(
                "MatrixCompletion(rows, cols, values, shape) needs one row and one column per "
                f"value; got {tuple(self.rows.shape)}, {tuple(self.cols.shape)} and "
                f"{tuple(values.shape)}."
            )
        for name, index, size in zip(("rows", "cols"), (self.rows, self.cols), shape, strict=True):
            if count and not bool(((index >= 0) & (index < size)).all()):
                raise ValueError(
                    f"MatrixCompletion: {name} must lie in 0..{size - 1}; got values in "
                    f"{int(index.min())}..{int(index.max())}."
                )

    def _half_square(self, entries: Tensor) -> Tensor:
        return 0.5 * torch.linalg.vector_norm(entries - self.values, dim=-1) ** 2

    def loss(self, W: Inexact[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
        """½ the sum of the squared errors on the known entries."""
        return self._half_square(W[..., self.rows, self.cols])

    def egrad(self, W: Inexact[Tensor, "*batch m n"]) -> Inexact[Tensor, "*batch m n"]:
        """∇f(W): the errors at the known entries, zero elsewhere; an entry listed twice counts so.

        Cost: an m×n matrix.
        """
        error = W[..., self.rows, self.cols] - self.values
        gradient = torch.zeros_like(W).expand(*error.shape[:-1], *self.shape).flatten(-2)
        position = (self.rows * self.shape[1] + self.cols).expand_as(error)
        return gradient.scatter_add(-1, position, error).unflatten(-1, self.shape)

    def pair_loss(self, A: Tensor, B: Tensor) -> Float[Tensor, "*batch"]:
        """f(A Bᴴ) from the rows of A and B alone.

        Shapes: A (*batch, m, q), B (*batch, n, q).
        """
        return self._half_square((A[..., self.rows, :] * B[..., self.cols, :].conj()).sum(-1))
