"""Ten thousand starts, each followed until theory decides where it ends, and what a count proves.

No tolerance decides: L falls along a flow and its limit is critical (BRTW Theorem 5, BRTW
Prop. 34(a)), so that a run whose loss is below every critical value but one ends at that one.
"""

import itertools
import math
import os
import shutil

import torch
from landscape_oracles import square_root
from scipy.stats import binomtest

import deeplin
from deeplin import LeastSquares
from deeplin.flows import EndToEndFlow, LayerFlow
from deeplin.flows.layers import curvature
from deeplin.integrators import RK4
from deeplin.integrators.compiled import Compiled

F64 = torch.float64
_FASTEST = 256


def method():
    """RK4 for layers, in compiled code where there is a compiler."""
    found = shutil.which(os.environ.get("CC", "cc").split()[0])
    return RK4() if found is None else Compiled(RK4())


def data(randn, d_x, d_y, sigma):
    """C of condition below 3, Q with the given singular values, and a residual of ¼."""
    E, V = (torch.linalg.qr(randn(d_x, d_x)).Q for _ in range(2))
    U = torch.linalg.qr(randn(d_y, d_y)).Q
    lam, s = torch.linspace(1.4, 0.6, d_x, dtype=F64), torch.tensor(sigma, dtype=F64)
    q = len(sigma)
    B = (U[:, :q] * s) @ V[:, :q].mT @ (E * lam.sqrt()) @ E.mT
    return LeastSquares.from_moments((E * lam) @ E.mT, B, s.square().sum() + 0.5)


def critical_values(problem, most):
    """Every ½(tr YYᵀ − Σ_J σ_j²) with |J| <= most, ascending: J by enumeration, σ by SciPy's root.

    Source: BRTW Prop. 32(2).
    """
    root = square_root(problem.C)
    s = torch.linalg.svdvals(problem.B @ torch.linalg.inv(root))
    squares = [v for v in s.square().tolist() if v > 1e-20]
    sets = (J for k in range(most + 1) for J in itertools.combinations(squares, k))
    return sorted(0.5 * (float(problem.yy) - sum(J)) for J in sets)


class Followed:
    """Runs from a batch of states: each as it is at the first time `until` holds, and `t`.

    `until(W, losses)` says of every run whether it is decided. The others go on alone, through
    `advance(y, length)`, and are asked after longer and longer times, to `t1`; what is undecided
    then has t = inf. `risen`: the largest relative rise of the loss from one question to the next,
    0 for a flow that is integrated faithfully; of one that is not no more is asked.
    """

    def __init__(self, problem, flow, y, advance, until, t1=1e4):
        W, t, chunk = flow.end_to_end(y), 0.0, 0.25
        losses = problem.loss(W)
        self.y, self.W, self.risen = [part.clone() for part in y], W.clone(), 0.0
        self.t, alive = torch.full_like(losses, torch.inf), torch.arange(len(losses))
        while True:
            now = until(W, losses)
            self.t[alive[now]] = t
            for whole, left in zip([*self.y, self.W], [*y, W], strict=True):
                whole[alive] = left
            alive, y, losses = alive[~now], tuple(part[~now] for part in y), losses[~now]
            if not len(alive) or t >= t1 or self.risen > 1e-3:
                break
            y = advance(y, chunk)
            W, t = flow.end_to_end(y), t + chunk
            new = problem.loss(W)
            rises = (new / losses - 1).nan_to_num(nan=math.inf)
            self.risen = max(self.risen, float(rises.max()))
            losses, chunk = new, 1.25 * chunk
        self.losses = problem.loss(self.W)

    @property
    def undecided(self):
        return int(torch.isinf(self.t).sum())


def follow_layers(problem, layers, until, part=0.5, t1=1e4):
    """Layers under (5), by RK4 at a part of its stability limit for the fastest of them."""
    flow = LayerFlow(problem)
    rk4 = method()

    def advance(y, length):
        # Those that a few power iterations find the fastest are measured in full.
        roughly = curvature(problem, y, iterations=6)
        fastest = roughly.topk(min(_FASTEST, len(roughly))).indices
        largest = flow.curvature(tuple(W_j[fastest] for W_j in y))
        steps = int(length * largest / (part * rk4.stability_limit)) + 1
        for _ in range(steps):
            y = rk4.step(flow, 0.0, y, length / steps)
        return y

    return Followed(problem, flow, flow.init_state(layers), advance, until, t1)


def follow_matrices(problem, depth, W, rank, until, t1=1e4):
    """Matrices under (24), in a form that keeps their rank and the sign of det W."""
    flow = EndToEndFlow(problem, depth)

    def advance(y, length):
        return deeplin.solve(flow, y, length, dt=length / math.ceil(5 * length)).y[-1]

    return Followed(problem, flow, flow.init_state(W, rank), advance, until, t1)


def at_most(count, runs):
    """The largest probability that so few of the runs do not refute at 95 %: Clopper–Pearson."""
    return binomtest(count, runs, alternative="less").proportion_ci(0.95, "exact").high


def at_least(count, runs):
    """The least probability that so many of them do not refute."""
    return binomtest(count, runs, alternative="greater").proportion_ci(0.95, "exact").low


def none_of(seen, what, count, runs):
    """The count is 0, and the ledger shows it with the bound that this puts on the probability."""
    seen.number(f"{what}, of {runs:,}", count)
    seen.number("their probability at most (95 %)", at_most(count, runs))
    seen(count, 0)
