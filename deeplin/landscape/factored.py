"""The Hessian on M_k at a W that is known by its factors, and its ends, where W is large."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.geometry.coordinates import Point, Tangent, project_packed
from deeplin.geometry.hessian import embedded_hessian
from deeplin.landscape.operators import SymmetricOperator
from deeplin.problems import Problem

if TYPE_CHECKING:
    from numpy import ndarray

__all__ = ["FactoredHessian"]

# Of the residual of an eigenvalue, relative to it: its sign is asked for, and its size.
_TOL = 5e-2
_VECTORS, _RESTARTS = 24, 20


class FactoredHessian(SymmetricOperator):
    """Hess f on M_k at W = USVᴴ in the embedded metric, without any m×n matrix.

    In the coordinates of ξ = UMVᴴ + U_pVᴴ + UV_pᴴ laid end to end, M, U_p and V_p any matrices of
    their shapes. Those with UᴴU_p ≠ 0 or VᴴV_p ≠ 0 are no tangent vectors: there the operator
    is μ times the identity, μ the mean ⟨x, Hx⟩ of a random tangent vector of norm 1, which lies
    between its least and its largest eigenvalue. So both are those of the Hessian.

    Source: [Van13], §2.3.
    Shapes: vectors (*batch, k(m + n + k)), twice as many for complex matrices.
    Cost: of an application `Problem.hessian_products`, a product of ∇f with k columns on each side,
        and O((m + n) k²).
    """

    def __init__(self, problem: Problem, point: Point):
        (m, k), n = point.U.shape, point.V.shape[0]
        super().__init__(((k, k), (m, k), (n, k)), point.U.dtype, point.U.device)
        self._problem, self._point = problem, Point(point.U, point.S, point.V)
        self._times = problem.egrad_at(point.U @ point.S, point.V)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.dim, dtype=self.dtype, generator=generator).to(self.device)
        x = self._vector(self._coordinates(self._tangent(x)))
        self._start = x / torch.linalg.vector_norm(x)
        self._mean = 0.0
        self._mean = float(self._start @ (self @ self._start))

    @property
    def tangent_dim(self) -> int:
        """The real dimension of the tangent space, k(m + n − k), twice that over C."""
        (k, _), (m, _), (n, _) = self.shapes
        return (1 + self._complex) * k * (m + n - k)

    def _tangent(self, x: Tensor) -> Tangent:
        M, Up, Vp = self._parts(x)
        return project_packed(self._point, Up, Vp, M)

    @staticmethod
    def _coordinates(tangent: Tangent) -> tuple[Tensor, Tensor, Tensor]:
        return tangent.M, tangent.Up, tangent.Vp

    def __matmul__(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        point, tangent = self._point, self._tangent(x)
        batch = x.shape[:-1]
        U, V = (A.expand(*batch, *A.shape) for A in (point.U, point.V))
        left = torch.cat([U @ tangent.M + tangent.Up, U], -1)
        right = torch.cat([V, tangent.Vp], -1)
        H = self._problem.hessian_products(point.U, point.S, point.V, left, right)
        GVp, GhUp = self._times(tangent.Vp, tangent.Up)
        image = embedded_hessian(point, *H, GVp, GhUp)
        rest = x - self._vector(self._coordinates(tangent))
        return self._vector(self._coordinates(image)) + self._mean * rest

    def ends(self) -> tuple[float, float] | None:
        """The least and the largest eigenvalue; None where Lanczos has not found them.

        Cost: ARPACK's Lanczos, 24 to some 300 applications. Accuracy: 5 per cent of each; what it
            calls the least may be above it where the start has no part along that eigenvector.
        """
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

        def apply(x: ndarray) -> ndarray:
            vector = torch.as_tensor(x.ravel(), dtype=self.dtype, device=self.device)
            return (self @ vector).cpu().numpy()

        start = self._start.cpu().numpy()
        operator = LinearOperator((self.dim, self.dim), matvec=apply, dtype=start.dtype)  # pyright: ignore
        try:
            values: ndarray = eigsh(  # pyright: ignore[reportAssignmentType]
                operator,
                k=2,
                which="BE",
                v0=start,
                ncv=min(self.dim, _VECTORS),
                tol=_TOL,  # pyright: ignore[reportArgumentType]
                maxiter=_RESTARTS,
                return_eigenvectors=False,
            )
        except ArpackNoConvergence:
            return None
        return float(values.min()), float(values.max())
