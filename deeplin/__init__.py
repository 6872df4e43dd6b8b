"""Deep linear networks and low-rank Riemannian optimisation in PyTorch."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deeplin import (
        estimators,
        exact,
        flows,
        geometry,
        integrators,
        landscape,
        manifolds,
        nn,
        optim,
        problems,
    )
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
    from deeplin.runner.loading import Run, load

    __version__: str

# Where each name stands; imported when first asked for, torch with it: a command answers before.
_LAZY = {
    "DeepLinear": "deeplin.network",
    "LeastSquares": "deeplin.problems",
    "LogisticRegression": "deeplin.problems",
    "MatrixApproximation": "deeplin.problems",
    "MatrixCompletion": "deeplin.problems",
    "MatrixSensing": "deeplin.problems",
    "Prediction": "deeplin.prediction",
    "Problem": "deeplin.problems",
    "Run": "deeplin.runner.loading",
    "Solution": "deeplin.loop",
    "autoencoder": "deeplin.problems",
    "estimators": "deeplin.estimators",
    "exact": "deeplin.exact",
    "flows": "deeplin.flows",
    "from_loss": "deeplin.problems",
    "geometry": "deeplin.geometry",
    "init": "deeplin.network.init",
    "integrators": "deeplin.integrators",
    "landscape": "deeplin.landscape",
    "linalg": "deeplin.linalg",
    "load": "deeplin.runner.loading",
    "loop": "deeplin.loop",
    "manifolds": "deeplin.manifolds",
    "network": "deeplin.network",
    "nn": "deeplin.nn",
    "optim": "deeplin.optim",
    "predict": "deeplin.prediction",
    "prediction": "deeplin.prediction",
    "problems": "deeplin.problems",
    "solve": "deeplin.loop",
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
    "estimators",
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
    "optim",
    "predict",
    "problems",
    "solve",
]


def __getattr__(name: str) -> object:
    if name == "__version__":  # of what is installed, as pyproject.toml has it
        return importlib.import_module("importlib.metadata").version("deeplin")
    if name not in _LAZY:
        raise AttributeError(f"module 'deeplin' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    found = module if module.__name__.rpartition(".")[2] == name else vars(module)[name]
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "__version__"})
