"""Whether a run has ended: one fact, which its checkpoint holds and its summary tells."""

from __future__ import annotations

from collections.abc import Mapping

from deeplin.loop import Kind, Result
from deeplin.runner.folder import Checkpoint, Damaged, RunFolder

__all__ = ["settled", "told", "unchanged"]


def settled(saved: Checkpoint, given: Mapping[str, object]) -> Result | None:
    """How a run ended, if what is given cannot take it further; else the loop finds out."""
    result = saved.result
    if result is None or result.kind is Kind.INTERRUPTED:
        return None
    same = unchanged(given, saved.config, "method.t1", "stop")
    return result if same or not result.resumable else None


def told(folder: RunFolder, end: Result) -> dict[str, object] | None:
    """The summary, if it is of the end that the checkpoint holds: of its kind, step and time."""
    try:
        summary = folder.read_summary()
    except (FileNotFoundError, Damaged):
        return None
    same = (end.kind, end.step, end.t) == tuple(
        summary.get(key) for key in ("result_kind", "steps", "flow_time")
    )
    return summary if same else None


def unchanged(given: Mapping[str, object], kept: Mapping[str, object], *groups: str) -> bool:
    """Whether the options of some groups are those of before."""
    keys = [key for key in given.keys() | kept.keys() if key.startswith(groups)]
    return all(given.get(key) == kept.get(key) for key in keys)
