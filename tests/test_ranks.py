"""Ranks of starts: those near a spurious point, those of a batch, the run of each."""

import pytest
import torch
from runner import train

from deeplin import DeepLinear, MatrixApproximation, autoencoder, flows, init, solve
from deeplin.landscape import neighbours_of, spurious_point
from deeplin.network import compress, product_ranks
from deeplin.runner.named_flows import FLOWS, make_flow

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


# -- a batch of several ranks ----------------------------------------------------------------------

RANKS = [3, 2, 3, 1, 3]


def mixed(generator):
    """Balanced layers of five semidefinite W(0), of the ranks above."""
    A = torch.randn(5, 4, 3, dtype=F64, generator=generator)
    for i, rank in enumerate(RANKS):
        A[i, :, rank:] = 0
    return init.balanced_(DeepLinear([4, 3, 4], batch_shape=(5,), dtype=F64), A @ A.mT)


def test_each_repeat_has_its_rank(generator):
    net = mixed(generator)
    weights = [W_j.detach() for W_j in net.weights]
    assert product_ranks(weights).tolist() == RANKS
    problem = MatrixApproximation(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=F64)))
    for layers in (weights, compress(weights)):
        flow = flows.LayerFlow(problem)
        y = solve(flow, flow.init_state(layers), t1=4.0, dt=0.02).y[-1]
        apart = [
            solve(flow, tuple(W_j[i] for W_j in layers), t1=4.0, dt=0.02).y[-1] for i in range(5)
        ]
        for i, alone in enumerate(apart):
            torch.testing.assert_close(
                flow.end_to_end(y)[i], flow.end_to_end(alone), rtol=0, atol=1e-12
            )
        if layers is not weights:  # zeros stay zeros; dense layers grow the modes of round-off
            assert flow.rank(y).tolist() == RANKS


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_takes_mixed_ranks_whole_or_says_who_has_which(generator, name):
    """Truncating all to the least rank was silent: 6 of 20 at rank 2, and 20 ran at rank 2."""
    net = mixed(generator)
    problem = autoencoder(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=F64)))
    if name in ("layers", "compressed", "oja", "coupled", "riccati"):
        flow, y = make_flow(name, net, problem)
        torch.testing.assert_close(
            flow.end_to_end(y), net.end_to_end().detach(), atol=1e-12, rtol=0
        )
        return
    who = rf"^flow={name} .* rank 1 in repeat 4, rank 2 in repeat 2, and rank 3 in the other 3: "
    with pytest.raises(ValueError, match=who):
        make_flow(name, net, problem)


def test_rebalanced_layers_have_one_rank(generator):
    problem = MatrixApproximation(torch.eye(4, dtype=F64))
    with pytest.raises(ValueError, match=r"^method\.rebalance=true runs all repeats at one rank"):
        make_flow("layers", mixed(generator), problem, rebalance=True)


def test_without_a_rank_a_batch_must_have_one(generator):
    W = mixed(generator).end_to_end().detach()
    flow = flows.DLRAFlow(MatrixApproximation(torch.eye(4, dtype=F64)))
    with pytest.raises(ValueError, match="ranks from 1 to 3: split the batch"):
        flow.init_state(W)


def test_the_runner_refuses_mixed_ranks_in_a_sentence(capsys, tmp_path):
    words = (
        *("problem=approximation", "problem.n=2", "problem.spectrum=[2,1]", "network.rank=2"),
        *("network.depth=2", "init=balanced", "init.matrix=[[[1,0],[0,1]],[[1,0],[0,0]]]"),
        *("repeats=2", "method=rgd"),
    )
    assert train(*words, folder=tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: flow=dlra runs all repeats at one rank")
    assert "rank 1 in repeat 2, and rank 2 in the other 1" in error
