"""geoopt's whole contract for rank-r matrices, written once; the four manifolds only encode."""

from __future__ import annotations

import warnings

import torch
from geoopt.manifolds.base import ScalingInfo
from torch import Tensor

from deeplin.geometry import hessian, metric, retractions
from deeplin.geometry.coordinates import Point, Tangent, transport
from deeplin.linalg import values_known
from deeplin.manifolds.defects import check_numbers, largest_value, lost_rank
from deeplin.manifolds.stored import StoredManifold

__all__ = ["LowRankManifold"]


class LowRankManifold(StoredManifold):
    """Matrices of rank exactly r with the metric of a deep linear network.

    What a subclass supplies: how a point and a tangent vector are stored in one tensor
    (``_point``, ``_tangent``, ``_store_point``, ``_store_tangent``, ``_shape_error``), what is
    wrong with it (``_point_defect``, ``_core_defect``), the nearest point (``_projection``) and
    the gradient (``_gradient``). Everything geoopt asks for is here.

    Every operation is a function of its tensors that torch.func's transforms and
    torch.compile(fullgraph=True) accept. What looks at values, errors on bad points and warnings,
    is done beside it and only where values are known (``linalg.values_known``): under a transform
    a bad point gives a result that means nothing, or NaN.

    Gradients flow through tangent vectors, not through points: a point enters every operation
    detached, because its spectrum is needed and one never differentiates through an SVD.
    ``logmap`` and ``dist`` are not implemented, since no closed form is known.
    """

    __scaling__ = StoredManifold.__scaling__.copy()
    # Scaled hides what it does not list: these pass through it unscaled.
    __scaling__.update({name: ScalingInfo() for name in ("origin", "pack_point", "unpack_tensor")})

    # Metric ---------------------------------------------------------------------------------------

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """g_W(u, v) = Re⟨𝒜̄_W⁻¹u, v⟩_F, v = u when it is not given.

        Source: BRTW (18).
        Shapes: (*batch), or (*batch, 1, 1) with keepdim; real also for complex points.
        Accuracy: inf where it is beyond the number format, as at tiny σ_r for N > 2.
        Raises: ValueError where depth ∞ is no metric.
        """
        point = self._point(x)
        first = self._tangent(point, u)
        second = first if v is None else self._tangent(point, v)
        value = self._like(x.real, metric.metric_inner(point, first, second, self.metric))
        return value[..., None, None] if keepdim else value

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """√g_W(u, u); its gradient at u = 0 is 0, not NaN."""
        squared = self.inner(x, u, keepdim=keepdim)
        positive = squared > 0
        return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)

    def metric_operator(self, x: Tensor, Z: Tensor) -> Tensor:
        """𝒜_W(Z), a tangent vector; Z any vector of the ambient space.

        Source: BRTW (8).
        """
        point = self._point(x)
        operated = metric.metric_operator(point, self._tangent(point, Z), self.metric)
        return self._like(x, self._store_tangent(point, operated))

    def metric_inverse(self, x: Tensor, u: Tensor) -> Tensor:
        """𝒜̄_W⁻¹(u), the tangent vector whose 𝒜_W is u.

        Source: BRTW Lemma 8.
        Raises: ValueError where depth ∞ is no metric, and where the result of a finite u is beyond
            the number format: σ_r^{2/N−2} is, for N > 2, long before σ_r is.
        """
        point = self._point(x)
        inverse = metric.metric_inverse(point, self._tangent(point, u), self.metric)
        result = self._like(x, self._store_tangent(point, inverse))
        if (
            values_known()
            and not bool(torch.isfinite(result).all())
            and bool(torch.isfinite(u).all())
        ):
            least, kind = float(point.spectrum[1][..., -1].min()), str(result.dtype)
            raise ValueError(
                "metric_inverse(x, u) must be within the range of "
                f"{kind.removeprefix('torch.')}; at σ_r = {least:.3g} it is not: take a point with "
                "a larger σ_r, or a smaller rank."
            )
        return result

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """∇^g f(W) = 𝒜_W(∇f(W)), from the gradient u that autograd leaves in ``x.grad``.

        Source: BRTW (22).
        """
        point = self._point(x)
        return self._like(x, self._store_tangent(point, self._gradient(point, u)))

    # Projections ----------------------------------------------------------------------------------

    def projx(self, x: Tensor) -> Tensor:
        """The point of the manifold nearest to x.

        A dense x goes to the nearest matrix of rank r, a Hermitian one with the r largest algebraic
        eigenvalues kept. Packed factors go to orthonormal U and V with the same product, USVᴴ (and
        Hermitian S); those that are orthonormal stay what they are, so that a momentum kept in
        their gauge keeps its meaning.

        Source: HLZ Definition 2.3 (Eckart, Young); in the cone HLZ §5.
        Cost: dense an SVD or an eigendecomposition; packed O((m + n) r² + r³).
        Raises: ValueError when x has a lower rank, fewer than r positive eigenvalues, or entries
            that are not finite; TypeError for integers.
        """
        check_numbers(x, "projx")
        new = self._of_full_rank(self._projection(x), "projx")
        return self._wrapped(self._like(x, self._store_point(new)))

    def _of_full_rank(self, point: Point, method: str) -> Point:
        """The point as it is; a ValueError where its core is known to be of lower rank."""
        if values_known():
            reason = self._core_defect(point, 1.0)
            if reason:
                raise ValueError(f"{method}: {reason}")
        return point

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """The tangent vector nearest to u, orthogonal in the Frobenius product (not in g_W).

        Source: BRTW Lemma 7.
        """
        point = self._point(x)
        return self._like(x, self._store_tangent(point, self._tangent(point, u)))

    # Moving ---------------------------------------------------------------------------------------

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """R_W(u), by the manifold's ``retraction``; u is projected first when it is not tangent.

        Where the full step would lose rank, or leave the cone, it is shortened until it does not
        (``geometry.retractions.retract``); where u is not finite, x stays, with a RuntimeWarning: a
        line search at its goal asks for it.

        Source: deeplin.geometry.retractions, where each states its order.
        Raises: RuntimeError when x itself has a lower rank, as an iteration that diverges soon has,
            with what was measured; under a transform the result is NaN.
        """
        point = self._point(x)
        tangent = self._tangent(point, u)
        new, finite, kept = retractions.retract(point, tangent, self.retraction, self.metric)
        if values_known():
            self._judge_step(x, point, tangent, finite, kept)
        return self._like(x, self._store_point(new))

    def _judge_step(
        self,
        x: Tensor,
        point: Point,
        tangent: Tangent,
        finite: Tensor | None,
        kept: Tensor | None,
    ) -> None:
        """Says what a step met; outside of every transform."""
        if kept is not None and not bool(kept.all()):
            raise RuntimeError(f"retr: {lost_rank(point, tangent, kept, self.rank)}")
        if finite is not None and not bool(finite.all()):
            half = (
                "; in float16 the usual eps=1e-08 of RiemannianAdam is 0: give it eps=1e-4"
                if x.dtype == torch.float16
                else ""
            )
            warnings.warn(
                f"retr: the step holds nan or inf, and left those matrices where they are "
                f"({largest_value(point)}): look at the loss and its gradient; where the loss has "
                f"grown, the iteration diverges: take a smaller learning rate{half}.",
                RuntimeWarning,
                stacklevel=3,
            )

    def _coordinates(self, point: Point, u: Tensor) -> Tangent:
        """Those of a vector that is known to be tangent."""
        return self._tangent(point, u)

    def descend(
        self,
        x: Tensor,
        grad: Tensor,
        buffer: Tensor | None = None,
        *,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """One step of gradient descent with momentum: the new point, and the buffer moved there.

        b ← μb + (1 − δ)𝒜_W(∇f), x ← R_x(−ηb), with Nesterov's −η(𝒜_W(∇f) + μb), b ← P_x(b): what
        geoopt's RiemannianSGD does with egrad2rgrad and retr_transp, in one pass, under
        ``torch.no_grad()``. ``grad`` is what autograd leaves in ``x.grad``; ``buffer`` is tangent
        at x, as the one returned is at the new point.

        Raises: as ``retr``.
        """
        point = self._point(x)
        direction = velocity = self._gradient(point, grad)
        if buffer is not None:
            kept = self._coordinates(point, buffer)
            direction = velocity = _combined(direction, 1 - dampening, kept, momentum)
            if nesterov:
                direction = _combined(self._gradient(point, grad), 1.0, velocity, momentum)
        step = direction.scaled(-lr)
        new, finite, full = retractions.retract(point, step, self.retraction, self.metric)
        self._judge_step(x, point, step, finite, full)
        moved = None
        if buffer is not None:
            moved = self._like(x, self._store_tangent(new, transport(point, new, velocity)))
        return self._like(x, self._store_point(new)), moved

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Falls back to ``retr``: the geodesics of this metric have no closed form.

        The exception is a positive semidefinite manifold with depth=2 and retraction="layers",
        where ``retr`` is the exponential map.
        """
        return self.retr(x, u)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """The tangent vector at y nearest to v in the Frobenius product: P_y(v). Linear in v."""
        start, end = self._point(x), self._point(y)
        moved = transport(start, end, self._tangent(start, v))
        return self._like(y, self._store_tangent(end, moved))

    @__scaling__(ScalingInfo(1))
    def inverse_orthographic(self, x: Tensor, y: Tensor) -> Tensor:
        """The u with R_x(u) = y for the orthographic retraction: P_x(y − x).

        Source: [AM12], §4.
        """
        start = self._point(x)
        back = retractions.inverse_orthographic(start, self._point(y))
        return self._like(x, self._store_tangent(start, back))

    # Second order ---------------------------------------------------------------------------------

    def ehess2rhess(
        self, x: Tensor, egrad: hessian.Matrix, ehess: hessian.Matrix, u: Tensor
    ) -> Tensor:
        """Hess^g f(W)[u] from the Euclidean gradient ∇f(W) and its derivative along u, anywhere.

        Source: [Van13], §2.3 (depth 1); deeplin.geometry.connection (other metrics).
        Shapes: egrad and ehess are m×n matrices, or anything with ``@`` and ``.mH``, so that a
            factored manifold need not see one.
        Raises: ValueError where depth ∞ is no metric.
        """
        point = self._point(x)
        tangent = self._tangent(point, u)
        result = hessian.riemannian_hessian(point, egrad, ehess, tangent, self.metric)
        return self._like(x, self._store_tangent(point, result))

    def hessian_vector_product(self, x: Tensor, loss: hessian.PairLoss, u: Tensor) -> Tensor:
        """Hess^g f(W)[u] by autograd, for a loss written in a factor pair: loss(A, B) = f(A Bᴴ).

        Nothing m×n is formed unless the loss does so.

        Cost: one double backward pass of the loss with 4r columns in A and B.
        Raises: as ``ehess2rhess``.
        """
        point = self._point(x)
        tangent = self._tangent(point, u)
        result = hessian.hessian_vector_product(point, loss, tangent, self.metric)
        return self._like(x, self._store_tangent(point, result))


def _combined(first: Tangent, a: float, second: Tangent, b: float) -> Tangent:
    """aξ + bη at one point."""

    def parts(one: Tensor, other: Tensor) -> Tensor:
        return torch.add(one if a == 1 else a * one, other, alpha=b)

    Up = parts(first.Up, second.Up)
    Vp = Up if first.Vp is first.Up else parts(first.Vp, second.Vp)
    return Tangent(parts(first.M, second.M), Up, Vp)
