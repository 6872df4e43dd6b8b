"""Columns of a stream of samples: their means and deviations, and the map to mean 0, variance 1."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["ColumnStatistics", "Standardizer", "cast"]


class Standardizer:
    """Column means and deviations of a stream, gathered in one pass, and the map they define."""

    def __init__(
        self, batches: Iterable[tuple[Tensor, Tensor | None]], standardize: bool, normalize: bool
    ):
        of_x, of_y = ColumnStatistics(), ColumnStatistics()
        for x, y in batches:
            of_x.add(x)
            if y is not None:
                of_y.add(y)
        self.notes: tuple[str, ...] = ()
        self.x_statistics = of_x if standardize else None
        self.y_statistics = of_y if standardize and of_y.m else None
        self.factor = of_x.m**-0.5 if normalize else 1.0
        if standardize:
            dropped, kept = int((~of_x.varies).sum()), int(of_x.varies.sum())
            for name, statistics in (("x", of_x), ("y", self.y_statistics)):
                if statistics is not None and not bool(statistics.varies.any()):
                    raise ValueError(
                        f"no column of {name} varies, so nothing is left after standardising: "
                        "use problem.standardize=false."
                    )
            removed = (
                f"{dropped} columns that never vary were removed, the other " if dropped else ""
            )
            centred = " and y was centred" if self.y_statistics is not None else ""
            self.notes += (f"{removed}{kept} columns of x were standardised{centred}",)
        if normalize:
            self.notes += (f"samples were divided by √m = √{of_x.m}",)

    def __call__(
        self, x: Tensor, y: Tensor | None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor | None]:
        of_x, of_y = self.x_statistics, self.y_statistics
        if of_x is None:
            x = self.factor * x
        else:
            x = self.factor * of_x.centred(x)[:, of_x.varies] / of_x.deviation[of_x.varies]
        if y is not None:
            y = self.factor * (y if of_y is None else of_y.centred(y) * of_y.unit)
        if dtype is not None:
            x, y = cast("x", x, dtype), None if y is None else cast("y", y, dtype)
        return x, y


class ColumnStatistics:
    """Mean, deviation, least and largest entry of each column of a stream, in `unit`s.

    A column's unit is a power of two near its largest entry, so that no square leaves the number
    format. Means and squared deviations of batches are merged by the update of Chan, Golub and
    LeVeque, which loses no digits to a large mean.
    """

    def __init__(self) -> None:
        self.m = 0
        self.unit = self.mean = self._squares = self._low = self._high = torch.empty(0)

    def add(self, x: Float[Tensor, "b d"]) -> None:
        """Count in a batch. Raises: ValueError for entries that are not finite."""
        if not bool(torch.isfinite(x).all()):
            raise ValueError("the data must be finite; they hold NaN or ±inf: clean the file.")
        unit = _power_of_two(x.abs().amax(0))
        if self.m == 0:
            self.unit, zero = unit, torch.zeros_like(unit)
            self.mean, self._squares, self._low, self._high = zero, zero, zero, zero
        unit = torch.maximum(unit, self.unit)
        shrunk = self.unit / unit
        x, mean = x / unit, self.mean * shrunk
        low, high = x.amin(0), x.amax(0)
        if self.m:
            low = torch.minimum(low, self._low * shrunk)
            high = torch.maximum(high, self._high * shrunk)
        share = len(x) / (self.m + len(x))
        delta = x.mean(0) - mean
        squares = (x - x.mean(0)).square().sum(0) + delta**2 * (self.m * share)
        self._squares = self._squares * shrunk**2 + squares
        self.mean, self.unit, self._low, self._high = mean + delta * share, unit, low, high
        self.m += len(x)

    @property
    def varies(self) -> Bool[Tensor, " d"]:
        """Whether a column has two entries that differ."""
        return self._high > self._low

    @property
    def deviation(self) -> Float[Tensor, " d"]:
        """The standard deviation of each column, in units."""
        return (self._squares / self.m).sqrt()

    def centred(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Samples less the mean, in units; exactly 0 in a column that never varies."""
        return x / self.unit - torch.where(self.varies, self.mean, self._low)


def _power_of_two(size: Tensor) -> Tensor:
    """The largest power of two up to each of these sizes, if not below the normal numbers."""
    unit = size / (2 * torch.frexp(size).mantissa)
    return torch.where(size > 0, unit, 0.0).clamp(min=torch.finfo(size.dtype).tiny)


def cast(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in another dtype. Raises: ValueError where it cannot hold their size."""
    inside = values.to(dtype)
    if not bool(torch.isfinite(inside).all()):
        raise ValueError(
            f"{name} has entries up to {float(values.abs().max()):.3g}, beyond "
            f"{str(dtype).removeprefix('torch.')}: use dtype=float64, or smaller numbers."
        )
    return inside
