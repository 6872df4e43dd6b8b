"""Steps of the geoopt manifolds: memory, Pymanopt beside them, the cost of depth."""

from __future__ import annotations

import os
import resource
import warnings
from pathlib import Path

import torch

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
    import geoopt

from benchmarks import line, ratio
from deeplin.manifolds import FixedRankFactored
from deeplin.problems import MatrixCompletion


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
    from pymanopt.manifolds import FixedRankEmbedded  # pyright: ignore[reportMissingImports]

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
    return ratio(our_move((), 5000, 4000, 10), pymanopt_move(5000, 4000, 10), 31)


@line("batch-pymanopt", "times faster", at_least=1)
def batch_pymanopt() -> float:
    """The same for a batch of 64 matrices 60×40 of rank 5, which Pymanopt takes one by one."""
    return 64 * ratio(our_move((64,), 60, 40, 5), pymanopt_move(60, 40, 5), 31)


@line("depth-cost", "times", at_most=1.3)
def depth_cost() -> float:
    """A gradient step at depth 64 over one at depth 2: nothing grows with the depth."""
    return ratio(our_step((), 500, 400, 5, 2), our_step((), 500, 400, 5, 64), 31)
