"""Completion by several processes: computation, communication, memory, and a model beyond these."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from dataclasses import dataclass
from math import log2

import numpy as np
import torch
import torch.distributed as dist
from scipy.optimize import nnls

from benchmarks import line
from deeplin.manifolds import ShardedFixedRank
from deeplin.optim import ConjugateGradient
from deeplin.problems import ShardedCompletion, begin_processes, own_rows
from deeplin.problems.planted import entries_at

RANK = 10
ENTRIES = 10 * RANK  # known in a row: five times the dimension, of a square matrix
SIZES, COUNTS = (10_000, 20_000, 40_000), (1, 2, 4)
STEPS = 6
F64 = torch.float64
# What is asked of the model.
NODES, SIZE = 64, 10**8


@dataclass
class Clock:
    """Seconds inside the collectives of torch.distributed, and of the processor there."""

    wall: float = 0.0
    processor: float = 0.0

    def install(self) -> None:
        """Puts itself around the three that `linalg.shards` calls."""
        for name in ("all_reduce", "all_gather", "reduce_scatter"):
            setattr(dist, name, self._timed(vars(dist)[name]))

    def _timed(self, collective):
        def call(*arguments, **options):
            wall, processor = time.perf_counter(), time.thread_time()
            result = collective(*arguments, **options)
            self.wall += time.perf_counter() - wall
            self.processor += time.thread_time() - processor
            return result

        return call


def bytes_of(thing: object, seen: set[int] | None = None) -> int:
    """Of all tensors that a thing of deeplin has, in itself and in what it has, each once."""
    seen = set() if seen is None else seen
    if isinstance(thing, torch.Tensor):
        storage = thing.untyped_storage()
        new = storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        return storage.nbytes() if new else 0
    if isinstance(thing, list | tuple | dict):
        parts = thing.values() if isinstance(thing, dict) else thing
        return sum(bytes_of(part, seen) for part in parts)
    own = type(thing).__module__.startswith("deeplin")
    return sum(bytes_of(part, seen) for part in vars(thing).values()) if own else 0


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def drawn(n: int, group: dist.ProcessGroup | None) -> ShardedCompletion:
    """n×n of rank 10 with 100 known entries in each row, columns at random, drawn by their rows."""
    own = own_rows(n, group)
    right = torch.randn(n, RANK, dtype=F64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1 + own.start)
    count = own.stop - own.start
    left = torch.randn(count, RANK, dtype=F64, generator=generator)
    rows = torch.arange(count).repeat_interleave(ENTRIES)
    cols = torch.randint(n, (count * ENTRIES,), generator=generator)
    values = entries_at(rows, cols, left, right)
    return ShardedCompletion(rows + own.start, cols, values, (n, n), group=group)


def work(rank: int, count: int, n: int, port: int, queue) -> None:
    """((computation, communication, whole) of each step, bytes held, peak of memory)."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    begin_processes(init_method=address, rank=rank, world_size=count)
    group = dist.group.WORLD
    before = _peak()
    problem = drawn(n, group)
    manifold = ShardedFixedRank(n, n, RANK, 1, group=group)
    x = manifold.parameter(manifold.random(dtype=F64, generator=torch.Generator().manual_seed(2)))
    solver = ConjugateGradient([x], problem=problem)
    for _ in range(2):
        solver.step()
    clock, seen = Clock(), []
    clock.install()
    for _ in range(STEPS):
        dist.barrier()
        clock.wall = clock.processor = 0.0
        wall, processor = time.perf_counter(), time.thread_time()
        solver.step()
        whole, used = time.perf_counter() - wall, time.thread_time() - processor
        seen.append((used - clock.processor, clock.wall, whole))
    kept = bytes_of((problem, x.detach(), list(solver.state[x].values())))
    queue.put((np.array(seen), kept, _peak() - before))
    dist.barrier()
    dist.destroy_process_group()


def measured(count: int, n: int) -> tuple[np.ndarray, int, int]:
    """The times of `work` in the best of its steps, each of the process of which it is the most;
    the most bytes held, and the highest peak."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deeplin.optim"])
    queue = context.Queue()
    store = dist.TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)
    port = store.port
    del store
    processes = [
        context.Process(target=work, args=(rank, count, n, port, queue)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    seen = [queue.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    times, kept, peaks = zip(*seen, strict=True)
    return np.array(times).max(0).min(0), max(kept), max(peaks)


def fitted(terms: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients >= 0 of the terms, by least relative squares, and the largest relative error."""
    coefficients, _ = nnls(terms / times[:, None], np.ones(len(times)))
    return coefficients, float(np.abs(terms @ coefficients / times - 1).max())


def _model(p: float, n: float) -> list[float]:
    return [n / p, RANK**2 * log2(p), 1.0]


@line("scaling", "s a step, a model", processor="its processes share the cores, and gloo")
def scaling() -> float:
    """Completion by 1, 2 and 4 processes; what a model of it gives for 10⁸×10⁸ on 64 nodes.

    The best of six steps of conjugate gradients, rank 10, 100 known entries in a row: processor
    time outside the collectives of torch.distributed, wall time inside them, waiting included.
    Fitted to their sum is t = a·n/p + b·r²·log p + c, once as it stands and once with what it
    leaves out, the gather of the right factor, d·n·r·(p − 1)/p; the number is that of the second.
    """
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    cores = len(os.sched_getaffinity(0))
    say(f"{cores} cores; processes beyond that share them: waiting for a core is in communication")
    say("processes       n  computation  communication  a step, wall  tensors  peak of memory")
    seen = []
    for n in SIZES:
        for count in COUNTS:
            (computing, talking, whole), kept, peak = measured(count, n)
            say(
                f"{count:>9}{n:>8}{computing:>11.4f} s{talking:>13.4f} s{whole:>12.4f} s"
                f"{kept / 2**20:>6.0f} MB{peak / 2**20:>13.0f} MB"
            )
            seen.append((count, n, computing + talking))
    times = np.array([t for *_, t in seen])
    terms = np.array([_model(p, n) for p, n, _ in seen])
    (a, b, c), error = fitted(terms, times)
    short = float(np.dot(_model(NODES, SIZE), (a, b, c)))
    say(f"t = a·n/p + b·r²·log2 p + c: a = {a:.1e} s, b = {b:.1e} s, c = {c:.1e} s,")
    say(f"within {100 * error:.0f} % of the above; {SIZE:.0e} square, {NODES} nodes: {short:.0f} s")
    gather = np.array([[n * RANK * (p - 1) / p] for p, n, _ in seen])
    (a, b, c, d), error = fitted(np.hstack([terms, gather]), times)
    last = d * SIZE * RANK * (NODES - 1) / NODES
    long = float(np.dot(_model(NODES, SIZE), (a, b, c))) + last
    say(f"and d·n·r·(p − 1)/p, V gathered: a = {a:.1e}, b = {b:.1e}, c = {c:.1e}, d = {d:.1e} s,")
    say(f"within {100 * error:.0f} %; there {long:.0f} s, of them {last:.0f} s for V")
    say(f"Models, no measurements, of {NODES} nodes that are like these processes, with a network")
    gigabytes = 8 * SIZE * RANK / 2**30
    say(f"like their memory. V, of {gigabytes:.1f} GB, is gathered whole on each node.")
    return long
