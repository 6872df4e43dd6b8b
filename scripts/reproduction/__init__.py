"""Every figure of both papers, run from its configuration, drawn, and held against its claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from matplotlib.figure import Figure

from reproduction.runs import Run

Verdict = Literal["holds", "fails", "unfinished"]
Whose = Literal["paper", "ours"]
Others = Callable[[str], Sequence[Run]]  # the finished runs of another experiment, [] if none
Values = Mapping[str, object]


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, or of ours on its figure, a number that decides it, and the verdict.

    `holds` is None where the runs did not get far enough to tell. `wrong` says, for a claim of a
    paper that is known to be false, why: then it must fail, and it is news if it holds. What is
    known to be false we do not claim.
    """

    whose: Whose
    source: str
    statement: str
    measured: str
    threshold: str
    holds: bool | None
    wrong: str = ""

    def __post_init__(self) -> None:
        if self.whose not in ("paper", "ours"):
            raise ValueError(f"whose must be paper or ours; got {self.whose!r}.")
        if self.wrong and self.whose == "ours":
            raise ValueError(
                f"{self.source}: only a paper's claim can be known to be wrong; state what is true."
            )
        if self.holds is not None:  # numpy's bool is none of Python's
            object.__setattr__(self, "holds", bool(self.holds))

    @property
    def verdict(self) -> Verdict:
        if self.holds is None:
            return "unfinished"
        return "holds" if self.holds else "fails"

    @property
    def expected(self) -> bool:
        """Whether the verdict is the one that the theory leads to."""
        return self.holds is not None and self.holds != bool(self.wrong)


@dataclass(frozen=True)
class Subject:
    """An experiment: the name of its configuration, and what is made of its runs.

    `quick` holds values that replace those of the configuration, or of its sweep, for a short run.
    """

    name: str
    title: str
    draw: Callable[[Sequence[Run]], Figure]
    claims: Callable[[Sequence[Run], Others], Sequence[Claim]]
    quick: Mapping[str, str] = field(default_factory=dict)


SUBJECTS: dict[str, Subject] = {}


def subject(name: str, title: str, **options) -> Callable[[type], type]:
    """Registers a class with the functions `draw` and `claims` under an experiment's name."""

    def register(case: type) -> type:
        SUBJECTS[name] = Subject(name, title, case.draw, case.claims, **options)
        return case

    return register
