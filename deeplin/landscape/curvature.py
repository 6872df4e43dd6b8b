"""Hessians at critical points, on M_k and of the layers, as operators, and the local rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from deeplin.landscape.frame import Problem, as_least_squares, nearest_critical_point
from deeplin.linalg import power_divided_difference
from deeplin.network import end_to_end, layer_gradients

__all__ = ["Eigenpairs", "LayerHessian", "RiemannianHessian", "hessian", "local_rate"]

# Up to this dimension of the tangent space the Hessian is formed; beyond it, Lanczos.
_DENSE_DIMENSION = 1500


class Eigenpairs(NamedTuple):
    """Eigenvalues, the extreme one first, and their orthonormal eigenvectors, one per row."""

    values: Float[Tensor, " n"]
    vectors: Float[Tensor, "n dim"]


class _SymmetricOperator:
    """Extreme eigenpairs of what has `dim`, `like` (dtype, device) and @ on batches of vectors."""

    dim: int
    like: Tensor
    factored_dimension = 0  # up to which the operator may be formed to be inverted

    def __matmul__(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        raise NotImplementedError

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
        dtype, device = self.like.dtype, self.like.device
        if self.dim <= max(_DENSE_DIMENSION, n + 1):
            H = self @ torch.eye(self.dim, dtype=dtype, device=device)
            values, vectors = torch.linalg.eigh(0.5 * (H + H.mT))
        else:
            values, vectors = self._lanczos(n, "SA" if which == "smallest" else "LA")
        if which == "largest":
            values, vectors = values.flip(0), vectors.flip(1)
        return Eigenpairs(values[:n], vectors[:, :n].mT)

    def smallest_eigenvalue(self) -> float:
        """The least eigenvalue."""
        return float(self.extreme().values[0])

    def _lanczos(self, n: int, which: str) -> tuple[Tensor, Tensor]:
        dtype, device = self.like.dtype, self.like.device

        def apply(x):
            return (self @ torch.as_tensor(x.ravel(), dtype=dtype, device=device)).cpu().numpy()

        # A fixed random start: repeatable, and orthogonal to no eigenvector.
        start = torch.randn(self.dim, dtype=dtype, generator=torch.Generator().manual_seed(0))
        shape = (self.dim, self.dim)
        operator = LinearOperator(shape, matvec=apply, dtype=start.numpy().dtype)  # pyright: ignore
        inverse = self._inverse() if which == "SA" else None
        around: dict[str, Any] = {"which": which}
        if inverse is not None:
            around = {
                "sigma": 0.0,
                "OPinv": LinearOperator(shape, matvec=inverse, dtype=start.numpy().dtype),  # pyright: ignore
            }
        tolerance = max(1e-8, 10 * torch.finfo(dtype).eps)
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
            torch.as_tensor(values[order], dtype=dtype, device=device),
            torch.as_tensor(vectors[:, order], dtype=dtype, device=device),
        )

    def _inverse(self) -> Callable[[Any], Any] | None:
        """x ↦ H^{-1}x, or None if H is too large to be formed or not positive definite."""
        if self.dim > self.factored_dimension:
            return None
        dtype, device = self.like.dtype, self.like.device
        rows = torch.eye(self.dim, dtype=dtype, device=device).split(256)
        H = torch.cat([self @ part for part in rows])
        L, failed = torch.linalg.cholesky_ex(0.5 * (H + H.mT))
        if bool(failed):
            return None

        def apply(x):
            x = torch.as_tensor(x.ravel(), dtype=dtype, device=device)[:, None]
            return torch.cholesky_solve(x, L)[:, 0].cpu().numpy()

        return apply


class RiemannianHessian(_SymmetricOperator):
    """Hess^g L¹ = 𝒜_W ∘ Hess at a critical point W of rank k, as a symmetric operator.

    The embedded Hessian is ξ ↦ P_W(ξC) + P_U^⊥ G V_p Σ^{-1} Vᵀ + U Σ^{-1} U_pᵀ G P_V^⊥ for
    ξ = UMVᵀ + U_pVᵀ + UV_pᵀ and G = ∇L¹(W). It is represented by 𝒜^{1/2} Hess 𝒜^{1/2}, which has
    the eigenvalues of Hess^g, in the coordinates (M, A, B) with U_p = U_⊥A, V_p = V_⊥B.

    Source: BRTW §6.3 (any metric has the same critical points); HLZ (4), corrected.
    Shapes: W (d_y, d_x) of numerical rank k; coordinates (*batch, k(d_y + d_x − k)).
    Cost: one full SVD; then O((d_x² + d_x d_y) k) for each application.
    Raises: ValueError for depth < 1 or infinite, or k = 0; TypeError for complex problems.
    """

    factored_dimension = 8000

    def __init__(self, problem: Problem, W: Float[Tensor, "d_y d_x"], depth: float):
        if not 1 <= depth < math.inf:
            raise ValueError(f"depth must be a finite number >= 1; got {depth}.")
        problem = as_least_squares(problem)
        U, s, Vh = torch.linalg.svd(W, full_matrices=True)
        k = int((s > max(W.shape) * torch.finfo(s.dtype).eps * s[0]).sum())
        if k == 0:
            raise ValueError("W must not be 0: M_0 is a single point and has no Hessian.")
        s, V = s[:k], Vh.mT
        self.k, self.sigma, self.like, self._U, self._V = k, s, s, U, V
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

    def _scaled(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(M, A, B) of 𝒜^{1/2}ξ for the coordinates x of ξ."""
        parts = x.split([p * q for p, q in self.shapes], dim=-1)
        M, A, B = (
            part.reshape(*x.shape[:-1], *shape)
            for part, shape in zip(parts, self.shapes, strict=True)
        )
        return M * self._core, A * self._sides, B * self._sides

    def __matmul__(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        M, A, B = self._scaled(x)
        core = M @ self._C11 + B.mT @ self._C21
        left = A @ self._C11 + self._G22 @ B / self.sigma
        right = self._C21 @ M.mT + self._C22 @ B + self._G22.mT @ A / self.sigma
        parts = (core * self._core, left * self._sides, right * self._sides)
        return torch.cat([part.flatten(-2) for part in parts], dim=-1)

    def tangent(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch d_y d_x"]:
        """The tangent matrix 𝒜^{1/2}x: of an eigenvector x, the eigenvector of Hess^g itself.

        Its g-norm is ‖x‖, and Hess^g and this operator have the same eigenvalue there.
        """
        M, A, B = self._scaled(x)
        U, V, k = self._U, self._V, self.k
        inner = U[:, :k] @ M + U[:, k:] @ A
        return inner @ V[:, :k].mT + U[:, :k] @ B.mT @ V[:, k:].mT


class LayerHessian(_SymmetricOperator):
    """Hess L^N at layers W_1, …, W_N, as an operator on directions (V_1, …, V_N) laid end to end.

    Source: derivative of BRTW Lemma 2(1), by forward differentiation.
    Shapes: unbatched layers (d_j, d_{j−1}); vectors (*batch, Σ_j d_j d_{j−1}).
    Cost: about three gradients for each application.
    """

    def __init__(self, problem: Problem, layers: Sequence[Tensor]):
        self._problem = as_least_squares(problem)
        self._layers = tuple(W_j.detach() for W_j in layers)
        self.like, self.dim = self._layers[0], sum(W_j.numel() for W_j in layers)
        self._problem.egrad(
            end_to_end(self._layers)
        )  # what the problem caches must not be dual numbers

    def directions(self, x: Float[Tensor, "*batch dim"]) -> tuple[Tensor, ...]:
        """The directions V_1, …, V_N of a vector, in the shapes of the layers."""
        parts = x.split([W_j.numel() for W_j in self._layers], dim=-1)
        return tuple(
            part.reshape(*x.shape[:-1], *W_j.shape)
            for part, W_j in zip(parts, self._layers, strict=True)
        )

    def __matmul__(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        def gradient(*layers: Tensor) -> tuple[Tensor, ...]:
            return tuple(layer_gradients(layers, self._problem))

        layers = tuple(W_j.expand(*x.shape[:-1], *W_j.shape).contiguous() for W_j in self._layers)
        parts = torch.func.jvp(gradient, layers, self.directions(x))[1]
        return torch.cat([part.flatten(-2) for part in parts], dim=-1)


def hessian(
    problem: Problem, W: Float[Tensor, "d_y d_x"], depth: float, *, tol: float = 1e-6
) -> RiemannianHessian:
    """Hess^g L¹ at a critical point W, as an operator: `@`, `extreme` eigenpairs, `tangent`.

    Source: BRTW §6.3; at critical points Hess^g = 𝒜_W ∘ Hess of the embedded metric (depth = 1).
    Cost: one full SVD; the operator is not formed.
    Raises: ValueError if W is farther than tol·σ_1 from every critical point (there the formula
    lacks the derivative of the metric), for W = 0 or depth < 1; TypeError for complex problems.

    >>> from deeplin import autoencoder
    >>> problem = autoencoder(torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)))
    >>> H = hessian(problem, problem.critical_point([2]), depth=2)
    >>> print(H.extreme(1).values)
    tensor([-1.7720], dtype=torch.float64)
    """
    near, scale = nearest_critical_point(problem, W), 1.0
    sigma = problem.singular_values
    if len(sigma):
        scale = float(sigma[0])
    if depth != 1 and float(near.distance) > tol * scale:
        raise ValueError(
            "hessian needs a critical point W, such as one of critical_points(problem, k); this "
            f"one is {float(near.distance) / scale:.2g}·σ_1 away from the nearest: use depth=1, "
            "whose formula holds everywhere on M_k."
        )
    return RiemannianHessian(problem, W, depth)


def local_rate(problem: Problem, W: Float[Tensor, "d_y d_x"], depth: float) -> float:
    """ρ, the rate of ‖W(t) − W‖ ~ e^{−ρt} near a minimum W on M_k, for balanced layers.

    The smallest eigenvalue of Hess^g L¹ in the metric of the given depth. For an autoencoder it
    does not depend on the depth: ρ = min_{a≤r<b} ½(λ_a + λ_b − √((λ_a − λ_b)² + 4λ_b²)), which is
    `deeplin.exact.autoencoder_rate`. Where σ_k = σ_{k+1} the minima form a continuum, and ρ, the
    smallest eigenvalue beyond its null directions, is the rate of the distance to the continuum.

    Source: linearisation of BRTW (9) at a critical point; the papers only plot rates.
    Cost: a dense eigenproblem of dimension k(d_y + d_x − k), or Lanczos if that is large.
    Raises: ValueError where W is no minimum on M_k: the nearest critical point is a saddle.
    """
    H = RiemannianHessian(problem, W, depth)
    near = nearest_critical_point(problem, W)
    if not bool(near.optimal):
        J = (near.modes.nonzero().ravel() + 1).tolist()
        raise ValueError(
            "local_rate needs a minimum on M_k, which picks the k largest singular values; the "
            f"critical point nearest to this W has J = {J}: use problem.minimizer({len(J)})."
        )
    nullity = _nullity(problem.singular_values, int(near.rank))
    return float(H.extreme(nullity + 1).values[nullity])


def _nullity(s: Tensor, k: int) -> int:
    """The dimension of the continuum of minima on M_k: σ_k = σ_{k+1}, to √eps·σ_1."""
    if not 0 < k < len(s):
        return 0
    equal = (s - s[k - 1]).abs() <= torch.finfo(s.dtype).eps ** 0.5 * s[0]
    return int(equal[:k].sum() * equal[k:].sum())
