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

from deeplin import DeepLinear, LeastSquares, autoencoder, init, solve
from deeplin.approximation import MatrixApproximation, MatrixCompletion
from deeplin.flows import DLRAFlow, EndToEndFlow, LayerFlow, compress
from deeplin.integrators import RK4, ProjectedRungeKutta, bound
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


def ratio(ours: Callable[[], object], theirs: Callable[[], object], repeats: int = 15) -> float:
    """Their median time over ours, the two measured in turns so that the machine's load cancels."""
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(repeats + 1):
        for step, record in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            step()
            if i:  # the first of each warms up
                record.append(time.perf_counter() - start)
    middle = (sorted(record)[len(record) // 2] for record in times)
    own = next(middle)
    return next(middle) / own


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


# -- flows --------------------------------------------------------------------------------------


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian_autoencoder(d: int, m: int) -> LeastSquares:
    return autoencoder(draw(d, m) / d**0.5)


def grid_network(d: int, depth: int, rank: int) -> DeepLinear:
    """The widths of BRTW §7.1.1, with tied orthogonal ends."""
    from deeplin.network import grid_widths

    net = DeepLinear(grid_widths(d, d, depth, rank), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    return init.orthogonal_balanced_(net, tied=True, generator=generator)


def layer_flow_case() -> tuple[LayerFlow, tuple[torch.Tensor, ...]]:
    flow = LayerFlow(gaussian_autoencoder(400, 1200))
    return flow, flow.init_state(grid_network(400, 20, 200))


def plain_velocity(problem: LeastSquares):
    """The layer flow with ∇L¹ formed, as for wide layers: `LayerFlow` itself uses thin ones."""
    from deeplin.network import layer_gradients

    return lambda t, y: tuple(-G_j for G_j in layer_gradients(y, problem.egrad))


@line("layer-mm", "of mm's rate", at_least=0.9)
def layer_mm() -> float:
    """Flops per second of the layer velocity at d = 400, N = 20, r = 200, over torch.mm's own.

    Flops are those of the products that it makes; mm's rate is that of the same shapes, one by one.
    """
    flow, y = layer_flow_case()
    d, k = y[0].shape[-1], y[0].shape[-2]
    rest = [tuple(W_j.shape) for W_j in y[1:]]
    pairs = [(k, d, d), (k, d, k), (d, k, k), (k, d, d), (k, d, k), (k, k, d)]  # C, B, L, W_1
    pairs += [(after, before, k) for after, before in rest[1:]]  # prefixes, the last of them L
    pairs += [(before, after, k) for after, before in rest]  # W_jᵀ G
    pairs += [(after, k, before) for after, before in rest[1:]]  # G times a prefix
    matrices = [(draw(a, b), draw(b, c)) for a, b, c in pairs]

    def products() -> None:
        for A, B in matrices:
            torch.mm(A, B)

    return ratio(lambda: flow.velocity(0.0, y), products, 7)


@line("layer-autograd", "times faster", at_least=3)
def layer_autograd() -> float:
    """Autograd through X with m = 3d samples over our layer velocity, at d = 400, N = 20, r = 200.

    Ours sees C and B alone: its time is the same for m = 10⁶.
    """
    X = draw(400, 1200) / 20
    flow, y = layer_flow_case()
    weights = [W_j.clone().requires_grad_() for W_j in y]

    def backward() -> None:
        Z = X
        for W_j in weights:
            Z = W_j @ Z
        torch.autograd.grad(0.5 * (X - Z).square().sum(), weights)

    return ratio(lambda: flow.velocity(0.0, y), backward, 7)


@line("compressed-layers", "times faster", at_least=30)
def compressed_layers() -> float:
    """A RK4 step of the full layers over one of the compressed, d = 400, r = 10, N = 20."""
    flow = LayerFlow(gaussian_autoencoder(400, 1200))
    full = flow.init_state(grid_network(400, 20, 10))
    small, step = compress(full), RK4().step
    plain = plain_velocity(flow.problem)
    return ratio(
        lambda: step(flow.velocity, 0.0, small, 1e-3), lambda: step(plain, 0.0, full, 1e-3), 5
    )


@line("end-to-end-layers", "times faster", at_least=30)
def end_to_end_layers() -> float:
    """A RK4 step of the full layers over one of the end-to-end flow, d = 400, r = 10, N = 20."""
    problem = gaussian_autoencoder(400, 1200)
    flow, product = LayerFlow(problem), EndToEndFlow(problem, 20)
    full = flow.init_state(grid_network(400, 20, 10))
    y, step = product.init_state(flow.end_to_end(full), 10), bound(RK4(), product)
    plain, layer_step = plain_velocity(problem), RK4().step
    return ratio(lambda: step(0.0, y, 1e-3), lambda: layer_step(plain, 0.0, full, 1e-3), 5)


@line("end-to-end-depth", "times", at_most=1.1)
def end_to_end_depth() -> float:
    """The end-to-end field at 400×400, k = 10: N = 64 over N = 2."""
    problem = gaussian_autoencoder(400, 1200)
    shallow, deep = EndToEndFlow(problem, 2), EndToEndFlow(problem, 64)
    y = shallow.init_state(draw(400, 10) @ draw(10, 400, seed=1) / 400, 10)
    return ratio(lambda: shallow.velocity(0.0, y), lambda: deep.velocity(0.0, y), 101)


@line("rgd-pymanopt", "times faster", at_least=12)
def rgd_pymanopt() -> float:
    """HLZ's workload, 100 repeats of one Riemannian gradient step, n = 100, r = 5: Pymanopt's loop.

    Per trajectory: gradient of ½‖Z − X‖² in factors, projection, retraction.
    """
    import numpy as np
    from pymanopt.manifolds import FixedRankEmbedded

    Q = torch.linalg.qr(draw(100, 5)).Q
    X = (Q * torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2], dtype=torch.float64)) @ Q.mT
    flow = DLRAFlow(MatrixApproximation(X))
    W = draw(100, 100, 5) @ draw(100, 5, 100, seed=1) / 100
    y, step = flow.init_state(W, 5), bound(ProjectedRungeKutta(1), flow)
    manifold = FixedRankEmbedded(100, 100, 5)
    points = [
        type(manifold.random_point())(U.numpy(), S.diagonal().numpy(), V.mT.numpy())
        for U, S, V in zip(*y, strict=True)
    ]
    target = X.numpy()

    def loop() -> None:
        for u, s, vt in points:
            G = (u * s) @ vt - target
            partials = (G @ (vt.T * s), np.einsum("ij,ij->j", u, G @ vt.T), (G.T @ (u * s)).T)
            point = type(points[0])(u, s, vt)
            rgrad = manifold.euclidean_to_riemannian_gradient(point, partials)
            manifold.retraction(point, rgrad * -0.2)

    return ratio(lambda: step(0.0, y, 0.2), loop, 7)


@line("tiny-rk4", "steps/s", at_least=1e6)
def tiny_rk4() -> float:
    """RK4 steps per second of N = 3, d = 4 networks in a batch of 10⁴."""
    flow = LayerFlow(gaussian_autoencoder(4, 12))
    y = tuple(0.3 * draw(10_000, 4, 4, seed=j) for j in range(3))
    step = RK4().step
    return 10_000 / seconds(lambda: step(flow.velocity, 0.0, y, 1e-2), 10)


def stiff_case(repeats: int | None):
    """N = 20, d = 20, r = 1: the layers of the grid, and their product for the end-to-end flow."""
    from deeplin.network import grid_widths

    problem = gaussian_autoencoder(20, 60)
    shape = () if repeats is None else (repeats,)
    net = DeepLinear(grid_widths(20, 20, 20, 1), batch_shape=shape, dtype=torch.float64)
    init.orthogonal_balanced_(net, tied=True, generator=torch.Generator().manual_seed(2))
    flow, product = LayerFlow(problem), EndToEndFlow(problem, 20)
    layers = flow.init_state(net)
    return flow, layers, product, product.init_state(flow.end_to_end(layers), 1)


def torchdiffeq_ratio(repeats: int | None) -> float:
    from torchdiffeq import odeint

    flow, layers, product, y = stiff_case(repeats)
    t = torch.tensor([0.0, 30.0], dtype=torch.float64)

    def theirs() -> None:
        odeint(flow.velocity, layers, t, rtol=1e-6, atol=1e-6, method="dopri5")

    return ratio(lambda: solve(product, y, 30.0, rtol=1e-6, atol=1e-6), theirs, 1)


@line("stiff-one", "times faster", at_least=10)
def stiff_one() -> float:
    """torchdiffeq's dopri5 on the layers over ours, N = 20, d = 20, r = 1, t = 30, rtol 1e-6."""
    return torchdiffeq_ratio(None)


@line("stiff-64", "times faster", at_least=20)
def stiff_64() -> float:
    """The same for 64 starts at once."""
    return torchdiffeq_ratio(64)


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
