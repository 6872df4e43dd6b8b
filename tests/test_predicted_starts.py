"""Starts whose limit what is conserved decides: signs of det W, invariant subspaces."""

import json
import math

import pytest
import torch
from runner import train

import deeplin
from deeplin import flows
from deeplin.prediction import predict_flow
from deeplin.prediction.conserved import ranks_of, reach

F64 = torch.float64
FORBIDDEN = ("sgd", "euler", "rk4", "dopri5", "rkc", "rebalance")
KEEPING = ("structure", "rosenbrock")


def diagonal(*values: float) -> torch.Tensor:
    return torch.diag(torch.tensor(values, dtype=F64))


def autoencoder(*eigenvalues: float):
    return deeplin.autoencoder(diagonal(*eigenvalues).sqrt())


def summary_of(folder, *arguments):
    assert train(*arguments, folder=folder) == 0
    return json.loads((folder / "summary.json").read_text())


# -- predictions, against dense formulas -----------------------------------------------------------


def test_the_limit_of_a_wrong_sign_is_the_infimum_over_that_sign(randn):
    problem = deeplin.LeastSquares(randn(3, 9), randn(3, 9))
    best = problem.B @ torch.linalg.inv(problem.C)
    W = randn(3, 3)
    if torch.linalg.det(W) * torch.linalg.det(best) > 0:
        W[0] = -W[0]
    prediction = deeplin.predict(problem, 2, W)
    assert (prediction.rank, prediction.start_rank) == (2, 3)
    assert prediction.sign == float(torch.linalg.det(W).sign())
    values = torch.linalg.svdvals(best @ torch.linalg.cholesky(problem.C))
    least = float(problem.loss(best) + 0.5 * values[-1] ** 2)
    assert prediction.loss == pytest.approx(least, rel=1e-10)
    assert float(problem.loss(prediction.limit)) == pytest.approx(least, rel=1e-10)
    # No singular matrix, hence none of that sign, is nearer to the optimum.
    for u, v in zip(randn(200, 3), randn(200, 3), strict=True):
        near = prediction.limit + 0.1 * torch.outer(u, v)
        if torch.linalg.det(near) * torch.linalg.det(best) <= 0:
            assert float(problem.loss(near)) >= least - 1e-12
    assert "is conserved" in prediction.why
    assert "strict saddle of L^N" in prediction.escape
    right = deeplin.predict(problem, 2, best @ (torch.eye(3, dtype=F64) + 0.1 * randn(3, 3)))
    assert (right.rank, right.why, right.sign) == (3, "", -prediction.sign)


def test_what_says_nothing_of_the_sign(randn):
    problem = autoencoder(2.0, 1.0, 0.4)
    W = diagonal(-1, 1, 1) + 0.1 * randn(3, 3)
    # N = 1: W(t) passes det W = 0, W(t) − I = (W(0) − I)e^{−Ct}.
    euclidean = deeplin.predict(problem, 1, W)
    assert (euclidean.rank, euclidean.why, euclidean.sign) == (3, "", 0)
    assert "finite time" in euclidean.note
    # Layers that are not balanced: each may pass through singular matrices.
    layers = [randn(3, 3), randn(3, 3)]
    unbalanced = deeplin.predict(problem, 2, layers)
    assert (unbalanced.rank, unbalanced.why, unbalanced.sign) == (3, "", 0)
    # Rank below the size: M_2 is connected.
    low = randn(3, 2) @ randn(2, 3)
    assert deeplin.predict(problem, 2, low).why == ""
    # DLRA* keeps the sign but stops where det W = 0 first: at no critical point.
    clock = flows.DLRAFlow(problem, rescaled=True)
    stopped = predict_flow(problem, clock, clock.init_state(W, 3))
    assert stopped.limit is None
    assert "the sign that the optimum has not" in stopped.missing


@pytest.mark.statement("BRTW Remark 42")
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("depth", [2, 3])
def test_a_start_in_eigendirections_keeps_the_positive_ones(randn, rotated, depth, seen):
    basis = torch.linalg.qr(randn(5, 5)).Q if rotated else torch.eye(5, dtype=F64)
    problem = deeplin.autoencoder(basis @ diagonal(3, 2, 1.5, 1, 0.5).sqrt())
    E = problem.spectrum.vectors
    W = E @ diagonal(-0.3, 0.2, 0, -1, 0.7) @ E.mT
    prediction = deeplin.predict(problem, depth, W)
    limit = E[:, [1, 4]] @ E[:, [1, 4]].mT
    seen(prediction.limit - limit, 1e-12)
    assert (prediction.rank, prediction.start_rank) == (2, 4)
    assert "invariant subspace" in prediction.why
    special = deeplin.predict(problem, depth, -E[:, :2] @ E[:, :2].mT)
    assert special.rank == 0
    assert special.loss == pytest.approx(4.0)
    # ẇ = −2|w|λ(w − 1) at N = 2: −1/(2e^{2λt} − 1), the slowest is λ_2.
    assert special.rate == (pytest.approx(4.0) if depth == 2 else None)
    mixed = -E[:, :2] @ E[:, :2].mT + 1e-9 * torch.outer(E[:, 0], E[:, 4])
    mixed = mixed + 1e-9 * torch.outer(E[:, 4], E[:, 1])
    assert deeplin.predict(problem, depth, mixed).loss < special.loss  # a coupling above round-off


def test_a_block_of_the_wrong_sign_in_a_larger_space():
    """BRTW Conjecture 41(b): M = 0.3[[1, 2], [2, 1]] within d = 3 stays at loss 0.7."""
    problem = autoencoder(2.0, 1.0, 0.4)
    W = torch.zeros(3, 3, dtype=F64)
    W[:2, :2] = 0.3 * torch.tensor([[1.0, 2], [2, 1]], dtype=F64)
    prediction = deeplin.predict(problem, 3, W)
    assert (prediction.rank, prediction.loss) == (1, pytest.approx(0.7))
    flow = flows.EndToEndFlow(problem, 3)
    y = flow.init_state(W, 2)
    end = deeplin.solve(flow, y, 30.0, rtol=1e-4).y[-1]
    assert float(problem.loss(flow.end_to_end(end))) == pytest.approx(0.7, abs=1e-3)
    W[2, 0] = 1e-3
    assert deeplin.predict(problem, 3, W).why == ""


def test_the_exact_start_of_hlz_example_ends_at_the_spurious_point():
    problem = deeplin.MatrixApproximation(diagonal(2, 1, 0))
    flow = flows.PSDDLRAFlow(problem)
    exact = predict_flow(problem, flow, flow.init_state(diagonal(2, 0, 1), 2))
    torch.testing.assert_close(exact.limit, diagonal(2, 0, 0), rtol=0, atol=1e-14)
    near = torch.tensor([[2, 0, 0], [0, 1e-24, 1e-12], [0, 1e-12, 1]], dtype=F64)
    near_by = predict_flow(problem, flow, flow.init_state(near, 2))
    torch.testing.assert_close(near_by.limit, diagonal(2, 1, 0), rtol=0, atol=1e-14)


def velocity_on_the_cone(H, depth, W, k):
    """−𝒜_W(W − H) by definition (8), of depth 1 −P_W(W − H), at a semidefinite W of rank k."""
    values, E = torch.linalg.eigh(W)
    values, E, G = values[-k:], E[:, -k:], W - H

    def power(p):
        return torch.eye(len(W), dtype=F64) if p == 0 else (E * values**p) @ E.mT

    if depth == 1:
        P = E @ E.mT
        return P @ G @ P - P @ G - G @ P
    j = range(1, depth + 1)
    return -sum(power(2 * (depth - i) / depth) @ G @ power(2 * (i - 1) / depth) for i in j)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("spectrum", [(3.0, 2.0, 1.0, -1.5, -2.5), (3.0, 2.0, -1.5, -2.5)])
def test_limit_and_rate_on_the_cone_are_those_of_the_flow_itself(randn, depth, spectrum):
    """X is not Hermitian, and its best matrix of rank 2 has the eigenvalues 3 and −2.5."""
    n, k = len(spectrum), 2
    Q, skew = torch.linalg.qr(randn(n, n)).Q, randn(n, n)
    H = (Q * torch.tensor(spectrum, dtype=F64)) @ Q.mT
    problem = deeplin.MatrixApproximation(H + skew - skew.mT)
    flow, V = flows.PSDDLRAFlow(problem, depth=depth), randn(n, k)
    y = flow.init_state(V @ V.mT, k)
    prediction = predict_flow(problem, flow, y)
    limit = prediction.limit
    end = flow.end_to_end(deeplin.solve(flow, y, 30.0, rtol=1e-6).y[-1])
    torch.testing.assert_close(end, limit, rtol=0, atol=1e-3)
    assert float(velocity_on_the_cone(H, depth, limit, k).norm()) < 1e-12
    assert prediction.loss == pytest.approx(float(problem.loss(limit)), rel=1e-12)
    # Its linearisation, by differences along W = VVᵀ.
    values, E = torch.linalg.eigh(limit)
    V, h = E[:, -k:] * values[-k:].sqrt(), 1e-6
    steps = torch.eye(n * k, dtype=F64).view(-1, n, k)
    tangents = (steps @ V.mT + V @ steps.mT).flatten(1).mT
    moved = [
        [velocity_on_the_cone(H, depth, (V + s * B) @ (V + s * B).mT, k) for B in steps]
        for s in (h, -h)
    ]
    slopes = ((torch.stack(moved[0]) - torch.stack(moved[1])) / (2 * h)).flatten(1).mT
    basis = torch.linalg.svd(tangents).U[:, : n * k - k * (k - 1) // 2]
    L = basis.mT @ slopes @ torch.linalg.pinv(tangents, rtol=1e-9) @ basis
    assert prediction.rate == pytest.approx(-float(torch.linalg.eigvals(L).real.max()), rel=1e-6)
    P = prediction.mode.flatten()
    assert float((P @ slopes + prediction.rate * (P @ tangents)).norm()) < 1e-6 * float(P.norm())


@pytest.mark.parametrize("spectrum", [(2, -1, -3, -2), (-1, -2, -3, -1)])
def test_the_edge_of_the_cone_is_a_limit_of_depth_two_alone(randn, spectrum):
    """For N = 1 σ̇ = −(σ + |λ|) along an eigenvector of λ < 0: it ends in finite time."""
    problem, V = deeplin.MatrixApproximation(diagonal(*spectrum)), randn(4, 2)
    flow = flows.PSDDLRAFlow(problem, depth=2)
    y = flow.init_state(V @ V.mT, 2)
    prediction = predict_flow(problem, flow, y)
    H_plus = diagonal(*spectrum).clamp(min=0)
    torch.testing.assert_close(prediction.limit, H_plus, rtol=0, atol=1e-14)
    assert (prediction.start_rank, prediction.rate) == (2, None)
    assert prediction.loss == pytest.approx(float(problem.loss(H_plus)))
    assert "fewer positive eigenvalues than the rank 2 of W(0)" in prediction.rate_missing
    end = flow.end_to_end(deeplin.solve(flow, y, 8.0, rtol=1e-6).y[-1])
    torch.testing.assert_close(end, H_plus, rtol=0, atol=2e-2)
    single = predict_flow(problem, flows.PSDDLRAFlow(problem), y)
    assert (single.limit, single.loss) == (None, None)
    assert "in finite time" in single.missing


@pytest.mark.parametrize("depth", [2, 3])
def test_every_start_of_a_batch_has_its_own_limit(randn, depth):
    """Against the flow itself, moved by multiplication, which keeps rank and signs."""
    problem = autoencoder(2.0, 1.0)
    W = torch.cat([randn(12, 2, 2), randn(2, 2, 1) @ randn(2, 1, 2), diagonal(-1, 0.5)[None]])
    prediction = deeplin.predict(problem, depth, W)
    limits = prediction.limits((15,))
    for i in range(15):
        alone = deeplin.predict(problem, depth, W[i])
        case = prediction.cases[prediction.case_of[i]]
        torch.testing.assert_close(limits[i], alone.limit)
        assert (case.why, case.sign) == (alone.why, alone.sign)
    flow = flows.EndToEndFlow(problem, depth)
    of_rank_one = [prediction.cases[i].start_rank == 1 for i in prediction.case_of]
    for rank, of in ((1, torch.tensor(of_rank_one)), (2, ~torch.tensor(of_rank_one))):
        y = flow.init_state(W[of], rank)
        end = flow.end_to_end(deeplin.solve(flow, y, 30.0, rtol=1e-4).y[-1])
        # N = 3: σ_2 falls as t^{−3}.
        assert float((end - limits[of]).flatten(1).norm(dim=1).max()) < 1e-2
    assert len({case.start_rank for case in prediction.cases}) == 2
    assert sum(bool(case.why) for case in prediction.cases) >= 2


def test_blocks_within_equal_singular_values(randn):
    problem = deeplin.MatrixApproximation(torch.eye(3, dtype=F64))
    R = torch.linalg.qr(randn(3, 3)).Q
    W = (R @ diagonal(-1, 0.5, 2) @ R.mT)[None]
    seen = reach(problem.optimum, W, ranks_of([W]))
    assert (int(seen.modes.sum()), int(seen.blocks), bool(seen.negative)) == (2, 3, True)


# -- runs: what is printed of them -----------------------------------------------------------------


def method(name: str) -> list[str]:
    if name == "rebalance":
        return ["method=rk4", "method.rebalance=true"]
    return [f"method={name}"]


@pytest.mark.parametrize(
    ("name", "sign"),
    [(name, -1) for name in (*FORBIDDEN, *KEEPING, "rgd")]
    + [(name, 1) for name in ("sgd", "dopri5", "structure", "rgd")],
)
def test_no_method_is_praised_for_what_the_flow_cannot_do(name, sign, tmp_path):
    summary = summary_of(
        tmp_path / "run", "problem=gaussian", "problem.d=2", "network.widths=[2,2,2]", "seed=3",
        "init=balanced", f"init.matrix=[[{sign * 0.7},0.1],[0,1.3]]", "method.t1=40",
        "stop.grad_norm=1e-6", "log.records=60", *method(name),
    )  # fmt: skip
    verdict = summary["verdict"]
    if sign > 0 or name == "rgd":
        assert verdict.startswith("Theory and run agree: W reached the predicted optimum of rank 2")
        assert ("finite time" in verdict) == (sign < 0)
    elif summary["loss"] < 1e-6:
        assert name in FORBIDDEN
        time = summary["left_invariant_set_at"]
        assert f"left the invariant set det W < 0 at t = {time:.4g}: the integrator" in verdict
        assert 0 < time < summary["flow_time"]
    else:
        assert verdict.startswith("Theory and run agree: W reached the predicted limit of rank 1")
        assert name in (*KEEPING, "rebalance")


@pytest.mark.parametrize("name", ["dopri5", "structure"])
def test_sixty_four_starts_of_both_signs(name, tmp_path):
    summary = summary_of(
        tmp_path / "run", "problem=gaussian", "problem.d=2", "network.widths=[2,2,2]", "seed=3",
        "init=balanced", "repeats=64", "method.t1=60", f"method={name}", "method.rtol=1e-6",
        "stop.grad_norm=1e-6", "log.records=60",
    )  # fmt: skip
    repeats = summary["repeats"]
    predicted, loss = repeats["rank_predicted"], repeats["loss"]
    assert 20 < predicted.count(1) < 44
    at_optimum = sum(value < 1e-6 for value in loss)
    if name == "structure":
        assert at_optimum == predicted.count(2)
        assert max(abs(e) for e in repeats["relative_excess_loss"]) < 1e-6
        assert summary["verdict"].startswith("Theory and run agree")
        assert "left_invariant_set_at" not in summary
    else:
        assert at_optimum == 64
        gone = predicted.count(1)
        assert f"in {gone} of {gone} trajectories" in summary["verdict"]
        assert "the integrator, not the flow" in summary["verdict"]
        right = 64 - gone
        assert f"{right} of 64 to rank 2, loss 0 ({right} there)" in summary["verdict"]


@pytest.mark.parametrize("name", ["structure", "rk4"])
def test_the_special_start_is_judged_by_remark_42(name, tmp_path):
    summary = summary_of(
        tmp_path / "run", "problem=gaussian", "problem.d=4", "network.rank=2", "network.depth=2",
        "init=special",
        "method.t1=60", "problem.singular=" + ("project" if name == "structure" else "keep"),
        "stop.grad_norm=null", "stop.stagnation=null", "log.records=60", *method(name),
    )  # fmt: skip
    if name == "structure":
        expected = "Theory and run agree: W reached the predicted limit of rank 0"
        assert summary["verdict"].startswith(expected)
        assert summary["rate_measured"] == pytest.approx(summary["rate_predicted"], rel=0.01)
    else:
        assert "left the invariant set of its start at t = " in summary["verdict"]
        assert math.isfinite(summary["left_invariant_set_at"])
