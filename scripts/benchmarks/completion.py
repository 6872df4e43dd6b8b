"""Matrix completion: beside cmfrec and Pymanopt, against the memory, and what is found at all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from scipy.stats import binomtest

from benchmarks import CPU, clock, line, seconds
from benchmarks.flows import PYMANOPT
from deeplin.geometry.coordinates import Point
from deeplin.optim import Minimum, continuation, minimize
from deeplin.optim.solver import Solver
from deeplin.problems import MatrixCompletion, alternating_start, spectral_start
from deeplin.problems.planted import entries_at, planted_factors

F64 = torch.float64
CMFREC = "cmfrec computes there"


@cache
def planted(
    n: int,
    rank: int,
    oversampling: float,
    device: torch.device = CPU,
    *,
    condition: float = 1.0,
    seed: int = 0,
) -> tuple[MatrixCompletion, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(problem, factors of the truth), n×n, the same on every device."""
    problem, (U, sigma, V) = MatrixCompletion.planted(
        (n, n),
        rank,
        oversampling=oversampling,
        condition=condition,
        generator=torch.Generator().manual_seed(seed),
        dtype=F64,
    )
    return problem.to(device), (U.to(device), sigma.to(device), V.to(device))


def until(goal: float, problem: MatrixCompletion) -> Callable[[Solver, Point], bool]:
    """Whether the relative residual ‖P_Ω(W − X)‖/‖P_Ω X‖ is at most the goal."""
    size = float(problem.values.norm())
    return lambda solver, point: float(2 * solver.loss) ** 0.5 <= goal * size


def solved(known: MatrixCompletion, rank: int, goal: float, **options) -> tuple[float, Point]:
    """(seconds, W): everything from the triples on, entries sorted and start found included."""
    begin = clock()
    problem = MatrixCompletion(known.rows, known.cols, known.values, known.shape)
    found = minimize(
        problem, alternating_start(problem, rank), after_each=until(goal, problem), **options
    )
    return clock() - begin, found.point


def residual(known: MatrixCompletion, A: np.ndarray, B: np.ndarray) -> float:
    """‖P_Ω(ABᵀ − X)‖/‖P_Ω X‖."""
    loss = known.pair_loss(torch.from_numpy(A).to(F64), torch.from_numpy(B).to(F64))
    return float((2 * loss) ** 0.5 / known.values.norm())


def by_cmfrec(known: MatrixCompletion, rank: int, iterations: int) -> tuple[float, float]:
    """(seconds, relative residual) of so many iterations of cmfrec's ALS without biases."""
    from cmfrec import CMF  # pyright: ignore[reportMissingImports]
    from scipy.sparse import coo_matrix

    X = coo_matrix((known.values.numpy(), (known.rows, known.cols)), known.shape)
    model = CMF(
        k=rank,
        lambda_=1e-10,
        method="als",
        use_cg=False,
        user_bias=False,
        item_bias=False,
        center=False,
        niter=iterations,
        use_float=False,
        nthreads=1,
        random_state=0,
        verbose=False,
    )
    begin = clock()
    model.fit(X)
    return clock() - begin, residual(known, model.A_, model.B_)


@line("completion", "s", at_most=0.5)
def completion(device: torch.device) -> float:
    """5000×5000 of rank 10, 500 000 known entries, from the triples to a relative residual 1e-8."""
    known, _ = planted(5000, 10, 5, device)
    solved(known, 10, 1e-2)  # compiles
    return min(solved(known, 10, 1e-8)[0] for _ in range(5))


@line("completion-cmfrec", "times faster", at_least=3.5, processor=CMFREC)
def completion_cmfrec() -> float:
    """cmfrec's time to 2e-8, where its ALS stalls, over ours to 1e-8, on the same matrix."""
    known, _ = planted(5000, 10, 5)
    solved(known, 10, 1e-2)
    ours = min(solved(known, 10, 1e-8)[0] for _ in range(3))
    theirs, reached = 0.0, 1.0
    for iterations in (6, 8, 10, 12, 16, 24):
        theirs, reached = by_cmfrec(known, 10, iterations)
        if reached <= 2e-8:
            break
    print(f"cmfrec: {theirs:.2f} s to {reached:.1e}; ours {ours:.2f} s", file=sys.stderr)
    return theirs / ours


def by_pymanopt(known: MatrixCompletion, start: Point, tol: float) -> float:
    """Seconds of Pymanopt's conjugate gradients, with sparse products written by hand."""
    import pymanopt  # pyright: ignore[reportMissingImports]
    from pymanopt.manifolds import FixedRankEmbedded  # pyright: ignore[reportMissingImports]
    from pymanopt.optimizers import (  # pyright: ignore[reportMissingImports]
        ConjugateGradient as Peer,
    )
    from scipy.sparse import csr_matrix

    (m, n), r = known.shape, start.S.shape[-1]
    rows, cols, values = (part.numpy() for part in (known.rows, known.cols, known.values))
    manifold = FixedRankEmbedded(m, n, r)

    def errors(u, s, vt):
        return np.einsum("pr,rp->p", u[rows] * s, vt[:, cols]) - values

    @pymanopt.function.numpy(manifold)
    def cost(u, s, vt):
        return 0.5 * np.sum(errors(u, s, vt) ** 2)

    @pymanopt.function.numpy(manifold)
    def gradient(u, s, vt):
        G = csr_matrix((errors(u, s, vt), (rows, cols)), (m, n))
        GV, GtU = G @ vt.T, G.T @ u
        return GV * s, np.einsum("mr,mr->r", u, GV), s[:, None] * GtU.T

    P, sigma, Q = start.spectrum
    parts = (start.U @ P, sigma, (start.V @ Q).mT)
    point = type(manifold.random_point())(*(part.numpy() for part in parts))
    peer = Peer(max_iterations=1000, max_time=300, min_gradient_norm=tol, verbosity=0)
    problem = pymanopt.Problem(manifold, cost, euclidean_gradient=gradient)
    begin = clock()
    result = peer.run(problem, initial_point=point)
    taken = clock() - begin
    print(f"Pymanopt: {taken:.2f} s; {result.stopping_criterion}", file=sys.stderr)
    return taken


@line("completion-pymanopt", "times faster", at_least=10, processor=PYMANOPT)
def completion_pymanopt() -> float:
    """Pymanopt's time over ours, conjugate gradients, 2000×2000 of rank 10, ‖grad‖ to 1e-5 ‖X‖."""
    known, _ = planted(2000, 10, 5)
    start, tol = spectral_start(known, 10), 1e-5 * float(known.values.norm())
    ours = []
    for _ in range(4):
        begin = clock()
        minimize(known, start, tol=tol)
        ours.append(clock() - begin)
    return by_pymanopt(known, start, tol) / min(ours)


@line("completion-batch", "times faster", at_least=10, processor=PYMANOPT)
def completion_batch() -> float:
    """1000 matrices 60×40 of rank 5 to ‖grad‖ = 1e-10 by our trust region, all at once.

    Over Pymanopt's conjugate gradients on four of them, one by one, times 250: its trust region
    does not take this manifold. Those that do not get there are told.
    """
    generator = torch.Generator().manual_seed(0)
    pattern, _ = MatrixCompletion.planted((60, 40), 5, oversampling=3, generator=generator)
    A, B = (torch.randn(1000, d, 5, dtype=F64, generator=generator) for d in (60, 40))
    rows, cols = pattern.rows, pattern.cols
    values = (A[:, rows] * B[:, cols]).sum(-1)
    known = MatrixCompletion(rows, cols, values, (60, 40))
    begin = clock()
    start = spectral_start(known, 5)
    found = minimize(known, start, method="trust_region", tol=1e-10, max_iter=300)
    ours = clock() - begin
    rest = int((~found.converged).sum())
    print(f"ours: {ours:.2f} s, {rest} of 1000 did not get to 1e-10", file=sys.stderr)
    theirs = 0.0
    for i in range(4):
        single = MatrixCompletion(rows, cols, values[i], (60, 40))
        theirs += by_pymanopt(single, spectral_start(single, 5), 1e-10)
    return 250 * theirs / ours


@line("completion-limit", "times", at_most=4)
def completion_limit(device: torch.device) -> float:
    """An iteration of conjugate gradients over the time in which memory moves what it reads.

    Of each known entry, in two passes (residual, GV and GᴴU; the step's curvature): two column
    numbers of 4 bytes, the value of 8: 16 bytes. Beside them stand the rows of the factors, from
    the cache, and what is done with rows alone. The memory's rate is that of copying 256 MB.
    20000×20000 of rank 10, 2 000 000 known entries.
    """
    known, _ = planted(20_000, 10, 5, device)
    source = torch.zeros(2**25, dtype=F64, device=device)
    target = torch.empty_like(source)
    rate = 2 * source.numel() * 8 / seconds(lambda: target.copy_(source), 10)
    return _iteration(known, 10) / (16 * len(known.rows) / rate)


@line("completion-profile", "share", at_least=0.7)
def completion_profile(device: torch.device) -> float:
    """The share of an iteration of conjugate gradients that its three products with entries take.

    5000×5000 of rank 10, 500 000 known entries; in turns, the median of the tenth to the last.
    """
    known, _ = planted(5000, 10, 5, device)
    shares, ended = [], clock()

    def note(solver: Solver, point: Point) -> None:
        nonlocal ended
        whole = clock() - ended
        left, right = torch.cat([point.U, point.U], 1), torch.cat([point.V, point.V], 1)
        begin = clock()
        known.loss_and_products(point.U, point.S, point.V)
        known.quadratic_along(left, right)
        ended = clock()
        shares.append((ended - begin) / whole)

    minimize(known, spectral_start(known, 10), max_iter=25, after_each=note)
    return float(np.median(shares[9:]))


def _iteration(known: MatrixCompletion, rank: int) -> float:
    """The median time of an iteration, the tenth to the twenty-fifth."""
    times: list[float] = []

    def note(solver: Solver, point: Point) -> None:
        times.append(clock())

    minimize(known, spectral_start(known, rank), max_iter=25, after_each=note)
    steps = np.diff(times)[9:]
    return float(np.median(steps))


@line("trust-region", "s", at_most=2)
def trust_region(device: torch.device) -> float:
    """1000×1000, rank 5, condition 1e5, twice as many entries as dimensions, by trust regions.

    Rank by rank to ‖grad‖ = 1e-13 ‖X‖; the last gradient norms and the error of W are told.
    """
    return _second_order(*planted(1000, 5, 2, device, condition=1e5, seed=1))


@line("trust-region-few", "s", at_most=0.3)
def trust_region_few(device: torch.device) -> float:
    """300×350, rank 5, condition 10, 1.5 times as many entries as dimensions, alike.

    Each row and column has five known entries at least: with fewer its row of the factor is free.
    """
    shape, rank = (300, 350), 5
    generator = torch.Generator().manual_seed(1)
    U, sigma, V = planted_factors(shape, rank, condition=10, generator=generator, dtype=F64)
    rows, cols = _places(shape, rank, round(1.5 * (sum(shape) - rank) * rank), generator)
    values = entries_at(rows, cols, U * sigma, V)
    known = MatrixCompletion(rows, cols, values, shape).to(device)
    return _second_order(known, (U.to(device), sigma.to(device), V.to(device)))


def _second_order(
    known: MatrixCompletion, truth: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> float:
    """The least time of five runs from the triples on, after one that compiles."""
    (U, sigma, V), rank = truth, len(truth[1])
    tol, norms, times = 1e-13 * float(known.values.norm()), [], []

    def found_anew() -> Minimum:
        norms.clear()
        begin = clock()
        *_, found = continuation(
            MatrixCompletion(known.rows, known.cols, known.values, known.shape),
            rank,
            method="trust_region",
            tol=tol,
            max_iter=100,
            after_each=lambda solver, point: norms.append(float(solver.gradient_norm)),
        )
        times.append(clock() - begin)
        return found

    found = [found_anew() for _ in range(6)][-1]
    error = float(torch.linalg.norm(found.point.dense() - (U * sigma) @ V.mT) / sigma.norm())
    last = ", ".join(f"{norm:.1e}" for norm in (*norms[-3:], float(found.gradient_norm)))
    kind = "converged" if bool(found.converged) else "not converged"
    print(f"{kind}, error of W {error:.1e}; last gradient norms {last}", file=sys.stderr)
    return min(times[1:])


# The cells of the table; what is drawn for each: sets of places, and truths on each set.
_OVERSAMPLING, _CONDITIONS, _DEPTHS = (1.05, 1.5, 2, 3, 4), (1, 10, 1e3, 1e5), (1, 2, 3)
_SETS, _TRUTHS = 2, 10


@line("recovery", "share", at_least=0.3, named=True)
def recovery(device: torch.device) -> float:
    """The share of recovered instances in all cells of a table, which is told.

    60×50 of rank 3, ten truths a cell on each of two sets of places, which have three at least in
    each row and column: oversampling 1.05 to 4, condition 1 to 1e5, depths 1, 2, 3; conjugate
    gradients, at most 500 steps, and trust regions, at most 40 of 60 products, from the spectral
    start. Recovered is an error of W below 1e-3. All truths on a set of places are solved at once.
    The table has counts and the exact 95 % bounds of the share (Clopper and Pearson).
    """
    options = {
        "cg": {"max_iter": 500},
        "trust_region": {"max_iter": 40, "most": 60},
    }
    shares, heads = [], "".join(f"{f'condition {c:g}':>20}" for c in _CONDITIONS)
    for method in options:
        for depth in _DEPTHS:
            print(f"{method}, depth {depth}\noversampling{heads}", file=sys.stderr)
            for oversampling in _OVERSAMPLING:
                begin = clock()
                on_each = [
                    _recovered(oversampling, method, depth, options[method], seed, device)
                    for seed in range(_SETS)
                ]
                counts = torch.stack(on_each).sum(0).tolist()
                shares += [count / (_SETS * _TRUTHS) for count in counts]
                cells = "".join(_cell(count, _SETS * _TRUTHS) for count in counts)
                taken = clock() - begin
                print(f"{oversampling:<12g}{cells}  {taken:5.1f} s", file=sys.stderr, flush=True)
    return float(np.mean(shares))


def _cell(count: int, runs: int) -> str:
    """The count and the exact 95 % bounds of the share."""
    bounds = binomtest(count, runs).proportion_ci(0.95, "exact")
    return f"{f'{count:>3} ({bounds.low:.2f} to {bounds.high:.2f})':>20}"


def _recovered(
    oversampling: float,
    method: str,
    depth: float,
    options: dict,
    seed: int,
    device: torch.device,
) -> torch.Tensor:
    """How many of the truths of each condition are recovered, on one set of places."""
    shape, rank = (60, 50), 3
    generator = torch.Generator().manual_seed(seed)
    rows, cols = _places(shape, rank, round(oversampling * (sum(shape) - rank) * rank), generator)
    draws = [
        planted_factors(shape, rank, condition=condition, generator=generator, dtype=F64)
        for condition in _CONDITIONS
        for _ in range(_TRUTHS)
    ]
    truth = torch.stack([(U * sigma) @ V.mT for U, sigma, V in draws])
    known = MatrixCompletion(rows, cols, truth[:, rows, cols], shape).to(device)
    truth = truth.to(device)
    found = minimize(
        known, spectral_start(known, rank), method=method, depth=depth, tol=1e-8, **options
    )
    error = torch.linalg.matrix_norm(found.point.dense() - truth)
    reached = error < 1e-3 * torch.linalg.matrix_norm(truth)
    return reached.view(len(_CONDITIONS), _TRUTHS).sum(1)


def _places(
    shape: tuple[int, int], least: int, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """So many places at random, of each row and column at least as many as the rank asks for."""
    order = torch.rand(shape, generator=generator)
    known = torch.zeros(shape, dtype=torch.bool)
    known.scatter_(1, order.argsort(1)[:, :least], True)
    known.scatter_(0, order.argsort(0)[:least], True)
    rest = order.masked_fill(known, -1.0).flatten()
    known.view(-1)[rest.topk(count - int(known.sum())).indices] = True
    rows, cols = known.nonzero(as_tuple=True)
    return rows, cols
