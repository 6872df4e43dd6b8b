"""The block preconditioner in solvers: fewer steps, states, batches, what it needs."""

import pytest
import torch
from optim_cases import planted

from deeplin.manifolds import FixedRankFactored
from deeplin.optim import ConjugateGradient, TrustRegion, minimize
from deeplin.optim.blocks import BlockPreconditioner
from deeplin.optim.objectives import ProblemObjective
from deeplin.optim.space import Space
from deeplin.problems import (
    MatrixApproximation,
    Ridge,
    RobustCompletion,
    spectral_start,
)

F64 = torch.float64

SOLVERS = [ConjugateGradient, TrustRegion]


def test_another_preconditioner_ends_the_old_direction():
    """Where blocks are first used d is −P grad f alone; before and after it is not."""
    known, _ = planted(shape=(200, 150))
    manifold = FixedRankFactored(200, 150, 3, depth=1)
    start = spectral_start(known, 3)
    x = manifold.parameter(manifold.pack_point(start.U, 0.3 * start.S, start.V))
    optimizer = ConjugateGradient([x], problem=known)
    used, alone = [], []
    for _ in range(12):
        optimizer.step()
        state = optimizer.state[x]
        objective = ProblemObjective(Space([x]), known)
        kept = {key: part.clone() for key, part in state.items()}
        product = BlockPreconditioner().at(objective, [x.detach()], state["loss"], kept)
        P = state["gradient"] if product is None else product([state["gradient"]])[0]
        used.append(float(state["blocks_used"]))
        alone.append(torch.allclose(state["direction"], -P, rtol=1e-6, atol=0))
    first = used.index(1.0)
    assert first >= 1
    assert alone[first]
    assert not any(alone[first + 1 :])


def test_steps_are_fewer_than_without():
    known, _ = planted(shape=(400, 300), oversampling=3.0)
    tol = 1e-8 * float(known.values.norm())
    start = spectral_start(known, 3)
    few, many = (
        minimize(known, start, tol=tol, preconditioner=which) for which in ("blocks", None)
    )
    assert bool(few.converged)
    assert bool(many.converged)
    assert few.iterations < 0.7 * many.iterations
    auto = minimize(known, start, tol=tol)
    assert torch.equal(auto.point.U, few.point.U)


def test_what_is_ill_conditioned_is_found_in_fewer_steps():
    known, (U, sigma, V) = planted(shape=(300, 300), rank=5, condition=10.0)
    tol, start = 1e-8 * float(known.values.norm()), spectral_start(known, 5)
    found = minimize(known, start, tol=tol, max_iter=100)
    assert float((found.point.dense() - (U * sigma) @ V.mT).norm()) < 1e-6 * float(sigma.norm())
    plain = minimize(known, start, tol=tol, max_iter=200, preconditioner=None)
    assert found.iterations < 0.6 * plain.iterations


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__)
def test_a_state_with_blocks_goes_on_to_the_same_bits(solver, tmp_path):
    known, _ = planted()
    manifold = FixedRankFactored(60, 50, 3, depth=1)
    start = spectral_start(known, 3)
    x = manifold.parameter(manifold.pack_point(start.U, start.S, start.V))
    optimizer = solver([x], problem=known, preconditioner="blocks")
    for _ in range(4):
        optimizer.step()
    torch.save({"x": x.detach().clone(), "state": optimizer.state_dict()}, tmp_path / "state.pt")
    assert float(optimizer.state[x]["blocks_used"]) == 1
    assert not torch.equal(optimizer.state[x]["blocks_at"], x), "they are of an earlier point"
    straight = [float(optimizer.step()) for _ in range(4)]
    kept = torch.load(tmp_path / "state.pt")
    y = manifold.parameter(kept["x"].as_subclass(torch.Tensor))
    other = solver([y], problem=known, preconditioner="blocks")
    other.load_state_dict(kept["state"])
    assert [float(other.step()) for _ in range(4)] == straight
    assert torch.equal(x.detach(), y.detach())
    for _ in range(4):
        optimizer.step()  # to blocks of another point
    kept = torch.load(tmp_path / "state.pt")
    x.data.copy_(kept["x"])
    optimizer.load_state_dict(kept["state"])
    assert [float(optimizer.step()) for _ in range(4)] == straight


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__)
def test_each_matrix_of_a_batch_has_its_own_blocks(solver):
    """Also those that begin to use them later, or are done before."""
    known, _ = planted(oversampling=4.0)
    truths = [planted(seed)[1] for seed in range(3)]
    values = torch.stack(
        [((U * sigma)[known.rows] * V[known.cols]).sum(-1) for U, sigma, V in truths]
    )
    batch = known.with_values(values)
    manifold = FixedRankFactored(60, 50, 3, depth=1)
    near = spectral_start(known.with_values(values[1]), 3)
    starts = [
        manifold.pack_point(U, S, V)
        for U, S, V in (
            (truths[0][0], torch.diag(truths[0][1]), truths[0][2]),
            (near.U, near.S, near.V),
            (truths[1][0], 0.1 * torch.diag(truths[2][1]), truths[0][2]),
        )
    ]
    x = manifold.parameter(torch.stack(starts))
    optimizer = solver([x], problem=batch, preconditioner="blocks", tol=1e-9)
    optimizer.step()
    assert not bool(optimizer.state[x]["blocks_used"].all())
    for _ in range(11):
        optimizer.step()
    assert bool(optimizer.state[x]["blocks_used"].all())
    y = manifold.parameter(x.detach().clone())
    auto = solver([y], problem=batch)
    auto.step()
    assert "blocks_used" not in auto.state[y], "by itself a batch has none"
    for i in range(3):
        alone = manifold.parameter(starts[i].clone())
        single = solver(
            [alone], problem=known.with_values(values[i]), preconditioner="blocks", tol=1e-9
        )
        for _ in range(12):
            single.step()
        assert float(optimizer.loss[i]) == pytest.approx(float(single.loss), rel=1e-6, abs=1e-18)


def test_outliers_and_ridges(randn):
    known, _ = planted()
    robust = RobustCompletion(known.rows, known.cols, known.values, known.shape, delta=0.02)
    for problem in (robust, Ridge(known, 0.01)):
        start = spectral_start(problem, 3)
        few, many = (
            minimize(problem, start, tol=1e-9, max_iter=400, preconditioner=which)
            for which in ("blocks", None)
        )
        assert bool(few.converged)
        # Without noise the minimum is 0: what is left there is tol² over the curvature.
        assert float(few.loss) <= float(many.loss) * (1 + 1e-9) + 1e-17
        assert few.iterations <= many.iterations


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__)
def test_what_blocks_need_is_said(solver, randn):
    known, _ = planted()
    y = torch.nn.Parameter(torch.ones(3, dtype=F64))
    with pytest.raises(ValueError, match=r"preconditioner must be a function .* got \'rows\'"):
        solver([y], preconditioner="rows")
    with pytest.raises(ValueError, match=r'preconditioner="blocks" needs problem=\.\.\.'):
        solver([y], preconditioner="blocks")
    manifold = FixedRankFactored(60, 50, 3, depth=2)
    x = manifold.parameter(manifold.origin(dtype=F64))
    with pytest.raises(ValueError, match=r"belongs to the embedded metric, depth=1; got"):
        solver([x], problem=known, preconditioner="blocks")
    optimizer = solver([x], problem=known)
    optimizer.step()
    assert "blocks_used" not in optimizer.state[x], '"auto" takes none'
    manifold = FixedRankFactored(6, 5, 2, depth=1)
    problem = MatrixApproximation(randn(6, 2) @ randn(2, 5) + 0.01 * randn(6, 5))
    x = manifold.parameter(manifold.origin(dtype=F64))
    solver([x], problem=problem).step()
    near = manifold.parameter(manifold.from_dense(problem.X).as_subclass(torch.Tensor))
    optimizer = solver([near], problem=problem, preconditioner="blocks")
    with pytest.raises(ValueError, match=r"rows meet in no term.* got MatrixApproximation"):
        optimizer.step()
