"""A table of problems, each beside a naive formula of its loss: what tests of every loss run over.

The formula is the oracle: it is written from the definition, with samples or operators in full,
and knows nothing of the class under test.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from deeplin.problems import (
    LeastSquares,
    LogisticRegression,
    MatrixApproximation,
    MatrixCompletion,
    MatrixSensing,
    Problem,
    Ridge,
    RobustCompletion,
    from_loss,
)

F64, C128 = torch.float64, torch.complex128


@dataclass(frozen=True)
class Case:
    """A problem, its loss by definition, and the dtype of its matrices; `batch` of its own data."""

    problem: Problem
    plain: Callable[[torch.Tensor], torch.Tensor]
    dtype: torch.dtype = F64
    batch: tuple[int, ...] = ()


def draw(*shape: int, seed: int, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def squares(A: torch.Tensor, dim) -> torch.Tensor:
    return 0.5 * (A * A.conj()).real.sum(dim)


class Quartic(Problem):
    """¼Σ(|w|² − 1)² + Σ cosh Re w: not quadratic, not of pairs, known by its loss alone."""

    shape = (4, 3)

    def loss(self, W):
        return plain_quartic(W)


def plain_quartic(W):
    size = (W * W.conj()).real
    return (0.25 * (size - 1) ** 2 + W.real.cosh()).sum((-2, -1))


def least_squares(dtype: torch.dtype, *, auto: bool = False) -> Case:
    X, Y = draw(3, 9, seed=1, dtype=dtype), draw(4, 9, seed=2, dtype=dtype)
    Y = X if auto else Y
    return Case(LeastSquares(X, Y), lambda W: squares(Y - W @ X, (-2, -1)), dtype)


def approximation(dtype: torch.dtype, *batch: int) -> Case:
    X = draw(*batch, 4, 3, seed=3, dtype=dtype)
    return Case(MatrixApproximation(X), lambda W: squares(W - X, (-2, -1)), dtype, batch)


def completion(dtype: torch.dtype, *batch: int) -> Case:
    rows, cols = [0, 1, 3, 3, 2, 3], [0, 2, 1, 1, 2, 1]  # entry (3, 1) is listed three times
    b = draw(*batch, 6, seed=4, dtype=dtype)

    def plain(W):
        errors = [W[..., i, j] - b[..., k] for k, (i, j) in enumerate(zip(rows, cols, strict=True))]
        return squares(torch.stack(errors, -1), -1)

    return Case(MatrixCompletion(rows, cols, b, (4, 3)), plain, dtype, batch)


def sensing(dtype: torch.dtype, p: int, *, pair: bool) -> Case:
    a, b = draw(p, 4, seed=5, dtype=dtype), draw(p, 3, seed=6, dtype=dtype)
    A = a[:, :, None] * b.conj()[:, None, :] if pair else draw(p, 4, 3, seed=7, dtype=dtype)
    y = draw(p, seed=8, dtype=dtype)

    def plain(W):
        traces = [(M.mH @ W).diagonal(dim1=-2, dim2=-1).sum(-1) for M in A]
        return squares(torch.stack(traces, -1) - y, -1)

    return Case(MatrixSensing((a, b) if pair else A, y), plain, dtype)


def logistic(classes: int, samples: int, d: int) -> Case:
    x = draw(samples, d, seed=9)
    labels = torch.arange(samples) * 7 % classes

    def plain(W):
        logits = torch.einsum("...cd,sd->...sc", W, x)
        odds = logits.exp() / logits.exp().sum(-1, keepdim=True)
        return -torch.stack([odds[..., i, c].log() for i, c in enumerate(labels)]).mean(0)

    return Case(LogisticRegression(x, labels), plain)


def function(dtype: torch.dtype, *, pair: bool, shape: tuple[int, int] = (4, 3)) -> Case:
    T = draw(*shape, seed=10, dtype=dtype)

    def plain(W):
        return ((W - T) * (W - T).conj()).real.sum((-2, -1)).log1p()

    def of_pair(A, B):
        return plain(A @ B.mH)

    field = "complex" if dtype.is_complex else "real"
    problem = from_loss(of_pair if pair else plain, shape, pair=pair, field=field)
    return Case(problem, plain, dtype)


def robust(*batch: int) -> Case:
    rows, cols = [0, 1, 3, 3, 2, 3], [0, 2, 1, 1, 2, 1]
    b, w = draw(*batch, 6, seed=4), draw(6, seed=12).abs()

    def plain(W):
        total = 0
        for k, (i, j) in enumerate(zip(rows, cols, strict=True)):
            e = (W[..., i, j] - b[..., k]).abs()
            total = total + w[k] * torch.where(e <= 0.8, 0.5 * e**2, 0.8 * e - 0.32)
        return total

    return Case(RobustCompletion(rows, cols, b, (4, 3), delta=0.8, weights=w), plain, F64, batch)


def ridge(case: Case) -> Case:
    def plain(W):
        return case.plain(W) + 0.7 * squares(W, (-2, -1))

    return Case(Ridge(case.problem, 0.7), plain, case.dtype, case.batch)


CASES = {
    "least squares": least_squares(F64),
    "least squares, complex": least_squares(C128),
    "autoencoder": least_squares(F64, auto=True),
    "autoencoder, complex": least_squares(C128, auto=True),
    "approximation": approximation(F64),
    "approximation, complex": approximation(C128),
    "approximation, batch": approximation(F64, 2),
    "completion": completion(F64),
    "completion, complex": completion(C128),
    "completion, batch": completion(F64, 2),
    "sensing": sensing(F64, 7, pair=False),
    "sensing, complex": sensing(C128, 15, pair=False),
    "sensing, rank one": sensing(F64, 7, pair=True),
    "sensing, rank one, complex": sensing(C128, 7, pair=True),
    "robust": robust(),
    "robust, batch": robust(2),
    "ridge": ridge(completion(F64)),
    "ridge, complex": ridge(sensing(C128, 7, pair=True)),
    "logistic": logistic(4, 12, 3),
    "logistic, wide": logistic(3, 5, 40),
    "own class": Case(Quartic(), plain_quartic),
    "function": function(F64, pair=False),
    "function of pairs": function(F64, pair=True),
    "function of pairs, complex": function(C128, pair=True, shape=(3, 5)),
}
