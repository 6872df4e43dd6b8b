"""Which critical points a trajectory passes, for how long and in what order: saddle to saddle."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deeplin.landscape.closed_form import closed_form
from deeplin.landscape.critical import point_kind
from deeplin.problems import Problem

__all__ = ["Plateau", "plateau_table", "plateaus", "plateaus_of_modes"]

# A trajectory ends at a critical point that is nearer than this at its last record.
_AT_END = 0.01


@dataclass(frozen=True)
class Plateau:
    """A stay of W(t) near one critical point W_J.

    - `J`: indices from 1, `kind`: what W_J is on M_k (within the rank bound), `loss`: L¹(W_J);
    - `t_in`, `t_out`: first and last recorded time at which W_J was near, and `duration` between;
    - `closest`: the least ‖(W − W_J)C^{1/2}‖_F as a fraction of the step to the next critical
      point, the largest σ_j, j ∉ J (at full rank the smallest σ_j, j ∈ J); `t_closest` its time;
    - `is_end`: whether the trajectory ends at it: at the last record the distance is at most 1 %
      of that step.
    """

    J: tuple[int, ...]
    kind: str
    loss: float
    t_in: float
    t_out: float
    closest: float
    t_closest: float
    is_end: bool

    @property
    def duration(self) -> float:
        """t_out − t_in."""
        return self.t_out - self.t_in

    @property
    def label(self) -> str:
        """J: {1..5} for consecutive indices, {1,2,4} for others, {} for none."""
        J = self.J
        if len(J) > 2 and J[-1] - J[0] == len(J) - 1:
            return f"{{{J[0]}..{J[-1]}}}"
        return f"{{{','.join(map(str, J))}}}"

    def as_dict(self) -> dict[str, object]:
        """For summary.json."""
        return {
            "J": list(self.J),
            "kind": self.kind,
            "loss": self.loss,
            "t_in": self.t_in,
            "t_out": self.t_out,
            "closest": self.closest,
            "t_closest": self.t_closest,
            "is_end": self.is_end,
        }


def plateaus(
    problem: Problem,
    t: Sequence[float] | Float[Tensor, " times"],
    W: Sequence[Tensor] | Float[Tensor, "times d_y d_x"],
    *,
    rank: int | None = None,
    near: float = 0.5,
) -> list[Plateau]:
    """The saddle-to-saddle report of a trajectory: its plateaus, in the order of time.

    At each time the nearest critical point W_J is found (`nearest_critical_point`); the point is
    passed "near" if the distance is at most `near` times the step to the next one. A stay ends when
    another critical point is nearer.

    Source: BRTW Prop. 32. From small starts W rests near W_{1..k}, k = 0, 1, 2, … in turn.
    Shapes: t (times), increasing; W the matrices then, (d_y, d_x) each. For a `Solution` of a flow:
    `plateaus(problem, solution.t, [flow.end_to_end(y) for y in solution.y])`. `rank` bounds |J|,
    the smallest width of the network; min(d_y, d_x) unless given.
    Cost: as `nearest_critical_point` for all times together.
    Raises: ValueError for t and W of unequal length or a batch of trajectories; TypeError where the
    critical points are not known in closed form.
    """
    W = W if isinstance(W, Tensor) else torch.stack(list(W))
    times = torch.as_tensor(t, dtype=torch.float64)
    if W.ndim != 3 or times.shape != W.shape[:1] or len(W) == 0:
        raise ValueError(
            "plateaus needs one matrix for each time, t (times,) and W (times, d_y, d_x); got "
            f"{tuple(times.shape)} and {tuple(W.shape)}: call it for each trajectory of a batch."
        )
    found = closed_form(problem, "plateaus").nearest(W)
    return plateaus_of_modes(problem, times, found.modes, found.distance, rank=rank, near=near)


def plateaus_of_modes(
    problem: Problem,
    t: Float[Tensor, " times"],
    modes: Bool[Tensor, "times q"],
    distance: Float[Tensor, " times"],
    *,
    rank: int | None = None,
    near: float = 0.5,
) -> list[Plateau]:
    """`plateaus` from what was recorded: masks of the nearest critical points and distances.

    Shapes: t (times), modes (times, q), distance (times).
    Raises: ValueError for near <= 0.
    """
    if not near > 0:
        raise ValueError(f"near must be positive, a fraction of a step; got {near}.")
    optimum = closed_form(problem, "plateaus")
    sigma = optimum.s.double().cpu()
    highest = optimum.rank if rank is None else min(optimum.rank, rank)
    changed = (modes[1:] != modes[:-1]).any(-1).nonzero().ravel() + 1
    bounds = [0, *changed.tolist(), len(t)]
    report = []
    for start, stop in itertools.pairwise(bounds):
        mask = modes[start].cpu()
        k = int(mask.sum())
        inside, outside = sigma[mask], sigma[~mask]
        candidates = outside[:1] if k < highest else inside[-1:]
        step = float(candidates[0]) if len(candidates) else 1.0
        fraction = distance[start:stop].double().cpu() / step
        here = (fraction <= near).nonzero().ravel()
        if len(here) == 0:
            continue
        best = int(fraction.argmin())
        first = torch.arange(len(mask)) < k
        level = float(optimum.residual) + 0.5 * float(outside.square().sum())
        report.append(
            Plateau(
                tuple(j + 1 for j in mask.nonzero().ravel().tolist()),
                point_kind(k, highest, optimal=bool((mask == first).all())),
                level,
                float(t[start + int(here[0])]),
                float(t[start + int(here[-1])]),
                float(fraction[best]),
                float(t[start + best]),
                stop == len(t) and float(fraction[-1]) <= _AT_END,
            )
        )
    return report


def plateau_table(report: Sequence[Plateau]) -> str:
    """The report as a table to read."""
    rows = [("J", "kind", "loss", "from t", "to t", "closest", "")]
    rows += [
        (
            p.label,
            p.kind,
            f"{p.loss:.6g}",
            f"{p.t_in:.4g}",
            f"{p.t_out:.4g}",
            f"{100 * p.closest:.2g} %",
            "end" if p.is_end else "",
        )
        for p in report
    ]
    columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(n) for cell, n in zip(row, columns, strict=True)).rstrip()
        for row in rows
    )
