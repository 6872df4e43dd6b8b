import itertools

import pytest
import torch

from deeplin import DeepLinear, LeastSquares, autoencoder
from deeplin.network import balancedness_gap, end_to_end, grid_widths, layer_gradients

WIDTHS = [[4, 3], [5, 2, 4], [4, 6, 3, 5], [3, 3, 3, 3, 3]]


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_forward_is_the_end_to_end_matrix_on_rows(randn, widths, batch):
    net = DeepLinear(widths, batch_shape=batch, dtype=torch.float64)
    x = randn(7, widths[0])
    W = net.end_to_end()
    assert W.shape == (*batch, widths[-1], widths[0])
    torch.testing.assert_close(net(x), x @ W.mT)
    assert net.depth == len(widths) - 1
    assert [tuple(w.shape[len(batch) :]) for w in net.weights] == list(
        zip(widths[1:], widths[:-1], strict=True)
    )


NARROW = [
    [4, 3],
    [3, 5],
    [5, 2, 4],
    [2, 6, 5],
    [5, 6, 2],
    [6, 5, 6],  # so wide that the gradient itself is formed
    [9, 2, 4, 5],
    [5, 4, 2, 9],
    [7, 6, 2, 6, 8],
    [7, 4, 3, 2, 8],
    [2, 7, 6, 7],
    [3, 3, 3, 3, 3],
]


@pytest.mark.parametrize("widths", NARROW)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.statement("BRTW Lemma 2(1)")
def test_layer_gradients_are_those_of_autograd(randn, widths, batch, seen):
    """Wherever the narrowest width is: from ∇L¹ as a matrix and from the loss itself."""
    X, Y = randn(widths[0], 9), randn(widths[-1], 9)
    problems = [(LeastSquares(X, Y), Y)]
    if widths[0] == widths[-1]:
        problems.append((autoencoder(X), X))
    layers = [randn(*batch, b, a).requires_grad_() for a, b in itertools.pairwise(widths)]
    for problem, labels in problems:
        output = X
        for W_j in layers:
            output = W_j @ output
        oracle = torch.autograd.grad(0.5 * (labels - output).square().sum(), layers)
        with torch.no_grad():
            G = (end_to_end(layers) @ X - labels) @ X.mT
            for given in (G, problem):
                for ours, theirs in zip(layer_gradients(layers, given), oracle, strict=True):
                    scale = float(theirs.abs().max())
                    seen.close(ours, theirs, rtol=0, atol=1e-12 * scale)


def test_gap_of_layers(randn):
    before, after = randn(3, 5), randn(4, 3)
    (gap,) = balancedness_gap([before, after])
    torch.testing.assert_close(gap, after.mT @ after - before @ before.mT)


@pytest.mark.parametrize(
    ("arguments", "widths"),
    [
        ((20, 20, 2, 10), [20, 10, 20]),
        ((20, 20, 5, 10), [20, 10, 13, 15, 18, 20]),  # 12.5 and 17.5 round half up
        ((61, 61, 3, 10), [61, 10, 36, 61]),
        ((8, 5, 3, 2), [8, 2, 4, 5]),
    ],
)
@pytest.mark.statement("BRTW §7.1.1")
def test_grid_of_widths(arguments, widths):
    assert grid_widths(*arguments) == widths


@pytest.mark.parametrize("widths", [[3], [3, 0], [3, -1, 2], [3, 2.0], [True, 2], []])
def test_bad_widths(widths):
    with pytest.raises(ValueError, match="at least two positive integers"):
        DeepLinear(widths)


@pytest.mark.parametrize(("depth", "rank"), [(1, 2), (2.5, 2), (3, 0), (3, 6)])
def test_bad_grids(depth, rank):
    with pytest.raises(ValueError, match=r"depth must be|rank must satisfy"):
        grid_widths(5, 6, depth, rank)


def test_state_dict_and_repr():
    net = DeepLinear([3, 2, 3], batch_shape=(4,))
    other = DeepLinear([3, 2, 3], batch_shape=(4,))
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other.end_to_end(), net.end_to_end())
    assert "widths=[3, 2, 3], batch_shape=(4,)" in repr(net)
