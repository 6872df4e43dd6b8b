"""What the two manifolds of dense matrices share: decomposing, projecting, the gradient."""

from __future__ import annotations

from torch import Tensor

from deeplin.geometry.coordinates import Point, Tangent, project_matrix
from deeplin.geometry.metric import metric_operator
from deeplin.geometry.points import nearest_point
from deeplin.linalg import working
from deeplin.manifolds.defects import spectrum_defect
from deeplin.manifolds.low_rank import LowRankManifold

__all__ = ["DenseManifold"]


class DenseManifold(LowRankManifold):
    """Rank-r matrices stored as they are: every operation begins with a decomposition of W."""

    def _point(self, x: Tensor) -> Point:
        return nearest_point(working(x), self.rank, hermitian=self._hermitian)

    def _projection(self, x: Tensor) -> Point:
        return self._point(x)

    def _tangent(self, point: Point, u: Tensor) -> Tangent:
        return project_matrix(point, working(u))

    def _gradient(self, point: Point, u: Tensor) -> Tangent:
        return metric_operator(point, self._tangent(point, u), self.metric)

    def _core_defect(self, point: Point, tolerance: float) -> str | None:
        values = point.S.diagonal(dim1=-2, dim2=-1).real
        return spectrum_defect(values, 0 * values[..., 0], self.rank, tolerance)
