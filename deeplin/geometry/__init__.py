"""Matrices of rank r as mathematics: points, tangent vectors, metrics, retractions, Hessians."""

from deeplin.geometry.coordinates import Point, Tangent
from deeplin.geometry.metric import DepthMetric, Metric, as_metric

__all__ = ["DepthMetric", "Metric", "Point", "Tangent", "as_metric"]
