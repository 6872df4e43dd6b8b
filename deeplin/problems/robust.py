"""Completion that outliers do not carry away: Huber's loss on the entries that are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deeplin import sampled
from deeplin.problems.completion import MatrixCompletion

__all__ = ["RobustCompletion"]


class RobustCompletion(MatrixCompletion):
    """f(W) = Σ_l w_l h(W[rows_l, cols_l] − values_l), h(e) = ½e² for |e| ≤ δ, else δ|e| − ½δ².

    An entry that is far off pulls with δ, however far; on errors below δ the loss is that of
    `MatrixCompletion`. Entries, weights and products are as there; real numbers alone.

    Source: [Hub64], (3.1).
    Shapes, Cost: as `MatrixCompletion`.
    Raises: as `MatrixCompletion`; ValueError unless δ > 0; TypeError for complex values.

    >>> problem = RobustCompletion([0, 1], [1, 0], torch.tensor([2.0, 3.0]), (2, 2), delta=1.0)
    >>> problem.loss(torch.tensor([[9.0, 2.5], [103.0, 9.0]]))  # ½·0.5² and 100 − ½
    tensor(99.6250)
    """

    def __init__(
        self,
        rows: Int[Tensor, " p"] | Sequence[int],
        cols: Int[Tensor, " p"] | Sequence[int],
        values: Float[Tensor, "*batch p"],
        shape: tuple[int, int],
        *,
        delta: float,
        weights: Float[Tensor, " p"] | None = None,
        products: str = "auto",
    ):
        super().__init__(rows, cols, values, shape, weights=weights, products=products)
        if values.is_complex():
            raise TypeError(
                f"RobustCompletion: values must be real; got {values.dtype}: take MatrixCompletion."
            )
        if not 0 < delta < math.inf:
            raise ValueError(
                f"RobustCompletion: delta must be a finite number > 0; got {delta!r}: the size "
                "above which an error is an outlier's."
            )
        self.delta = float(delta)

    @classmethod
    def planted(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        shape: tuple[int, int],
        rank: int,
        *,
        delta: float,
        outliers: float = 0.1,
        outlier_size: float = 10.0,
        generator: torch.Generator | None = None,
        products: str = "auto",
        **options,
    ) -> tuple[RobustCompletion, tuple[Tensor, Tensor, Tensor]]:
        """As `MatrixCompletion.planted`, and to a share `outliers` of the known entries, drawn at
        random, normal numbers of standard deviation `outlier_size` are added.

        Raises: ValueError unless 0 <= outliers <= 1, and as `MatrixCompletion.planted`.
        """
        if not 0 <= outliers <= 1:
            raise ValueError(f"outliers must be a share from 0 to 1; got {outliers!r}.")
        clean, factors = MatrixCompletion.planted(
            shape, rank, generator=generator, products=products, **options
        )
        values = clean.values.clone()
        count = round(outliers * len(values))
        which = torch.randperm(len(values), generator=generator)[:count]
        values[which] += outlier_size * torch.randn(count, dtype=values.dtype, generator=generator)
        return cls(clean.rows, clean.cols, values, shape, delta=delta, products=products), factors

    def _sum(self, errors: Tensor, weights: Tensor | None) -> Tensor:
        near = errors.clamp(-self.delta, self.delta)
        h = near * (errors - 0.5 * near)
        return (h if weights is None else weights * h).sum(-1)

    def _slope(self, errors: Tensor, weights: Tensor | None) -> Tensor:
        near = errors.clamp(-self.delta, self.delta)
        return near if weights is None else weights * near

    def _one_pass(self, *tensors: Tensor) -> bool:
        return False

    def quadratic_along(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, left: Tensor, right: Tensor
    ) -> None:
        """None: the loss is not quadratic."""
        return None

    def hessian_times(
        self, A: Tensor, B: Tensor, left: Tensor, right: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Float[Tensor, "*#batch m p"], Float[Tensor, "*#batch n q"]]:
        """(HP, HᴴQ), H the (weighted) entries of ξ = left·rightᴴ whose errors are at most δ."""
        errors = sampled.sample(self._pattern, A, B) - self._values
        entries = sampled.sample(self._pattern, left, right)
        return self._times(self._curvatures(errors) * entries, P, Q)

    def _curvatures_at(self, U: Tensor, S: Tensor, V: Tensor) -> Tensor:
        return self._curvatures(sampled.sample(self._pattern, U @ S, V) - self._values)

    def _curvatures(self, errors: Tensor) -> Tensor:
        near = (errors.abs() <= self.delta).to(errors.dtype)
        return near if self._weights is None else self._weights * near

    def curvature(self, W: Float[Tensor, "*#batch m n"]) -> float:
        """The largest number of times that an entry is listed, or sum of its weights.

        A bound, everywhere; met where no error of that entry is beyond δ.
        """
        return self._largest
