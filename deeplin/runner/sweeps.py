"""What is told of a sweep: a table of its jobs, on the terminal and as sweep.csv."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from deeplin.runner import files
from deeplin.runner.names import short_keys
from deeplin.runner.outcomes import Ended
from deeplin.runner.schema import OBJECTIVES
from deeplin.runner.terminal import complain, say, say_table

__all__ = ["conclude_sweep", "objective_of"]

# The columns of the terminal's table: name, key of the summary, format.
_SHOWN = (
    ("loss", "loss", ".6g"),
    ("excess", "relative_excess_loss", ".1e"),
    ("distance", "distance_to_limit", ".1e"),
    ("rank of W", "rank", "d"),
    ("rate", "rate_measured", ".4g"),
    ("predicted", "rate_predicted", ".4g"),
    ("steps", "steps", "d"),
    ("seconds", "seconds", ".1f"),
)
# How the sentence of a verdict begins, and what it comes down to.
_WORDS = {
    "Theory and run agree": "ok",
    "Theory and run disagree": "NO",
    "Unfinished": "unfinished",
    "Stopped early": "stopped early",
    "No verdict": "no verdict",
}


def objective_of(name: str, summary: Mapping[str, object]) -> float:
    """What a sweeper is to make small; infinite for a run that has no such number.

    auto: the relative excess loss, where no optimum is known the loss; held_out: the RMSE of the
    entries held out, or 1 - R² of the samples.
    """
    assert name in ("auto", *OBJECTIVES)
    several = {"auto": ("relative_excess_loss", "loss"), "held_out": ("test_rmse", "test_r2")}
    found = ((key, summary.get(key)) for key in several.get(name, (name,)))
    values = (1 - v if key == "test_r2" else v for key, v in found if isinstance(v, int | float))
    return next(map(float, values), float("inf"))


def conclude_sweep(jobs: Sequence[Ended], folder: Path) -> None:
    """Print the table of the jobs that have ended, and write it beside their folders."""
    if not jobs:
        return
    options = list(dict.fromkeys(key for job in jobs for key in job.options))
    count = "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs"
    say(f"\n{count} in {folder}:\n")
    say_table(_rows(jobs, options))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        table = _as_csv(jobs, options).encode()
        files.replace(folder / "sweep.csv", lambda file: file.write(table))
    except OSError as error:
        complain(f"{folder / 'sweep.csv'} cannot be written ({error.strerror or error}).")
    else:
        say(f"\nAll numbers: {folder / 'sweep.csv'}")


def _rows(jobs: Sequence[Ended], options: Sequence[str]) -> list[list[str]]:
    """Cells as text: what varies, those numbers that some job has, how each ended."""
    short = short_keys(options)
    shown = [s for s in _SHOWN if any(job.summary.get(s[1]) is not None for job in jobs)]
    rows = [["job", *(short[key] for key in options), *(name for name, _, _ in shown), ""]]
    for job in jobs:
        numbers = [_formatted(job.summary.get(key), form) for _, key, form in shown]
        values = [_cut(job.options.get(key, "")) for key in options]
        rows.append([str(job.number), *values, *numbers, _word(job)])
    return rows


def _formatted(value: object, form: str) -> str:
    return f"{value:{form}}" if isinstance(value, int | float) else "-"


def _cut(text: str) -> str:
    """A value as typed; one that a sampler has drawn, or a long one, only so far."""
    if re.fullmatch(r"-?\d+\.\d{5,}(e[+-]\d+)?", text):
        return f"{float(text):.4g}"
    return text if len(text) <= 24 else f"{text[:23]}…"


def _word(job: Ended) -> str:
    """How a job ended, in a word, or the sentence of what went wrong."""
    if job.status is None:
        return job.sentence
    if job.status != 0:
        return f"status {job.status}: {job.sentence}"
    sentence = str(job.summary.get("verdict", ""))
    word = next((word for start, word in _WORDS.items() if start in sentence), None)
    return word or str(job.summary.get("result_kind", "-"))


def _as_csv(jobs: Sequence[Ended], options: Sequence[str]) -> str:
    """A line for each job, with every number of its summary."""
    keys = dict.fromkeys(
        key
        for job in jobs
        for key, value in job.summary.items()
        if value is None or isinstance(value, bool | int | float | str)
    )
    names = ["job", "folder", *options, "status", "error", "objective", *keys]
    with io.StringIO(newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        for job in jobs:
            values = [job.options.get(key, "") for key in options]
            numbers = [job.summary.get(key) for key in keys]
            ends = [job.status, job.sentence, job.objective]
            writer.writerow([job.number, job.name, *values, *ends, *numbers])
        return text.getvalue()
