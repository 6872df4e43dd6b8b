"""Deep linear networks and low-rank Riemannian optimisation in PyTorch."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from deeplin import exact, flows, geometry, integrators, landscape, problems
from deeplin.loop import Solution, solve
from deeplin.network import DeepLinear, init
from deeplin.prediction import Prediction, predict
from deeplin.problems import (
    LeastSquares,
    LogisticRegression,
    MatrixApproximation,
    MatrixCompletion,
    MatrixSensing,
    Problem,
    autoencoder,
    from_loss,
)

if TYPE_CHECKING:
    from deeplin import manifolds, nn

# Imported when first asked for: they need libraries that the rest does without.
_LAZY = ("manifolds", "nn")

__all__ = [
    "DeepLinear",
    "LeastSquares",
    "LogisticRegression",
    "MatrixApproximation",
    "MatrixCompletion",
    "MatrixSensing",
    "Prediction",
    "Problem",
    "Solution",
    "autoencoder",
    "exact",
    "flows",
    "from_loss",
    "geometry",
    "init",
    "integrators",
    "landscape",
    "manifolds",
    "nn",
    "predict",
    "problems",
    "solve",
]


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"deeplin.{name}")
    raise AttributeError(f"module 'deeplin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
