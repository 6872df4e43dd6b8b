"""BRTW's proof of Theorem 5: its bounds with every constant written out, along runs."""

import itertools
import math

import numpy as np
import pytest
import torch
from landscape_oracles import random_layers
from manifold_oracles import relative

import deeplin
from deeplin import LeastSquares
from deeplin.flows import LayerFlow
from deeplin.network import end_to_end

WIDTHS = [[4, 3, 2], [3, 2, 4], [3, 4, 2, 3], [2, 3, 2, 4, 2]]


def loss_of_samples(W, X, Y):
    return 0.5 * (Y - W @ X).square().sum((-2, -1))


def bound_of_the_product(W, X, Y):
    """(√(2L¹(W)) + ‖Y‖)‖Xᵀ(XXᵀ)^{-1}‖."""
    inverse = (X.mT @ torch.linalg.inv(X @ X.mT)).norm()
    return ((2 * loss_of_samples(W, X, Y)).sqrt() + Y.norm()) * inverse


def runs(randn, widths, t1=10.0, size=0.8):
    """X, Y and the layers of 20 runs from random, unbalanced starts at 13 times."""
    X, Y = randn(widths[0], 12) / 3, randn(widths[-1], 12) / 3
    flow = LayerFlow(LeastSquares(X, Y))
    times = [t1 * (i / 12) ** 2 for i in range(1, 12)]
    y0 = tuple(size * W for W in random_layers(randn, widths, 20))
    return X, Y, [y0, *deeplin.solve(flow, y0, t1, rtol=1e-8, save_at=times).y]


@pytest.mark.statement("BRTW Theorem 5")
@pytest.mark.parametrize("widths", WIDTHS)
def test_the_product_keeps_the_bound_of_the_proof(randn, seen, widths):
    X, Y, path = runs(randn, widths)
    bound = bound_of_the_product(end_to_end(path[0]), X, Y)
    ratio = torch.stack([end_to_end(y).norm(dim=(1, 2)) for y in path]) / bound
    seen.number("‖W(t)‖ over its bound, largest", ratio.max())
    seen.at_most(ratio.max() - 1, 1e-12)


@pytest.mark.statement("BRTW Theorem 5")
def test_the_bound_of_the_product_is_attained_and_can_be_broken(randn, seen):
    """From W(0)X = 2Y with d_x = 1 it is an equality at t = 0."""
    X, u = randn(1, 12), randn(3, 1)
    Y, hidden = u @ X, torch.nn.functional.normalize(randn(2, 1), dim=0)
    layers = (hidden, 2 * u @ hidden.mT)
    W, bound = end_to_end(layers), bound_of_the_product(end_to_end(layers), X, Y)
    seen(W.norm() / bound - 1, 1e-14)
    velocity = LayerFlow(LeastSquares(X, Y)).velocity(0.0, layers)

    def excess(h):
        return float(end_to_end([a + h * b for a, b in zip(layers, velocity, strict=True)]).norm())

    assert excess(1e-6) < float(bound)
    # It can fail: along the ascent, and for the bound without ‖Y‖.
    assert excess(-1e-6) > float(bound) * (1 + 1e-8)
    without = bound - Y.norm() * (X.mT @ torch.linalg.inv(X @ X.mT)).norm()
    assert float(W.norm()) > 1.9 * float(without)


@pytest.mark.statement("BRTW §3")
@pytest.mark.parametrize("widths", WIDTHS)
def test_the_loss_falls_by_the_squares_of_the_gradients(randn, seen, widths):
    """dL^N/dt along the flow's velocity, the loss from the samples, gradients by autograd."""
    X, Y = randn(widths[0], 12) / 3, randn(widths[-1], 12) / 3
    layers = random_layers(randn, widths)
    flow = LayerFlow(LeastSquares(X, Y))

    def loss(*y):
        return loss_of_samples(end_to_end(y), X, Y)

    def mismatch(velocity):
        rate = torch.func.jvp(loss, layers, tuple(velocity))[1]
        gradients = torch.func.grad(loss, tuple(range(len(layers))))(*layers)
        return rate / -sum(G.square().sum() for G in gradients) - 1

    velocity = flow.velocity(0.0, layers)
    seen(mismatch(velocity), 1e-11)
    # It can fail: a layer that learns twice as fast descends at another rate.
    assert abs(float(mismatch([2 * velocity[0], *velocity[1:]]))) > 1e-3


# -- (10) to (15) ----------------------------------------------------------------------------------


def gaps(layers):
    """A_j = W_jW_jᵀ − W_{j+1}ᵀW_{j+1}."""
    return [a @ a.mT - b.mT @ b for a, b in itertools.pairwise(layers)]


def remainder(layers, A):
    """P of (12): Σ_j W_N···W_{j+1} [(M + A_j)^j − M^j] W_{j+1}ᵀ···W_Nᵀ, M = W_{j+1}ᵀW_{j+1}.

    (M + A)^j − M^j = Σ_i (M + A)^i A M^{j−1−i}: of degree 2(j−1) in the layers, since
    M + A = W_jW_jᵀ.
    """
    total = torch.zeros_like(layers[-1] @ layers[-1].mT)
    power = torch.linalg.matrix_power
    for j, gap in enumerate(A, start=1):
        after = end_to_end(layers[j:])
        squared, M = layers[j - 1] @ layers[j - 1].mT, layers[j].mT @ layers[j]
        inner = sum(power(squared, i) @ gap @ power(M, j - 1 - i) for i in range(j))
        total = total + after @ inner @ after.mT
    return total


def constants(layers):
    """a_i, b_i with ‖W_i‖ ≤ a_iσ_N + b_i, P_N of the proof, and C: from gaps and dimensions alone.

    ‖W_i‖² = ‖W_N‖² + Σ_{j=i}^{N−1} tr A_j and ‖W_N‖² ≤ d σ_N²; C is the largest P_N(x) − x^{2N}/2.
    """
    A, N = gaps(layers), len(layers)
    traces = [sum(float(G.diagonal().sum()) for G in A[i:]) for i in range(N)]
    d = min(layers[-1].shape)
    linear = [np.poly1d([math.sqrt(d), math.sqrt(max(t, 0.0))]) for t in traces]
    P = np.poly1d([0.0])
    for j, gap in enumerate(A, start=1):
        outer = np.poly1d([1.0])
        for factor in linear[j:]:
            outer = outer * factor * factor
        inner = sum(
            (linear[j - 1] ** (2 * i) * linear[j] ** (2 * (j - 1 - i)) for i in range(j)),
            np.poly1d([0.0]),
        )
        P = P + float(gap.norm()) * outer * inner
    excess = P - np.poly1d([0.5] + [0.0] * (2 * N))
    turns = [x.real for x in excess.deriv().roots if abs(x.imag) < 1e-9 and x.real > 0]
    return linear, P, max(excess(x) for x in [0.0, *turns])


def sides(layers, given):
    """The two sides of (10) for every layer, (13), (14) and (15), from the `constants` given."""
    linear, _, C = given
    N, W = len(layers), end_to_end(layers)
    sigma = float(torch.linalg.matrix_norm(layers[-1], 2))
    square, rest = float((W @ W.mT).norm()), float(remainder(layers, gaps(layers)).norm())
    root = 2 ** (1 / (2 * N)) * float(W.norm()) ** (1 / N) + (2 * C) ** (1 / (2 * N))
    of_layers = [(float(W_j.norm()), f(root)) for W_j, f in zip(layers, linear, strict=True)]
    return {
        10: of_layers,
        13: [(sigma ** (2 * N), square + rest)],
        14: [(sigma ** (2 * N), 2 * square + 2 * C)],
        15: [(sigma, root)],
    }


@pytest.mark.statement("BRTW (10)")
@pytest.mark.statement("BRTW (12)")
@pytest.mark.statement("BRTW (13)")
@pytest.mark.statement("BRTW (14)")
@pytest.mark.statement("BRTW (15)")
@pytest.mark.parametrize("widths", WIDTHS)
def test_bounds_of_layers_with_the_constants_of_their_start(randn, seen, widths):
    path = runs(randn, widths, t1=2.0, size=1.0)[-1]
    N, A, of = len(widths) - 1, gaps(path[0]), {k: seen.of(f"BRTW ({k})") for k in range(10, 16)}
    power, wrong = torch.linalg.matrix_power, []
    for y in path:
        W, last = end_to_end(y), y[-1]
        left, rest = W @ W.mT - power(last @ last.mT, N), remainder(y, A)
        of[12](relative(left, rest), 1e-6)
        # It can fail: with the gaps of another start.
        wrong.append(relative(left, remainder(y, [G.roll(1, 0) for G in A])))
    assert min(wrong) > 1e-2
    tight = dict.fromkeys((10, 13, 14, 15), 0.0)
    for n in range(20):
        linear, P, C = constants([W_j[n] for W_j in path[0]])
        assert P.order <= 2 * N - 2
        for y in path:
            layers = [W_j[n] for W_j in y]
            sigma = float(torch.linalg.matrix_norm(layers[-1], 2))
            rest = float(remainder(layers, gaps(layers)).norm())
            of[13].at_most(rest / P(sigma) - 1, 1e-9)
            for W_j, factor in zip(layers, linear, strict=True):
                of[10].at_most(float(W_j.norm()) / factor(sigma) - 1, 1e-9)
            for number, pairs in sides(layers, (linear, P, C)).items():
                tight[number] = max(tight[number], *(left / right for left, right in pairs))
    for number, ratio in tight.items():
        of[number].number("left over right side, largest on runs", ratio)
        of[number].at_most(ratio - 1, 1e-9)


@pytest.mark.statement("BRTW (10)")
@pytest.mark.statement("BRTW (13)")
@pytest.mark.statement("BRTW (14)")
@pytest.mark.statement("BRTW (15)")
def test_bounds_of_layers_are_attained(seen):
    """N = 2, numbers, A_1 = −a: w_2⁴ = W² + aw_2², and w_1 = 0 at w_2² = a, where all are equal."""
    of = {k: seen.of(f"BRTW ({k})") for k in (10, 13, 14, 15)}

    def attained(w_1, w_2):
        layers = [torch.full((1, 1), w, dtype=torch.float64) for w in (w_1, w_2)]
        found = sides(layers, constants(layers))
        return {number: [a / b for a, b in pairs] for number, pairs in found.items()}

    for a in (0.3, 2.0):
        at_0 = attained(0.0, math.sqrt(a))
        of[10](at_0[10][1] - 1, 1e-12)  # of W_2; that of W_1 = 0 is not sharp there
        for number in (13, 14, 15):
            of[number](at_0[number][0] - 1, 1e-12)
        for w_2 in (1.1 * math.sqrt(a), 3.0, 30.0, 300.0):
            large = attained(math.sqrt(w_2**2 - a), w_2)
            of[13](large[13][0] - 1, 1e-9)  # an equality for every w_2
            for number in (10, 14, 15):
                of[number].at_most(max(large[number]) - 1, 1e-12)
        # (14) without the 2 before ‖WWᵀ‖ would be false: aw_2² is beyond every constant.
        W_squared = w_2**4 - a * w_2**2
        assert w_2**4 > W_squared + 100 * a**2
        # Of the right sides the factor 2 is half, where the layers are large.
        of[14](large[14][0] - 0.5, 1e-4)
        of[15](large[15][0] - 2**-0.25, 1e-2)
        # ‖W_1‖ ≤ √d·σ_N + (tr A_1)^{1/2} is an equality for W_2 = 0.
        linear = constants([torch.full((1, 1), w, dtype=torch.float64) for w in (a**0.5, 0.0)])[0]
        of[10](linear[0](0.0) - math.sqrt(a), 1e-12)
    # Balanced, of rank 1: ‖W_i‖ = σ_N = ‖W‖^{1/N}; all that is left of (10) and (15) is 2^{1/2N}.
    balanced = attained(0.7, 0.7)
    of[10]((torch.tensor(balanced[10]) - 2**-0.25).abs(), 1e-12)
    of[13](balanced[13][0] - 1, 1e-12)
    of[14](balanced[14][0] - 0.5, 1e-12)
    of[15](balanced[15][0] - 2**-0.25, 1e-12)


def layers_of_fixed_gaps(scale, drawn, grow=0.0):
    """Layers with W_N = scale·A and W_jW_jᵀ − W_{j+1}ᵀW_{j+1} = A_j: the same for every scale.

    Widths that fall from the first to the last layer; A_j positive. `grow` breaks it: A_1 then
    grows with scale^grow.
    """
    A, given, frames = drawn
    layers = [scale * A]
    for n, (G, Q) in enumerate(zip(given, frames, strict=True)):
        size = scale**grow if n == len(given) - 1 else 1.0
        values, E = torch.linalg.eigh(layers[0].mT @ layers[0] + size * G)
        layers.insert(0, (E * values.clamp(min=0).sqrt()) @ E.mT @ Q)
    return layers


@pytest.mark.statement("BRTW (10)")
@pytest.mark.statement("BRTW (12)")
@pytest.mark.statement("BRTW (14)")
@pytest.mark.statement("BRTW (15)")
@pytest.mark.parametrize("widths", [[4, 3, 2], [5, 4, 3, 2], [3, 3, 3, 3], [5, 5, 4, 3, 3]])
def test_growth_of_layers_whose_gaps_are_fixed(randn, seen, widths):
    depth = len(widths) - 1
    shapes = [(b, a) for a, b in itertools.pairwise(widths)]
    given = [G @ G.mT for G in (randn(b, b) for b, _ in shapes[-2::-1])]
    frames = [torch.linalg.qr(randn(a, b)).Q.mT for b, a in shapes[-2::-1]]
    drawn = (randn(*shapes[-1]), given, frames)

    def exponents(grow):
        norms, defects = [], []
        for scale in (300.0, 3000.0):
            layers = layers_of_fixed_gaps(scale, drawn, grow)
            W, last = end_to_end(layers), layers[-1]
            norms.append(torch.stack([W.norm(), *(L.norm() for L in layers)]).log())
            power = torch.linalg.matrix_power(last @ last.mT, depth)
            defects.append(float((W @ W.mT - power).norm().log()))
        growth = norms[1] - norms[0]
        degree = (defects[1] - defects[0]) / math.log(10)
        sigma = torch.linalg.matrix_norm(last, 2) ** depth
        return float(growth[1:].max() / growth[0]), degree, float(sigma / (W @ W.mT).norm().sqrt())

    slope, degree, quotient = exponents(0.0)
    # Where the layers are large the constants do not help: σ_N^{2N} ≤ 2‖WWᵀ‖, and its root.
    of_14 = seen.of("BRTW (14)", "BRTW (15)")
    of_14.number("σ_N^N/‖WWᵀ‖^½ of large layers", quotient)
    of_14.at_most(quotient - math.sqrt(2), 0)
    seen.of("BRTW (10)").at_most(slope - 1 / depth, 1e-4)
    seen.of("BRTW (12)").number("degree of the remainder", degree)
    seen.of("BRTW (12)").at_most(degree - (2 * depth - 2), 1e-2)
    # It can fail: of gaps that grow like the square of the layers, and faster.
    assert exponents(2.0)[1] > 2 * depth - 0.1
    assert exponents(4.0)[0] > 1 / depth + 0.1
