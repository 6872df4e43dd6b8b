"""geoopt's whole contract for rank-r matrices, written once; the four manifolds only encode."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence

import geoopt
import torch
from geoopt.manifolds.base import Manifold, ScalingInfo
from geoopt.utils import size2shape
from torch import Tensor

from deeplin.geometry import hessian, metric, retractions
from deeplin.geometry.coordinates import Point, Tangent, transport
from deeplin.geometry.metric import Metric
from deeplin.geometry.points import origin_point, random_point
from deeplin.linalg import values_known
from deeplin.manifolds.defects import check_numbers, whole_number

__all__ = ["LowRankManifold"]


class LowRankManifold(Manifold):
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

    __scaling__ = Manifold.__scaling__.copy()
    # Scaled hides what it does not list: these pass through it unscaled.
    __scaling__.update({name: ScalingInfo() for name in ("origin", "pack_point", "unpack_tensor")})
    ndim = 2
    reversible = False
    _hermitian = False

    def __init__(self, rank: int, depth: float | Metric, retraction: str) -> None:
        super().__init__()
        self.rank = whole_number(type(self).__name__, "rank", rank)
        self.metric = metric.as_metric(depth)
        self.retraction = retractions.validate_retraction(retraction, self.metric)

    @property
    def depth(self) -> float | None:
        """The metric's depth; None for a metric that is no DepthMetric."""
        return self.metric.depth if isinstance(self.metric, metric.DepthMetric) else None

    # What a subclass supplies ---------------------------------------------------------------------

    @abstractmethod
    def _point(self, x: Tensor) -> Point:
        """The factors of a stored point, detached."""

    @abstractmethod
    def _tangent(self, point: Point, u: Tensor) -> Tangent:
        """The coordinates of a stored vector; of its projection, when it is not tangent."""

    @abstractmethod
    def _store_point(self, point: Point) -> Tensor:
        """The one tensor that stands for a point."""

    @abstractmethod
    def _store_tangent(self, point: Point, tangent: Tangent) -> Tensor:
        """The one tensor that stands for a tangent vector."""

    @abstractmethod
    def _gradient(self, point: Point, u: Tensor) -> Tangent:
        """𝒜_W(∇f) from what autograd leaves in ``x.grad``."""

    @abstractmethod
    def _projection(self, x: Tensor) -> Point:
        """The point on the manifold that ``projx`` takes x to, or one of a lower rank."""

    @abstractmethod
    def _core_defect(self, point: Point, tolerance: float) -> str | None:
        """What keeps S from rank r (and the cone), measured, in one sentence, or None."""

    @abstractmethod
    def _shape_error(self, shape: Sequence[int], name: str) -> str | None:
        """What is wrong with the last two dimensions, in one sentence, or None."""

    @abstractmethod
    def _point_defect(self, x: Tensor, tolerance: float) -> str | None:
        """What keeps x off the manifold, measured, in one sentence, or None."""

    @abstractmethod
    def _matrix_sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        """(m, n) for a tensor of that shape."""

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
        value = metric.metric_inner(point, first, second, self.metric)
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
        return self._store_tangent(point, operated)

    def metric_inverse(self, x: Tensor, u: Tensor) -> Tensor:
        """𝒜̄_W⁻¹(u), the tangent vector whose 𝒜_W is u.

        Source: BRTW Lemma 8.
        Raises: ValueError where depth ∞ is no metric, and where the result of a finite u is beyond
            the number format: σ_r^{2/N−2} is, for N > 2, long before σ_r is.
        """
        point = self._point(x)
        inverse = metric.metric_inverse(point, self._tangent(point, u), self.metric)
        result = self._store_tangent(point, inverse)
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
        return self._store_tangent(point, self._gradient(point, u))

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
        return self._store_point(self._of_full_rank(self._projection(x), "projx"))

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
        return self._store_tangent(point, self._tangent(point, u))

    # Moving ---------------------------------------------------------------------------------------

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """R_W(u), by the manifold's ``retraction``; u is projected first when it is not tangent.

        Where the full step would lose rank, or leave the cone, it is shortened until it does not
        (``geometry.retractions.retract``); where u is not finite, x stays, with a RuntimeWarning: a
        line search at its goal asks for it.

        Source: deeplin.geometry.retractions, where each states its order.
        Raises: RuntimeError when x itself has a lower rank; under a transform the result is NaN.
        """
        point = self._point(x)
        tangent = self._tangent(point, u)
        new, finite, kept = retractions.retract(point, tangent, self.retraction, self.metric)
        if values_known():
            self._judge_step(finite, kept)
        return self._store_point(new)

    def _judge_step(self, finite: Tensor | None, kept: Tensor | None) -> None:
        """Says what a step met; outside of every transform."""
        if kept is not None and not bool(kept.all()):
            raise RuntimeError(
                f"retr(x, u) with retraction={self.retraction!r} needs a point x of rank "
                f"{self.rank}; no step however short along u kept that rank; call projx(x) or "
                "assert_check_point_on_manifold(x) on the starting point."
            )
        if finite is not None and not bool(finite.all()):
            warnings.warn(
                "retr(x, u) needs a finite tangent vector u; got nan or inf entries, and left "
                "those matrices where they are; look at the loss and its gradient, or take a "
                "smaller step.",
                RuntimeWarning,
                stacklevel=3,
            )

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
        return self._store_tangent(end, moved)

    @__scaling__(ScalingInfo(1))
    def inverse_orthographic(self, x: Tensor, y: Tensor) -> Tensor:
        """The u with R_x(u) = y for the orthographic retraction: P_x(y − x).

        Source: [AM12], §4.
        """
        start = self._point(x)
        return self._store_tangent(start, retractions.inverse_orthographic(start, self._point(y)))

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
        return self._store_tangent(point, result)

    def hessian_vector_product(self, x: Tensor, loss: hessian.PairLoss, u: Tensor) -> Tensor:
        """Hess^g f(W)[u] by autograd, for a loss written in a factor pair: loss(A, B) = f(A Bᴴ).

        Nothing m×n is formed unless the loss does so.

        Cost: one double backward pass of the loss with 4r columns in A and B.
        Raises: as ``ehess2rhess``.
        """
        point = self._point(x)
        tangent = self._tangent(point, u)
        result = hessian.hessian_vector_product(point, loss, tangent, self.metric)
        return self._store_tangent(point, result)

    # Points ---------------------------------------------------------------------------------------

    def _drawn_shape(self, size: tuple) -> tuple[int, ...]:
        shape = tuple(size2shape(*size))
        ok, reason = self._check_shape(shape, "x")
        if not ok:
            raise ValueError(reason)
        return shape

    def parameter(self, x: Tensor) -> geoopt.ManifoldParameter:
        """A point as a parameter that geoopt's optimizers move along this manifold."""
        return geoopt.ManifoldParameter(x, manifold=self)  # pyright: ignore[reportCallIssue]

    def _wrapped(self, point: Point) -> geoopt.ManifoldTensor:
        x = self._store_point(point)
        return geoopt.ManifoldTensor(x, manifold=self)  # pyright: ignore[reportCallIssue]

    def random(
        self,
        *size: int | Sequence[int],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> geoopt.ManifoldTensor:
        """A random point: Haar-distributed U, V and singular values uniform in (1/2, 3/2).

        Shapes: size is the shape of the tensor, batch dimensions first.
        """
        shape = self._drawn_shape(size)
        point = random_point(
            *self._matrix_sizes(shape),
            self.rank,
            batch_shape=shape[:-2],
            hermitian=self._hermitian,
            dtype=dtype,
            device=device,
            generator=generator,
        )
        return self._wrapped(point)

    def origin(
        self,
        *size: int | Sequence[int],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = 42,
    ) -> geoopt.ManifoldTensor:
        """The matrix with ones in the first r places of the diagonal; the seed is not used.

        Shapes: size is the shape of the tensor, batch dimensions first.
        """
        shape = self._drawn_shape(size)
        point = origin_point(
            *self._matrix_sizes(shape),
            self.rank,
            batch_shape=shape[:-2],
            hermitian=self._hermitian,
            dtype=dtype,
            device=device,
        )
        return self._wrapped(point)

    # Checks ---------------------------------------------------------------------------------------

    def _check_shape(self, shape: Sequence[int], name: str) -> tuple[bool, str | None]:
        if len(shape) < 2:
            return False, f"{name} must have at least 2 dimensions; got shape {tuple(shape)}."
        reason = self._shape_error(shape, name)
        return reason is None, reason

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        """Defects are relative to σ_1, or are of orthonormality: both tolerances simply add."""
        if x.numel() == 0:  # an empty batch
            return True, None
        if not bool(torch.isfinite(x).all()):
            return False, "x must be finite; it has nan or inf entries."
        reason = self._point_defect(x.detach(), atol + rtol)
        return reason is None, reason

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        defect = u - self.proju(x, u)
        measured = torch.linalg.vector_norm(defect, dim=(-2, -1))
        size = torch.linalg.vector_norm(u, dim=(-2, -1))
        if bool((measured <= atol + rtol * size).all()):
            return True, None
        return False, (
            f"u must be tangent; its normal part has norm {measured.max().item():.3g}, above "
            f"atol={atol} + rtol={rtol} times ‖u‖={size.max().item():.3g}; use proju(x, u)."
        )

    def extra_repr(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        metric = f"metric={self.metric}" if self.depth is None else f"depth={self.depth}"
        return f"rank={self.rank}, {metric}, retraction={self.retraction!r}"
