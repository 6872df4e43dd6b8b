"""BRTW Prop. 32, 34 and Theorem 31 on critical points that a search finds, not an enumeration."""

import itertools

import pytest
import torch
from landscape_oracles import F64

from deeplin import LeastSquares
from deeplin.landscape import classify, critical_points, is_critical

# -- the search ------------------------------------------------------------------------------------


class Layers:
    """Layers of the given widths, laid end to end in the rows of x, and a loss of their product."""

    def __init__(self, widths, loss):
        self.shapes = [(b, a) for a, b in itertools.pairwise(widths)]
        self.sizes = [a * b for a, b in self.shapes]

        def value(x):
            return loss(self.product(x))

        self.loss = torch.func.vmap(value)
        self.gradient = torch.func.vmap(torch.func.grad(value))
        self.hessian = torch.func.vmap(torch.func.hessian(value))
        self.products = torch.func.vmap(self.product)

    def split(self, x):
        """(W_1, …, W_N) of every row."""
        parts = x.split(self.sizes, -1)
        return [part.unflatten(-1, s) for part, s in zip(parts, self.shapes, strict=True)]

    def product(self, x):
        W, *others = self.split(x)
        for W_j in others:
            W = W_j @ W
        return W

    def critical(self, x, steps=60):
        """The zeros of ∇L^N that Levenberg's iterations from the rows of x reach: saddles as well.

        ‖∇L^N‖ falls at every step that is taken; rows that end at a minimum of it are left out.
        """
        weight = torch.ones(len(x), 1, dtype=F64)
        F, H = self.gradient(x), self.hessian(x)
        for _ in range(steps):
            values, E = torch.linalg.eigh(H)
            damped = values.square() + weight * F.norm(dim=1, keepdim=True)
            part = (E.mT @ F[..., None])[..., 0] * values / damped.clamp(min=1e-300)
            trial = x - (E @ part[..., None])[..., 0]
            better = (self.gradient(trial).norm(dim=1) < F.norm(dim=1))[:, None]
            x = torch.where(better, trial, x)
            weight = torch.where(better, weight / 4, weight * 4).clamp(1e-6, 1e12)
            F, H = self.gradient(x), self.hessian(x)
        return x[F.norm(dim=1) < 1e-11]

    def extremes_nearby(self, x, randn, radius=0.1):
        """The least and the largest change of the loss at that distance, as far as tried.

        Tried are ± the eigenvectors of the Hessian, and 500 random directions.
        """
        E = torch.linalg.eigh(self.hessian(x)).eigenvectors.mT
        D = torch.nn.functional.normalize(randn(500, x.shape[1]), dim=1).expand(len(x), -1, -1)
        near = x[:, None] + radius * torch.cat([E, -E, D], 1)
        change = torch.stack([self.loss(points) for points in near]) - self.loss(x)[:, None]
        return change.amin(1), change.amax(1)


def data(randn, d_x, d_y, rank=None):
    """X and Y; with a rank, Q has it."""
    X = randn(d_x, 12) / 2
    return X, (randn(d_y, 12) / 2 if rank is None else randn(d_y, rank) @ randn(rank, d_x) @ X)


def squared_loss(X, Y):
    return lambda W: 0.5 * (Y - W @ X).square().sum()


def tangent_gradient(W, X, Y):
    """The norms of P_W(∇L¹) over ‖∇L¹‖ on the manifold of W's rank, and the ranks."""
    G = (W @ X - Y) @ X.mT
    U, s, Vh = torch.linalg.svd(W)
    kept = s > 1e-4  # what a search leaves of the others is round-off: see `gap`
    inside = kept.to(F64)
    G = U.mT @ G @ Vh.mT
    rows, columns = (
        torch.nn.functional.pad(inside, (0, size - s.shape[1])) for size in G.shape[1:]
    )
    outside = (1 - rows)[:, :, None] * (1 - columns)[:, None, :]
    norm = (G * (1 - outside)).norm(dim=(1, 2)) / G.norm(dim=(1, 2))
    gap = torch.where(kept, torch.zeros_like(s), s).max()
    return norm, kept.sum(1), gap


# -- critical points -------------------------------------------------------------------------------


@pytest.mark.statement("BRTW Prop. 34(a)")
@pytest.mark.parametrize("widths", [[3, 2, 3], [3, 2, 2, 3], [3, 3, 2, 4]])
def test_products_of_critical_tuples_that_a_search_finds_are_critical(randn, seen, widths):
    X, Y = data(randn, widths[0], widths[-1])
    layers = Layers(widths, squared_loss(X, Y))
    start = randn(100, sum(layers.sizes))
    x = layers.critical(start)
    assert len(x) >= 75
    size, rank, gap = tangent_gradient(layers.products(x), X, Y)
    assert float(gap) < 1e-12, "the ranks are beyond doubt"
    for k, count in enumerate(torch.bincount(rank, minlength=3).tolist()):
        seen.number(f"critical tuples of rank {k}", count)
        assert count > 0 or k == 0
    seen(size[rank > 0], 1e-9)
    problem = LeastSquares(X, Y)
    assert bool(is_critical(problem, layers.split(x)).all())
    # It can fail: tuples that are not critical, those of the start or 1e-4 off, have no such W.
    off = x[rank > 0] + 1e-4 * torch.nn.functional.normalize(randn(*x[rank > 0].shape), dim=1)
    for other, least in ((start, 1e-2), (off, 1e-7)):
        assert float(tangent_gradient(layers.products(other), X, Y)[0].min()) > least
        assert not bool(is_critical(problem, layers.split(other)).any())


def sums_of_32(X, Y, k):
    """BRTW (32) for |J| = k, written out: Σ_J σ_ju_jv_jᵀ(XXᵀ)^{-1/2}."""
    values, E = torch.linalg.eigh(X @ X.mT)
    inverse_root = (E / values.sqrt()) @ E.mT
    U, s, Vh = torch.linalg.svd(Y @ X.mT @ inverse_root, full_matrices=False)
    q = int((s > 1e-9 * s[0]).sum())
    return torch.stack(
        [
            (U[:, J] * s[J]) @ Vh[J] @ inverse_root
            for J in map(list, itertools.combinations(range(q), k))
        ]
        or [torch.full((len(Y), len(X)), torch.inf, dtype=F64)]
    )


def nearest(W, listed):
    """Distances of every W from all that are listed."""
    return (W[:, None] - listed).norm(dim=(2, 3)) / W.norm(dim=(1, 2))[:, None]


@pytest.mark.statement("BRTW Prop. 32(1)")
@pytest.mark.parametrize(("d_x", "d_y", "k"), [(3, 3, 1), (3, 3, 2), (3, 3, 3), (3, 4, 2)])
def test_a_search_on_the_manifold_finds_exactly_the_points_of_32(randn, seen, d_x, d_y, k):
    """W = AB with A, B of full rank k is critical on M_k if and only if (B, A) is for L²."""
    X, Y = data(randn, d_x, d_y)
    layers = Layers([d_x, k, d_y], squared_loss(X, Y))
    W = layers.products(layers.critical(randn(150, sum(layers.sizes))))
    W = W[tangent_gradient(W, X, Y)[1] == k]
    listed = sums_of_32(X, Y, k)
    distance = nearest(W, listed)
    seen.number("critical points found, of rank k", len(W))
    seen(distance.amin(1), 1e-8)
    found = distance.argmin(1).unique()
    seen.number("different ones", len(found))
    assert len(found) == len(listed), "every one of them is found"
    ours = torch.stack([point.W for point in critical_points(LeastSquares(X, Y), k)])
    seen(nearest(ours, listed).amin(1), 1e-12)
    assert len(ours) == len(listed)
    # It can fail: of a list that misses one, or has no (XXᵀ)^{-1/2}, points found are far away.
    root = torch.linalg.cholesky(X @ X.mT)
    for wrong in (listed[1:], listed @ root):
        assert len(wrong) == 0 or float(nearest(W, wrong).amin(1).max()) > 1e-2


@pytest.mark.statement("BRTW Prop. 32(1)")
def test_a_search_finds_no_critical_point_beyond_the_rank_of_Q(randn, seen):
    X, Y = data(randn, 3, 3, rank=2)
    layers = Layers([3, 3, 3], squared_loss(X, Y))
    W = layers.products(layers.critical(randn(150, sum(layers.sizes))))
    rank = tangent_gradient(W, X, Y)[1]
    for k in (1, 2):
        seen(nearest(W[rank == k], sums_of_32(X, Y, k)).amin(1), 1e-7)
    seen.number("critical points found of rank 1 and 2", ((rank == 1) | (rank == 2)).sum())
    seen.number("of rank 3 > q", (rank == 3).sum())
    assert int((rank == 3).sum()) == 0
    assert int((rank == 2).sum()) > 20


# -- Kawaguchi's theorem ---------------------------------------------------------------------------


def local_minima(layers, x, randn):
    """Which critical tuples have no lower point nearby, which have a higher one; their losses."""
    lower, higher = layers.extremes_nearby(x, randn)
    minimum = lower > -1e-10
    return minimum, higher > 1e-10, layers.loss(x)


@pytest.mark.statement("BRTW Theorem 31(2)")
@pytest.mark.statement("BRTW Theorem 31(3)")
@pytest.mark.parametrize("widths", [[3, 2, 2], [3, 1, 2], [3, 2, 2, 2], [3, 2, 1, 2]])
def test_local_minima_that_a_search_finds_are_global_and_the_others_saddles(randn, seen, widths):
    X, Y = data(randn, 3, 2)  # d_y ≤ d_x, everything of full rank, distinct singular values
    layers = Layers(widths, squared_loss(X, Y))
    x = layers.critical(randn(100, sum(layers.sizes)))
    minimum, higher, losses = local_minima(layers, x, randn)
    others = int((~minimum).sum())
    best = squared_loss(X, Y)(sums_of_32(X, Y, min(widths))[0])
    assert min(int(minimum.sum()), others) >= 5
    seen.of("BRTW Theorem 31(2)").number("local minima found", minimum.sum())
    seen.of("BRTW Theorem 31(2)")(losses[minimum] - best, 1e-9)
    seen.of("BRTW Theorem 31(3)").number("other critical tuples, all saddles", others)
    seen.of("BRTW Theorem 31(3)").at_most((~higher[~minimum]).sum(), 0)
    assert float((losses[~minimum] - best).min()) > 1e-3
    kinds = classify(LeastSquares(X, Y), layers.split(x))
    assert [kind == "global minimum" for kind in kinds] == minimum.tolist()
    assert [kind.endswith("strict saddle") for kind in kinds] == (~minimum).tolist()


def test_the_search_finds_local_minima_where_a_loss_has_them(randn):
    """½Σp_ij(W_ij − X_ij)² of rank 1, X = diag(1, .8), p = 4 off the diagonal: ·8e_2e_2ᵀ is one."""
    target, p = torch.diag(torch.tensor([1.0, 0.8], dtype=F64)), torch.tensor([[1.0, 4], [4, 1]])
    layers = Layers([2, 1, 2], lambda W: 0.5 * (p * (W - target).square()).sum())
    minimum, _, losses = local_minima(layers, layers.critical(randn(100, 4)), randn)
    assert sorted({round(value, 9) for value in losses[minimum].tolist()}) == [0.32, 0.5]
