"""Steps of the geoopt manifolds: memory, Pymanopt beside them, the cost of depth."""

from __future__ import annotations

import os
import resource
import warnings
from pathlib import Path

import torch
from torch import nn

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
    import geoopt

from benchmarks import line, ratio
from benchmarks.flows import PYMANOPT
from deeplin.manifolds import FixedRankFactored
from deeplin.nn import FixedRankLinear
from deeplin.optim import RiemannianSGD
from deeplin.problems import MatrixCompletion


def resident_mb(key: str) -> float:
    """VmRSS or VmHWM of this process in MB; without /proc the peak stands for both."""
    status = Path("/proc/self/status")
    if status.exists():
        for entry in status.read_text().splitlines():
            if entry.startswith(key):
                return int(entry.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def adam_steps(size: int, rank: int, entries: int, count: int, device: torch.device) -> None:
    """RiemannianAdam on the completion of a size×size matrix."""
    manifold = FixedRankFactored(size, size, rank)
    rows, cols = (torch.randint(size, (entries,), device=device) for _ in range(2))
    values = torch.randn(entries, dtype=torch.float64, device=device)
    problem = MatrixCompletion(rows, cols, values, (size, size))
    x = manifold.random(dtype=torch.float64, device=device)
    p = geoopt.ManifoldParameter(x)
    optimizer = geoopt.optim.RiemannianAdam([p], lr=1e-2)
    for _ in range(count):
        optimizer.zero_grad()
        problem.pair_loss(*manifold.factor_pair(p)).backward()
        optimizer.step()


@line("adam-memory", "MB", at_most=200, alone=True)
def adam_memory(device: torch.device) -> float:
    """Peak resident set above the baseline, RiemannianAdam on FixedRankFactored(20000, 20000, 10).

    Counted: the parameter, the data (200 000 known entries), the optimizer's state, three steps.
    The baseline is a process that has imported everything and stepped a 50×50 matrix once. On a GPU
    the peak is that of its own memory, as torch has allocated it.
    """
    torch.set_num_threads(1)
    adam_steps(50, 3, 100, 1, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        adam_steps(20_000, 10, 200_000, 3, device)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    reset = Path("/proc/self/clear_refs")
    if os.access(reset, os.W_OK):
        reset.write_text("5")  # the peak starts anew
    baseline = resident_mb("VmRSS")
    adam_steps(20_000, 10, 200_000, 3, device)
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


def our_step(m: int, n: int, rank: int, depth: float, device: torch.device):
    """One step of RiemannianSGD on ½‖W − X‖², autograd included."""
    manifold = FixedRankFactored(m, n, rank, depth)
    X = torch.randn(m, n, dtype=torch.float64, device=device)
    start = manifold.random(dtype=torch.float64, device=device)
    p = geoopt.ManifoldParameter(start)
    optimizer = geoopt.optim.RiemannianSGD([p], lr=1e-7)

    def step() -> None:
        optimizer.zero_grad()
        U, S, V = manifold.unpack_tensor(p)
        (0.5 * (U @ S @ V.mT - X).square().sum()).backward()
        optimizer.step()

    return step


@line("move-pymanopt", "times faster", at_least=0.25, processor=PYMANOPT)
def move_pymanopt() -> float:
    """Pymanopt's time for partials -> gradient -> retraction over ours, 5000×4000 of rank 10."""
    return ratio(our_move((), 5000, 4000, 10), pymanopt_move(5000, 4000, 10), 31)


@line("batch-pymanopt", "times faster", at_least=1, processor=PYMANOPT)
def batch_pymanopt() -> float:
    """The same for a batch of 64 matrices 60×40 of rank 5, which Pymanopt takes one by one."""
    return 64 * ratio(our_move((64,), 60, 40, 5), pymanopt_move(60, 40, 5), 31)


@line("depth-cost", "times", at_most=1.3)
def depth_cost(device: torch.device) -> float:
    """A gradient step at depth 64 over one at depth 2: nothing grows with the depth."""
    shallow, deep = (our_step(500, 400, 5, depth, device) for depth in (2, 64))
    return ratio(shallow, deep, 31)


def training_step(net: nn.Module, optimizer: torch.optim.Optimizer, batch: int):
    """Forward, backward and step on images of the digits' size."""
    device = next(net.parameters()).device
    x = torch.randn(batch, 64, device=device)
    labels = torch.randint(10, (batch,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()

    return step


def layer_cost(batch: int, depth: float, device: torch.device) -> float:
    """A step of 64→512→512→10 with two FixedRankLinear over one with two thin nn.Linear each."""
    hidden = (64, 512), (512, 512)

    def net(pair) -> nn.Sequential:
        inner = [part for sizes in hidden for part in (*pair(*sizes), nn.ReLU())]
        return nn.Sequential(*inner, nn.Linear(512, 10)).to(device)

    def thin(n: int, m: int) -> tuple[nn.Module, ...]:
        return nn.Linear(n, 16, bias=False), nn.Linear(16, m)

    ours = net(lambda n, m: (FixedRankLinear(n, m, 16, depth),))
    theirs = net(thin)
    optimizers = (
        RiemannianSGD(ours.parameters(), lr=1e-3, momentum=0.9),
        torch.optim.SGD(theirs.parameters(), lr=1e-3, momentum=0.9),
    )
    own, other = optimizers
    return 1 / ratio(training_step(ours, own, batch), training_step(theirs, other, batch), 31)


@line("layer-cost", "times", at_most=2)
def layer_cost_small(device: torch.device) -> float:
    """FixedRankLinear over two thin nn.Linear, 64→512→512→10 of rank 16, batch 64: a whole step."""
    return layer_cost(64, 1, device)


@line("layer-cost-depth2", "times", at_most=2)
def layer_cost_depth(device: torch.device) -> float:
    """The same with the metric of depth 2, which takes an r×r SVD."""
    return layer_cost(64, 2, device)


@line("layer-cost-1024", "times", at_most=2)
def layer_cost_large(device: torch.device) -> float:
    """The same at depth 1 and batch 1024."""
    return layer_cost(1024, 1, device)
