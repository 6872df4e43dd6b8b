"""What a measurement is, on which device, and how times are taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

CPU = torch.device("cpu")
Measure = Callable[[torch.device], float] | Callable[[], float]


@dataclass(frozen=True)
class Line:
    """A measurement: what it is called, what it measures, in which unit, and how good is enough.

    `alone` ones run in a fresh process, the others with one thread; `named` ones, which take long,
    when they are named. What runs on the processor alone says why in `processor`; the others take a
    device.
    """

    name: str
    measure: Callable[..., float]
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    alone: bool = False
    named: bool = False
    processor: str = ""

    def on(self, device: torch.device) -> float:
        """The number, measured on a device."""
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return self.measure() if self.processor else self.measure(device)

    def holds(self, value: float) -> bool:
        return (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )

    @property
    def bound(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return f">= {self.at_least:g}" if self.at_least is not None else ""


LINES: dict[str, Line] = {}


def line(name: str, unit: str, **bounds) -> Callable[[Measure], Measure]:
    """Registers a function under a name; its docstring says what the number is."""

    def register(measure: Measure) -> Measure:
        LINES[name] = Line(name, measure, unit, **bounds)
        return measure

    return register


def clock() -> float:
    """Seconds, once a GPU has done what it was told: it works while Python goes on."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(step: Callable[[], object], repeats: int = 30) -> float:
    """The median wall time of a step, after three that warm up."""
    for _ in range(3):
        step()
    times = []
    for _ in range(repeats):
        start = clock()
        step()
        times.append(clock() - start)
    return sorted(times)[len(times) // 2]


def ratio(ours: Callable[[], object], theirs: Callable[[], object], repeats: int = 15) -> float:
    """Their median time over ours, the two measured in turns so that the machine's load cancels.

    In a turn the quicker one makes as many steps as last about as long as one of the other: what is
    timed is a step in a loop, for both, not the first one after so much else has filled the caches.
    """
    steps = (ours, theirs)
    once = [seconds(step, 3) for step in steps]
    counts = [max(1, round(max(once) / t)) for t in once]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for step, count, record in zip(steps, counts, times, strict=True):
            start = clock()
            for _ in range(count):
                step()
            record.append((clock() - start) / count)
    own, other = (sorted(record)[len(record) // 2] for record in times)
    return other / own
