"""Named measurements, each against a bound: a table on the screen, a JSON file beside the runs.

    python scripts/benchmark.py                  all of them
    python scripts/benchmark.py adam-memory      some
    python scripts/benchmark.py --list

A line is a function that returns one number, registered with its unit and its bound; what must not
share a process with anything else runs in a fresh one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
    import geoopt

from deeplin.approximation import MatrixCompletion
from deeplin.manifolds import FixedRankFactored


@dataclass(frozen=True)
class Line:
    """A measurement: what it is called, what it measures, in which unit, and how good is enough."""

    name: str
    measure: Callable[[], float]
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    alone: bool = False

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


def line(name: str, unit: str, **bounds) -> Callable[[Callable[[], float]], Callable[[], float]]:
    """Registers a function under a name; its docstring says what the number is."""

    def register(measure: Callable[[], float]) -> Callable[[], float]:
        LINES[name] = Line(name, measure, unit, **bounds)
        return measure

    return register


def seconds(step: Callable[[], object], repeats: int = 30) -> float:
    """The median wall time of a step, after three that warm up."""
    for _ in range(3):
        step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def resident_mb(key: str) -> float:
    """VmRSS or VmHWM of this process in MB; without /proc the peak stands for both."""
    status = Path("/proc/self/status")
    if status.exists():
        for entry in status.read_text().splitlines():
            if entry.startswith(key):
                return int(entry.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def adam_steps(size: int, rank: int, entries: int, count: int) -> None:
    """RiemannianAdam on the completion of a size×size matrix."""
    manifold = FixedRankFactored(size, size, rank)
    rows, cols = (torch.randint(size, (entries,)) for _ in range(2))
    values = torch.randn(entries, dtype=torch.float64)
    problem = MatrixCompletion(rows, cols, values, (size, size))
    x = manifold.random(dtype=torch.float64)
    p = geoopt.ManifoldParameter(x)
    optimizer = geoopt.optim.RiemannianAdam([p], lr=1e-2)
    for _ in range(count):
        optimizer.zero_grad()
        problem.pair_loss(*manifold.factor_pair(p)).backward()
        optimizer.step()


@line("adam-memory", "MB", at_most=200, alone=True)
def adam_memory() -> float:
    """Peak resident set above the baseline, RiemannianAdam on FixedRankFactored(20000, 20000, 10).

    Counted: the parameter, the data (200 000 known entries), the optimizer's state, three steps.
    The baseline is a process that has imported everything and stepped a 50×50 matrix once.
    """
    torch.set_num_threads(1)
    adam_steps(50, 3, 100, 1)
    reset = Path("/proc/self/clear_refs")
    if os.access(reset, os.W_OK):
        reset.write_text("5")  # the peak starts anew
    baseline = resident_mb("VmRSS")
    adam_steps(20_000, 10, 200_000, 3)
    return resident_mb("VmHWM") - baseline


def our_move(batch: tuple[int, ...], m: int, n: int, rank: int):
    """The manifold's part of a gradient step, depth 1: partials -> Riemannian gradient -> point."""
    manifold = FixedRankFactored(m, n, rank, 1)
    x = manifold.random(*batch, m + n + rank, rank, dtype=torch.float64)
    partials = torch.randn(x.shape, dtype=torch.float64)
    return lambda: manifold.retr(x, -1e-3 * manifold.egrad2rgrad(x, partials))


def pymanopt_move(m: int, n: int, rank: int):
    """The same by Pymanopt's FixedRankEmbedded."""
    import numpy as np
    from pymanopt.manifolds import FixedRankEmbedded

    manifold = FixedRankEmbedded(m, n, rank)
    draw = np.random.default_rng(0).standard_normal
    point, partials = manifold.random_point(), (draw((m, rank)), draw(rank), draw((rank, n)))

    def move() -> None:
        rgrad = manifold.euclidean_to_riemannian_gradient(point, partials)
        manifold.retraction(point, rgrad * -1e-3)

    return move


def our_step(batch: tuple[int, ...], m: int, n: int, rank: int, depth: float):
    """One step of RiemannianSGD on ½‖W − X‖², autograd included."""
    manifold = FixedRankFactored(m, n, rank, depth)
    X = torch.randn(*batch, m, n, dtype=torch.float64)
    start = manifold.random(*batch, m + n + rank, rank, dtype=torch.float64)
    p = geoopt.ManifoldParameter(start)
    optimizer = geoopt.optim.RiemannianSGD([p], lr=1e-7)

    def step() -> None:
        optimizer.zero_grad()
        U, S, V = manifold.unpack_tensor(p)
        (0.5 * (U @ S @ V.mT - X).square().sum()).backward()
        optimizer.step()

    return step


@line("move-pymanopt", "times faster", at_least=0.25)
def move_pymanopt() -> float:
    """Pymanopt's time for partials -> gradient -> retraction over ours, 5000×4000 of rank 10."""
    return seconds(pymanopt_move(5000, 4000, 10)) / seconds(our_move((), 5000, 4000, 10))


@line("batch-pymanopt", "times faster", at_least=1)
def batch_pymanopt() -> float:
    """The same for a batch of 64 matrices 60×40 of rank 5, which Pymanopt takes one by one."""
    return 64 * seconds(pymanopt_move(60, 40, 5), 100) / seconds(our_move((64,), 60, 40, 5))


@line("depth-cost", "times", at_most=1.3)
def depth_cost() -> float:
    """A gradient step at depth 64 over one at depth 2: nothing grows with the depth."""
    return seconds(our_step((), 500, 400, 5, 64)) / seconds(our_step((), 500, 400, 5, 2))


def measured(entry: Line) -> float:
    if not entry.alone:
        return entry.measure()
    child = subprocess.run(
        [sys.executable, __file__, "--child", entry.name],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(child.stdout.strip().splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="lines to measure; all when none is given")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmark.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(LINES[options.child].measure())
        return 0
    unknown = sorted(set(options.names) - set(LINES))
    if unknown:
        parser.error(f"names must be among {', '.join(LINES)}; got {', '.join(unknown)}.")
    if options.list:
        for entry in LINES.values():
            print(f"{entry.name:<16}{(entry.measure.__doc__ or '').splitlines()[0]}")
        return 0
    torch.set_num_threads(1)
    results = []
    for name in options.names or LINES:
        entry = LINES[name]
        value = measured(entry)
        fields = {k: v for k, v in asdict(entry).items() if k not in ("measure", "alone")}
        results.append({**fields, "value": value, "ok": entry.holds(value)})
        verdict = "ok" if entry.holds(value) else "MISSED"
        print(f"{name:<16}{value:>10.3g} {entry.unit:<14}{entry.bound:<10}{verdict}", flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"torch": torch.__version__, "python": platform.python_version()}
    options.json.write_text(json.dumps({"machine": machine, "lines": results}, indent=2) + "\n")
    return 0 if all(result["ok"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
