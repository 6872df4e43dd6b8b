"""Data of losses of which no optimum is known in advance: linear measurements, and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.problems.classification import LogisticRegression
from deeplin.problems.data import FIELDS, Data
from deeplin.problems.preparation import Columns, Preparation
from deeplin.problems.sensing import OPERATORS, MatrixSensing

__all__ = ["BUNDLED", "OPERATORS", "Recovery", "classification", "sensing"]

# scikit-learn's classified samples that need no download.
BUNDLED = ("digits", "breast_cancer", "iris", "wine")


class Recovery(MatrixSensing):
    """The sensing of a matrix that is known: it reports how far from it W is.

    Shapes: truth (m, n).
    """

    def __init__(
        self,
        operators: Tensor | tuple[Tensor, Tensor],
        values: Inexact[Tensor, " p"],
        truth: Inexact[Tensor, "m n"],
    ):
        super().__init__(operators, values)
        self.truth = truth

    def report(self, W: Inexact[Tensor, "*#batch m n"]) -> Mapping[str, Float[Tensor, "*#batch"]]:
        """‖W − truth‖_F/‖truth‖_F."""
        size = torch.linalg.matrix_norm(self.truth)
        return {"relative_error": torch.linalg.matrix_norm(W - self.truth) / size}


def sensing(
    n: int = 20,
    *,
    rows: int | None = None,
    rank: int = 2,
    spectrum: Sequence[float] | None = None,
    measurements: int | None = None,
    operators: str = "gaussian",
    noise: float = 0.0,
    field: str = "real",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Data:
    """Measurements b_l = ⟨A_l, W̃⟩ + noise of a random rows×n matrix W̃ = U diag(spectrum) Vᴴ.

    The entries of the operators A_l are Gaussian of variance 1/p, so that Σ_l |⟨A_l, W⟩|² has the
    mean ‖W‖²; of rank one they are a_l b_lᴴ, alike. `noise` is the standard deviation of √p times
    an error: that of a measurement of norm 1.

    - `spectrum`: null: `rank` ones; `measurements`: p, null: 4r(m + n − r), four times the
      dimension of M_r

    Raises: ValueError for a rank that the matrix cannot have, a spectrum that is not `rank`
        positive numbers, and choices that there are not.
    """
    m = n if rows is None else rows
    for name, value, choices in (("operators", operators, OPERATORS), ("field", field, FIELDS)):
        if value not in choices:
            raise ValueError(f"problem.{name} must be {' or '.join(choices)}; got {value!r}.")
    values = torch.tensor([1.0] * rank if spectrum is None else list(spectrum), dtype=dtype)
    if not 1 <= rank <= min(m, n) or len(values) != rank or not bool((values > 0).all()):
        raise ValueError(
            f"problem.rank must be from 1 to {min(m, n)} and problem.spectrum so many positive "
            f"numbers, the singular values of the matrix; got rank {rank} and {values.tolist()}."
        )
    drawn, (U, sigma, V) = MatrixSensing.planted(
        (m, n),
        rank,
        measurements=measurements,
        operators=operators,
        spectrum=values.tolist(),
        noise=noise,
        generator=generator,
        dtype=dtype.to_complex() if field == "complex" else dtype,
    )
    truth = (U * sigma) @ V.mH
    problem, p = Recovery(drawn.operators, drawn.values, truth), len(drawn.values)
    kind = "of rank one" if operators == "rank_one" else "Gaussian"
    note = f"{p} measurements, {kind}, of a {m}×{n} matrix of rank {rank}; loss ½Σ(⟨A, W⟩ − b)²"
    return Data(problem, notes=(note,), truth=truth)


def classification(
    *, data: str = "digits", standardize: bool = True, dtype: torch.dtype = torch.float64
) -> Data:
    """Classes of bundled samples by multinomial logistic regression, and its accuracy.

    `standardize` as in `prepare`; there is no intercept, so that the samples should be centred.

    Raises: ValueError for data that are not bundled.
    """
    import sklearn.datasets as bundled  # slow to import, and needed here alone

    if data not in BUNDLED:
        raise ValueError(f"problem.data must be {', '.join(BUNDLED)}; got {data!r}.")
    load = {
        "digits": bundled.load_digits,
        "breast_cancer": bundled.load_breast_cancer,
        "iris": bundled.load_iris,
        "wine": bundled.load_wine,
    }[data]
    found = load()
    samples = torch.as_tensor(found["data"], dtype=torch.float64)
    names = tuple(map(str, found["feature_names"])), None
    done, notes = Preparation.fitted(
        lambda: [(samples, None)], names, standardize=standardize, normalize=False
    )
    classes = tuple(map(str, found["target_names"]))
    x, _ = done(samples, None, dtype)
    problem = LogisticRegression(x, torch.as_tensor(found["target"]))
    first = (
        f"scikit-learn {data}, {len(x)} samples of {x.shape[1]} numbers in {len(classes)} classes"
    )
    done = replace(done, y=Columns.plain(classes), classes=classes)
    return Data(problem, x, notes=(first, *notes), preparation=done)
