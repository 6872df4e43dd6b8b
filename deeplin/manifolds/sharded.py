"""Matrices of rank exactly r whose factors are larger than one process: each has some rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import geoopt
import torch
import torch.distributed as dist
from jaxtyping import Inexact
from torch import Tensor

from deeplin.geometry.coordinates import Point, Tangent
from deeplin.geometry.metric import Metric
from deeplin.linalg import begun, check_rows, gather_rows, own_rows
from deeplin.manifolds.fixed_rank_factored import FixedRankFactored

__all__ = ["ShardedFixedRank"]

_Tree = TypeVar("_Tree")


class ShardedFixedRank(FixedRankFactored):
    """`FixedRankFactored` over the processes of a group: each has a block of rows of U and of V.

    Of m rows process i of p has those from i·⌈m/p⌉ on, ⌈m/p⌉ or what is left; S is the same on
    each. Every operation is that of the whole matrix: r×r products are summed by one all-reduce,
    bases are made orthonormal from the summed Gram matrix by Cholesky QR, and only where that is
    too ill-conditioned by Householder QR of the R factors of all. All processes must come to every
    call, and be machines of one kind: what they decide by r×r numbers must come out alike.

    `shard` takes the own rows of what one process stores, a point or all that a solver keeps, and
    `gather` puts them together again, so that a checkpoint does not tell how many processes made
    it: see there.

    Shapes: points and vectors (m_i+n_i+r, r), m_i and n_i the numbers of rows that are here.
    Cost: that of `FixedRankFactored` for m_i and n_i rows, and the sum of some r×r matrices.
    Raises: as `FixedRankFactored`; ValueError where a process would have no row, and for depth ∞;
        TypeError for gradients by autograd, which sees the rows of one process alone: give the
        solver problem=..., whose group is this one.
    """

    name = "ShardedFixedRank"

    def __init__(
        self,
        m: int,
        n: int,
        rank: int,
        depth: float | Metric = 2,
        retraction: str = "svd",
        *,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(m, n, rank, depth, retraction)
        if self.depth == float("inf"):
            raise ValueError("ShardedFixedRank has finite depths alone; got inf: take depth=1.")
        self._whole = FixedRankFactored(m, n, rank, depth, retraction)
        self.group = begun(self.name, group)
        for name, count in (("m", m), ("n", n)):
            check_rows(name, count, self.group)
        self.rows, self.columns = own_rows(m, self.group), own_rows(n, self.group)
        self.m, self.n = (block.stop - block.start for block in (self.rows, self.columns))

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n), of the whole matrices."""
        return self._whole.shape

    # Between one process and many -----------------------------------------------------------------

    def shard(self, stored: _Tree) -> _Tree:
        """The own rows of what `FixedRankFactored` stores: of a tensor (*batch, m+n+r, r), and of
        all such in a dict, list or tuple, as a solver's `state_dict` is; the rest as it is.
        """
        return _each(stored, self._whole._stored_shape, self._sharded)

    def gather(self, stored: _Tree) -> _Tree:
        """What `shard` undoes: on each process all that one process would store.

            state = manifold.gather({"x": x.detach(), "solver": solver.state_dict()})
            if dist.get_rank() == 0:
                torch.save(state, "checkpoint.pt")
            # later, of any number of processes:
            state = manifold.shard(torch.load("checkpoint.pt", mmap=True))

        Cost: (m+n+r)r numbers on each process for each point and vector.
        """
        return _each(stored, self._stored_shape, self._gathered)

    def _sharded(self, x: Tensor) -> Tensor:
        U, S, V = self._whole._split(x.detach().as_subclass(Tensor))
        return self._stack(U[..., self.rows, :], S, V[..., self.columns, :])

    def _gathered(self, x: Tensor) -> Tensor:
        U, S, V = self._split(x.detach().as_subclass(Tensor))
        m, n = self.shape
        return self._whole._stack(gather_rows(U, m, self.group), S, gather_rows(V, n, self.group))

    # What is said of whole matrices ---------------------------------------------------------------

    def random(
        self,
        *size: int | Sequence[int],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> geoopt.ManifoldTensor:
        """The own rows of `FixedRankFactored.random`, of one generator state on all processes."""
        x = self._whole.random(*size, dtype=dtype, device=device, generator=generator)
        return self._own(x)

    def origin(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *size, dtype=None, device=None, seed=42
    ) -> geoopt.ManifoldTensor:
        """The own rows of `FixedRankFactored.origin`."""
        return self._own(self._whole.origin(*size, dtype=dtype, device=device, seed=seed))

    def from_dense(self, W: Inexact[Tensor, "m n"]) -> Tensor:
        """The own rows of `FixedRankFactored.from_dense`; W whole on each process."""
        return self._own(self._whole.from_dense(W))

    def to_dense(self, x: Tensor) -> Inexact[Tensor, "m n"]:
        """The matrix W itself, on each process; not differentiable."""
        return self._whole.to_dense(self.gather(x))

    def tangent_to_dense(self, x: Tensor, u: Tensor) -> Inexact[Tensor, "m n"]:
        """The matrix ξ itself, on each process."""
        return self._whole.tangent_to_dense(self.gather(x), self.gather(u))

    def _own(self, x: Tensor) -> geoopt.ManifoldTensor:
        return cast(geoopt.ManifoldTensor, self._wrapped(self._sharded(x)))

    def _gradient(self, point: Point, u: Tensor) -> Tangent:
        raise TypeError(
            "ShardedFixedRank takes no gradients by autograd, which sees the rows of one process "
            "alone: give the solver problem=..., as ConjugateGradient([x], problem=problem)."
        )

    def extra_repr(self) -> str:
        rows = f"rows {self.rows.start}..{self.rows.stop - 1}"
        columns = f"columns {self.columns.start}..{self.columns.stop - 1}"
        return f"{rows}, {columns} of {self.shape}, {super().extra_repr()}"


def _each(tree: _Tree, shape: tuple[int, int], change: Callable[[Tensor], Tensor]) -> _Tree:
    """`change` of all tensors of a shape, batches beside, in dicts, lists and tuples."""
    if isinstance(tree, Tensor):
        changed = change(tree) if tuple(tree.shape[-2:]) == shape else tree
    elif isinstance(tree, dict):
        changed = {key: _each(part, shape, change) for key, part in tree.items()}
    elif isinstance(tree, list | tuple):
        changed = type(tree)([_each(part, shape, change) for part in tree])
    else:
        changed = tree
    return cast(_Tree, changed)
