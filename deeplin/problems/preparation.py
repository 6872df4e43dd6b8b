"""What is done to samples before a problem is made of them, kept so that a run can be used.

scikit-learn's scalers find the numbers; what is kept of them are plain numbers and words, from
which they are made again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from deeplin.linalg import agreed, gathered
from deeplin.problems.tables import Encoding, numbered

if TYPE_CHECKING:
    from sklearn.preprocessing import StandardScaler

__all__ = ["Classes", "Columns", "Pair", "Preparation", "in_dtype"]

Pair = tuple[Tensor, Tensor | None]
Classes = tuple[str, ...] | tuple[int, ...]

# Beyond these sizes squares may leave the number format: such a column is measured in a unit.
_SMALL, _LARGE = 1e-100, 1e100
_SHOWN = 4  # columns that a sentence lists at most


@dataclass(frozen=True)
class Columns:
    """The columns of a table of numbers, and the map z = (x − mean)/scale of those that are kept.

    scikit-learn's StandardScaler after VarianceThreshold, known by its numbers. `fill` is what
    missing entries (NaN) are taken for; None: nothing may be missing.

    Shapes: mean, scale, kept and fill (p,), of all columns; what is made of samples (m, p) is
        (m, k) for the k kept.
    """

    names: tuple[str, ...]
    mean: Float[np.ndarray, " p"]
    scale: Float[np.ndarray, " p"]
    kept: np.ndarray
    fill: Float[np.ndarray, " p"] | None = None

    @classmethod
    def plain(cls, names: Sequence[str]) -> Columns:
        """All columns as they are."""
        p = len(names)
        return cls(tuple(names), np.zeros(p), np.ones(p), np.ones(p, dtype=bool))

    @property
    def left_out(self) -> str:
        """The names of the columns that are left out."""
        out = [name for name, kept in zip(self.names, self.kept, strict=True) if not kept]
        return f"{', '.join(out[:_SHOWN])}{', …' if len(out) > _SHOWN else ''}"

    def scaler(self) -> StandardScaler:
        """scikit-learn's own object for the columns that are kept."""
        from sklearn.preprocessing import StandardScaler  # slow to import, and needed here alone

        scaler = StandardScaler()
        scaler.mean_, scaler.scale_ = self.mean[self.kept], self.scale[self.kept]
        with np.errstate(over="ignore", under="ignore"):
            scaler.var_ = scaler.scale_**2  # which no transformation asks
        scaler.n_features_in_ = int(self.kept.sum())  # pyright: ignore[reportAttributeAccessIssue]
        scaler.n_samples_seen_ = 1  # by which it knows that it is fitted
        return scaler

    def __call__(self, values: Float[Tensor, "m p"]) -> Float[Tensor, "m k"]:
        """(x − mean)/scale of the kept columns, in the dtype of the samples."""
        chosen = values if self.kept.all() else values[:, torch.from_numpy(self.kept)]
        if self.fill is not None:
            fill = torch.from_numpy(self.fill[self.kept]).to(values)
            chosen = torch.where(chosen.isnan(), fill, chosen)
        scaled = self.scaler().transform(chosen.numpy(force=True))
        return torch.as_tensor(scaled, dtype=values.dtype, device=values.device)

    def undone(self, values: Float[Tensor, "*batch m k"]) -> Float[Tensor, "*batch m p"]:
        """mean + scale·z; of columns that were left out the mean, which all their samples have."""
        mean, scale = (torch.as_tensor(v).to(values) for v in (self.mean, self.scale))
        kept = torch.as_tensor(self.kept, device=values.device)
        whole = mean.expand(*values.shape[:-1], len(mean)).clone()
        whole[..., kept] += values * scale[kept]
        return whole

    def state_dict(self) -> dict[str, object]:
        return {
            "names": list(self.names),
            "mean": torch.from_numpy(self.mean),
            "scale": torch.from_numpy(self.scale),
            "kept": torch.from_numpy(self.kept),
            "fill": None if self.fill is None else torch.from_numpy(self.fill),
        }

    @classmethod
    def from_state_dict(cls, saved: Mapping[str, object]) -> Columns:
        mean, scale, kept = (
            cast(Tensor, saved[name]).numpy(force=True) for name in ("mean", "scale", "kept")
        )
        fill = cast(Tensor | None, saved["fill"])
        fill = None if fill is None else fill.numpy(force=True)
        return cls(tuple(cast(Sequence[str], saved["names"])), mean, scale, kept, fill)


class _Statistics:
    """Means, deviations and ends of columns, gathered batch by batch by scikit-learn's scalers."""

    def __init__(self, names: Sequence[str], fill: bool, unit: np.ndarray | None = None):
        from sklearn.preprocessing import MinMaxScaler, StandardScaler  # as above

        self.names, self.fill, self.m = tuple(names), fill, 0
        self.unit = np.ones(len(names)) if unit is None else unit
        self.scaler, self.extent = StandardScaler(), MinMaxScaler()

    def add(self, batch: Float[Tensor, "b p"]) -> None:
        """Count in a batch. Raises: ValueError for entries that are not finite."""
        values = batch.numpy(force=True)
        if np.isinf(values).any() or (np.isnan(values).any() and not self.fill):
            raise ValueError("the data must be finite; they hold NaN or ±inf: clean the file.")
        self.m += len(values)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            self.extent.partial_fit(values)
            self.scaler.partial_fit(values if (self.unit == 1).all() else values / self.unit)

    def merged(self, other: _Statistics) -> _Statistics:
        """Those of the samples of both, by the pairwise update of means and squares [CGL83]."""
        made = _Statistics(self.names, self.fill, self.unit)
        made.m = self.m + other.m
        a, b = self.scaler, other.scaler
        n, k = (np.broadcast_to(s.n_samples_seen_, len(self.names)) for s in (a, b))
        both = n + k
        # A column of which one of them has seen nothing has NaN there.
        known = (np.asarray(v, float) for v in (a.mean_, b.mean_, a.var_, b.var_))
        mean_a, mean_b, var_a, var_b = map(np.nan_to_num, known)
        of = np.maximum(both, 1)
        mean = mean_a + (mean_b - mean_a) * (k / of)
        var = (n * var_a + k * var_b + (mean_b - mean_a) ** 2 * (n * k / of)) / of
        made.scaler.mean_, made.scaler.var_ = mean, var
        made.scaler.n_samples_seen_ = both
        # As StandardScaler has it: what varies by round-off alone is constant, of scale 1.
        eps = np.finfo(float).eps
        constant = var <= both * eps * var + (both * mean * eps) ** 2
        made.scaler.scale_ = np.where(constant, 1.0, np.sqrt(var))
        made.extent.data_min_ = np.fmin(self.extent.data_min_, other.extent.data_min_)
        made.extent.data_max_ = np.fmax(self.extent.data_max_, other.extent.data_max_)
        return made

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the largest entry of each column."""
        low, high = (np.asarray(v, float) for v in (self.extent.data_min_, self.extent.data_max_))
        for name, number in zip(self.names, low, strict=True):
            if np.isnan(number):
                raise ValueError(f"column {name!r} holds no number: leave it out of the file.")
        return low, high

    def better_unit(self) -> np.ndarray | None:
        """Powers of two near the largest entries, where squares of some leave the number format."""
        low, high = self.ends
        size = np.maximum(np.abs(low), np.abs(high))
        if not (((size < _SMALL) | (size > _LARGE)) & (size > 0)).any():
            return None
        unit = np.ldexp(1.0, np.frexp(np.where(size > 0, size, 1.0))[1] - 1)
        return np.maximum(unit, np.finfo(float).tiny)

    def columns(self, *, centre: bool = True, scale: bool = True) -> Columns:
        """Columns less their mean, over their deviation; those that never vary are left out.

        Without `scale` all columns are kept; one that never varies becomes 0 exactly. Deviations
        are those of the columns after what is missing was filled.
        """
        low, high = self.ends
        mean = np.where(high > low, np.asarray(self.scaler.mean_, float) * self.unit, low)
        of = replace(Columns.plain(self.names), fill=mean if self.fill else None)
        if not centre:
            return of
        if not scale:
            return replace(of, mean=mean)
        seen = np.broadcast_to(self.scaler.n_samples_seen_, len(mean)) / self.m
        deviation = np.sqrt(np.asarray(self.scaler.var_, float))
        # What varies by round-off alone StandardScaler takes for constant: its scale is then 1.
        kept = (high > low) & (deviation == self.scaler.scale_)
        scales = np.where(kept, deviation * np.sqrt(seen) * self.unit, 1.0)
        return replace(of, mean=mean, scale=scales, kept=kept)


def _gathered(
    batches: Iterable[Pair],
    names: Sequence[Sequence[str] | None],
    fill: bool,
    units: Sequence[np.ndarray | None],
    group: dist.ProcessGroup | None = None,
) -> list[_Statistics]:
    """The statistics of x and, where there are labels, of y; missing may be entries of x alone.

    With a group, of the batches of all its processes.
    """
    of = agreed(group, functools.partial(_of_batches, batches, names, fill, units))
    if group is None:
        return of
    seen = [one for one in gathered(of, group) if one]
    return [functools.reduce(_Statistics.merged, sides) for sides in zip(*seen, strict=True)]


def _of_batches(
    batches: Iterable[Pair],
    names: Sequence[Sequence[str] | None],
    fill: bool,
    units: Sequence[np.ndarray | None],
) -> list[_Statistics]:
    of: list[_Statistics] = []
    for pair in batches:
        sides = [values for values in pair if values is not None]
        if not of:
            given = zip("xy", sides, names, units, strict=False)
            of = [
                _Statistics(numbered(side, v.shape[1]) if n is None else n, fill and side == "x", u)
                for side, v, n, u in given
            ]
        for statistics, values in zip(of, sides, strict=True):
            statistics.add(values)
    return of


@dataclass(frozen=True)
class Preparation:
    """From a user's samples to those of the problem, and back: what a prediction needs to know.

    The problem's samples are `factor`·T·z, z = `x`(samples), and what it predicts are
    `factor`·labels, labels of the map `y`; for an autoencoder (`y` None) those of `x`, coordinates
    on the columns of `basis` where that is given.

    - `T` (k, p): the coordinates or the whitening of z that the problem sees; None: z itself
    - `basis` (p, k): y of the problem are coordinates on its columns; None: y itself
    - `classes`: the names of the columns of y, where these are one-hot
    - `encoding`: how the columns of a table become those of x; None: they are
    """

    x: Columns
    y: Columns | None
    factor: float = 1.0
    T: Tensor | None = None
    basis: Tensor | None = None
    classes: Classes | None = None
    encoding: Encoding | None = None

    @classmethod
    def nothing(cls, d_x: int, d_y: int | None) -> Preparation:
        """That of samples to which nothing was done; d_y None for an autoencoder."""
        y = None if d_y is None else Columns.plain(numbered("y", d_y))
        return cls(Columns.plain(numbered("x", d_x)), y)

    @classmethod
    def fitted(
        cls,
        batches: Callable[[], Iterable[Pair]],
        names: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
        *,
        standardize: bool,
        normalize: bool,
        fill: bool = False,
        classes: Classes | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> tuple[Preparation, tuple[str, ...]]:
        """That of a stream of pairs (x, y), as `prepare` of `data` has it, and notes for the user.

        With `fill` what is missing of x, NaN, is taken for its column's mean. With a `group` of
        torch.distributed the stream is spread over its processes, and all get the same.

        Cost: one pass through the stream; a second one where a column is so large or small that its
        squares may leave the number format.
        Raises: ValueError for entries that are not finite, and where no column varies.
        """
        of = _gathered(batches(), names, fill, (None, None), group)
        units = [statistics.better_unit() for statistics in of]
        if any(unit is not None for unit in units):
            of = _gathered(batches(), names, fill, units, group)
        x = of[0].columns(centre=standardize)
        y = of[1].columns(centre=standardize, scale=False) if len(of) > 1 else None
        for name, kept in (("x", x.kept), ("y", of[-1].columns().kept)):
            if standardize and not kept.any():
                raise ValueError(
                    f"no column of {name} varies, so nothing is left after standardising: "
                    "use problem.standardize=false."
                )
        m = of[0].m
        made = cls(x, y, m**-0.5 if normalize else 1.0, classes=classes)
        return made, made.told(standardize, m if normalize else None)

    def told(self, standardize: bool, m: int | None) -> tuple[str, ...]:
        """Sentences on what was done; with m, samples were divided by √m."""
        notes = []
        if standardize:
            dropped, kept = int((~self.x.kept).sum()), int(self.x.kept.sum())
            removed = (
                f"{dropped} columns that never vary were removed ({self.x.left_out}), the other "
                if dropped
                else ""
            )
            centred = " and y was centred" if self.y is not None else ""
            notes.append(f"{removed}{kept} columns of x were standardised{centred}")
        if m is not None:
            notes.append(f"samples were divided by √m = √{m}")
        return tuple(notes)

    def __call__(
        self, x: Tensor, y: Tensor | None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The samples of the problem before `T`, in another dtype if one is given."""
        x = self.factor * self.x(x)
        y = None if y is None or self.y is None else self.factor * self.y(y)
        if dtype is None:
            return x, y
        return in_dtype("x", x, dtype), None if y is None else in_dtype("y", y, dtype)

    def after(self, T: Tensor, basis: Tensor | None) -> Preparation:
        """The same with other coordinates of the inputs, T·z, and of what is predicted."""
        return replace(self, T=T.cpu(), basis=None if basis is None else basis.cpu())

    @property
    def outputs(self) -> Columns:
        """The columns that are predicted."""
        return self.x if self.y is None else self.y

    def inputs(self, samples: Float[Tensor, "m p"]) -> Float[Tensor, "m k"]:
        """T·z of a user's samples, without the factor, which a prediction has on both sides."""
        z = self.x(samples)
        return z if self.T is None else z @ self.T.to(z).mT

    def predicted(self, values: Float[Tensor, "*batch m k"]) -> Float[Tensor, "*batch m q"]:
        """What the problem predicts for `inputs`, in the user's units."""
        z = values if self.basis is None else values @ self.basis.to(values).mT
        return self.outputs.undone(z)

    def affine(
        self, W: Float[Tensor, "*batch q k"]
    ) -> tuple[Float[Tensor, "*batch q p"], Float[Tensor, " p"], Float[Tensor, " q"]]:
        """(A, centre, offset) with A(x − centre) + offset the prediction for a user's sample x."""
        inputs, outputs = self.x, self.outputs
        A = W if self.T is None else W @ self.T.to(W)
        A = A if self.basis is None else self.basis.to(W) @ A
        scale_x, scale_y = (torch.as_tensor(c.scale[c.kept]).to(W) for c in (inputs, outputs))
        A = scale_y[:, None] * A / scale_x
        whole = A.new_zeros(*A.shape[:-2], len(outputs.names), len(inputs.names))
        rows = torch.from_numpy(outputs.kept).nonzero()
        whole[..., rows, torch.from_numpy(inputs.kept).nonzero().ravel()] = A
        return whole, torch.as_tensor(inputs.mean), torch.as_tensor(outputs.mean)

    def state_dict(self) -> dict[str, object]:
        """Plain numbers, words and tensors."""
        return {
            "x": self.x.state_dict(),
            "y": None if self.y is None else self.y.state_dict(),
            "factor": self.factor,
            "T": self.T,
            "basis": self.basis,
            "classes": None if self.classes is None else list(self.classes),
            "encoding": None if self.encoding is None else self.encoding.state_dict(),
        }

    @classmethod
    def from_state_dict(cls, saved: Mapping[str, object]) -> Preparation:
        x, y, classes = saved["x"], saved["y"], saved["classes"]
        encoding = cast(Mapping[str, object] | None, saved["encoding"])
        return cls(
            Columns.from_state_dict(cast(Mapping[str, object], x)),
            None if y is None else Columns.from_state_dict(cast(Mapping[str, object], y)),
            cast(float, saved["factor"]),
            cast(Tensor | None, saved["T"]),
            cast(Tensor | None, saved["basis"]),
            None if classes is None else tuple(cast(Sequence[str], classes)),
            None if encoding is None else Encoding.from_state_dict(encoding),
        )


def in_dtype(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in another dtype. Raises: ValueError where it cannot hold their size."""
    inside = values.to(dtype)
    if not bool(torch.isfinite(inside).all()):
        raise ValueError(
            f"{name} has entries up to {float(values.abs().max()):.3g}, beyond "
            f"{str(dtype).removeprefix('torch.')}: use dtype=float64, or smaller numbers."
        )
    return inside
