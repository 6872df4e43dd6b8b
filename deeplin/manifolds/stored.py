"""How points of rank-r matrices are stored, drawn and checked, for any way to store them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import geoopt
import torch
import torch.distributed as dist
from geoopt.manifolds.base import Manifold
from geoopt.utils import size2shape
from torch import Tensor

from deeplin.geometry import metric, retractions
from deeplin.geometry.coordinates import Point, Tangent
from deeplin.geometry.metric import Metric
from deeplin.geometry.points import origin_point, random_point
from deeplin.linalg import values_known, working, working_dtype
from deeplin.manifolds.defects import whole_number

__all__ = ["StoredManifold"]


class StoredManifold(Manifold):
    """What the four manifolds of rank-r matrices are before any operation: storage, draws, checks.

    bfloat16 and float16 are for storing alone: what is read is float32 (``working_dtype``), and
    what an operation returns has the dtype of the point.
    """

    ndim = 2
    reversible = False
    _hermitian = False
    group: dist.ProcessGroup | None = None
    """The processes that share the rows of a point; None: this one has them all."""

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

    def _like(self, x: Tensor, stored: Tensor) -> Tensor:
        """What was computed at x, as x is stored."""
        return stored if working_dtype(x.dtype) == x.dtype else stored.to(x.dtype)

    # Points ---------------------------------------------------------------------------------------

    def _drawn_shape(self, size: tuple) -> tuple[int, ...]:
        shape = tuple(size2shape(*size))
        ok, reason = self._check_shape(shape, "x")
        if not ok:
            raise ValueError(reason)
        return shape

    def pack_point(self, *tensors: Tensor) -> Tensor:
        """The tensor that stands for a point, as a point of this manifold."""
        return self._wrapped(super().pack_point(*tensors))

    def parameter(self, x: Tensor) -> geoopt.ManifoldParameter:
        """A point as a parameter that geoopt's optimizers move along this manifold."""
        return geoopt.ManifoldParameter(x, manifold=self)  # pyright: ignore[reportCallIssue]

    def _wrapped(self, x: Tensor) -> Tensor:
        """The tensor as geoopt's ManifoldTensor, so that ManifoldParameter(x) knows its manifold.

        The same numbers and derivatives. Under a transform or in a trace, where there are no
        subclasses, it stays as it is.
        """
        if not values_known():
            return x
        wrapped = x.as_subclass(geoopt.ManifoldTensor)
        wrapped.manifold = self
        return wrapped

    def _drawn(self, point: Point, dtype: torch.dtype | None) -> geoopt.ManifoldTensor:
        x = self._store_point(point)
        x = x if dtype is None else x.to(dtype)
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
            dtype=working_dtype(dtype),
            device=device,
            generator=generator,
        )
        return self._drawn(point, dtype)

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
            dtype=working_dtype(dtype),
            device=device,
        )
        return self._drawn(point, dtype)

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
        reason = self._point_defect(working(x.detach()), max(atol + rtol, _rounded(x.dtype)))
        return reason is None, reason

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        defect = working(u) - working(self.proju(x, u))
        measured = torch.linalg.vector_norm(defect, dim=(-2, -1))
        size = torch.linalg.vector_norm(working(u), dim=(-2, -1))
        rtol = max(rtol, _rounded(x.dtype))
        if bool((measured <= atol + rtol * size).all()):
            return True, None
        return False, (
            f"u must be tangent; its normal part has norm {measured.max().item():.3g}, above "
            f"atol={atol} + rtol={rtol} times ‖u‖={size.max().item():.3g}; use proju(x, u)."
        )

    def extra_repr(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        metric = f"metric={self.metric}" if self.depth is None else f"depth={self.depth}"
        return f"rank={self.rank}, {metric}, retraction={self.retraction!r}"


def _rounded(dtype: torch.dtype) -> float:
    """How far from orthonormal what is stored in bfloat16 or float16 may be; 0 for others."""
    return 0.0 if working_dtype(dtype) == dtype else 4 * torch.finfo(dtype).eps
