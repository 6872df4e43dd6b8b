"""BRTW's statements on almost all starts, 10⁴ of each kind, and what 0 exceptions of them prove."""

import math

import pytest
import torch
from landscape_oracles import F64, random_layers
from many_starts import (
    at_least,
    at_most,
    critical_values,
    data,
    follow_layers,
    follow_matrices,
    none_of,
)

from deeplin import DeepLinear, LeastSquares, init

RUNS = 10_000
SIGMA = (2.4, 1.4, 0.6)


def below(value):
    """Whether the loss is below a critical value."""
    return lambda W, losses: losses < value


# -- the bound -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "runs"), [(0, 10), (0, 10_000), (3, 200)])
def test_the_bound_is_where_so_few_have_a_probability_of_5_percent(count, runs):
    p = at_most(count, runs)
    tail = math.fsum(math.comb(runs, k) * p**k * (1 - p) ** (runs - k) for k in range(count + 1))
    assert tail == pytest.approx(0.05, rel=1e-9)
    assert at_least(runs - count, runs) == pytest.approx(1 - p, rel=1e-12)


# -- any layers ------------------------------------------------------------------------------------


def is_a_descent(run, least):
    """The loss has not risen, and not fallen below the least of all."""
    assert run.risen <= 1e-12
    assert float(run.losses.min()) > least - 1e-9


def all_end_at_a_global_minimum(randn, seen, widths, sigma, std, runs=RUNS, t1=1e4):
    """Below the second critical value nothing but the least is left."""
    problem = data(randn, widths[0], widths[-1], sigma)
    layers = [std * W for W in random_layers(randn, widths, runs)]
    values = critical_values(problem, min(*widths, len(sigma)))
    run = follow_layers(problem, layers, below(values[1]), t1=t1)
    is_a_descent(run, values[0])
    seen.number(f"time at which the last was decided, N = {len(layers)}", run.t.max())
    none_of(seen, "starts that do not end at a global minimum", run.undecided, runs)


@pytest.mark.statement("BRTW Theorem 39(a)")
@pytest.mark.statement("BRTW Theorem 39(b)")
@pytest.mark.parametrize(
    ("widths", "sigma"),
    [([3, 3, 3], SIGMA), ([3, 2, 3], SIGMA), ([3, 3, 4], SIGMA[:2])],
    ids=["r = q", "r < q", "q < r"],
)
def test_ten_thousand_pairs_of_layers_end_at_a_global_minimum(randn, seen, widths, sigma):
    all_end_at_a_global_minimum(randn, seen, widths, sigma, 0.6)


@pytest.mark.statement("BRTW Theorem 39(a)")
@pytest.mark.statement("BRTW Conjecture 41(a)")
@pytest.mark.parametrize(
    ("widths", "sigma", "std"),
    [
        pytest.param([3, 3, 3, 3], SIGMA, 0.6, id="r = q"),
        pytest.param([3, 2, 4, 3], SIGMA, 0.6, id="r < q"),
        pytest.param([3, 3, 3, 4], SIGMA[:2], 0.6, id="q < r"),
        pytest.param([4, 2, 3, 2, 3], SIGMA, 0.6, id="N = 4"),
        pytest.param([3, 3, 3, 3], SIGMA, 0.1, id="near 0", marks=pytest.mark.slow),
    ],
)
def test_ten_thousand_deeper_layers_end_at_a_global_minimum(randn, seen, widths, sigma, std):
    all_end_at_a_global_minimum(randn, seen, widths, sigma, std)


@pytest.mark.statement("BRTW Theorem 39(a)")
@pytest.mark.statement("BRTW Conjecture 41(a)")
@pytest.mark.parametrize("runs", [100, pytest.param(RUNS, marks=pytest.mark.slow)])
def test_five_layers_end_at_a_global_minimum(randn, seen, runs):
    """Near 0, which is flatter the more layers there are, some stay long, if not for ever."""
    all_end_at_a_global_minimum(randn, seen, [3, 2, 3, 3, 2, 3], SIGMA, 0.6, runs, t1=1e6)


@pytest.mark.parametrize("depth", [2, 3])
def test_starts_of_the_exceptional_set_are_never_decided(randn, depth):
    """It can fail: diagonal C and Q, and zeros in the first row and column, which stay."""
    s = torch.tensor(SIGMA, dtype=F64)
    problem = LeastSquares.from_moments(torch.eye(3, dtype=F64), s.diag(), s.square().sum())
    layers = random_layers(randn, [3] * (depth + 1), 50)
    layers[0][:, :, 0] = 0
    layers[-1][:, 0] = 0
    run = follow_layers(problem, layers, below(critical_values(problem, 3)[1]), t1=50.0)
    assert run.undecided == 50


# -- balanced layers -------------------------------------------------------------------------------


def balanced(W, widths, generator):
    """Layers of the matrices W, balanced, in random bases."""
    net = DeepLinear(widths, batch_shape=(len(W),), dtype=F64)
    return list(init.balanced_(net, W, rotate=True, generator=generator).weights)


def gap(layers):
    """The largest ‖W_{j+1}ᵀW_{j+1} − W_jW_jᵀ‖ of a batch."""
    pairs = zip(layers[1:], layers, strict=False)
    return max(float((B.mT @ B - A @ A.mT).norm(dim=(1, 2)).max()) for B, A in pairs)


@pytest.mark.statement("BRTW Theorem 40")
@pytest.mark.parametrize(
    "sigma",
    [
        pytest.param(SIGMA, id="k <= q", marks=pytest.mark.statement("BRTW Conjecture 41(c)")),
        pytest.param(SIGMA[:1], id="k > q"),
    ],
)
@pytest.mark.parametrize("depth", [2, 3])
def test_ten_thousand_balanced_starts_of_rank_two(generator, randn, seen, depth, sigma):
    """k = 2 <= q: they end at the minimum of M_2; k = 2 > q = 1: on M_1, where the loss is least.

    Below the second of the critical values of rank at most 2 that is all that is left.
    """
    problem = data(randn, 3, 3, sigma)
    W = randn(RUNS, 3, 2) @ randn(RUNS, 2, 3) / 2
    layers = balanced(W, [3, 2, *[3] * (depth - 2), 3], generator)
    values = critical_values(problem, 2)
    run = follow_layers(problem, layers, below(values[1]), part=0.25)
    is_a_descent(run, values[0])
    seen.number("largest gap of balancedness when decided", gap(run.y))
    seen.number(f"time at which the last was decided, N = {depth}", run.t.max())
    if len(sigma) == 3:
        none_of(seen, "starts that end elsewhere than at the minimum of M_2", run.undecided, RUNS)
    else:
        none_of(seen, "starts of k = 2 > q = 1 that do not end on M_1", run.undecided, RUNS)


@pytest.mark.statement("BRTW Theorem 40")
@pytest.mark.statement("BRTW Conjecture 41(c), E10")
@pytest.mark.parametrize("depth", [2, 3])
def test_ten_thousand_balanced_starts_of_full_rank(generator, randn, seen, depth):
    """k = d_x = d_y: with the sign of BC^{-1} they end there, without it on M_2.

    det W keeps its sign, so that ½σ_3² more than the least loss is the infimum of the wrong one:
    below the third critical value W_{1,2} alone is left to those.
    """
    problem = data(randn, 3, 3, SIGMA)
    least, second, third = critical_values(problem, 3)[:3]
    W = 0.6 * randn(RUNS, 3, 3)
    right = torch.linalg.det(W) * torch.linalg.det(problem.B) > 0  # det C > 0
    count = int(right.sum())
    good = follow_layers(problem, balanced(W[right], [3] * (depth + 1), generator), below(second))
    bad = follow_matrices(problem, depth, W[~right], 3, below(third))
    for run in (good, bad):
        assert run.risen <= 1e-12
    assert float(bad.losses.min()) > second > least
    assert bool((torch.linalg.det(bad.W) * torch.linalg.det(W[~right]) > 0).all())
    seen.number(f"time at which the last was decided, N = {depth}", max(good.t.max(), bad.t.max()))
    left, lower = good.undecided + bad.undecided, RUNS - count - bad.undecided
    none_of(seen.of("BRTW Theorem 40"), "starts that end neither there nor on M_2", left, RUNS)
    tell = seen.of("BRTW Conjecture 41(c), E10")
    tell.number(f"starts that end on M_2, of {RUNS:,}", lower)
    tell.number("their probability at least (95 %)", at_least(lower, RUNS))
    tell.at_most(0.45 - at_least(lower, RUNS), 0.0)


@pytest.mark.statement("BRTW Conjecture 41(b)")
@pytest.mark.parametrize("depth", [2, 3])
def test_ten_thousand_balanced_starts_with_condition_37(generator, randn, seen, depth):
    """r = 2 < d = 3, λ_2 > λ_3: W(0)U_r of rank r and u_iᵀW(0)u_i > 0, i <= r; N = 2 and 3."""
    E = torch.linalg.qr(randn(3, 3)).Q
    C = (E * torch.tensor([2.0, 1.0, 0.4], dtype=F64)) @ E.mT
    problem = LeastSquares.from_moments(C, C, C.trace())
    W = randn(6 * RUNS, 3, 2) @ randn(6 * RUNS, 2, 3) / 2
    inside = (E.mT @ W @ E).diagonal(dim1=1, dim2=2)[:, :2]
    W = W[(inside > 0).all(1)][:RUNS]
    assert len(W) == RUNS
    layers = balanced(W, [3, 2, *[3] * (depth - 2), 3], generator)
    values = critical_values(problem, 2)
    run = follow_layers(problem, layers, below(values[1]), part=0.25)
    is_a_descent(run, values[0])
    seen.number(f"time at which the last was decided, N = {depth}", run.t.max())
    none_of(seen, "starts that do not end at Σu_iu_iᵀ", run.undecided, RUNS)
