"""Tall matrices of which each process of a group holds some rows: sums, products, bases.

Of `count` rows process i has those from i·b on, b = ⌈count/p⌉ of them or what is left, as
`torch.chunk` and DTensor's Shard(0) cut them. Without a group one process has all rows, and nothing
here costs anything. Every process of the group must come to every call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Inexact
from torch import Tensor

from deeplin.linalg.tall import adjoint_times

__all__ = [
    "adjoint_products",
    "agreed",
    "begun",
    "check_rows",
    "gather_rows",
    "gathered",
    "own_rows",
    "scatter_rows",
    "sum_of_blocks",
    "sum_over",
    "tall_qr",
]

Made = TypeVar("Made")
_FAULTS = (ValueError, TypeError, OSError, MemoryError)  # what bad input raises


def agreed(group: dist.ProcessGroup | None, make: Callable[[], Made]) -> Made:
    """What each process makes of its own part.

    Raises: ValueError, TypeError, OSError or MemoryError on all of them where one cannot, so that
        none waits for it; ConnectionError where one has gone.
    """
    if group is None:
        return make()
    made, error = None, None
    try:
        made = make()
    except _FAULTS as raised:
        error = raised
    kind = next((kind for kind in _FAULTS if isinstance(error, kind)), None)
    try:
        told = gathered((kind, str(error)), group)
    except ConnectionError:
        if error is None:
            raise
        told = []
    if error is not None:
        raise error
    for rank, (kind, sentence) in enumerate(told):
        if kind is not None:
            raise kind(f"process {rank} of {len(told)}: {sentence}")
    assert made is not None
    return made


def begun(owner: str, group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """The group, by default that of all processes. Raises: ValueError where there is none."""
    group = group if group is not None or not dist.is_initialized() else dist.group.WORLD
    if group is None:
        raise ValueError(
            f"{owner} needs the processes of torch.distributed; none have begun: call "
            "deeplin.problems.begin_processes(), under torchrun."
        )
    return group


def gathered(own: Made, group: dist.ProcessGroup) -> list[Made]:
    """What each process of a group has, in their order, on all of them.

    Raises: ConnectionError where one has gone.
    """
    all_of = [own] * dist.get_world_size(group)
    try:
        dist.all_gather_object(all_of, own, group=group)
    except RuntimeError as error:  # the backend's own, or DistError
        raise ConnectionError(
            "another process of this group has gone: what it said, or who ended it, tells why."
        ) from error
    return all_of


def own_rows(count: int, group: dist.ProcessGroup | None) -> slice:
    """Which of so many rows are this process's."""
    if group is None:
        return slice(0, count)
    block = -(-count // dist.get_world_size(group))
    begin = min(count, dist.get_rank(group) * block)
    return slice(begin, min(count, begin + block))


def check_rows(name: str, count: int, group: dist.ProcessGroup) -> None:
    """Raises: ValueError where a process of the group would have none of so many rows."""
    processes = dist.get_world_size(group)
    block = -(-count // processes)
    if block * (processes - 1) >= count:
        raise ValueError(
            f"each of {processes} processes must have one of {name} = {count} rows, in blocks of "
            f"{block}: take at most {-(-count // block)} processes."
        )


def _real(A: Tensor) -> Tensor:
    """As pairs of real numbers: not every backend adds complex ones."""
    return torch.view_as_real(A) if A.is_complex() else A


def sum_over(group: dist.ProcessGroup | None, *parts: Tensor) -> tuple[Tensor, ...]:
    """The sums over the processes of tensors of one dtype, the same bits on each.

    Cost: one all-reduce for all of them.
    """
    if group is None:
        return parts
    joint = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(_real(joint), group=group)
    pieces = joint.split([part.numel() for part in parts])
    return tuple(piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True))


def adjoint_products(
    *pairs: tuple[Inexact[Tensor, "..."], Inexact[Tensor, "..."]],
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, ...]:
    """AᴴB of each pair (A, B) of tall matrices whose rows the processes share.

    Shapes: A (*batch, m, k), B (*batch, m, l), m the rows of this process.
    Cost: one all-reduce of all the k×l matrices.
    """
    return sum_over(group, *adjoint_times(pairs))


def tall_qr(A: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """A = QR by Householder, of the rows of all processes: R of each, then of these one below the
    other.

    Shapes: A (*batch, m, r), m the rows of this process, those of all together at least r.
    Cost: O(m r²), a gather of an r×r matrix from each process, and O(p r³).
    Accuracy: Q orthonormal to round-off whatever A is.
    """
    Q, R = torch.linalg.qr(A)
    if group is None:
        return Q, R
    k, r = R.shape[-2:]
    own = R.new_zeros((*R.shape[:-2], r, r))
    own[..., :k, :] = R
    all_of_them = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather([_real(part) for part in all_of_them], _real(own), group=group)
    P, R = torch.linalg.qr(torch.cat(all_of_them, -2))
    first = dist.get_rank(group) * r
    return Q @ P[..., first : first + k, :], R


def gather_rows(A: Tensor, count: int, group: dist.ProcessGroup | None) -> Tensor:
    """All `count` rows, on each process, of a matrix of which each gives its own."""
    if group is None:
        return A
    processes = dist.get_world_size(group)
    block = -(-count // processes)
    whole = A.new_empty((processes * block, A.shape[-1]))
    dist.all_gather(
        [_real(part) for part in whole.chunk(processes)], _real(_filled(A, block)), group=group
    )
    return whole[:count]


def scatter_rows(A: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """This process's rows of the sum of the matrices that the processes give, all rows each."""
    if group is None:
        return A
    processes = dist.get_world_size(group)
    block, rows = -(-len(A) // processes), own_rows(len(A), group)
    parts = _filled(A, processes * block).chunk(processes)
    own = torch.empty_like(parts[0])
    dist.reduce_scatter(_real(own), [_real(part) for part in parts], group=group)
    return own[: rows.stop - rows.start]


def sum_of_blocks(
    make: Callable[[slice], Tensor], count: int, group: dist.ProcessGroup | None
) -> Tensor:
    """This process's rows of the sum of what the processes make, as `make` has it of some rows.

    Nobody has more than the rows of one process at a time, where `scatter_rows` has all of them.
    """
    if group is None:
        return make(slice(0, count))
    processes, own = dist.get_world_size(group), None
    block = -(-count // processes)
    for rank in range(processes):
        part = make(slice(rank * block, min(count, (rank + 1) * block))).contiguous()
        dist.reduce(_real(part), dist.get_global_rank(group, rank), group=group)
        own = part if rank == dist.get_rank(group) else own
    assert own is not None
    return own


def _filled(A: Tensor, count: int) -> Tensor:
    """A with rows of zeros below, so many in all, row by row in memory."""
    if len(A) == count:
        return A.contiguous()
    wide = A.new_zeros((count, A.shape[-1]))
    wide[: len(A)] = A
    return wide
