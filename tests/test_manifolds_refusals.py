"""Points and vectors that are none, and numbers that leave the format: one sentence each."""

import math

import pytest
import torch

from deeplin.manifolds import FixedRank, FixedRankFactored, PSDFixedRank, PSDFixedRankFactored


@pytest.mark.parametrize("x", [-torch.eye(3), torch.diag(torch.tensor([2.0, -1, -3]))])
@pytest.mark.parametrize("batch", [False, True])
def test_projx_needs_as_many_positive_eigenvalues_as_the_rank(x, batch):
    """Also where all of the leading ones are negative, and for one matrix of a batch."""
    rank = int((x.diagonal() > 0).sum()) + 1
    x = torch.stack([torch.eye(3), x]) if batch else x
    with pytest.raises(ValueError, match=f"must have {rank} positive eigenvalues"):
        PSDFixedRank(rank).projx(x)
    with pytest.raises(ValueError, match="positive"):
        PSDFixedRankFactored(3, rank).from_dense(x)


@pytest.mark.parametrize("manifold", [FixedRank(1), PSDFixedRank(1)])
def test_projx_needs_finite_numbers(manifold):
    for entry in ((0, 0), (0, 1)):
        x = torch.eye(3)
        x[entry] = math.nan
        with pytest.raises(ValueError, match="x must be finite"):
            manifold.projx(x)
    with pytest.raises(TypeError, match=r"floating-point numbers; got torch.int64"):
        manifold.projx(torch.eye(3).long())


def test_the_largest_numbers_are_points():
    x = 1e308 * torch.eye(3, dtype=torch.float64)
    assert torch.equal(PSDFixedRank(3).projx(x), x)
    assert PSDFixedRank(3).check_point_on_manifold(x)
    manifold = PSDFixedRankFactored(3, 3)
    assert torch.equal(manifold.to_dense(manifold.from_dense(x)), x)


def test_sizes_are_whole_numbers():
    for make in (
        lambda: FixedRankFactored(2.5, 3, 1),
        lambda: FixedRankFactored(3, "a", 1),
        lambda: PSDFixedRankFactored(True, 1),
    ):
        with pytest.raises(TypeError, match="must be an int"):
            make()
    with pytest.raises(ValueError, match="n >= 1; got n=0"):
        PSDFixedRankFactored(0, 1)


@pytest.mark.parametrize("columns", [1, 3])
def test_vectors_have_as_many_columns_as_the_rank(columns):
    manifold = FixedRankFactored(4, 5, 2)
    x = manifold.random()
    for operation in (manifold.proju, manifold.retr, manifold.inner, manifold.egrad2rgrad):
        with pytest.raises(ValueError, match=r"u on FixedRankFactored\(4, 5, 2\) must have shape"):
            operation(x, torch.ones(11, columns))


@pytest.mark.parametrize("depth", [2.5, 3, 64])
def test_what_leaves_the_number_format_is_said(depth):
    """σ_r = 1e-300: 𝒜⁻¹ has σ_r^{2/N−2}, beyond float64 for N > 2.1; 0 in that direction is 0."""
    manifold = FixedRankFactored(4, 5, 2, depth)
    generator = torch.Generator().manual_seed(0)
    U, _, V = manifold.unpack_tensor(manifold.random(dtype=torch.float64, generator=generator))
    S = torch.diag(torch.tensor([1.0, 1e-300], dtype=torch.float64))
    x = manifold.pack_point(U, S, V)
    u = manifold.proju(x, torch.ones_like(x))
    with pytest.raises(ValueError, match=r"metric_inverse.*float64; at σ_r = 1e-300"):
        manifold.metric_inverse(x, u)
    assert manifold.inner(x, u) == math.inf
    u = manifold.pack_point(0 * U, torch.tensor([[1.0, 0], [0, 0]], dtype=torch.float64), 0 * V)
    assert manifold.inner(x, u) == pytest.approx(1 / depth)
