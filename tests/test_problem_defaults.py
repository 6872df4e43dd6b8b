"""Problems: what the defaults of the contract say and refuse; nothing m×n."""

import math

import pytest
import torch
from problem_cases import C128, F64, Quartic, draw

from deeplin.problems import (
    MatrixCompletion,
    MatrixSensing,
    Problem,
    from_loss,
)

# Sums of a few hundred products of numbers of order one, in double precision.
TOL = {"rtol": 1e-10, "atol": 1e-10}


def test_curvature_of_linear_constant_and_steep_losses():
    W = draw(3, 4, seed=1)
    assert from_loss(lambda W: W.sum((-2, -1)), (3, 4)).curvature(W) == 0
    assert from_loss(lambda W: W.new_ones(W.shape[:-2]), (3, 4)).curvature(W) == 0
    steep = from_loss(lambda W: 500 * W.square().sum((-2, -1)), (3, 4))
    assert steep.curvature(W) == pytest.approx(1000, rel=1e-10)
    with pytest.raises(ValueError, match=r"curvature of FromLoss must be finite.* give dt"):
        from_loss(lambda W: torch.linalg.matrix_norm(W) ** 2, (3, 4)).curvature(0 * W)


def test_curvature_sees_one_steep_direction_among_many():
    """A power iteration from a random start looks converged on the bulk: 1 instead of 2."""
    d = torch.ones(60, 60, dtype=F64)
    d[7, 9] = 2
    problem = from_loss(lambda W: 0.5 * (d * W.square()).sum((-2, -1)), (60, 60))
    assert problem.curvature(torch.zeros(3, 60, 60, dtype=F64)) == pytest.approx(2, rel=1e-2)


@pytest.mark.parametrize(
    ("loss", "error", "sentence"),
    [
        (lambda W: W.sum(), ValueError, r"of shape \(5,\).*got shape \(\).*\.sum\(\(-2, -1\)\)"),
        (lambda W: W.sum(-1), ValueError, r"got shape \(5, 3\)"),
        (lambda W: (W + 0j).sum((-2, -1)), TypeError, r"got torch\.complex128"),
        (lambda W: 1.0, TypeError, "got float"),
    ],
    ids=["a sum", "rows", "complex", "a float"],
)
def test_losses_that_are_not_one_number_for_each_matrix(loss, error, sentence):
    problem, W = from_loss(loss, (3, 4)), draw(5, 3, 4, seed=1)
    A, B = draw(5, 3, 1, seed=1), draw(5, 4, 1, seed=2)
    for call in (
        lambda: problem.egrad(W),
        lambda: problem.egrad_times(A, B, B, A),
        lambda: problem.hessian_times(A, B, A, B, B, A),
        lambda: problem.pair_curvature(A, B),
        lambda: problem.curvature(W),
    ):
        with pytest.raises(error, match=sentence):
            call()


@pytest.mark.parametrize("shape", [3, (3,), (3, 0), (3, 4.0), (True, 2), "ab", None])
def test_shapes_are_checked_where_they_are_set(shape):
    class Late(Quartic):
        def __init__(self):
            self.shape = shape

    class Later(Problem):
        def __init__(self):
            self.shape = shape

        def loss(self, W):
            return W.sum((-2, -1))

    with pytest.raises(ValueError, match=r"two positive integers \(m, n\)"):
        Later()
    with pytest.raises(ValueError, match=r"two positive integers \(m, n\)"):
        from_loss(lambda W: W.sum(), shape)
    with pytest.raises(ValueError, match="shape of Early must be two"):
        type("Early", (Problem,), {"shape": shape, "loss": lambda self, W: W.sum((-2, -1))})


def test_a_problem_without_shape_or_loss_says_so():
    class Shapeless(Problem):
        def loss(self, W):
            return W.sum((-2, -1))

    with pytest.raises(TypeError, match=r"Shapeless must say the shape .*shape = \(m, n\)"):
        _ = Shapeless().shape
    with pytest.raises(TypeError, match="loss"):
        type("Lossless", (Problem,), {"shape": (2, 2)})()
    with pytest.raises(TypeError, match="needs a function of W; got a float"):
        from_loss(1.0, (2, 2))


def test_to_moves_what_a_problem_keeps_in_lists_and_drops_what_it_derived():
    from functools import cached_property

    class Kept(Quartic):
        def __init__(self):
            self.parts = {"a": [torch.ones(2), torch.arange(2)]}
            self.z = torch.ones(2, dtype=C128)

        @cached_property
        def total(self):
            return self.parts["a"][0].sum()

    class Derived(Kept):
        pass

    problem = Derived()
    _ = problem.total
    moved = problem.to(torch.float64)
    assert moved.parts["a"][0].dtype == F64
    assert moved.parts["a"][1].dtype == torch.int64
    assert moved.z.dtype == C128
    assert moved.total.dtype == F64
    assert problem.total.dtype == torch.float32
    assert problem.to(torch.float32).z.dtype == torch.complex64
    assert problem.to("cpu") is problem


# -- nothing m×n -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["completion", "sensing", "pairs"])
def test_pairs_of_a_huge_matrix(kind):
    """200 000 × 200 000 numbers are 320 GB: whoever formed them would fail here."""
    d, p = 200_000, 20
    rows, cols = torch.arange(p) * 19_997 % d, torch.arange(p) * 911 % d
    values = draw(p, seed=1)
    A, B = draw(d, 2, seed=2), draw(d, 2, seed=3)
    entries = (A[rows] * B[cols]).sum(-1)
    if kind == "sensing":
        a, b = torch.zeros(p, d, dtype=F64), torch.zeros(p, d, dtype=F64)
        a[torch.arange(p), rows], b[torch.arange(p), cols] = 1.0, 1.0
        problem = MatrixSensing((a, b), values)
    elif kind == "completion":
        problem = MatrixCompletion(rows, cols, values, (d, d))
    else:

        def of_pair(A, B):
            return 0.5 * ((A[..., rows, :] * B[..., cols, :]).sum(-1) - values).square().sum(-1)

        problem = from_loss(of_pair, (d, d), pair=True)
    error = entries - values
    assert float(problem.pair_loss(A, B)) == pytest.approx(float(0.5 * error @ error))
    GB = torch.zeros(d, 2, dtype=F64).index_add(0, rows, error[:, None] * B[cols])
    torch.testing.assert_close(problem.egrad_pair(A, B.mT)[0], GB, **TOL)
    xi = (A[rows] * B[cols]).sum(-1)
    HB = torch.zeros(d, 2, dtype=F64).index_add(0, rows, xi[:, None] * B[cols])
    torch.testing.assert_close(problem.hessian_times(A, B, A, B, B, A)[0], HB, **TOL)
    if kind != "pairs":
        assert problem.pair_curvature(A, B) == pytest.approx(1.0)
        # a W that has no memory of its own: whoever looked at all of it would take forever
        assert problem.curvature(torch.zeros((), dtype=F64).expand(d, d)) == pytest.approx(1.0)
    assert math.isfinite(problem.pair_curvature(A, B))
