"""BRTW Prop. 34 to 38 on random and degenerate data; Hessians by autograd are the oracle."""

import itertools

import pytest
import torch
from landscape_oracles import CASES, F64, layers_gradient, layers_hessian, problem_of, square_root

import deeplin
from deeplin import LeastSquares
from deeplin.landscape import (
    LayerHessian,
    classify,
    critical_points,
    escape_direction,
    is_critical,
    lift,
)


@pytest.mark.statement("BRTW Prop. 34(b)")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("balanced", [False, True])
def test_lifts_are_critical_and_have_the_product(randn, name, balanced, seen):
    problem = problem_of(name, randn)
    d_y, d_x = next(critical_points(problem, 1)).W.shape
    for widths in ([d_x, 2, d_y], [d_x, 5, 2, d_y], [d_x, 3, 3, 4, d_y]):
        for k in range(3):
            for point in critical_points(problem, k):
                layers = lift(problem, point.W, widths, balanced=balanced)
                assert [tuple(A.shape) for A in layers] == list(
                    zip(widths[1:], widths[:-1], strict=True)
                )
                W = layers[0]
                for A in layers[1:]:
                    W = A @ W
                seen.close(W, point.W, rtol=0, atol=1e-12)
                seen.below(layers_gradient(problem, layers), 1e-10)
                assert bool(is_critical(problem, layers))
                assert not bool(is_critical(problem, [A + 0.01 for A in layers]))
                if balanced:
                    gaps = deeplin.network.balancedness_gap(layers)
                    assert max(float(g.abs().max()) for g in gaps) < 1e-12


@pytest.mark.statement("BRTW Prop. 35")
@pytest.mark.statement("BRTW Prop. 36")
@pytest.mark.statement("BRTW Prop. 38")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.statement("BRTW Definition 26")
def test_kinds_of_lifts_against_autograd(randn, name, depth, seen):
    problem = problem_of(name, randn)
    d_y, d_x = next(critical_points(problem, 1)).W.shape
    widths = [d_x, *[2] * (depth - 1), d_y]
    reachable = min(2, len(problem.singular_values))
    for k in range(reachable + 1):
        for point in critical_points(problem, k):
            for balanced in (False, True):
                layers = lift(problem, point.W, widths, balanced=balanced)
                values = torch.linalg.eigvalsh(layers_hessian(problem, layers))
                strict = float(values[0]) < -1e-7 * max(1.0, float(values.abs().max()))
                kind = classify(problem, layers)
                assert (kind == "strict saddle") == strict
                if strict:
                    source = "35" if point.kind == "strict saddle" else "38" if depth == 2 else "36"
                    note = seen.of("BRTW Definition 26", f"BRTW Prop. {source}")
                    note.number("least eigenvalues at strict saddles", values[0])
                if point.kind == "strict saddle" or (depth == 2 and k < reachable):
                    assert kind == "strict saddle"  # Prop. 35, 38
                assert (kind == "global minimum") == (
                    k == reachable and point.kind != "strict saddle"
                )
                check_escape(problem, layers, kind)


def check_escape(problem, layers, kind, t=1e-3):
    direction = escape_direction(problem, layers)
    if kind == "global minimum":
        assert direction is None
        return
    W = deeplin.network.end_to_end(layers)
    steps = [t]
    if kind == "non-strict saddle":  # the loss falls at order t^N, or at the docstring's radius
        steps = [0.1, 0.1 * max(float(A.norm()) for A in layers)]
    changes = []
    for t in steps:
        moved = deeplin.network.end_to_end(
            [A + t * V for A, V in zip(layers, direction, strict=True)]
        )
        if isinstance(problem, LeastSquares):  # to the last digit
            changes.append(float(problem.loss_difference(moved, W)))
        else:
            changes.append(float(problem.loss(moved) - problem.loss(W)))
    assert min(changes) < 0
    assert sum(float(V.square().sum()) for V in direction) == pytest.approx(1)


@pytest.mark.statement("BRTW Prop. 36")
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.statement("BRTW Remark 37")
def test_zero_is_a_saddle_strict_for_two_layers_alone(randn, depth, seen):
    problem = problem_of("square", randn)
    zero = [torch.zeros(4, 4, dtype=F64) for _ in range(depth)]
    kind = "strict saddle" if depth == 2 else "non-strict saddle"
    assert classify(problem, zero) == kind
    H = layers_hessian(problem, zero)
    seen.of("BRTW Prop. 36").number(
        f"least eigenvalue at 0, N = {depth}", torch.linalg.eigvalsh(H)[0]
    )
    assert (float(H.abs().max()) > 1e-9) == (depth == 2)
    check_escape(problem, zero, kind)
    flat = LeastSquares.from_moments(problem.C, torch.zeros(4, 4, dtype=F64), 1.0)
    assert classify(flat, zero) == "global minimum", "Remark 37"
    anywhere = [randn(4, 4) for _ in zero]
    assert flat.loss(deeplin.network.end_to_end(anywhere)) > flat.loss(torch.zeros(4, 4, dtype=F64))


def structured_tuples(problem, widths, k, generator):
    """A tuple whose product is the minimum on M_k, with random other entries that multiply to 0."""
    U, s, Vh = torch.linalg.svd(problem.Q)
    inner = torch.linalg.inv(square_root(problem.C))
    bases = [torch.linalg.qr(torch.randn(d, d, dtype=F64, generator=generator)).Q for d in widths]
    out, product = [], None
    for n, (cols, rows) in enumerate(itertools.pairwise(widths), start=1):
        A = torch.zeros(rows, cols, dtype=F64)
        A[range(k), range(k)] = s[:k] if n == len(widths) - 1 else torch.ones(k, dtype=F64)
        free = torch.randperm(rows - k, generator=generator) + k
        for a, b in zip(free.tolist(), range(k, cols), strict=False):
            if float(torch.rand((), generator=generator)) < 0.5:
                A[a, b] = 0.5 + float(torch.rand((), generator=generator))
        product = A[k:, k:] if product is None else A[k:, k:] @ product
        left = U if n == len(widths) - 1 else bases[n]
        out.append(left @ A @ (Vh @ inner if n == 1 else bases[n - 1].mT))
    return out if float(product.abs().max()) == 0 else None


def test_rank_condition_for_strictness_against_autograd(randn, generator, seen):
    """Rank-deficient minima on M_k for N >= 3, strict or not: lifts with any other entries."""
    problem = LeastSquares(randn(3, 12), randn(3, 12))
    counts = {"strict saddle": 0, "non-strict saddle": 0}
    for n in range(150):
        widths = [[3, 2, 3, 3], [3, 4, 4, 3], [3, 3, 2, 3, 3], [3, 2, 3, 4, 2, 3]][n % 4]
        layers = structured_tuples(problem, widths, n % 2, generator)
        if layers is None or not bool(is_critical(problem, layers, 1e-9)):
            continue
        W = deeplin.network.end_to_end(layers)
        G = problem.egrad(W)
        seen.below((W.mT @ G).norm() + (G @ W.mT).norm(), 1e-9)  # critical on M_k
        least = float(torch.linalg.eigvalsh(layers_hessian(problem, layers))[0])
        kind = classify(problem, layers)
        assert (kind == "strict saddle") == (least < -1e-8)
        if n % 4 == n // 4 % 4:  # all widths, a quarter of the draws
            check_escape(problem, layers, kind, t=1e-4)
        counts[kind] += 1
    assert min(counts.values()) > 15


def test_hessian_of_the_layers_against_autograd(randn):
    problem = problem_of("wide", randn)
    layers = [randn(2, 3), randn(4, 2), randn(5, 4)]
    H = LayerHessian(problem, layers)
    dense = layers_hessian(problem, layers)
    torch.testing.assert_close(H @ torch.eye(H.dim, dtype=F64), dense)
    pair = H.extreme(2)
    torch.testing.assert_close(pair.values, torch.linalg.eigvalsh(dense)[:2])
    assert [tuple(V.shape) for V in H.directions(pair.vectors[0])] == [(2, 3), (4, 2), (5, 4)]


def test_batches_are_classified_element_by_element(randn):
    problem = problem_of("square", randn)
    points = [p.W for k in range(5) for p in critical_points(problem, k)]
    stacked = torch.stack([*points, points[3] + 0.1])
    assert classify(problem, stacked) == [classify(problem, W) for W in stacked]
    assert classify(problem, stacked)[-1] == "not critical"
    assert classify(problem, stacked[None]) == [classify(problem, stacked)]
    lifts = [lift(problem, W, [4, 4, 4, 4], balanced=True) for W in points]
    batch = [torch.stack(layers) for layers in zip(*lifts, strict=True)]
    assert classify(problem, batch) == [classify(problem, layers) for layers in lifts]
    net = deeplin.DeepLinear([4, 4, 4, 4], dtype=F64)
    assert classify(problem, net) == "not critical"
