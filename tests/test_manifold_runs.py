"""Runs on a manifold: the same product as a network's, verdicts, schedules, closures, refusals."""

import io
import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from runner import ROOT

import deeplin
from deeplin import DeepLinear
from deeplin.integrators import OptimizerStepper
from deeplin.loop import drive
from deeplin.runner.build import build
from deeplin.runner.folder import RunFolder
from deeplin.runner.methods import scheduled
from deeplin.runner.run import run

# Of these data λ_1/ρ is a fifth of that of problem.seed=0, and with it the steps of a run.
SMALL = ["problem=gaussian", "problem.d=6", "network.rank=2", "problem.seed=2"]
WELL = ["problem=approximation", "problem.n=6", "network.rank=2"]
CONE = [*WELL, "init=balanced", "init.psd=true"]
MANIFOLD = "manifold=fixed_rank"
PSD = "manifold=psd_fixed_rank"


@pytest.fixture(autouse=True)
def configurations():
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        yield


def made(*words):
    return build(compose("train", list(words)))


def product_after(experiment, t):
    drive(experiment.stepper, t)
    return experiment.flow.end_to_end(experiment.stepper.state)


def ended(folder, *words):
    status = run(compose("train", list(words)), folder, draw=False)
    return status, json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("factored", [True, False])
def test_a_step_of_balanced_layers_is_the_manifolds_with_their_retraction(depth, labels, factored):
    """BRTW's two sides of one flow, at one step, whatever its length; SGD leaves the layers
    balanced to O(dt^2), so its second step is another, and rebalanced ones stay the same."""
    problem = ["problem=teacher", "problem.d=6", "network.rank=2"] if labels else SMALL
    words = [*problem, f"network.depth={depth}", "method.dt=0.003"]
    sgd = made(*words, "method=sgd")
    rebalanced = made(*words, "method=euler", "method.rebalance=true")
    point = made(
        *words,
        "method=riemannian_sgd",
        MANIFOLD,
        "manifold.retraction=layers",
        f"manifold.factored={str(factored).lower()}",
    )
    first = sgd.flow.end_to_end(sgd.stepper.state)
    for k in (1, 20):
        W, ours = product_after(rebalanced, k * 0.003), product_after(point, k * 0.003)
        assert float((W - first).norm()) > 1e-3 * k
        assert float((W - ours).norm()) <= 1e-13 * k * float(W.norm())
        if k == 1:
            assert float((product_after(sgd, 0.003) - ours).norm()) <= 1e-13 * float(W.norm())


def test_sgd_and_the_manifold_part_with_the_length_of_a_step():
    """At a fixed time by O(dt): halved with dt."""
    apart = []
    for dt in (0.01, 0.005):
        words = ["problem=teacher", "problem.d=6", "network.rank=2", f"method.dt={dt}"]
        sgd = made(*words, "method=sgd")
        point = made(*words, "method=riemannian_sgd", MANIFOLD, "manifold.retraction=layers")
        W = product_after(sgd, 0.2)
        apart.append(float((W - product_after(point, 0.2)).norm() / W.norm()))
    assert 1.7 < apart[0] / apart[1] < 2.3


@pytest.mark.parametrize("manifold", ["fixed_rank", "psd_fixed_rank"])
@pytest.mark.parametrize("depth", [1, 3, 2.5])
def test_steps_are_those_of_the_dense_formula(manifold, depth):
    """W - dt A_W(G) by a full SVD, and the nearest matrix of rank 2 to it."""
    words = CONE if manifold == "psd_fixed_rank" else SMALL
    words = [*words, f"manifold={manifold}", f"manifold.depth={depth}", "method=riemannian_sgd"]
    words += ["manifold.retraction=svd"]
    experiment = made(*words, "method.dt=0.05")
    problem = experiment.data.problem
    W = experiment.network.end_to_end().detach()
    for k in range(1, 4):
        G = problem.egrad(W)
        U, s, Vh = torch.linalg.svd(W)
        s = torch.cat([s[:2], torch.zeros(4, dtype=s.dtype)])
        a, b = s[:, None].expand(6, 6), s[None, :].expand(6, 6)
        q = torch.where((a - b).abs() < 1e-12, torch.nan, a**2 - b**2)
        q = q / (a ** (2 / depth) - b ** (2 / depth))
        q = torch.where(torch.isfinite(q), q, depth * a ** (2 - 2 / depth))
        q = torch.ones_like(q) if depth == 1 else q
        q = torch.where((a == 0) & (b == 0), 0.0, q)
        moved = W - 0.05 * U @ (q * (U.mT @ G @ Vh.mT)) @ Vh
        P, t, Qh = torch.linalg.svd(moved)
        W = (P[:, :2] * t[:2]) @ Qh[:2]
        ours = product_after(experiment, k * 0.05)
        assert float((ours - W).norm()) <= 1e-12 * float(W.norm())


RUNS = [
    [*SMALL, MANIFOLD, "method=riemannian_sgd"],
    [*SMALL, MANIFOLD, "method=riemannian_sgd", "manifold.depth=1", "manifold.factored=false"],
    [*WELL, MANIFOLD, "method=riemannian_sgd", "manifold.retraction=svd"],
    [*WELL, MANIFOLD, "method=riemannian_sgd", "manifold.retraction=orthographic"],
    [*WELL, MANIFOLD, "method=line_search"],
    [*SMALL, MANIFOLD, "method=line_search", "manifold.factored=false", "manifold.depth=1"],
    [*WELL, MANIFOLD, "method=riemannian_adam", "manifold.depth=1"],
    [*SMALL, "method=lbfgs"],
    [*CONE, PSD, "method=riemannian_sgd", "manifold.depth=1"],
    [*CONE, PSD, "method=line_search"],
    [*SMALL, MANIFOLD, "method=cg", "manifold.depth=1"],
    [*SMALL, MANIFOLD, "method=trust_region"],
    [*SMALL, MANIFOLD, "method=trust_region", "manifold.factored=false", "manifold.depth=1"],
    [*CONE, PSD, "method=cg", "manifold.depth=1", "repeats=2"],
    [*CONE, PSD, "method=riemannian_sgd", "manifold.factored=false", "repeats=3"],
    [*CONE, "problem.field=complex", MANIFOLD, "method=riemannian_sgd", "manifold.depth=2"],
]


@pytest.mark.parametrize(
    "words", RUNS, ids=lambda words: " ".join(w for w in words[3:] if w != SMALL[3])
)
def test_runs_reach_the_predicted_optimum(words, tmp_path):
    follows = "method=riemannian_sgd" in words
    faster = ["stop.grad_norm=1e-6", *(["method.safety=0.5"] if follows else [])]
    status, summary = ended(tmp_path / "run", *words, *faster)
    assert status == 0
    assert summary["verdict"].startswith("Theory and run agree"), summary["verdict"]
    assert (summary["rate_predicted"] is not None) == follows
    has_layers = "method=lbfgs" in words
    assert (summary["balancedness_gap_final"] is not None) == has_layers
    assert (summary["largest_drift"] is None) == has_layers
    if follows:  # (1 - dt rho) a step, to the tolerance of all rates
        assert abs(summary["rate_measured"] / summary["rate_predicted"] - 1) < 0.05


def test_an_optimizer_that_follows_no_flow_is_not_blamed(tmp_path):
    """From det W < 0 the flow ends at rank 2; LBFGS on the layers may end anywhere."""
    start = "init.matrix=[[-1,0,0],[0,1,0],[0,0,1]]"
    words = ["problem=gaussian", "problem.d=3", "network.widths=[3,3,3]", "init=balanced", start]
    status, summary = ended(tmp_path / "run", *words, "method=lbfgs")
    assert status == 0
    assert not summary["verdict"].startswith("Theory and run disagree"), summary["verdict"]


def test_mini_batches_are_unbiased():
    """The mean over an epoch of the batches' gradients is that of all samples."""
    words = [*SMALL, MANIFOLD, "method=riemannian_sgd", "method.dt=0.01"]
    whole, batches = made(*words), made(*words, "method.batch_size=3")
    of_all = whole.stepper.gradients(0)[0]
    stepper = batches.stepper
    seen = []
    for k in range(6):  # 18 samples
        stepper.optimizer.zero_grad()
        stepper.loss(k).backward()
        seen.append(stepper.parameters[0].grad.clone())
    torch.testing.assert_close(torch.stack(seen).mean(0), of_all, rtol=1e-12, atol=1e-12)


def test_a_schedule_moves_the_clock_and_ends_the_run(tmp_path):
    schedule = "method.schedule={name:ExponentialLR,gamma:0.9}"
    words = [*SMALL, "method.dt=0.01", "method.t1=0.2", "stop.stagnation=null", schedule]
    for more in (["method=sgd"], [MANIFOLD, "method=riemannian_sgd"]):
        _, summary = ended(tmp_path / more[-1], *words, *more)
        assert summary["steps"] == 20
        assert summary["flow_time"] == pytest.approx(0.01 * (1 - 0.9**20) / 0.1, rel=1e-12)
        assert summary["rate_predicted"] is None
        assert summary["verdict"].startswith("Unfinished")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([MANIFOLD], "method=sgd moves the layers of a network"),
        ([MANIFOLD, "method=riemannian_sgd", "flow=layers"], "leave out flow"),
        ([PSD, "method=riemannian_sgd", "init=gaussian"], "positive semidefinite W"),
        (
            [MANIFOLD, "method=line_search", "repeats=2"],
            "one step for all of a batch",
        ),
        (
            [MANIFOLD, "method=riemannian_sgd", "manifold.depth=1", "manifold.retraction=layers"],
            "integer depth >= 2",
        ),
        (
            ["method.schedule={name:LambdaLR}"],
            "must be one of torch.optim.lr_scheduler",
        ),
        (["method.schedule={name:ExponentialLR}"], "cannot be made"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_refused_in_a_sentence(words, told):
    with pytest.raises(ValueError, match=told) as refusal:
        made(*SMALL, *words)
    assert "\n" not in str(refusal.value)


def test_a_method_of_manifolds_brings_one():
    """manifold=fixed_rank, in the metric and by the retraction of the network's depth."""
    on = made(*SMALL, "method=riemannian_sgd").on
    assert on.manifold.name == "FixedRankFactored"
    assert (on.manifold.depth, on.manifold.retraction, on.manifold.rank) == (3, "layers", 2)
    assert made(*SMALL, "method=riemannian_sgd", "manifold.depth=1").on.manifold.retraction == "svd"


@pytest.mark.parametrize("factored", [True, False])
def test_a_run_s_point_is_loaded(factored, tmp_path):
    words = [*SMALL, "method=riemannian_sgd", "stop.max_steps=5", f"manifold.factored={factored}"]
    ended(tmp_path / "run", *words)
    loaded = deeplin.load(tmp_path / "run")
    x, manifold = loaded.point, loaded.point.manifold
    assert manifold.check_point_on_manifold(x.detach())
    W = manifold.to_dense(x) if factored else x
    torch.testing.assert_close(W.detach(), loaded.W, rtol=1e-13, atol=1e-13)
    assert loaded.network.end_to_end().shape == loaded.W.shape
    ended(tmp_path / "layers", *SMALL, "method=sgd", "stop.max_steps=5")
    with pytest.raises(ValueError, match="a run on no manifold"):
        _ = deeplin.load(tmp_path / "layers").point


def test_a_closure_gives_the_loss_and_its_gradient():
    """The steps of torch.optim.LBFGS are those of a loop written out."""
    experiment = made(*SMALL, "method=lbfgs")
    net = DeepLinear(experiment.network.widths, dtype=torch.float64)
    with torch.no_grad():
        for mine, theirs in zip(net.weights, experiment.network.weights, strict=True):
            mine.copy_(theirs)
    plain = torch.optim.LBFGS(
        list(net.weights),
        history_size=10,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        plain.zero_grad()
        loss = experiment.data.problem.loss(net.end_to_end())
        loss.backward()
        return loss

    assert isinstance(experiment.stepper, OptimizerStepper)
    plain.step(closure)
    experiment.stepper.advance(1e9)
    for mine, theirs in zip(net.weights, experiment.network.weights, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_what_was_recorded_stays_when_an_optimizer_moves_its_parameters(tmp_path):
    words = [*SMALL, "method=sgd", "method.dt=0.01", "stop.max_steps=3", "log.factors=true"]
    ended(tmp_path / "run", *words, "log.records=1000")
    history = RunFolder(tmp_path / "run").load_checkpoint().history
    W = history.column("left") @ history.column("right")
    s = torch.linalg.svdvals(W)[:, :2]
    torch.testing.assert_close(s, history.column("singular_values"), rtol=1e-12, atol=1e-12)
    assert float((W[1:] - W[:-1]).norm(dim=(1, 2)).min()) > 1e-4


RESUMED = {
    "riemannian_adam": ["method=riemannian_adam"],
    "line_search": ["method=line_search"],
    "cg": ["method=cg"],
    "trust_region": ["method=trust_region", "manifold.depth=1"],
    "cg_closure": ["method=cg", "manifold.depth=1", "manifold.factored=false"],
    "lbfgs": ["method=lbfgs"],
    "schedule": ["method=sgd", "method.schedule={name:StepLR,step_size:3}"],
    "momentum": ["method=riemannian_sgd", "+method.optimizer.momentum=0.5"],
    "dense": ["method=riemannian_sgd", "manifold.factored=false", "manifold.retraction=svd"],
}


@pytest.mark.parametrize("words", RESUMED.values(), ids=RESUMED)
def test_a_resumed_optimizer_takes_the_same_steps(words):
    """To the bit, from what a checkpoint can hold."""
    whole, part = made(*SMALL, *words).stepper, made(*SMALL, *words).stepper
    for step in range(9):
        if step == 4:
            saved = io.BytesIO()
            torch.save(whole.state_dict(), saved)
        whole.advance(1e9)
    saved.seek(0)
    part.load_state_dict(torch.load(saved, weights_only=True))
    for _ in range(5):
        part.advance(1e9)
    assert (part.t, part.step) == (whole.t, whole.step)
    for mine, theirs in zip(part.state, whole.state, strict=True):
        assert torch.equal(mine, theirs)


def test_schedules_are_torch_s():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    made_schedule = scheduled(optimizer, {"name": "StepLR", "step_size": 2, "gamma": 0.5})
    assert isinstance(made_schedule, torch.optim.lr_scheduler.StepLR)
    assert scheduled(optimizer, None) is None
