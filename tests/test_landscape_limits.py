"""Limits of runs: rates, names of 10³ limits, the sign rule, the counterexample, plateaus."""

import itertools
import json
import math

import pytest
import torch
from landscape_oracles import square_root
from many_starts import data, follow_matrices, method
from runner import train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import deeplin
from deeplin import DeepLinear, LeastSquares, exact, init
from deeplin.flows import LayerFlow
from deeplin.integrators import RK4
from deeplin.integrators.steppers import IntegratorStepper
from deeplin.landscape import (
    classify,
    is_critical,
    local_rate,
    nearest_critical_point,
    plateau_table,
    plateaus,
)
from deeplin.loop import drive
from deeplin.network import end_to_end
from deeplin.problems import MatrixApproximation
from deeplin.runner.observables import layer_observables
from deeplin.runner.verdict import fitted_rate

F64 = torch.float64
SIGMA = (2.4, 1.4, 0.6)


# -- rates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3, 5, 10])
@pytest.mark.parametrize("kind", ["supervised", "autoencoder"])
def test_predicted_rates_against_trajectories(randn, kind, depth):
    problem = data(randn, 4, 4, (2.0, 1.5, 0.9, 0.5))
    if kind == "autoencoder":
        problem = LeastSquares.from_moments(2 * problem.C, 2 * problem.C, 8.0)
    W = problem.minimizer(2)
    U, s, Vh = torch.linalg.svd(W + 0.05 * randn(4, 4))
    start = (U[:, :2] * s[:2]) @ Vh[:2]
    net = init.balanced_(DeepLinear([4, *[2] * (depth - 1), 4], dtype=F64), start)
    rho = local_rate(problem, W, depth)
    if kind == "autoencoder":
        assert rho == pytest.approx(float(exact.autoencoder_rate(problem.spectrum.values, 2)))
    flow = LayerFlow(problem)
    y0 = flow.init_state(net)
    stepper = IntegratorStepper(flow, y0, RK4(), 2 / flow.curvature(y0))
    t1 = 18 / rho
    times = [t1 * i / 150 for i in range(1, 150)]
    _, history = drive(stepper, t1, record_at=times, observe=layer_observables(problem, W))
    rate = fitted_rate(history.t, history.column("distance_to_limit"), 1e-11)
    assert rate == pytest.approx(rho, rel=0.02)


def test_rate_to_a_continuum_of_minima(randn):
    """σ_2 = σ_3, k = 2: ρ is that of the distance to the continuum, which a trajectory shows."""
    problem = data(randn, 3, 3, (2.0, 1.0, 1.0))
    W = problem.minimizer(2)
    rho = local_rate(problem, W, 2)
    assert rho > 0.1
    U, s, Vh = torch.linalg.svd(W + 0.02 * randn(3, 3))
    start = (U[:, :2] * s[:2]) @ Vh[:2]
    flow = LayerFlow(problem)
    y0 = flow.init_state(init.balanced_(DeepLinear([3, 2, 3], dtype=F64), start))
    times = [18 / rho * i / 150 for i in range(1, 150)]
    solution = deeplin.solve(flow, y0, 18 / rho, save_at=times, dt=1 / flow.curvature(y0))
    distances = [nearest_critical_point(problem, flow.end_to_end(y)).distance for y in solution.y]
    rate = fitted_rate(solution.t, torch.stack(distances), 1e-11)
    assert rate == pytest.approx(rho, rel=0.02)


# -- the names of limits ---------------------------------------------------------------------------


def run_batch(problem, layers, t1, dt, tol):
    """RK4 on the layer flow; each trajectory stops at its first moment of being critical to tol."""
    flow, rk4 = LayerFlow(problem), method()
    y, end = flow.init_state(layers), None
    stopped = torch.zeros(y[0].shape[0], dtype=torch.bool)
    for step in range(1, math.ceil(t1 / dt) + 1):
        y = rk4.step(flow, 0.0, y, dt)
        if step % round(0.5 / dt) == 0:
            W = flow.end_to_end(y)
            near = nearest_critical_point(problem, W).distance <= tol * problem.singular_values[0]
            now = ~stopped & near & is_critical(problem, y, tol)
            end = [A.clone() for A in y] if end is None else end
            for old, new in zip(end, y, strict=True):
                old[~stopped] = new[~stopped]
            stopped |= now
            if bool(stopped.all()):
                break
    return end


def names_by_enumeration(problem, W, tol):
    """(k, J optimal) of the nearest of all 2^q critical points, None if none is within tol·σ_1."""
    q = len(problem.singular_values)
    root = square_root(problem.C)
    sets = [J for k in range(q + 1) for J in itertools.combinations(range(1, q + 1), k)]
    points = torch.stack([problem.critical_point(J) for J in sets])
    distance = torch.linalg.matrix_norm((W[:, None] - points) @ root)
    found = []
    for least, n in zip(*(v.tolist() for v in distance.min(1)), strict=True):
        J = sets[n]
        near = least <= tol * float(problem.singular_values[0])
        found.append((len(J), max(J, default=0) == len(J)) if near else None)
    return found


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("depth", [2, 3])
def test_a_thousand_limits_are_named(generator, randn, depth, balanced):
    """250 runs of each kind on M_3 = GL(3): named as by enumeration; det W keeps its sign."""
    tol = 1e-4
    problem = data(randn, 3, 3, SIGMA)
    sign = float(torch.linalg.det(problem.B).sign())  # of det W at the optimum
    net = DeepLinear([3] * (depth + 1), batch_shape=(250,), dtype=F64)
    W_0 = 0.6 * randn(250, 3, 3)
    if balanced:
        init.balanced_(net, W_0, rotate=True, generator=generator)
    else:
        init.gaussian_(net, 0.6, generator=generator)
    if balanced and depth == 2:  # steps of the layers lose the sign of det W in the end

        def there(W, losses):  # layers of W are as near as its square root
            return nearest_critical_point(problem, W).distance <= tol**2 * SIGMA[0]

        ends = follow_matrices(problem, depth, W_0, 3, there).W
        layers = list(init.balanced_(net, ends, rotate=True, generator=generator).weights)
    else:
        layers = run_batch(problem, net, 40.0 if depth == 2 else 320.0, 0.04, tol)
    names = classify(problem, layers, tol)
    W = end_to_end(layers)
    truth = names_by_enumeration(problem, W, tol)
    for name, known in zip(names, truth, strict=True):
        assert known is not None
        assert name != "not critical", "none is left unfinished"
        rank, optimal = known
        if not optimal:
            assert name == "strict saddle"
        elif rank == 3:
            assert name == "global minimum"
        else:
            assert name == ("strict saddle" if depth == 2 else "non-strict saddle")
    # Minimal on its M_k is every limit: none is another W_J.
    assert [known for known in truth if known is None or not known[1]] == []
    if not balanced:
        assert names == ["global minimum"] * 250
        return
    for name, det in zip(names, torch.linalg.det(W_0).tolist(), strict=True):
        assert (name == "global minimum") == (det * sign > 0), "det W keeps its sign"
    assert 80 < names.count("global minimum") < 170


def test_unfinished_runs_are_called_unfinished(generator, randn):
    problem = data(randn, 3, 3, SIGMA)
    net = init.gaussian_(DeepLinear([3, 3, 3], batch_shape=(200,), dtype=F64), generator=generator)
    layers = run_batch(problem, net, 1.0, 0.05, 1e-6)
    assert classify(problem, layers) == ["not critical"] * 200
    assert names_by_enumeration(problem, end_to_end(layers), 1e-6) == [None] * 200


@pytest.mark.parametrize("widths", [[3, 2, 3], [3, 2, 4, 3]])
def test_limits_below_the_rank_of_Q_are_global_minima(generator, randn, widths):
    problem = data(randn, 3, 3, SIGMA)
    net = init.gaussian_(
        DeepLinear(widths, batch_shape=(100,), dtype=F64), 0.6, generator=generator
    )
    names = classify(problem, run_batch(problem, net, 80.0, 0.04, 1e-4), 1e-4)
    assert names == ["global minimum"] * 100


@pytest.mark.statement("BRTW Prop. 35")
@pytest.mark.parametrize("depth", [2, 3])
def test_starts_on_a_stable_manifold_end_at_strict_saddles(generator, depth, seen):
    """Zeros in the first row and column of an aligned problem stay: u_1 is never learned."""
    B = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=F64))
    problem = LeastSquares.from_moments(torch.eye(3, dtype=F64), B, 14.0)
    layers = [0.6 * torch.randn(100, 3, 3, dtype=F64, generator=generator) for _ in range(depth)]
    layers[0][:, :, 0] = 0
    layers[-1][:, 0] = 0
    end = run_batch(problem, layers, 80.0, 0.04, 1e-4)
    names = classify(problem, end, 1e-4)
    seen.number("strict saddles among 100 limits", names.count("strict saddle"))
    assert names == ["strict saddle"] * 100
    truth = names_by_enumeration(problem, end_to_end(end), 1e-4)
    assert truth == [(2, False)] * 100, "J = {2, 3}"


@pytest.mark.parametrize("dtype", [F64, torch.complex128])
@pytest.mark.statement("HLZ Lemma 2.4(1)")
def test_limits_of_riemannian_gradient_descent_are_named(generator, dtype):
    """HLZ (2), constant step, SPSD: a start that lacks a direction of X never finds it."""
    X = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0, 0, 0, 0], dtype=F64)).to(dtype)
    F = torch.randn(150, 7, 3, dtype=dtype, generator=generator)
    lacking = [(), (0,), (1,), (2,), (0, 1)]
    for n in range(150):
        F[n, list(lacking[n % 5])] = 0
    mask = (F @ F.mH).abs() > 0
    Z = F @ F.mH
    problem = MatrixApproximation(X)
    for k in range(250):
        if k == 3:
            assert classify(problem, Z) == ["not critical"] * 150, "unfinished"
        U = torch.linalg.eigh(Z).eigenvectors[..., -3:]
        P, G = U @ U.mH, Z - X
        values, E = torch.linalg.eigh(Z - 0.2 * (P @ G + G @ P - P @ G @ P))
        E, values = E[..., -3:], values[..., -3:]
        Z = (E * values[..., None, :].clamp(min=0)) @ E.mH * mask  # round-off would escape
    names = classify(problem, Z)
    expected = ["global minimum", "strict saddle", "strict saddle", "minimum on M_k"]
    found = nearest_critical_point(problem, Z)
    for n, name in enumerate(names):
        missing = lacking[n % 5]
        assert found.modes[n].tolist() == [j not in missing for j in range(3)]
        assert name == (expected[n % 5] if n % 5 < 4 else "strict saddle")


# -- a counterexample to Conjecture 41(b) ----------------------------------------------------------


@pytest.mark.statement("BRTW Conjecture 41(b), E11")
@pytest.mark.parametrize(("depth", "t1"), [(2, 20.0), (3, 300.0)])
def test_the_counterexample_ends_at_the_saddle_of_rank_one(depth, t1, seen):
    problem = deeplin.autoencoder(torch.diag(torch.tensor([2.0, 1.0], dtype=F64)).sqrt())
    start = 0.3 * torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=F64)
    net = init.balanced_(DeepLinear([2] * (depth + 1), dtype=F64), start)
    flow = LayerFlow(problem)
    solution = deeplin.solve(
        flow, flow.init_state(net), t1, dt=0.0025 if depth == 2 else 0.1, save_at=[1.0]
    )
    # For N = 2 dt is small: its error escapes e^{t} fast, falsely.
    layers, tol = solution.y[-1], 1e-3
    W = flow.end_to_end(layers)
    assert classify(problem, [*solution.y[1]], tol) == "not critical"
    assert classify(problem, W, tol) == "minimum on M_k"
    assert nearest_critical_point(problem, W).modes.tolist() == [True, False]
    assert classify(problem, layers, tol) == (
        "strict saddle" if depth == 2 else "non-strict saddle"
    )
    seen.number(f"loss of layers at t = {t1:g}, N = {depth}", problem.loss(W))
    seen(problem.loss(W) - 0.5, 1e-4)
    direction = deeplin.landscape.escape_direction(problem, layers, tol)
    assert direction is not None
    lower = end_to_end([A + 0.3 * V for A, V in zip(layers, direction, strict=True)])
    assert float(problem.loss(lower)) < float(problem.loss(W))


# -- saddle to saddle ------------------------------------------------------------------------------


def test_plateaus_of_a_closed_form(generator):
    """Aligned autoencoder, N = 2: mode i crosses ½ at ln(1/u_0 − 1)/(2λ_i) (exact)."""
    lam, u0 = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=F64), 1e-8
    problem = LeastSquares.from_moments(torch.diag(lam), torch.diag(lam), float(lam.sum()))
    t = torch.linspace(0, 40, 4001, dtype=F64)
    W = torch.diag_embed(exact.autoencoder_mode(t[:, None], u0, lam, 2)[:, :4])
    report = plateaus(problem, t, W)
    assert [p.J for p in report] == [tuple(range(1, k + 1)) for k in range(5)]
    crossings = (math.log(1 / u0 - 1) / (2 * lam)).tolist()
    for k, plateau in enumerate(report):
        assert plateau.loss == pytest.approx(0.5 * float(lam[k:].sum()), abs=1e-12)
        assert plateau.kind == ("global minimum" if k == 4 else "minimum on M_k")
        if k > 0:
            assert crossings[k - 1] <= plateau.t_in <= crossings[k - 1] + 0.5
        if k < 4:
            assert crossings[k] - 0.5 <= plateau.t_out <= crossings[k]
        assert plateau.closest < 0.02
        assert plateau.is_end == (k == 4)
        assert plateau.t_in <= plateau.t_closest <= plateau.t_out
    bounded = plateaus(problem, t[:400], W[:400], rank=1)
    assert [(p.J, p.kind) for p in bounded] == [((), "minimum on M_k"), ((1,), "global minimum")]
    assert plateau_table(report).splitlines()[-1].endswith("end")
    assert "{1..3}" in plateau_table(report)
    unfinished = plateaus(problem, t[:240], W[:240])  # ends between two plateaus
    assert not unfinished[-1].is_end
    with pytest.raises(ValueError, match="one matrix for each time"):
        plateaus(problem, t, W[:3])
    with pytest.raises(ValueError, match="near must be positive"):
        plateaus(problem, t, W, near=0)


def test_digits_pass_the_saddles_in_the_order_of_the_eigenvalues(tmp_path, capsys):
    from deeplin.problems import data

    options = ["experiment=plateaus", "method.t1=8.5", "stop.stagnation=null"]
    assert train(*options, folder=tmp_path, draw=True) == 0
    report = json.loads((tmp_path / "summary.json").read_text())["plateaus"]
    assert [p["J"] for p in report] == [list(range(1, k + 1)) for k in range(9)]
    problem = data.digits(dtype=F64).problem
    eigenvalues = torch.linalg.eigvalsh(problem.C).flip(0)
    for k, plateau in enumerate(report):
        assert plateau["loss"] == pytest.approx(0.5 * float(eigenvalues[k:].sum()), rel=1e-9)
    times = [p["t_in"] for p in report]
    assert times == sorted(times)
    assert "{1..5}" in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert "figures/plateaus" in events.Tags()["images"]
    assert (tmp_path / "figures" / "plateaus.png").read_bytes()[:4] == b"\x89PNG"


def test_repeats_have_a_report_each(tmp_path):
    options = ["problem=gaussian", "problem.d=5", "network.rank=2", "network.depth=2"]
    options += ["method=rk4", "init.scale=1e-8", "repeats=3", "log.records=300"]
    assert train(*options, folder=tmp_path) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["repeats"]["plateaus"]) == 3
    assert summary["plateaus"] in summary["repeats"]["plateaus"]
    for report in summary["repeats"]["plateaus"]:
        assert report[0]["J"] == []
        assert report[-1] | {"J": [1, 2], "is_end": True} == report[-1]
