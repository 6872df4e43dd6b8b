"""Ranks of starts: those near a spurious point, those of a batch, the run of each."""

import pytest
import torch

from deeplin.landscape import neighbours_of, spurious_point

F64, C128 = torch.float64, torch.complex128

# n, the eigenvalues of X, those that Z_# keeps, the rank of the neighbours
NEAR = [
    (6, [3.0, 2.0, 1.0], [], 3),  # s = 0: one draw in five had rank 2, or negative eigenvalues
    (6, [3.0, 2.0, 1.0], [1], 3),
    (5, [5.0, 4.0, 3.0, 2.0, 1.0], [], 5),  # r = n
    (5, [5.0, 4.0, 3.0, 2.0, 1.0], [2], 5),
    (30, [1.0, 0.8, 0.6, 0.4, 0.2], [1, 2, 3], 5),
    (4, [2.0, 1.0, 1.0], [1, 2], 3),  # repeated
]


def target(n, values, dtype, generator, right=None):
    def frame(rows):
        A = torch.randn(rows, len(values), dtype=dtype, generator=generator)
        return torch.linalg.qr(A).Q

    U = frame(n)
    return (U * torch.tensor(values, dtype=F64)) @ (U if right is None else frame(right)).mH


@pytest.mark.parametrize("radius", [1e-3, 0.1])
@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("case", NEAR, ids=str)
def test_neighbours_are_semidefinite_of_rank_r_at_the_radius(generator, case, dtype, radius):
    n, values, keep, r = case
    X = target(n, values, dtype, generator)
    point = spurious_point(X, keep)
    Z = neighbours_of(point, radius, r, 1000, generator=generator)
    assert Z.shape == (1000, n, n)
    assert Z.dtype == dtype
    torch.testing.assert_close(Z, Z.mH, rtol=0, atol=1e-14)
    spectrum = torch.linalg.eigvalsh(Z).flip(-1)
    # The smallest is about radius/(2√(r − s)), less what the kept part covers: far from round-off.
    assert float(spectrum[:, r - 1].min()) > 1e-3 * radius
    assert r == n or float(spectrum[:, r:].abs().max()) < 1e-13
    distance = torch.linalg.matrix_norm(Z - point.dense())
    torch.testing.assert_close(distance, torch.full_like(distance, radius), rtol=1e-10, atol=0)


def test_no_direction_is_left_out_near_a_spurious_point(generator):
    """The differences span all of the Hermitian matrices that the tangent cone spans: all, here."""
    X = target(6, [3.0, 2.0, 1.0], F64, generator)
    for keep in ([], [1], [1, 3]):
        point = spurious_point(X, keep)
        Z = neighbours_of(point, 1e-3, 3, 4000, generator=generator)
        D = (Z - point.dense()) / 1e-3
        rows, columns = torch.triu_indices(6, 6)
        span = torch.linalg.svdvals(D[:, rows, columns])
        assert float(span[-1] / span[0]) > 0.02, "21 dimensions, each with its share"
        # What the escape depends on: the missing eigenvector in the new columns, either sign of
        # the kept part's turn towards it.
        new = torch.linalg.matrix_norm(D - D.mean(0))
        assert float(new.std()) > 0.01
        share = (point.U_missing[:, 0] @ D @ point.U_missing[:, 0]).abs()
        assert float(share.min()) < 0.02 < 0.1 < float(share.max())
        if keep:
            turn = point.U_missing[:, 0] @ D @ point.U[:, 0]
            assert 0.45 < float((turn > 0).double().mean()) < 0.55  # 3 sigma of 4000 is 0.024


def test_neighbours_of_a_general_point_are_of_rank_r(generator):
    X = target(6, [3.0, 2.0, 1.0], C128, generator, right=4)
    for keep in ([], [2], [1, 2]):
        point = spurious_point(X, keep)
        Z = neighbours_of(point, 0.05, 3, 500, generator=generator)
        s = torch.linalg.svdvals(Z)
        assert float(s[:, 2].min()) > 5e-5
        assert float(s[:, 3:].max()) < 1e-13
        distance = torch.linalg.matrix_norm(Z - point.dense())
        torch.testing.assert_close(distance, torch.full_like(distance, 0.05), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("radius", "rank", "sentence"),
    [(0.0, 3, "radius must be positive"), (0.1, 1, "s < r"), (0.1, 7, r"min\(m, n\) = 6")],
)
def test_neighbours_that_cannot_be(generator, radius, rank, sentence):
    point = spurious_point(target(6, [3.0, 2.0, 1.0], F64, generator), [1])
    with pytest.raises(ValueError, match=sentence):
        neighbours_of(point, radius, rank, 3, generator=generator)
