"""BRTW Theorem 39(a): the rank of the limit; BRTW §7.3: how rates depend on d_x and r."""

import itertools
import math

import pytest
import torch
from landscape_oracles import F64, random_layers
from many_starts import follow_layers

from deeplin import LeastSquares
from deeplin.landscape import local_rate
from deeplin.problems.widths import grid_widths

# -- the rank of the limit -------------------------------------------------------------------------


@pytest.mark.statement("BRTW Theorem 39(a) [k]")
@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize(("width", "q"), [(3, 2), (2, 3), (3, 3)], ids=["q < r", "r < q", "r = q"])
def test_limits_have_every_rank_up_to_the_smaller_of_q_and_r(randn, seen, depth, width, q):
    """k by the singular values of W(t) at the end: 0, …, r̄ are all there, and none is above.

    Starts without 0, 1, … of the first directions of a diagonal problem, and random ones.
    """
    s = torch.tensor([2.4, 1.8, 1.2][:q] + [0.0] * (3 - q), dtype=F64)
    problem = LeastSquares.from_moments(torch.eye(3, dtype=F64), s.diag(), s.square().sum() + 1)
    widths, bound = [3, *[width] * (depth - 1), 3], min(q, width)
    layers = [0.7 * W.unflatten(0, (4, 50)) for W in random_layers(randn, widths, 200)]
    for missing in range(4):  # of 50 starts each; they stay 0
        layers[0][missing, :, :, :missing] = 0
        layers[-1][missing, :, :missing] = 0
    layers = [W.flatten(0, 1) for W in layers]
    run = follow_layers(problem, layers, lambda W, losses: losses < 0, t1=30.0)
    values = torch.linalg.svdvals(run.W)
    assert bool(((values > 0.5) | (values < 0.1)).all()), "the ranks are beyond doubt"
    if bound < 3:
        seen.number("largest σ of W(t) beyond r̄", values[:, bound].max())
        seen(values[:, bound], 0.1)
    ranks = (values > 0.5).sum(-1)
    for k, count in enumerate(torch.bincount(ranks, minlength=4).tolist()):
        seen.number(f"limits of rank {k}, r̄ = {bound}", count)
        assert (count > 0) == (k <= bound)
    assert bool((ranks[:50] == bound).all()), "random starts: as large as it can be"


# -- rates and sizes -------------------------------------------------------------------------------


def samples(randn, d):
    return randn(d, 3 * d) / math.sqrt(d)


def teacher(randn, d, r, depth):
    """W̃ = W̃_N···W̃_1 of the grid's widths, entries of variance 1/d_j (BRTW §7.2)."""
    W = torch.eye(d, dtype=F64)
    for before, after in itertools.pairwise(grid_widths(d, d, depth, r)):
        W = (randn(after, before) / math.sqrt(after)) @ W
    return W


def dense_rate(C, W, r, depth):
    """The least eigenvalue of ξ ↦ 𝒜_W(ξC) on T_W M_r, from the d²×d² matrix of BRTW (8)."""
    values, E = torch.linalg.eigh(C)
    root = (E * values.sqrt()) @ E.mT
    U, s, Vh = torch.linalg.svd(W)
    s = torch.where(torch.arange(len(s)) < r, s, 0.0)
    left = [(U * s ** (2 * (depth - j) / depth)) @ U.mT for j in range(1, depth + 1)]
    right = [(Vh.mT * s ** (2 * (j - 1) / depth)) @ Vh for j in range(1, depth + 1)]
    A = sum(torch.kron(a, root @ b @ root) for a, b in zip(left, right, strict=True))
    return torch.linalg.eigvalsh(A).flip(0)[(2 * len(W) - r) * r - 1]


def autoencoder_rate(C, r):
    lam = torch.linalg.eigvalsh(C).flip(0)
    a, b = lam[:r, None], lam[r:]
    return 0.5 * (a + b - ((a - b).square() + 4 * b.square()).sqrt()).min()


@pytest.mark.statement("BRTW §7.3 [sizes]")
@pytest.mark.parametrize("depth", [2, 5])
def test_rates_of_autoencoders_fall_more_with_the_sizes(randn, seen, depth):
    """Medians of ρ over 21 draws: from (20, 1) to (200, 10), supervised (20, 2) to (200, 20).

    Supervised at d = 200 by the lower bound σ_r^{2−2/N}λ_min, so that its fall is overstated.
    """
    X = samples(randn, 20)
    W = teacher(randn, 20, 2, depth)
    seen.ratio(
        local_rate(LeastSquares(X, W @ X), W, depth), dense_rate(X @ X.mT, W, 2, depth), rel=1e-8
    )
    medians = {}
    for d in (20, 200):
        tied, taught = [], []
        for _ in range(21):
            X = samples(randn, d)
            C = X @ X.mT
            tied.append(autoencoder_rate(C, d // 20))
            W, r = teacher(randn, d, d // 10, depth), d // 10
            if d == 20:
                taught.append(torch.tensor(local_rate(LeastSquares(X, W @ X), W, depth)))
            else:
                least = torch.linalg.eigvalsh(C)[0]
                taught.append(torch.linalg.svdvals(W)[r - 1] ** (2 - 2 / depth) * least)
        medians[d] = [float(torch.stack(rates).median()) for rates in (tied, taught)]
        seen.number(f"median ρ, autoencoder, d = {d}, N = {depth}", medians[d][0])
        seen.number(f"median ρ, supervised, d = {d}, N = {depth}", medians[d][1])
    falls = [a / b for a, b in zip(medians[20], medians[200], strict=True)]
    seen.number(f"fall of ρ, autoencoder over supervised, N = {depth}", falls[0] / falls[1])
    assert falls[0] > falls[1]
