"""Symmetric operators and their extreme eigenpairs, dense or by Lanczos."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

if TYPE_CHECKING:
    from numpy import ndarray

__all__ = ["Eigenpairs", "SymmetricOperator"]

# Up to this dimension the operator is formed; beyond it, Lanczos.
_DENSE_DIMENSION = 1500
# So many vectors at once where the operator is formed.
_ROWS = 256


class Eigenpairs(NamedTuple):
    """Eigenvalues, the extreme one first, and their orthonormal eigenvectors, one per row."""

    values: Float[Tensor, " n"]
    vectors: Float[Tensor, "n dim"]


class SymmetricOperator(ABC):
    """A symmetric operator on tuples of real or complex matrices, in real coordinates.

    Subclasses apply it to a batch of vectors by @ and call this constructor. Vectors hold the
    matrices row by row, one after the other, a complex entry as two numbers.

    Shapes: vectors (*batch, dim); the matrices (*batch, *shapes[j]).
    """

    factored_dimension = 0  # up to which the operator may be formed to be inverted

    def __init__(self, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device):
        self.shapes, self._complex = tuple(shapes), dtype.is_complex
        self.dtype = torch.empty(0, dtype=dtype).real.dtype if self._complex else dtype
        self.device = device
        self._sizes = [(1 + self._complex) * rows * columns for rows, columns in self.shapes]
        self.dim = sum(self._sizes)

    @abstractmethod
    def __matmul__(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The operator applied to vectors."""

    def _parts(self, x: Float[Tensor, "*batch dim"]) -> tuple[Inexact[Tensor, "..."], ...]:
        """The matrices of a vector."""
        parts = x.split(self._sizes, dim=-1)
        if self._complex:
            parts = [torch.view_as_complex(part.unflatten(-1, (-1, 2))) for part in parts]
        return tuple(
            part.reshape(*x.shape[:-1], *shape)
            for part, shape in zip(parts, self.shapes, strict=True)
        )

    def _vector(self, parts: Sequence[Inexact[Tensor, "..."]]) -> Float[Tensor, "*batch dim"]:
        """The vector of matrices."""
        flat = [part.flatten(-2) for part in parts]
        if self._complex:
            flat = [torch.view_as_real(part.resolve_conj()).flatten(-2) for part in flat]
        return torch.cat(flat, dim=-1)

    # -- eigenpairs ------------------------------------------------------------------------------

    def extreme(self, n: int = 1, which: Literal["smallest", "largest"] = "smallest") -> Eigenpairs:
        """The n smallest or largest eigenvalues (algebraically) and their eigenvectors.

        Cost: dense up to dimension 1500; beyond that ARPACK's Lanczos, the operator not formed. The
        smallest of a positive definite Riemannian Hessian up to dimension 8000 are found as the
        largest of its inverse, by one Cholesky factorisation: small ones come in clusters.
        Raises: ValueError unless 1 <= n <= dim and `which` is one of the two.
        """
        if which not in ("smallest", "largest") or not 1 <= n <= self.dim:
            raise ValueError(
                f"extreme needs 1 <= n <= dim = {self.dim} and which='smallest' or 'largest'; "
                f"got n={n}, which={which!r}."
            )
        if self.dim <= max(_DENSE_DIMENSION, n + 1):
            values, vectors = torch.linalg.eigh(self.dense())
        else:
            values, vectors = self._lanczos(n, "SA" if which == "smallest" else "LA")
        if which == "largest":
            values, vectors = values.flip(0), vectors.flip(1)
        return Eigenpairs(values[:n], vectors[:, :n].mT)

    def smallest_eigenvalue(self) -> float:
        """The least eigenvalue."""
        return float(self.extreme().values[0])

    def bounds(self) -> tuple[float, float]:
        """The least and the largest eigenvalue. Cost: as `extreme`, once where it is dense."""
        if self.dim <= _DENSE_DIMENSION:
            values = torch.linalg.eigvalsh(self.dense())
            return float(values[0]), float(values[-1])
        return self.smallest_eigenvalue(), float(self.extreme(1, "largest").values[0])

    def dense(self) -> Float[Tensor, "dim dim"]:
        """The operator as a symmetric matrix."""
        rows = torch.eye(self.dim, dtype=self.dtype, device=self.device).split(_ROWS)
        H = torch.cat([self @ part for part in rows])
        return 0.5 * (H + H.mT)

    def _lanczos(self, n: int, which: str) -> tuple[Tensor, Tensor]:
        from scipy.sparse.linalg import LinearOperator, eigsh

        def apply(x: ndarray) -> ndarray:
            vector = torch.as_tensor(x.ravel(), dtype=self.dtype, device=self.device)
            return (self @ vector).cpu().numpy()

        # A fixed random start: repeatable, and orthogonal to no eigenvector.
        start = torch.randn(self.dim, dtype=self.dtype, generator=torch.Generator().manual_seed(0))
        shape, kind = (self.dim, self.dim), start.numpy().dtype
        operator = LinearOperator(shape, matvec=apply, dtype=kind)  # pyright: ignore
        inverse = self.inverse(self.factored_dimension) if which == "SA" else None
        around: dict = {"which": which}
        if inverse is not None:
            inverted = LinearOperator(shape, matvec=inverse, dtype=kind)  # pyright: ignore
            around = {"sigma": 0.0, "OPinv": inverted}
        tolerance = max(1e-8, 10 * torch.finfo(self.dtype).eps)
        # More vectors than ARPACK's default 20: the lowest eigenvalues are often clustered.
        vectors_kept = min(self.dim, max(60, 3 * n))
        values, vectors = eigsh(
            operator,
            k=n,
            **around,
            v0=start.numpy(),
            tol=tolerance,  # pyright: ignore[reportArgumentType]
            ncv=vectors_kept,
        )
        order = values.argsort()
        return (
            torch.as_tensor(values[order], dtype=self.dtype, device=self.device),
            torch.as_tensor(vectors[:, order], dtype=self.dtype, device=self.device),
        )

    def inverse(self, largest: int) -> Callable[[ndarray], ndarray] | None:
        """x ↦ H^{-1}x; None for a dimension above `largest`, or if H is not positive definite."""
        if self.dim > largest:
            return None
        L, failed = torch.linalg.cholesky_ex(self.dense())
        if bool(failed):
            return None

        def apply(x: ndarray) -> ndarray:
            vector = torch.as_tensor(x.ravel(), dtype=self.dtype, device=self.device)[:, None]
            return torch.cholesky_solve(vector, L)[:, 0].cpu().numpy()

        return apply
