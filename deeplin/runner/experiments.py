"""What an experiment of a paper makes of all its runs: the paper's figure, in their folder."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deeplin.runner.outcomes import Ended
from deeplin.runner.terminal import complain, say, say_command, slow

__all__ = ["Draw", "Picture", "show_pictures"]


_DRAWN = ("brtw/", "hlz/", "bridge")  # of the experiments in conf/, those that have a figure


@dataclass(frozen=True)
class Picture:
    """A drawn figure: what it shows, its file, and of how many runs it is."""

    title: str
    file: Path
    runs: int


# (experiment, folders of its runs, folder to draw in) -> the picture; None where there is none:
# the name is no paper's, or no run has come to its end.
Draw = Callable[[str, Sequence[Path], Path], Picture | None]


def show_pictures(
    jobs: Sequence[Ended], chosen: str | None, arguments: Sequence[str], draw: Draw | None
) -> None:
    """Draw what the experiment of some jobs shows, in the sweep's folder or the run's; say where.

    `chosen` is the experiment of the command, where a job's own options name no other. Without a
    `draw`, as the installed package has none, the command is told that draws from these runs. A
    figure that cannot be drawn, from runs with other options than its own, is one sentence: the
    runs are there.
    """
    groups: dict[str, list[Ended]] = {}
    for job in jobs:
        if name := job.options.get("experiment", chosen):
            groups.setdefault(name, []).append(job)
    for name, members in groups.items():
        into = Path(members[0].sweep or members[0].folder)
        if draw is None:
            if name.startswith(_DRAWN):
                key = "hydra.sweep.dir" if members[0].sweep else "hydra.run.dir"
                words = [word for word in arguments if not word.startswith(f"{key}=")]
                words = shlex.join([*words, f"{key}={into}"])
                say_command(
                    f"The figure {name} of these runs, which deeplin's repository draws",
                    f"python scripts/train.py {words}",
                )
            continue
        try:
            with slow(f"drawing {name}"):
                picture = draw(name, [Path(job.folder) for job in members], into)
        except Exception as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            told = f"{type(error).__name__}: {error}".splitlines()[0]
            complain(
                f"{name} cannot be drawn from these runs ({told}): its figure is made for the "
                "options of its own file; the runs are finished, each with its own figures."
            )
            continue
        if picture is not None:
            count = "1 run" if picture.runs == 1 else f"{picture.runs} runs"
            of = "" if picture.runs == len(members) else f" of {len(members)}"
            say(f"\n{name}, {picture.title}, drawn from {count}{of}:\n    {picture.file}")
