"""What the exact flow keeps is kept: rank, sign, balance, small singular values."""

import math

import pytest
import torch

import deeplin
from deeplin import DeepLinear, LeastSquares, exact, init
from deeplin.flows import DLRAFlow, EndToEndFlow, LayerFlow, PSDDLRAFlow, compress
from deeplin.integrators import RK4, Euler, ProjectedRungeKutta
from deeplin.network import balancedness_gap
from deeplin.problems import MatrixApproximation

F64 = torch.float64
LN10 = math.log(10)


def counterexample():
    """C = diag(2, 1), W(0) = 0.3·[[1, 2], [2, 1]]: det W(0) < 0 although (37) holds."""
    C = torch.diag(torch.tensor([2.0, 1.0], dtype=F64))
    W = 0.3 * torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=F64)
    return LeastSquares.from_moments(C, C, 3.0), W


@pytest.mark.statement("BRTW Conjecture 41(b), E11")
@pytest.mark.parametrize("options", [{"rtol": 1e-7}, {"dt": 0.4}])
@pytest.mark.statement("BRTW Remark 13")
def test_counterexample_of_depth_two_stays_at_the_saddle(options, seen):
    problem, W = counterexample()
    flow = EndToEndFlow(problem, 2)
    solution = deeplin.solve(flow, flow.init_state(W), 150.0, save_at=[20.0], **options)
    for y in solution.y:
        assert float(flow.conserved(y)["sign_det"]) == -1
    last = solution.y[-1]
    seen.number("log10 σ_2 at t = 150, sign kept", last[1][1] / LN10)
    assert float(last[1][1]) / LN10 == pytest.approx(-132, abs=1)
    seen.below(problem.loss(flow.end_to_end(last)) - 0.5, 1e-10)


@pytest.mark.statement("BRTW Conjecture 41(b), E11")
@pytest.mark.statement("BRTW Fig. 4, C3")
def test_a_plain_integrator_escapes_falsely(seen):
    problem, W = counterexample()
    net = init.balanced_(DeepLinear([2, 2, 2], dtype=F64), W)
    flow = LayerFlow(problem)
    solution = deeplin.solve(flow, flow.init_state(net), 150.0, rtol=1e-12, save_at=[20.0])
    losses = [float(problem.loss(flow.end_to_end(y))) for y in solution.y]
    seen.number("a plain integrator's loss at t = 20", losses[1])
    seen.number("a plain integrator's loss at t = 150", losses[2])
    seen(losses[1] - 0.5, 1e-5)
    seen.below(losses[2], 1e-10)


@pytest.mark.slow
@pytest.mark.statement("BRTW Conjecture 41(b), E11")
def test_counterexample_of_depth_three_stays_at_the_saddle():
    problem, W = counterexample()
    flow = EndToEndFlow(problem, 3)
    solution = deeplin.solve(flow, flow.init_state(W), 1000.0, dt=0.4)
    last = solution.y[-1]
    assert float(flow.conserved(last)["sign_det"]) == -1
    assert float(last[1][1]) / LN10 == pytest.approx(-9, abs=0.1)
    assert abs(float(problem.loss(flow.end_to_end(last))) - 0.5) < 1e-8


def test_beyond_float64_there_is_a_sentence():
    problem, W = counterexample()
    flow = EndToEndFlow(problem, 2)
    solution = deeplin.solve(flow, flow.init_state(W), 400.0, dt=0.4)
    assert solution.result.kind == "time"
    assert "below what float64 can carry" in solution.result.sentence
    assert all(bool(torch.isfinite(part).all()) for part in solution.y[-1])
    assert float(problem.loss(flow.end_to_end(solution.y[-1]))) == pytest.approx(0.5, abs=1e-10)
    assert float(solution.y[-1][1][1]) / LN10 == pytest.approx(-348.7, abs=0.1)


@pytest.mark.statement("BRTW Remark 42")
@pytest.mark.parametrize("rank", [1, 2])
def test_special_start_decays_for_ever_in_the_eigenbasis(rank, seen):
    lam = torch.tensor([2.0, 1.0, 0.5], dtype=F64)
    problem = LeastSquares.from_moments(torch.diag(lam), torch.diag(lam), lam.sum())
    vectors = torch.eye(3, dtype=F64)[:, :rank]
    flow = EndToEndFlow(problem, 2)
    y0 = flow.init_state(-vectors @ vectors.mT, rank)
    for t in (1.0, 100.0):
        W = flow.end_to_end(deeplin.solve(flow, y0, t, rtol=1e-9).y[-1])
        oracle = exact.special_start_product(t, lam[:rank], vectors)
        size = oracle.abs().max()  # its square, and so the Frobenius norm, would underflow
        seen.below(((W - oracle) / size).norm(), 1e-6)
    assert float(size) < 1e-40


@pytest.mark.statement("BRTW Remark 42")
@pytest.mark.parametrize("lam_1", [2.0, 3.0])
def test_escape_time_in_a_rotated_basis_is_predicted(lam_1, randn, seen):
    """Round-off ε grows like e^{λ_1 t} from the linearisation at 0: it takes log(1/ε)/λ_1.

    Sharper: b = u_1ᵀ(W_1ᵀ + W_2)/√2 is the growing mode, W = b²/2·u_1u_1ᵀ follows the logistic
    equation, and reaches ½ at t_0 + log(√2/b(t_0))/λ_1.
    """
    lam = torch.tensor([lam_1, 1.0, 0.5], dtype=F64)
    for _ in range(5):
        E = torch.linalg.qr(randn(3, 3)).Q
        C = (E * lam) @ E.mT
        problem = LeastSquares.from_moments(C, C, lam.sum())
        u = E[:, :1]
        flow = LayerFlow(problem)
        solution = deeplin.solve(
            flow, (u.mT.clone(), -u), 40.0, dt=0.02, save_at=[0.1 * i for i in range(1, 400)]
        )
        W_1, W_2 = solution.y[40]
        b = abs(float(u.mT @ (W_1.mT + W_2))) / math.sqrt(2)
        if b > 0:  # in some bases rounding keeps W_2 = −W_1ᵀ to the last bit, and nothing escapes
            break
    assert 0 < b < 1e-10
    sharp = float(solution.t[40]) + math.log(math.sqrt(2) / b) / lam_1
    norms = torch.stack([flow.end_to_end(y).norm() for y in solution.y])
    escaped = float(solution.t[norms.argmin() :][norms[norms.argmin() :] > 0.5][0])
    predicted = math.log(1 / torch.finfo(F64).eps) / lam_1
    assert float(norms.min()) < 1e-12
    seen.ratio(escaped, sharp, rel=0.02)
    assert escaped == pytest.approx(predicted, rel=0.2)


@pytest.mark.statement("BRTW Prop. 12")
@pytest.mark.parametrize("depth", [1, 2, 3, math.inf])
def test_rank_is_exactly_k(randn, depth, seen):
    problem = LeastSquares(randn(6, 20) / 4, randn(5, 20) / 4)
    flow = EndToEndFlow(problem, depth)
    y0 = flow.init_state(randn(4, 5, 3) @ randn(4, 3, 6) / 3, 3)
    for y in deeplin.solve(flow, y0, 5.0, rtol=1e-6, save_at=[0.5, 1.7]).y:
        assert bool((flow.singular_values(y) > 0).all())
        assert torch.linalg.matrix_rank(flow.end_to_end(y)).tolist() == [3] * 4
        eye = torch.eye(3, dtype=F64)
        seen.below(flow.conserved(y)["UtU"] - eye, 1e-13)


@pytest.mark.parametrize("smallest", [1e-3, 1e-9, 1e-30])
def test_rescaled_dlra_has_full_order_however_small_the_last_singular_value(randn, smallest):
    """(DLRA*) in multiplicative form: the error at dt = 0.05 does not depend on σ_r(0)."""
    X = randn(6, 3) @ randn(3, 5) / 3
    U, V = torch.linalg.qr(randn(6, 2)).Q, torch.linalg.qr(randn(5, 2)).Q
    log_s = torch.tensor([1.0, smallest], dtype=F64).log()
    flow = EndToEndFlow(MatrixApproximation(X), 1, rescaled=True)
    ends = [deeplin.solve(flow, (U, log_s, V), 0.8, dt=0.8 / n).y[-1] for n in (8, 16, 32, 64)]
    frames = [y[0] @ y[2].mT for y in ends]  # W/σ_r would be 1 against 1e30
    errors = [float((frame - frames[-1]).norm()) for frame in frames[:-1]]
    assert 1e-9 < errors[1] < 1e-3
    assert math.log2(errors[0] / errors[1]) > 3.5
    assert all(float(y[1][1]) < math.log(smallest) + 5 for y in ends)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_projected_methods_do_not_feel_the_last_singular_value(randn, order):
    """From σ_r = 1e-12, where S^{-1} would need steps of 1e-12, dt = 0.1 descends."""
    X = randn(6, 2) @ randn(2, 5)
    problem = MatrixApproximation(X / torch.linalg.matrix_norm(X, 2))
    flow = DLRAFlow(problem)
    U, V = torch.linalg.qr(randn(6, 2)).Q, torch.linalg.qr(randn(5, 2)).Q
    y0 = (U, torch.diag(torch.tensor([0.5, 1e-12], dtype=F64)), V)
    solution = deeplin.solve(
        flow, y0, 40.0, dt=0.1, integrator=ProjectedRungeKutta(order), save_at=[1.0, 5.0, 10.0]
    )
    losses = [float(problem.loss(flow.end_to_end(y))) for y in solution.y]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-12
    assert all(float(flow.singular_values(y)[-1]) > 0 for y in solution.y)


def test_psd_projection_stays_in_the_cone(randn):
    H = randn(6, 3)
    flow = PSDDLRAFlow(MatrixApproximation(H @ H.mT / 8))
    V = randn(20, 6, 3) / 3
    V[..., 2] *= 1e-4
    y0 = flow.init_state(V @ V.mT, 3)
    solution = deeplin.solve(
        flow, y0, 60.0, dt=0.2, integrator=ProjectedRungeKutta(1), save_at=[0.2, 1.0]
    )
    for y in solution.y:
        assert float(torch.linalg.eigvalsh(y[1]).min()) > 0
    assert float(MatrixApproximation(H @ H.mT / 8).loss(flow.end_to_end(y)).max()) < 1e-8


@pytest.mark.parametrize("factor", [3.0, 30.0])
def test_too_long_a_step_is_no_silent_change_of_sign(factor):
    problem, W = counterexample()
    flow = EndToEndFlow(problem, 2)
    y0 = flow.init_state(W)
    solution = deeplin.solve(flow, y0, 400.0, dt=factor, integrator=Euler(), save_at=[100.0, 200.0])
    for y in solution.y:
        assert float(flow.conserved(y)["sign_det"]) == -1
    if solution.result.kind != "time":
        assert "take a smaller dt" in solution.result.sentence


def drift(flow, y, dt, steps):
    solution = deeplin.solve(flow, y, dt * steps, dt=dt, integrator=Euler())
    return max(float(gap.norm()) for gap in balancedness_gap(solution.y[-1]))


@pytest.mark.parametrize("steps", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_projected_layers_stay_balanced(randn, generator, steps):
    problem = LeastSquares(randn(4, 20) / 4, randn(3, 20) / 4)
    net = DeepLinear([4, 3, 3, 3], dtype=F64)
    init.balanced_(net, randn(3, 2) @ randn(2, 4) / 2, rotate=True, generator=generator)
    dt = 200.0 / 100_000
    free, kept = LayerFlow(problem), LayerFlow(problem, balanced_rank=2)
    y0 = free.init_state(net)
    assert drift(kept, y0, dt, steps) < 1e-12
    if steps < 10_000:
        assert drift(free, y0, dt, steps) > 1e-6


def test_rebalancing_does_not_move_the_product(randn, generator):
    problem = LeastSquares(randn(4, 20) / 4, randn(3, 20) / 4)
    net = DeepLinear([4, 3, 3], dtype=F64)
    init.balanced_(net, randn(3, 2) @ randn(2, 4) / 2, rotate=True, generator=generator)
    free, kept = LayerFlow(problem), LayerFlow(problem, balanced_rank=2)
    ends = [
        f.end_to_end(deeplin.solve(f, f.init_state(net), 3.0, dt=0.01).y[-1]) for f in (free, kept)
    ]
    assert float((ends[0] - ends[1]).norm()) < 1e-8
    with pytest.raises(ValueError, match="min_j d_j = 3; got 4"):
        LayerFlow(problem, balanced_rank=4).normalised(free.init_state(net))


def test_compressed_layers_follow_the_same_path(randn, generator):
    problem = LeastSquares(randn(6, 20) / 4, randn(5, 20) / 4)
    net = DeepLinear([6, 4, 4, 4, 5], dtype=F64)
    init.balanced_(net, randn(5, 2) @ randn(2, 6) / 2, rotate=True, generator=generator)
    flow = LayerFlow(problem)
    small = compress(net)
    for t in (0.5, 2.0):
        paths = [
            flow.end_to_end(deeplin.solve(flow, flow.init_state(y), t, dt=0.02).y[-1])
            for y in (net, small)
        ]
        assert float((paths[0] - paths[1]).norm()) < 1e-13
    assert RK4().order == 4
