"""Hessians on M_k and of the layers, as operators, and the local rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.geometry import DepthMetric, Metric, Point, Tangent, as_metric
from deeplin.geometry.connection import MetricDerivative, christoffel_terms
from deeplin.landscape.closed_form import known
from deeplin.landscape.criticality import check_tol, is_critical, numerical_rank
from deeplin.landscape.operators import SymmetricOperator
from deeplin.network import end_to_end, layer_gradients
from deeplin.problems import Problem, Spectrum

if TYPE_CHECKING:
    from numpy import ndarray

__all__ = ["LayerHessian", "RiemannianHessian", "hessian", "local_mode", "local_rate"]

Core = tuple[Tensor, Tensor, Tensor]


class RiemannianHessian(SymmetricOperator):
    """Hess^g f at a W of rank k, as a symmetric operator.

    Hess^g = 𝒜_W ∘ Hess at critical points, with the embedded Hessian
    ξ ↦ P_W(D∇f[ξ]) + P_U^⊥ G V_p Σ^{-1} Vᴴ + U Σ^{-1} U_pᴴ G P_V^⊥ for ξ = UMVᴴ + U_pVᴴ + UV_pᴴ
    and G = ∇f(W); at others, those that are not critical to `tol` as `is_critical` has it, the
    derivative of the metric is added. It is represented by 𝒜^{-1/2} Hess^g 𝒜^{1/2}, which has the
    same eigenvalues, in the coordinates (M, A, B) with U_p = U_⊥A, V_p = V_⊥B; those of complex
    matrices over the reals, each eigenvalue with its real multiplicity.

    Source: BRTW §6.3 (any metric has the same critical points); HLZ (4), corrected;
        `deeplin.geometry.connection` for the derivative of the metric.
    Shapes: W (d_y, d_x), k its numerical rank or the `rank` given; coordinates
        (*batch, k(d_y + d_x − k)), twice as many for complex matrices.
    Cost: one full SVD; then O((d_x² + d_x d_y) k) for each application where the problem is known
        in closed form, and `Problem.hessian_products` where it is not. Off critical points
        10·k³ evaluations of the metric's c as well.
    Raises: ValueError for k = 0, for a depth < 1, and where the metric is none at W.
    """

    factored_dimension = 8000

    def __init__(
        self,
        problem: Problem,
        W: Inexact[Tensor, "d_y d_x"],
        depth: float | Metric,
        *,
        tol: float = 1e-6,
        rank: int | None = None,
    ):
        metric, W = as_metric(depth), W.detach()
        G = problem.egrad(W)
        W = W.to(G.dtype)
        U, s, Vh = torch.linalg.svd(W, full_matrices=True)
        k, V = int(numerical_rank(W, s)) if rank is None else rank, Vh.mH
        if k == 0:
            raise ValueError("W must not be 0: M_0 is a single point and has no Hessian.")
        super().__init__(((k, k), (len(U) - k, k), (len(V) - k, k)), W.dtype, W.device)
        self.k, self.sigma, self._problem, self._U, self._V = k, s[:k], problem, U, V
        self._point = Point(U[:, :k], torch.diag(s[:k]).to(W.dtype), V[:, :k])
        metric.require(self._point)
        self._metric, self._gradient = metric, None
        self._core, self._sides = metric.core(s[:k]).sqrt(), metric.side(s[:k]).sqrt()
        G = U.mH @ G @ V
        self._G22 = G[k:, k:]
        if metric != DepthMetric(1) and not bool(is_critical(problem, W, tol)):
            self._gradient = Tangent(G[:k, :k], G[k:, :k], G[:k, k:].mH)
            self._derivative = MetricDerivative.of(metric, self._point.spectrum[1])
        self._optimum = known(problem)
        self._gram: Core | None = None
        if self._optimum is not None and self._optimum.C is not None:
            C = V.mH @ self._optimum.C.to(W.dtype) @ V
            self._gram = C[:k, :k], C[k:, :k], C[k:, k:]

    @property
    def bases(self) -> tuple[Inexact[Tensor, "d_y d_y"], Inexact[Tensor, "d_x d_x"]]:
        """([U, U_⊥], [V, V_⊥])."""
        return self._U, self._V

    def _euclidean(self, M: Tensor, A: Tensor, B: Tensor) -> Core:
        """(UᴴHV, U_⊥ᴴHV, V_⊥ᴴHᴴU) of H = D∇f(W)[ξ]; H = ξC where f is known in closed form."""
        if self._gram is not None:
            C11, C21, C22 = self._gram
            return M @ C11 + B.mH @ C21, A @ C11, C21 @ M.mH + C22 @ B
        if self._optimum is not None:
            return M, A, B
        k = self.k
        U, V, U_rest, V_rest = self._U[:, :k], self._V[:, :k], self._U[:, k:], self._V[:, k:]
        left = torch.cat([U @ M + U_rest @ A, U.expand(*M.shape[:-2], *U.shape)], -1)
        right = torch.cat([V.expand(*M.shape[:-2], *V.shape), V_rest @ B], -1)
        HV, HhU = self._problem.hessian_products(U, self.sigma.to(U.dtype), V, left, right)
        return U.mH @ HV, U_rest.mH @ HV, V_rest.mH @ HhU

    def _scaled(self, x: Tensor) -> Core:
        """(M, A, B) of 𝒜^{1/2}ξ for the coordinates x of ξ."""
        M, A, B = self._parts(x)
        return M * self._core, A * self._sides, B * self._sides

    def __matmul__(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        M, A, B = self._scaled(x)
        core, left, right = self._euclidean(M, A, B)
        left = left + self._G22 @ B / self.sigma
        right = right + self._G22.mH @ A / self.sigma
        core, left, right = core * self._core, left * self._sides, right * self._sides
        if self._gradient is not None:  # the derivative of the metric sees coordinates alone
            tangents = Tangent(M, A, B), self._gradient
            moved = christoffel_terms(self._point, *tangents, self._metric, self._derivative)
            core = core + moved.M / self._core
            left, right = left + moved.Up / self._sides, right + moved.Vp / self._sides
        return self._vector((core, left, right))

    def inverse(self, largest: int) -> Callable[[ndarray], ndarray] | None:
        """The inverse; of a perfect fit, G = 0, by rows: ξ ↦ P_W(ξC) is (M, Bᴴ)VᴴCV, A·V_kᴴCV_k."""
        if self._gram is None or self._gradient is not None:
            return super().inverse(largest)
        C11, C21, C22 = self._gram
        whole = torch.cat([torch.cat([C11, C21.mH], -1), torch.cat([C21, C22], -1)], -2)
        least = float(torch.linalg.eigvalsh(whole)[0])
        # G moves no eigenvalue by more than 1e-9 of itself.
        if not float(self._G22.norm()) <= 1e-9 * least * float(self.sigma[-1]):
            return super().inverse(largest)
        small, whole = torch.linalg.cholesky(C11), torch.linalg.cholesky(whole)

        def apply(x: ndarray) -> ndarray:
            vector = torch.as_tensor(x.ravel(), dtype=self.dtype, device=self.device)
            M, A, B = self._parts(vector)
            M, A, B = M / self._core, A / self._sides, B / self._sides
            A = torch.cholesky_solve(A.mH, small).mH
            rows = torch.cholesky_solve(torch.cat([M, B.mH], -1).mH, whole).mH
            M, B = rows[..., : self.k], rows[..., self.k :].mH
            return self._vector((M / self._core, A / self._sides, B / self._sides)).cpu().numpy()

        return apply

    def tangent(self, x: Float[Tensor, "*batch dim"]) -> Inexact[Tensor, "*batch d_y d_x"]:
        """The tangent matrix 𝒜^{1/2}x: of an eigenvector x, the eigenvector of Hess^g itself.

        Its g-norm is ‖x‖, and Hess^g and this operator have the same eigenvalue there.
        """
        return self._tangent(*self._scaled(x))

    def covector(self, x: Float[Tensor, "*batch dim"]) -> Inexact[Tensor, "*batch d_y d_x"]:
        """The tangent matrix 𝒜^{-1/2}x: ⟨covector(x), tangent(z)⟩_F = ⟨x, z⟩.

        Of an eigenvector x it is 0 on all other eigenvectors of Hess^g, and sees x alone.
        """
        M, A, B = self._parts(x)
        return self._tangent(M / self._core, A / self._sides, B / self._sides)

    def _tangent(self, M: Tensor, A: Tensor, B: Tensor) -> Tensor:
        U, V, k = self._U, self._V, self.k
        inner = U[:, :k] @ M + U[:, k:] @ A
        return inner @ V[:, :k].mH + U[:, :k] @ B.mH @ V[:, k:].mH


class LayerHessian(SymmetricOperator):
    """Hess L^N at layers W_1, …, W_N, as an operator on directions (V_1, …, V_N) laid end to end.

    Source: derivative of BRTW Lemma 2(1), by forward differentiation.
    Shapes: unbatched layers (d_j, d_{j−1}); vectors (*batch, Σ_j d_j d_{j−1}), twice as long for
        complex layers.
    Cost: about three gradients for each application.
    """

    def __init__(self, problem: Problem, layers: Sequence[Tensor]):
        self._problem, self._layers = problem, tuple(W_j.detach() for W_j in layers)
        shapes = [(W_j.shape[0], W_j.shape[1]) for W_j in layers]
        super().__init__(shapes, self._layers[0].dtype, self._layers[0].device)
        problem.egrad(end_to_end(self._layers))  # what it caches must not be dual numbers

    def directions(self, x: Float[Tensor, "*batch dim"]) -> tuple[Inexact[Tensor, "..."], ...]:
        """The directions V_1, …, V_N of a vector, in the shapes of the layers."""
        return self._parts(x)

    def __matmul__(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        def gradient(*layers: Tensor) -> tuple[Tensor, ...]:
            return tuple(layer_gradients(layers, self._problem))

        layers = tuple(W_j.expand(*x.shape[:-1], *W_j.shape).contiguous() for W_j in self._layers)
        return self._vector(torch.func.jvp(gradient, layers, self._parts(x))[1])


def hessian(
    problem: Problem, W: Inexact[Tensor, "d_y d_x"], depth: float | Metric, *, tol: float = 1e-6
) -> RiemannianHessian:
    """Hess^g f at a W of M_k, as an operator: `@`, `extreme` eigenpairs, `tangent`, `dense`.

    The metric is that of a depth, or any `Metric`; the problem any `Problem`; W any matrix but 0,
    on the manifold of its numerical rank.

    Source: BRTW §6.3; at points critical to `tol` Hess^g = 𝒜_W ∘ Hess of the embedded metric.
    Cost: one full SVD; the operator is not formed.
    Raises: ValueError for W = 0, for depth < 1 and where the metric is none at W.

    >>> from deeplin import autoencoder
    >>> problem = autoencoder(torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)))
    >>> H = hessian(problem, problem.critical_point([2]), depth=2)
    >>> print(H.extreme(1).values)
    tensor([-1.7720], dtype=torch.float64)
    """
    check_tol(tol)
    return RiemannianHessian(problem, W, depth, tol=tol)


def local_rate(
    problem: Problem, W: Inexact[Tensor, "d_y d_x"], depth: float | Metric, *, tol: float = 1e-6
) -> float:
    """ρ, the rate of ‖W(t) − W‖ ~ e^{−ρt} near a minimum W on M_k, for balanced layers.

    The smallest eigenvalue of Hess^g f in the metric of the given depth, or in any `Metric`. For an
    autoencoder it does not depend on the depth: ρ = min_{a≤r<b} ½(λ_a + λ_b − √((λ_a − λ_b)² +
    4λ_b²)), which is `deeplin.exact.autoencoder_rate`. Where σ_k = σ_{k+1} the minima form a
    continuum, and ρ, the smallest eigenvalue beyond its null directions, is the rate of the
    distance to the continuum.

    Source: linearisation of BRTW (9) at a critical point; the papers only plot rates.
    Cost: a dense eigenproblem of dimension k(d_y + d_x − k), or Lanczos if that is large; without a
        closed form the largest eigenvalue as well.
    Raises: ValueError where W is not critical as `is_critical` has it, where it is no minimum on
    M_k and, without a closed form, where the least eigenvalue is below tol times the largest: then
    W may be a minimum but no strict one.
    """
    return local_mode(problem, W, depth, tol=tol)[0]


def local_mode(
    problem: Problem, W: Inexact[Tensor, "d_y d_x"], depth: float | Metric, *, tol: float = 1e-6
) -> tuple[float, Inexact[Tensor, "d_y d_x"]]:
    """(ρ, P): the rate of `local_rate`, and the P for which ⟨P, W(t) − W⟩ ~ e^{−ρt} alone.

    The distance to W is a sum over all modes, and falls faster than ρ until those near ρ are gone,
    which takes 1/(ρ_2 − ρ): longer than a run where the spectrum is dense. P = 𝒜_W^{-1}ξ of the
    slowest mode ξ is 0 on the others.

    The same source, cost and errors.
    """
    metric = as_metric(depth)
    _require_critical(problem, W, tol)
    optimum = known(problem)
    if optimum is not None:
        return _mode_in_closed_form(problem, optimum, W, metric, tol)
    H = RiemannianHessian(problem, W, metric, tol=tol)
    (least,), (vector,) = H.extreme()
    least, largest = float(least), float(H.extreme(1, "largest").values[0])
    if not least > tol * largest:
        what = "a saddle" if least < -tol * abs(largest) else "no strict minimum"
        raise ValueError(
            f"local_rate needs a strict minimum on M_k; the Hessian at this W of rank {H.k} has "
            f"eigenvalues from {least:.3g} to {largest:.3g}: it is {what}."
        )
    return least, H.covector(vector)


def _mode_in_closed_form(
    problem: Problem, optimum: Spectrum, W: Tensor, metric: Metric, tol: float
) -> tuple[float, Tensor]:
    H, near = RiemannianHessian(problem, W, metric, tol=tol), optimum.nearest(W)
    if not bool(near.optimal):
        J = (near.modes.nonzero().ravel() + 1).tolist()
        raise ValueError(
            "local_rate needs a minimum on M_k, which picks the k largest singular values; the "
            f"critical point nearest to this W has J = {J}: use problem.minimizer({len(J)})."
        )
    nullity = (2 if W.is_complex() else 1) * optimum.nullity(int(near.rank))
    found = H.extreme(nullity + 1)
    return float(found.values[nullity]), H.covector(found.vectors[nullity])


def _require_critical(problem: Problem, W: Tensor, tol: float) -> None:
    check_tol(tol)
    if bool(is_critical(problem, W, tol)):
        return
    optimum = known(problem)
    if optimum is None:
        raise ValueError(
            "local_rate needs a critical point W; on the matrices of its rank the gradient at this "
            f"one is more than {tol:g} of its natural size: run the flow to its end, or raise tol."
        )
    distance = float(optimum.nearest(W).distance) / optimum.scale
    raise ValueError(
        "local_rate needs a critical point W, such as problem.minimizer(k); this one is "
        f"{distance:.2g}·σ_1 away from the nearest: run the flow to its end, or raise tol."
    )
