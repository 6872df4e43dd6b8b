"""What a run has shown: records in order, and when they are due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from deeplin.flows.contract import State
from deeplin.loop.results import Kind

__all__ = ["Every", "History", "Lost", "Record"]

# (step, t, dt, scheduled) of a record, as checkpoints hold it.
Moment = tuple[int, float, float, bool]


@dataclass(frozen=True)
class Record:
    """What was seen at one moment: after `step` steps, the last of them of length `dt`, at time t.

    At the start dt is the step about to be tried. The closing record of a run that ends where
    none was due is not `scheduled`: a resumed run drops it, as a run that went through has none.
    """

    step: int
    t: float
    dt: float
    observed: dict[str, Tensor]
    scheduled: bool = True


@dataclass(frozen=True)
class Lost:
    """When and why a trajectory was lost: it diverged, or no step of it could be taken."""

    step: int
    t: float
    kind: Kind
    sentence: str


@dataclass
class History:
    """The records of a run, in order, and what became of its batch.

    - `lost`: the trajectories that were lost on the way, by their numbers from 0; later records
      show them as they were when last seen
    - `shown`: the state of the last scheduled record, for them; None for a run of one trajectory
    """

    records: list[Record] = field(default_factory=list)
    lost: dict[int, Lost] = field(default_factory=dict)
    shown: State | None = None

    def living(self, values: Tensor) -> Tensor:
        """The entries (*batch) of the trajectories that are not lost, in one row."""
        values = values.flatten()
        if not self.lost:
            return values
        return values[[i for i in range(len(values)) if i not in self.lost]]

    def column(self, name: str) -> Tensor:
        """The values of one observable, stacked along a first axis of records."""
        return torch.stack([record.observed[name] for record in self.records])

    @property
    def t(self) -> Tensor:
        return torch.tensor([record.t for record in self.records], dtype=torch.float64)

    def state_dict(self) -> dict[str, object]:
        """The records as columns."""
        names = self.records[0].observed if self.records else ()
        return {
            "moments": [(r.step, r.t, r.dt, r.scheduled) for r in self.records],
            "observed": {name: self.column(name) for name in names},
            "lost": {i: (w.step, w.t, str(w.kind), w.sentence) for i, w in self.lost.items()},
            "shown": None if self.shown is None else list(self.shown),
        }

    @classmethod
    def from_state_dict(cls, saved: Mapping[str, object]) -> History:
        columns = cast(dict[str, Tensor], saved["observed"])
        lost = cast(dict[int, tuple[int, float, str, str]], saved["lost"])
        shown = cast(list[Tensor] | None, saved["shown"])
        return cls(
            [
                Record(step, t, dt, {name: column[i] for name, column in columns.items()}, due)
                for i, (step, t, dt, due) in enumerate(cast(Sequence[Moment], saved["moments"]))
            ],
            {i: Lost(step, t, Kind(kind), why) for i, (step, t, kind, why) in lost.items()},
            None if shown is None else tuple(shown),
        )


@dataclass(frozen=True)
class Every:
    """Record every so many stretches, and more often at first: 16 times as their count doubles.

    A stretch is what `Stepper.advance` goes at once: one step where steps are fixed; where they
    are chosen by the error, a length of time over as many steps as it takes.
    """

    stretches: int

    def __post_init__(self) -> None:
        if self.stretches < 1:
            raise ValueError(f"Every(stretches=...) must be >= 1; got {self.stretches}.")

    def includes(self, stretch: int) -> bool:
        spacing = 1 << max(stretch.bit_length() - 5, 0)
        return stretch % self.stretches == 0 or (
            spacing < self.stretches and stretch % spacing == 0
        )
