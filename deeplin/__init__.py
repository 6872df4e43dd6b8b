"""Deep linear networks and low-rank Riemannian optimisation in PyTorch."""

import importlib
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
    from deeplin.runner.loading import Run, load

# Imported when first asked for: they need libraries that the rest does without.
_LAZY = {
    "Run": "deeplin.runner.loading",
    "load": "deeplin.runner.loading",
    "manifolds": "deeplin.manifolds",
    "nn": "deeplin.nn",
}

__all__ = [
    "DeepLinear",
    "LeastSquares",
    "LogisticRegression",
    "MatrixApproximation",
    "MatrixCompletion",
    "MatrixSensing",
    "Prediction",
    "Problem",
    "Run",
    "Solution",
    "autoencoder",
    "exact",
    "flows",
    "from_loss",
    "geometry",
    "init",
    "integrators",
    "landscape",
    "load",
    "manifolds",
    "nn",
    "predict",
    "problems",
    "solve",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        module = importlib.import_module(_LAZY[name])
        return module if module.__name__ == f"deeplin.{name}" else vars(module)[name]
    raise AttributeError(f"module 'deeplin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
