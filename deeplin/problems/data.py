"""Where X and Y come from: drawn at random, or bundled; standardised, normalised, whitened."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.linalg import chain, random_orthogonal
from deeplin.problems.contract import Problem
from deeplin.problems.held_out import HeldOut, share_held_out
from deeplin.problems.least_squares import LeastSquares
from deeplin.problems.memory import ask_for_memory
from deeplin.problems.pairs import Pairs
from deeplin.problems.preparation import Classes, Preparation
from deeplin.problems.widths import grid_widths

__all__ = [
    "Data",
    "approximation",
    "digits",
    "gaussian",
    "one_hot",
    "prepare",
    "teacher",
]

SINGULAR_CHOICES = ("keep", "project", "whiten")
MATRIX_KINDS = ("psd", "hermitian", "general")
FIELDS = ("real", "complex")


@dataclass(frozen=True)
class Data:
    """A problem, the samples it came from if they fit in memory, and what was done to them.

    `x`, `y` hold a sample per row; y is x for an autoencoder. `notes` are sentences for the user;
    `truth` is the matrix that made the labels, where one did; `preparation` is what was done to
    the samples, None where nothing was.
    """

    problem: Problem
    x: Tensor | None = None
    y: Tensor | None = None
    notes: tuple[str, ...] = ()
    truth: Tensor | None = None
    preparation: Preparation | Pairs | None = None

    @classmethod
    def from_samples(cls, x: Tensor, y: Tensor | None, *notes: str) -> Data:
        """Data of samples in rows; y = None makes an autoencoder."""
        y = x if y is None else y
        return cls(LeastSquares.from_samples(x, y), x, y, notes)

    @property
    def least_squares(self) -> LeastSquares:
        """The problem, which samples and labels make one of least squares. TypeError if not."""
        if not isinstance(self.problem, LeastSquares):
            raise TypeError(f"this is of least squares alone; got {type(self.problem).__name__}.")
        return self.problem

    def regularised(self, singular: str) -> Data:
        """Deal with a singular XXᵀ: "keep" it (and warn), "project" onto its range, or "whiten".

        `project` and `whiten` apply to regular data too: coordinates in the eigenbasis of XXᵀ, or
        inputs with XXᵀ = I.
        """
        if singular not in SINGULAR_CHOICES:
            raise ValueError(
                f"problem.singular must be one of {', '.join(SINGULAR_CHOICES)}; got {singular!r}."
            )
        problem = self.least_squares
        if singular == "keep":
            warning = problem.rank_warning()
            if warning is None:
                return self
            hint = "With the runner: problem.singular=project or problem.singular=whiten."
            return replace(self, notes=(*self.notes, f"{warning} {hint}"))
        basis = None
        if singular == "project":
            T, new, both = problem.range_basis().mT, problem.projected(), problem.is_autoencoder
            basis = T.mT if both else None
            note = f"x was replaced by its {len(T)} coordinates on the range of XXᵀ."
        else:
            T, new, both = problem.whitening(), problem.whitened(), False
            note = f"x was whitened on the {len(T)}-dimensional range of XXᵀ; y is unchanged."
        x = None if self.x is None else self.x @ T.mT
        if problem.held_out is not None:
            new.held_out = problem.held_out.after(T, basis)
        d_y = None if problem.is_autoencoder else problem.d_y
        done = self.preparation or Preparation.nothing(problem.d_x, d_y)
        assert isinstance(done, Preparation)  # of pairs there is no least squares
        return Data(
            new,
            x,
            x if both else self.y,
            (*self.notes, note),
            preparation=done.after(T, basis),
        )

    def to(self, device: str | torch.device) -> Data:
        """The same data on another device."""
        x, y = (None if v is None else v.to(device) for v in (self.x, self.y))
        return replace(self, problem=self.problem.to(device), x=x, y=y)


def gaussian(
    d: int = 20,
    m: int | None = None,
    *,
    singular: str = "keep",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Data:
    """The Gaussian autoencoder: m = 3d samples from N(0, I/d), Y = X.

    Source: BRTW §7.1.1. Raises: ValueError unless d, m >= 1.
    """
    x = _gaussian_samples(d, m, generator, dtype)
    return Data.from_samples(x, None, f"{len(x)} samples from N(0, I/{d}), Y = X").regularised(
        singular
    )


def teacher(
    d: int = 20,
    m: int | None = None,
    *,
    rank: int = 2,
    depth: int = 2,
    spectrum: Sequence[float] | None = None,
    singular: str = "keep",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Data:
    """Labels Y = W̃X of a random teacher W̃ of the given rank.

    Without a `spectrum` it is a deep linear network W̃_N···W̃_1, whose widths are those of
    `grid_widths(d, d, depth, rank)`, the entries of W̃_j Gaussian with standard deviation 1/√d_j:
    its singular values fall with the depth. With one, W̃ = U diag(spectrum) Vᵀ for random
    orthonormal U and V, the same whatever the depth. The m = 3d samples are from N(0, I/d).

    Source: BRTW §7.2. Raises: ValueError unless d, m >= 1, depth >= 2 and 1 <= rank <= d, and for a
    spectrum that is not `rank` positive numbers.
    """
    x = _gaussian_samples(d, m, generator, dtype)
    if spectrum is None:
        widths = grid_widths(d, d, depth, rank)
        layers = [
            d_out**-0.5 * torch.randn(d_out, d_in, dtype=dtype, generator=generator)
            for d_in, d_out in itertools.pairwise(widths)
        ]
        W, kind = chain(layers), f"a teacher of depth {depth}, rank {rank}"
    else:
        values = torch.tensor([float(v) for v in spectrum], dtype=dtype)
        if not len(values) == rank <= d or not bool(((values > 0) & torch.isfinite(values)).all()):
            raise ValueError(
                f"problem.spectrum must be problem.rank = {rank} <= d = {d} positive numbers, the "
                f"singular values of the teacher; got {values.tolist()}."
            )
        U, V = (random_orthogonal(d, rank, dtype=dtype, generator=generator) for _ in range(2))
        W, kind = (U * values) @ V.mT, f"a teacher of singular values {values.tolist()}"
    note = f"{len(x)} samples from N(0, I/{d}), labels of {kind}"
    made = Data.from_samples(x, x @ W.mT, note).regularised(singular)
    return replace(made, truth=W if singular == "keep" else None)


def approximation(
    n: int = 100,
    spectrum: Sequence[float] = (1.0, 0.8, 0.6, 0.4, 0.2),
    *,
    kind: str = "psd",
    field: str = "real",
    rows: int | None = None,
    rotate: bool = True,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Data:
    """The approximation of a matrix, ½‖Z − X‖_F²: the least squares of C = I and B = X.

    The spectrum, in which numbers may repeat, is that of X, and its frames are random and
    independent, or columns of the identity without `rotate`:

    - kind "psd": X = QDQᴴ with positive eigenvalues D, n×n
    - kind "hermitian": the same with eigenvalues of either sign
    - kind "general": X = UDVᴴ with positive singular values D, rows×n

    For the field "complex" X has the complex counterpart of the given dtype.

    Source: HLZ §1, HLZ §5; there m = n = 100, r = 5, X positive semidefinite, and the eigenvalues
    unstated.
    Raises: ValueError for a spectrum that is none of the kind's or has more than min(rows, n)
        numbers, and for rows != n where X is square.
    """
    _check_matrix_kind(kind, field, rows, n)
    m = n if rows is None else rows
    size = n * (m + n) * dtype.itemsize
    ask_for_memory(f"the approximation of {m}×{n} matrices", size, "take a smaller one")
    values = torch.tensor([float(v) for v in spectrum or ()], dtype=dtype.to_real())
    signed = kind == "hermitian"
    fits = (values != 0 if signed else values > 0).all() & torch.isfinite(values).all()
    if not 1 <= len(values) <= min(m, n) or not bool(fits):
        what = {"psd": "positive eigenvalues", "hermitian": "eigenvalues other than 0"}
        hint = "; problem.kind=hermitian has negative ones" if kind == "psd" else ""
        raise ValueError(
            f"problem.spectrum must be 1 to {'n' if m == n else 'min(rows, n)'} = {min(m, n)} "
            f"{what.get(kind, 'positive singular values')}; got {values.tolist()}{hint}."
        )
    dtype = dtype.to_complex() if field == "complex" else dtype

    def frame(size: int) -> Tensor:
        if not rotate:
            return torch.eye(size, len(values), dtype=dtype)
        return random_orthogonal(size, len(values), dtype=dtype, generator=generator)

    U = frame(m)
    X = (U * values) @ (frame(n) if kind == "general" else U).mH
    problem = LeastSquares.from_moments(torch.eye(n, dtype=dtype), X, values.square().sum())
    size = f"of size {n}" if m == n else f"{m}×{n}"
    named = "" if kind == "psd" else f" {'Hermitian' if signed else 'general'}"
    named = f"{named} {field}" if field == "complex" else named
    note = f"X{f',{named},' if named else ''} {size} and rank {len(values)}; loss ½‖W − X‖²"
    return Data(problem, None, None, (note,))


def _check_matrix_kind(kind: str, field: str, rows: int | None, n: int) -> None:
    """Raise ValueError with one sentence unless there are matrices X of this kind and size."""
    for name, value, choices in (("kind", kind, MATRIX_KINDS), ("field", field, FIELDS)):
        if value not in choices:
            raise ValueError(f"problem.{name} must be {' or '.join(choices)}; got {value!r}.")
    if rows is not None and rows != n and kind != "general":
        raise ValueError(
            f"problem.rows={rows} with n = {n} needs problem.kind=general; X of kind {kind} is "
            "square."
        )


def digits(
    *,
    target: str = "autoencoder",
    standardize: bool = True,
    normalize: bool = True,
    singular: str = "keep",
    test: float = 0.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Data:
    """scikit-learn's 1797 bundled images of handwritten digits, 8×8 pixels.

    target = "autoencoder" has Y = X, "labels" the one-hot digit. `standardize`, `normalize`
    and `test` as in `prepare`.
    """
    from sklearn.datasets import load_digits  # slow to import, and needed here alone

    if target not in ("autoencoder", "labels"):
        raise ValueError(f"problem.target must be autoencoder or labels; got {target!r}.")
    images, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(images, dtype=dtype)
    y, classes = one_hot(torch.as_tensor(labels), dtype) if target == "labels" else (None, None)
    data = prepare(
        x,
        y,
        standardize=standardize,
        normalize=normalize,
        classes=classes,
        test=test,
        generator=generator,
    )
    first = f"scikit-learn digits, {len(x)} images of {x.shape[1]} pixels"
    return replace(data, notes=(first, *data.notes)).regularised(singular)


def prepare(
    x: Float[Tensor, "m d_x"],
    y: Float[Tensor, "m d_y"] | None,
    *,
    standardize: bool = True,
    normalize: bool = True,
    dtype: torch.dtype | None = None,
    classes: Classes | None = None,
    names: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
    fill: bool = False,
    test: float = 0.0,
    generator: torch.Generator | None = None,
) -> Data:
    """Samples made fit for a linear map without bias, and for steps that do not depend on m.

    `standardize`: columns of x that never vary are removed, so that XXᵀ can have full rank; the
    others get mean 0 and variance 1, whatever their size; y, if given, gets mean 0. `normalize`: x
    and y are divided by √m, so that XXᵀ is the covariance (or second-moment) matrix of the samples.
    With `dtype` the result has that; what it is made from need not fit into it. `classes` are
    those of one-hot labels, `names` those of the columns of x and y; with `fill` what is missing
    of x, NaN, is taken for its column's mean. How to do the same to other samples is the data's
    `preparation`.

    Of a share `test` of the samples, chosen by the generator, nothing is used but for the scores in
    the problem's `report`.

    Raises: ValueError for samples that are not finite, where none varies, for sizes whose squares
        leave the number format, and for a share that leaves too few samples.
    """
    if y is not None and len(x) != len(y):
        raise ValueError(f"x and y must have equally many rows; got {len(x)} and {len(y)}.")
    told: tuple[str, ...] = ()
    rest = None
    if test:
        chosen, left = share_held_out(len(x), test, generator)
        rest = x[chosen], None if y is None else y[chosen]
        x, y = x[left], None if y is None else y[left]
        told = (f"{len(chosen)} of {len(chosen) + len(left)} samples are held out",)
    done, notes = Preparation.fitted(
        lambda: [(x, y)],
        names,
        standardize=standardize,
        normalize=normalize,
        fill=fill,
        classes=classes,
    )
    data = Data.from_samples(*done(x, y, dtype), *told, *notes)
    if rest is not None:
        data.least_squares.held_out = _held_out(done, *rest, dtype)
    return replace(data, preparation=done)


def _held_out(done: Preparation, x: Tensor, y: Tensor | None, dtype: torch.dtype | None) -> HeldOut:
    x, labels = done(x, y, dtype)
    centre = None
    if done.classes is not None:
        centre = done.factor * torch.from_numpy(done.outputs.mean).to(x)
    return HeldOut(x, x if labels is None else labels, centre)


def _gaussian_samples(
    d: int, m: int | None, generator: torch.Generator | None, dtype: torch.dtype
) -> Tensor:
    m = 3 * d if m is None else m
    if d < 1 or m < 1:
        raise ValueError(f"d and m must be >= 1; got d={d}, m={m}.")
    size = d * (m + d) * dtype.itemsize
    ask_for_memory(f"{m} samples of {d} numbers and XXᵀ", size, "take a smaller d or m")
    return torch.randn(m, d, dtype=dtype, generator=generator) / math.sqrt(d)


def one_hot(labels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Classes]:
    """Rows of the identity for integer labels (m,), a column per distinct label, and these."""
    names, numbers = labels.unique(return_inverse=True)
    ask_for_memory(
        f"a column for each of {len(names)} classes", labels.numel() * len(names) * dtype.itemsize
    )
    return torch.nn.functional.one_hot(numbers).to(dtype), tuple(names.tolist())
