"""The progress bar of a run."""

from __future__ import annotations

from tqdm import tqdm

from deeplin.integrators.steppers import Stepper
from deeplin.loop import Record

__all__ = ["Progress"]


class Progress:
    """A bar over flow time with loss, distance and remaining time; silent without a terminal."""

    def __init__(self, t1: float, t: float = 0.0):
        self._bar = tqdm(
            total=t1,
            initial=t,
            disable=None,
            leave=False,
            bar_format="{l_bar}{bar}| t = {n:.4g}/{total:.4g} [{elapsed}<{remaining}{postfix}]",
        )

    def on_record(self, record: Record) -> None:
        words = [f"loss {float(record.observed['loss'].median()):.6g}"]
        if "distance_to_limit" in record.observed:
            distance = float(record.observed["distance_to_limit"].median())
            words.append(f"distance {distance:.2e}")
        self._bar.set_postfix_str(", ".join(words), refresh=False)
        self._bar.update(min(record.t, self._bar.total or record.t) - self._bar.n)

    def on_step(self, stepper: Stepper) -> None:
        pass

    def close(self) -> None:
        self._bar.close()
