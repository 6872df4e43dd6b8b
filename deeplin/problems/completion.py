"""Matrix completion: the loss on the entries that are known, its products, its curvature."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Self

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Inexact, Int
from torch import Tensor

from deeplin import sampled
from deeplin.problems.autograd import half_square
from deeplin.problems.blocks import RowTimes, damped_inverses
from deeplin.problems.contract import Problem
from deeplin.problems.known import indices_of, weights_of
from deeplin.problems.planted import distinct_places, entries_at, planted_factors

__all__ = ["MatrixCompletion"]

PRODUCTS = ("auto", "compiled", "torch")


class MatrixCompletion(Problem):
    """f(W) = ½Σ_l w_l |W[rows_l, cols_l] − values_l|², the error on the entries that are known.

    An entry that is listed c times counts c times; without `weights` w = 1. The entries are kept
    row by row and column by column, and products with them are taken in compiled loops (float32
    and float64 on a CPU, where there is a C compiler) or by torch.sparse: `products` is
    ``"compiled"``, ``"torch"``, or ``"auto"``, compiled where that can be. Numbers and derivatives
    are the same to round-off.

    Shapes: rows, cols (p,), values (*batch, p), real or complex; weights (p,) real; shape (m, n).
    Cost: O(p q) for a factor pair of q columns; nothing m×n but in `egrad`.
    Raises: ValueError for indices outside the shape, not one of each per value, numbers that are
        not finite, negative weights, and for products="compiled" without a compiler; TypeError for
        values that are no floating-point or complex tensor, and indices that are no integers.

    >>> problem = MatrixCompletion([0, 1], [1, 0], torch.tensor([2.0, 3.0]), (2, 2))
    >>> problem.loss(torch.tensor([[9.0, 2.0], [1.0, 9.0]]))
    tensor(2.)
    """

    def __init__(
        self,
        rows: Int[Tensor, " p"] | Sequence[int],
        cols: Int[Tensor, " p"] | Sequence[int],
        values: Inexact[Tensor, "*batch p"],
        shape: tuple[int, int],
        *,
        weights: Float[Tensor, " p"] | None = None,
        products: str = "auto",
    ):
        if not isinstance(values, Tensor) or not (
            values.is_floating_point() or values.is_complex()
        ):
            given = f"dtype {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(
                "MatrixCompletion: values must be a floating-point or complex tensor; got "
                f"{given}: convert them with torch.as_tensor(values, dtype=torch.float64)."
            )
        self.shape, self.values = shape, values
        self.rows, self.cols = (
            indices_of(name, index, values)
            for name, index in zip(("rows", "cols"), (rows, cols), strict=True)
        )
        count = values.shape[-1] if values.ndim else 0
        if not self.rows.shape == self.cols.shape == (count,):
            raise ValueError(
                "MatrixCompletion(rows, cols, values, shape) needs one row and one column per "
                f"value; got {tuple(self.rows.shape)}, {tuple(self.cols.shape)} and "
                f"{tuple(values.shape)}."
            )
        for name, index, size in zip(("rows", "cols"), (self.rows, self.cols), shape, strict=True):
            if count and not bool(((index >= 0) & (index < size)).all()):
                raise ValueError(
                    f"MatrixCompletion: {name} must lie in 0..{size - 1}; got values in "
                    f"{int(index.min())}..{int(index.max())}."
                )
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise ValueError(
                f"MatrixCompletion: values must be finite; {bad} of {values.numel()} are NaN or "
                "±inf: leave out the entries that are not known."
            )
        self.weights = None if weights is None else weights_of(weights, values)
        if products not in PRODUCTS:
            raise ValueError(
                f"MatrixCompletion: products must be one of {', '.join(map(repr, PRODUCTS))}; got "
                f'{products!r}: write products="auto".'
            )
        if products == "compiled":
            sampled.require()
        self.products = products
        self._arrange()

    @classmethod
    def planted(
        cls,
        shape: tuple[int, int],
        rank: int,
        *,
        spectrum: Sequence[float] | None = None,
        condition: float = 1.0,
        oversampling: float = 5.0,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        products: str = "auto",
    ) -> tuple[Self, tuple[Inexact[Tensor, "m r"], Float[Tensor, " r"], Inexact[Tensor, "n r"]]]:
        """The problem of a random W* of rank r, and the factors (U, σ, V) of W*.

        Known are round(`oversampling`·(m + n − r)r) different places, all such sets equally likely:
        that many times the dimension of the matrices of rank r. The values are those of W* (see
        `planted_factors`), and normal errors of standard deviation `noise`.

        Source: the problems of [Van13, §5].
        Cost: O(p log p + (m + n)r²) time, nothing m×n.
        Raises: ValueError unless oversampling >= 1 and there are so many places, and noise >= 0;
            and as `planted_factors`.
        """
        U, sigma, V = factors = planted_factors(
            shape, rank, spectrum=spectrum, condition=condition, generator=generator, dtype=dtype
        )
        m, n = shape
        dimension = (m + n - rank) * rank
        if not 1 <= oversampling * dimension <= m * n + 0.5 or not oversampling >= 1:
            raise ValueError(
                f"oversampling must be 1 to {m * n / dimension:.3g}, known places for each of the "
                f"{dimension} dimensions of {m}×{n} matrices of rank {rank}; got {oversampling}."
            )
        if not 0 <= noise < float("inf"):
            raise ValueError(
                f"noise must be a standard deviation, a finite number >= 0; got {noise}."
            )
        rows, cols = distinct_places(shape, round(oversampling * dimension), generator=generator)
        values = entries_at(rows, cols, U * sigma, V)
        if noise:
            errors = torch.randn(len(values), dtype=values.dtype, generator=generator)
            values = values + noise * errors
        return cls(rows, cols, values, shape, products=products), factors

    def _arrange(self) -> None:
        """Everything in the order in which the products go through the entries."""
        compiled = self.products != "torch"
        self._pattern = sampled.Pattern(self.rows, self.cols, self.shape, compiled=compiled)
        order = self._pattern.order
        self._values = self.values[..., order]
        self._weights = None if self.weights is None else self.weights[order]

    def to(self, *args, **kwargs) -> Self:
        """As `Problem.to`; on another device the entries are arranged anew."""
        moved = super().to(*args, **kwargs)
        if moved.rows.device != self.rows.device:
            moved._arrange()
        return moved

    def narrowed(self, which: Bool[Tensor, "*batch"]) -> Self:
        """The problem of these matrices of a batch alone, its entries not sorted again."""
        if self.values.ndim == 1:
            return self
        count = self.values.shape[-1]
        other = copy.copy(self)
        other.values, other._values = (
            part.expand(*which.shape, count)[which] for part in (self.values, self._values)
        )
        return other

    def with_values(self, values: Inexact[Tensor, "*batch p"]) -> Self:
        """The problem of other values at the same places, the entries not sorted again."""
        other = copy.copy(self)
        other.values, other._values = values, values[..., self._pattern.order]
        return other

    # -- dense -----------------------------------------------------------------------------------

    def _sum(self, errors: Tensor, weights: Tensor | None) -> Tensor:
        """The loss of these errors."""
        return _half_square(errors, weights)

    def _slope(self, errors: Tensor, weights: Tensor | None) -> Tensor:
        """Its derivative by each of them."""
        return _weighted(errors, weights)

    def _errors(self, W: Tensor) -> Tensor:
        return W[..., self.rows, self.cols] - self.values

    def loss(self, W: Inexact[Tensor, "*#batch m n"]) -> Float[Tensor, "*#batch"]:
        """½ the weighted sum of the squared errors on the known entries."""
        return self._sum(self._errors(W), self.weights)

    def egrad(self, W: Inexact[Tensor, "*#batch m n"]) -> Inexact[Tensor, "*#batch m n"]:
        """∇f(W): the errors at the known entries, zero elsewhere; an entry listed twice counts so.

        Cost: an m×n matrix.
        """
        error = self._slope(self._errors(W), self.weights)
        gradient = error.new_zeros((*error.shape[:-1], self.shape[0] * self.shape[1]))
        position = (self.rows * self.shape[1] + self.cols).expand_as(error)
        return gradient.scatter_add(-1, position, error).unflatten(-1, self.shape)

    # -- of factors ------------------------------------------------------------------------------

    def pair_loss(
        self, A: Inexact[Tensor, "*#batch m k"], B: Inexact[Tensor, "*#batch n k"]
    ) -> Float[Tensor, "*#batch"]:
        """f(ABᴴ) from the rows of A and B alone; differentiable as often as one likes."""
        if self._one_pass(A, B):
            return 0.5 * sampled.square_sum(self._pattern, A, B, self._weights, self._values)
        return self._sum(sampled.sample(self._pattern, A, B) - self._values, self._weights)

    def _times(self, entries: Tensor, P: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
        """(EP, EᴴQ) of the matrix E that has these entries at the known places, else zeros."""
        return (
            sampled.sparse_times(self._pattern, entries, P),
            sampled.adjoint_times(self._pattern, entries, Q),
        )

    def egrad_times(
        self, A: Tensor, B: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Inexact[Tensor, "*#batch m p"], Inexact[Tensor, "*#batch n q"]]:
        """(GP, GᴴQ) of G = ∇f(ABᴴ), which is sparse.

        Shapes: A (*batch, m, k), B (*batch, n, k), P (*batch, n, p), Q (*batch, m, q).
        Cost: a pass over the known entries for the errors, and one for each product; where P is B
            the errors and GP take one.
        """
        if P is B and self._one_pass(A, B, Q):
            GP, GhQ, _ = self._products(A, B, Q)
            return GP, GhQ
        errors = sampled.sample(self._pattern, A, B) - self._values
        return self._times(self._slope(errors, self._weights), P, Q)

    def loss_and_products(
        self, U: Tensor, S: Tensor, V: Tensor
    ) -> tuple[Float[Tensor, "*#batch"], Tensor, Tensor]:
        """(f, GV, GᴴU) from one pass over the known entries, two where threads share them."""
        if not self._one_pass(U, S, V):
            return super().loss_and_products(U, S, V)
        US = U * S[..., None, :] if S.ndim < V.ndim else U @ S
        GV, GhU, loss = self._products(US, V, U)
        return loss, GV, GhU

    def _products(self, A: Tensor, B: Tensor, Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(GB, GᴴQ, f) at ABᴴ."""
        return sampled.residual_times(self._pattern, A, B, Q, self._values, self._weights)

    def egrad_at(self, A: Tensor, B: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """As `Problem.egrad_at`; the errors are computed once."""
        errors = sampled.sample(self._pattern, A, B) - self._values
        return partial(self._times, self._slope(errors, self._weights))

    def back_projection(
        self, like: Tensor
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Products of the (weighted) known entries, zeros elsewhere, rows and columns evened out.

        A row of which the sum of squares is more than twice the mean is divided by what brings it
        there, and so are columns. The square root of that sum is a singular value, of vectors that
        see a few rows alone; the more rows there are the larger is the largest, whereas those that
        are looked for depend on the number of entries in a row.

        Source: [KMO10], §1.2, where rows of very many entries are left out.
        """
        of_rows, of_columns = self.squares_of_each()
        means = (part.mean(-1, keepdim=True) for part in (of_rows, of_columns))
        return self.evened(like, *zip((of_rows, of_columns), means, strict=True))

    def squares_of_each(self) -> tuple[Float[Tensor, "*batch m"], Float[Tensor, "*batch n"]]:
        """The sums of the squares of the (weighted) known entries of each row and column."""
        pattern = self._pattern
        squares = self._slope(self._values, self._weights).abs().square()
        m, n = self.shape
        return (
            squares.new_zeros((*squares.shape[:-1], m)).index_add(-1, pattern.rows, squares),
            squares.new_zeros((*squares.shape[:-1], n)).index_add(-1, pattern.cols, squares),
        )

    def evened(
        self, like: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """`back_projection` where the sums of squares of each row, and of each column, and the
        means of these are given."""
        pattern, entries = self._pattern, self._slope(self._values, self._weights)
        for index, (of_each, mean) in ((pattern.rows, rows), (pattern.cols, columns)):
            share = 2 * mean / torch.maximum(of_each, 2 * mean)
            entries = entries * share.nan_to_num(nan=1.0).sqrt()[..., index]
        entries = entries.to(like.dtype)
        return (
            partial(sampled.sparse_times, pattern, entries),
            partial(sampled.adjoint_times, pattern, entries),
        )

    def slope_along(
        self, A: Tensor, B: Tensor, left: Tensor, right: Tensor
    ) -> Float[Tensor, "*#batch"]:
        """As `Problem.slope_along`, in one pass over the known entries, of which none is kept."""
        if not self._one_pass(A, B, left, right):
            return super().slope_along(A, B, left, right)
        factors = A, B, left, right
        return sampled.slope_sum(self._pattern, *factors, self._values, self._weights)

    def quadratic_along(self, left: Tensor, right: Tensor) -> Float[Tensor, "*#batch"]:
        """The (weighted) sum of the squares of the known entries of left·rightᴴ, none of them kept.

        Cost: a pass over the known entries.
        """
        if self._one_pass(left, right):
            return sampled.square_sum(self._pattern, left, right, self._weights)
        entries = sampled.sample(self._pattern, left, right)
        return 2 * _half_square(entries, self._weights)

    def hessian_times(
        self, A: Tensor, B: Tensor, left: Tensor, right: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Inexact[Tensor, "*#batch m p"], Inexact[Tensor, "*#batch n q"]]:
        """(HP, HᴴQ), H the (weighted) known entries of ξ = left·rightᴴ; the same at every ABᴴ.

        Cost: as `egrad_times`.
        """
        entries = _weighted(sampled.sample(self._pattern, left, right), self._weights)
        if not A.ndim == self.values.ndim + 1 == entries.ndim + 1 == 2:
            batches = A.shape[:-2], self.values.shape[:-1], entries.shape[:-1]
            entries = entries.expand(*torch.broadcast_shapes(*batches), -1)
        return self._times(entries, P, Q)

    def hessian_at(
        self, U: Tensor, S: Tensor, V: Tensor
    ) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]:
        """As `Problem.hessian_at`, by `sampled.TangentProducts`."""
        errors = sampled.sample(self._pattern, U @ S, V) - self._values
        weights = self._curvatures(errors)
        tensors = U, V, self._slope(errors, self._weights)
        if (weights is None or weights.ndim == 1) and sampled.TangentProducts.fits(
            self._pattern, *tensors
        ):
            return sampled.TangentProducts(self._pattern, *tensors, weights)
        return super().hessian_at(U, S, V)

    def inverse_blocks(
        self,
        U: Tensor,
        S: Tensor,
        V: Tensor,
        damping: Tensor,
        shift: float = 0.0,
        group: dist.ProcessGroup | None = None,
    ) -> tuple[RowTimes, RowTimes]:
        """As `Problem.inverse_blocks`: G_i = Σ_j w_ij V_jᴴV_j over the known entries of row i.

        Cost: O(p r² + (m + n) r³), then O(m r²) and O(n r²).
        """
        weights = self._curvatures_at(U, S, V)
        return damped_inverses(self._pattern, weights, U, V, damping, shift, group)

    def _curvatures_at(self, U: Tensor, S: Tensor, V: Tensor) -> Tensor | None:
        """`_curvatures` at W = USVᴴ."""
        return self._weights

    def _curvatures(self, errors: Tensor) -> Tensor | None:
        """The second derivative of the loss by each error; None: all are 1."""
        return self._weights

    def _one_pass(self, *tensors: Tensor) -> bool:
        data = (self._values,) if self._weights is None else (self._values, self._weights)
        return sampled.one_pass(self._pattern, *tensors, *data) and self._values.ndim == 1

    # -- curvature -------------------------------------------------------------------------------

    @cached_property
    def _largest(self) -> float:
        if self._weights is None:
            return float(self._pattern.most_listed)
        return float(self._pattern.summed(self._weights).max()) if len(self.rows) else 0.0

    def curvature(self, W: Inexact[Tensor, "*#batch m n"]) -> float:
        """The largest number of times that an entry is listed, or sum of its weights. Exact.

        The Hessian is diagonal, and the same at every W.
        """
        return self._largest

    def pair_curvature(self, A: Tensor, B: Tensor) -> float:
        """As `curvature`, from A and B unseen."""
        return self._largest


def _weighted(errors: Tensor, weights: Tensor | None) -> Tensor:
    return errors if weights is None else weights * errors


def _half_square(errors: Tensor, weights: Tensor | None) -> Tensor:
    if errors.is_complex() or torch.compiler.is_compiling():
        return half_square(errors if weights is None else weights.sqrt() * errors, -1)
    # One pass where the sum of squares takes two.
    return 0.5 * torch.linalg.vecdot(errors, _weighted(errors, weights))
