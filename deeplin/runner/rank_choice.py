"""The rank of a run where it is not the one of the network's options."""

from __future__ import annotations

from omegaconf import DictConfig

from deeplin.problems.completion import MatrixCompletion
from deeplin.problems.contract import Problem
from deeplin.problems.gap import rank_by_gap
from deeplin.problems.ridge import Ridge
from deeplin.runner.terminal import slow

__all__ = ["check_planted_rank", "chosen_rank"]


def chosen_rank(
    network: DictConfig, manifold: DictConfig | None, problem: Problem
) -> tuple[int | None, list[str]]:
    """(that of the manifold, or what network.rank=gap finds, else None; what there is to say).

    The signs that the edge of the noise is measured with are the same in every run of the data.

    Raises: ValueError where the data are no known entries of a matrix, or have no gap.
    """
    given = None if manifold is None else manifold.get("rank")
    if given is not None or network.rank != "gap" or network.widths is not None:
        return given, []
    known = problem.problem if isinstance(problem, Ridge) else problem
    if not isinstance(known, MatrixCompletion):
        raise ValueError(
            "network.rank=gap looks at the known entries of a matrix, problem=completion; this "
            "problem is another: network.rank=auto, or a number."
        )
    with slow("looking for a gap in the spectrum, network.rank=gap"):
        try:
            gap = rank_by_gap(known)
        except ValueError as error:
            raise ValueError(f"network.rank=gap: {error}") from error
    return gap.rank, [f"network.rank=gap takes {gap.rank}: {gap}"]


def check_planted_rank(problem: DictConfig) -> None:
    """Raise ValueError where a matrix is to be made up and network.rank says no number of it."""
    rank = problem.get("rank")
    if isinstance(rank, str) and problem.get("path") is None:
        raise ValueError(
            "problem.rank must be an integer >= 1, for the matrix that is made up; got "
            f"network.rank={rank}: add problem.rank=5, say."
        )
