"""Method × flow × problem × start in the runner, against the fields that they stand for.

Flows of balanced layers are held against the layers themselves, those of matrices against the
dense projected gradient, those of tied layers against their own; all by autograd of ½‖Y − WX‖²
written out, and SciPy's DOP853. What a flow cannot represent must be refused in a sentence, and
nothing else may be.
"""

import itertools
import random

import pytest
import torch
from flow_cases import dense_field, integrated
from hydra import compose, initialize_config_dir
from runner import ROOT

from deeplin.loop import drive
from deeplin.runner.build import build

T = 0.2
MATRIX = ["dlra", "dlra_rescaled", "psd_dlra", "psd_dlra_rescaled"]
BALANCED = ["compressed", "end_to_end", "pqw"]
TIED = ["oja", "coupled", "riccati"]
FLOWS = ["layers", *BALANCED, *MATRIX, *TIED]
# method -> (its words, its flows, the error that its order and step leave a factor of ten to)
METHODS = {
    "euler": (["method.dt=0.0005"], FLOWS, 1e-2),
    "rk4": (["method.dt=0.005"], FLOWS, 1e-5),
    "dopri5": ([], FLOWS, 1e-6),
    "rkc": ([], FLOWS, 1e-3),
    "rosenbrock": ([], FLOWS, 1e-5),
    "structure": ([], ["end_to_end", "dlra", "dlra_rescaled"], 1e-5),
    "rgd": (["method.dt=0.005", "method.order=4"], MATRIX, 1e-5),
    "sgd": (["method.dt=0.0005"], ["layers"], 1e-2),
}
HERMITIAN = ["problem=approximation", "problem.n=4", "problem.kind=hermitian"]
GENERAL = ["problem=approximation", "problem.n=5", "problem.rows=4", "problem.kind=general"]
PROBLEMS = {
    "autoencoder": ["problem=gaussian", "problem.d=4"],
    "labels": ["problem=teacher", "problem.d=4"],
    "general": [*GENERAL, "problem.spectrum=[2,1.5,1,0.5]"],
    "hermitian": [*HERMITIAN, "problem.spectrum=[2,1.5,-1]"],
}
STARTS = {
    "orthogonal": ["init=orthogonal"],
    "gaussian": ["init=gaussian", "init.std=0.6"],
    "balanced": ["init=balanced", "init.scale=1.3"],
    "semidefinite": ["init=balanced", "init.psd=true"],
}
DEPTHS = (2, 3)


def expected(flow, problem, start, depth):
    """Whether the flow can represent the start on the problem."""
    square, autoencoder = problem != "general", problem == "autoencoder"
    if start == "semidefinite" and not square:
        return False
    if flow in BALANCED:
        return start != "gaussian"
    if flow.startswith("psd"):  # the ends of an autoencoder are tied
        return square and (start == "semidefinite" or (start == "orthogonal" and autoencoder))
    if flow in TIED:
        tied = start == "orthogonal" or start == "semidefinite" or flow == "riccati"
        return autoencoder and depth == 2 and tied
    return True


def of_layers(run):
    """W(T) of the gradient flow of the layers themselves."""

    def field(weights):
        weights = [W_j.detach().requires_grad_() for W_j in weights]
        W = weights[0]
        for W_j in weights[1:]:
            W = W_j @ W
        return [-G for G in torch.autograd.grad(loss_of(run)(W), weights)]

    end = integrated(field, [W_j.detach().clone() for W_j in run.network.weights], T)
    W = end[0]
    for W_j in end[1:]:
        W = W_j @ W
    return W


def loss_of(run):
    """½ tr(WCWᵀ) − tr(BWᵀ), which is ½‖Y − WX‖² up to a number."""
    C, B = run.data.problem.C, run.data.problem.B
    return lambda W: (0.5 * (W @ C) * W - B * W).sum()


class Loss:
    def __init__(self, loss):
        self.loss = loss


def of_matrix(run, flow):
    """W(T) of the projected gradient flow of rank 2, or of the Hermitian part of the gradient."""
    name = flow.replace("_dlra", " dlra").replace("_rescaled", ", rescaled")
    W = run.network.end_to_end().detach()
    problem = Loss(loss_of(run))
    return integrated(lambda y: [dense_field(name, problem, y[0])], [W], T)[0]


def of_tied_layers(run, flow):
    """VVᵀ of Oja's flow, or of minus the gradient of E(V) = ½‖X − VVᵀX‖²: no flow of the layers,
    which from V = W_2 = W_1ᵀ leave that at once."""
    C = run.data.problem.C

    def field(state):
        V = state[0].detach().requires_grad_()
        if flow == "oja":
            return [C @ V - V @ (V.mT @ C @ V)]
        R = torch.eye(len(C), dtype=C.dtype) - V @ V.mT
        return [-torch.autograd.grad(0.5 * ((R @ C) * R).sum(), V)[0]]

    (V,) = integrated(field, [run.network.weights[1].detach().clone()], T)
    return V @ V.mT


def tried(method, flow, problem, start, depth):
    """Whether a run was made and is right; None where it was rightly refused."""
    options, _, tolerance = METHODS[method]
    words = [f"method={method}", f"flow={flow}", f"network.depth={depth}", "network.rank=2"]
    words += [f"method.t1={T}", *options, *PROBLEMS[problem], *STARTS[start]]
    cfg = compose("train", words)
    if not expected(flow, problem, start, depth):
        with pytest.raises(ValueError) as refusal:
            build(cfg)
        assert "\n" not in str(refusal.value)
        return None
    run = build(cfg)
    if flow in ("oja", "coupled"):
        reference = of_tied_layers(run, flow)
    else:
        reference = of_matrix(run, flow) if flow in MATRIX else of_layers(run)
    drive(run.stepper, T)
    W = run.flow.end_to_end(run.stepper.state)
    moved = float((reference - run.network.end_to_end().detach()).norm())
    error = float((W - reference).norm() / reference.norm())
    return error <= tolerance, error, moved


TABLE = [
    (method, flow, problem, start, depth)
    for method, (_, flows, _) in METHODS.items()
    for flow, problem, start, depth in itertools.product(flows, PROBLEMS, STARTS, DEPTHS)
]
QUICK = ("rk4", "dopri5", "rosenbrock", "structure", "rgd")
RIGHT = [case for case in TABLE if expected(*case[1:])]


@pytest.fixture(autouse=True)
def configurations():
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        yield


@pytest.mark.parametrize(
    "case",
    random.Random(4).sample([case for case in RIGHT if case[0] in QUICK], 6),
    ids=lambda case: "-".join(map(str, case)),
)
def test_a_run_is_the_flow_that_it_names(case):
    right, error, moved = tried(*case)
    assert right, error
    assert moved > 10 * METHODS[case[0]][2]


def test_what_a_flow_cannot_represent_is_refused():
    for case in random.Random(5).sample([c for c in TABLE if c not in RIGHT], 5):
        assert tried(*case) is None


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_run_of_the_table(method):
    refused, failed = 0, []
    for case in (case for case in TABLE if case[0] == method):
        outcome = tried(*case)
        refused += outcome is None
        if outcome is not None and not outcome[0]:
            failed.append((case, outcome))
    made = sum(case[0] == method for case in TABLE) - refused
    print(f"{method}: {made} runs, {refused} refused, {len(failed)} failed")
    assert not failed, (len(failed), failed[:5])
