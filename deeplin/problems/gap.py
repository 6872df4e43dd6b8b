"""The rank by the gap: which singular values of the known entries stand out of their own noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.linalg import largest_modulus, leading_svd
from deeplin.problems.completion import MatrixCompletion
from deeplin.problems.contract import Problem
from deeplin.problems.ridge import Ridge

__all__ = ["Gap", "rank_by_gap"]

# The edge is found to 1e-3, by a residual of so much; the values from below, by `leading_svd`.
_EDGE_RTOL, _EDGE_ITERATIONS, _VALUES_RTOL = 1e-3, 300, 1e-2
_FIRST = 8  # singular values that are looked at, twice as many where all stand out
_PASSES, _TINY = 20, 1e-300  # of Sinkhorn's iteration: the draws have the same scales, right or not
_TOGETHER = 2**24  # entries with signs that are held at a time


@dataclass(frozen=True)
class Gap:
    """What the spectrum of the known entries says of the rank.

    - `rank`: how many singular values are above the edge
    - `sigma`: of the known entries, scaled, zeros elsewhere: those above the edge, descending, and
      the next, where there is one
    - `edge`: the largest singular value of the same entries with signs at random, of all draws
    """

    rank: int
    sigma: Float[Tensor, " k"]
    edge: float

    def __str__(self) -> str:
        above = ", ".join(f"{s:.4g}" for s in self.sigma[: self.rank].tolist())
        below = "".join(f"; the next is {s:.4g}" for s in self.sigma[self.rank :].tolist())
        s, are = ("s", "are") if self.rank > 1 else ("", "is")
        return (
            f"the singular value{s} {above} of the known entries {are} above {self.edge:.4g}, the "
            f"largest of them with signs at random{below}"
        )


def rank_by_gap(
    problem: Problem, *, generator: torch.Generator | None = None, draws: int = 19
) -> Gap:
    """How many singular values of the known entries are larger than any with signs at random.

    X_E has the known entries, zeros elsewhere, rows and columns scaled so that each has the same
    sum of squares (Sinkhorn's iteration): that changes no rank, and no row stands out by its size.
    Of a matrix of rank r with p of mn entries known at random X_E = (p/mn)X + noise, the noise of
    what is missing, and of errors of the entries. With the sign of each known entry drawn anew it
    has the same sizes, and so the same scales, and no part of low rank left: σ_1 of such draws is
    the edge of the noise, measured on the data. The rank is the number k of σ_1 ≥ σ_2 ≥ … of X_E up
    to the first that is not above the largest edge of all draws. Where the signs of the entries
    mean nothing, a rank above 0 has a probability of at most 1/(draws + 1), 5 % by default: the
    data are then one of draws + 1 that are alike.

    It is seen in one look, and no fit is made; so it misses what the noise of the larger singular
    values hides. For large matrices, places at random and noise that is even σ_k stands out if

        σ_k > ‖X‖_F (mn)^{1/4}/√p,

    which for m = n and p = s·2nr, an oversampling of s, is σ_k² > ‖X‖_F²/(2sr): at s = 5 a tenth of
    the mean of the r squares. Entries of one sign, ratings, are of rank 1 to it unless their mean,
    and that of rows and columns, is taken off before.

    Source: [HSD20], signflip parallel analysis with upper-edge comparison, the largest of 19 draws
        for a quantile; the scales [LZK22]; the bound above [BN12].
    Shapes: one matrix, no batch; weights count as factors of the entries.
    Cost: two products with a vector for some 20 to 100 Lanczos steps a draw, and a
        `leading_svd` with 12 columns, or 1.5 times twice the rank; nothing m×n.
    Accuracy: the edge to 1e-3 of it, σ from below.
    Raises: TypeError for other problems than completions; ValueError for a batch, and where no
        singular value is above the edge: no gap.

    Args:
        problem: a `MatrixCompletion`, or its `Ridge`, which has the same spectrum.
        generator: of the signs; by default a fixed one.
        draws: of signs.
    """
    known = problem.problem if isinstance(problem, Ridge) else problem
    if not isinstance(known, MatrixCompletion):
        raise TypeError(
            "rank_by_gap looks at the known entries of a matrix, a MatrixCompletion; got "
            f"{type(known).__name__}: choose the rank by the error on data held out."
        )
    if known.values.ndim != 1:
        raise ValueError(
            f"rank_by_gap takes the entries of one matrix; got a batch {known.values.shape[:-1]}: "
            "call it for each."
        )
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    known = _scaled(known)
    places = known.rows * known.shape[1] + known.cols
    which = torch.unique(places, return_inverse=True)[1]
    together = max(1, min(draws, _TOGETHER // max(1, len(which))))
    counts = [min(together, draws - done) for done in range(0, draws, together)]
    edge = max(_edge(known, which, count, generator) for count in counts)
    sigma = _leading(known, edge, generator)
    rank = int((sigma > edge).sum())
    if not rank:
        first = float(sigma[0]) if len(sigma) else 0.0
        raise ValueError(
            f"no gap: the largest singular value of the known entries, {first:.4g}, is not above "
            f"{edge:.4g}, what it is with their signs at random: give a rank, or more entries."
        )
    return Gap(rank, sigma[: rank + 1], edge)


def _scaled(known: MatrixCompletion) -> MatrixCompletion:
    """The entries, rows and columns scaled to equal sums of squares, as large in all as before."""
    (m, n), rows, cols = known.shape, known.rows, known.cols
    x = known.values if known.weights is None else known.weights * known.values
    squares = x.abs().square()
    a, b = squares.new_ones(m), squares.new_ones(n)
    for _ in range(_PASSES):
        a = _inverse(squares.new_zeros(m).index_add(0, rows, squares * b[cols]))
        b = _inverse(squares.new_zeros(n).index_add(0, cols, squares * a[rows]))
    scaled = x * (a[rows] * b[cols]).sqrt()
    scaled = scaled * (squares.sum().sqrt() / torch.linalg.vector_norm(scaled).clamp(min=_TINY))
    return MatrixCompletion(rows, cols, scaled, known.shape, products=known.products)


def _inverse(sums: Tensor) -> Tensor:
    """1/x, and 0 of what is 0: rows without entries."""
    return torch.where(sums > 0, 1 / torch.where(sums > 0, sums, 1.0), 0.0)


def _products(known: MatrixCompletion):
    """Products of the entries as they are, none weighed down."""
    like = known.values.new_zeros(())
    one, (m, n) = like.real.new_ones(()), known.shape
    return known.evened(like, (one.new_zeros(m), one), (one.new_zeros(n), one))


def _edge(known: MatrixCompletion, which: Tensor, draws: int, generator: torch.Generator) -> float:
    """The largest σ_1 of the known entries with signs at random; those of one place have one sign.

    `which`: the number of the place of each entry.
    """
    signs = 2 * torch.randint(2, (draws, len(which)), generator=generator) - 1
    flipped = known.with_values(known.values * signs.to(known.values)[:, which])
    times, adjoint_times = _products(flipped)
    found = largest_modulus(
        lambda v: adjoint_times(times(v)),
        _random(known, (draws, known.shape[1], 1), generator),
        iterations=_EDGE_ITERATIONS,
        rtol=_EDGE_RTOL,
    )
    return float(found.max()) ** 0.5


def _leading(known: MatrixCompletion, edge: float, generator: torch.Generator) -> Tensor:
    """Leading singular values of the known entries until one is not above the edge."""
    times, adjoint_times = _products(known)
    most, count = min(known.shape), min(_FIRST, *known.shape)
    while True:
        columns = min(most, count + max(4, count // 2))
        start = _random(known, (known.shape[1], columns), generator)
        sigma = leading_svd(times, adjoint_times, start, count, rtol=_VALUES_RTOL)[1]
        if count == most or not float(sigma[-1]) > edge:
            return sigma
        count = min(2 * count, most)


def _random(known: MatrixCompletion, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(size, dtype=known.values.dtype, generator=generator).to(known.values.device)
