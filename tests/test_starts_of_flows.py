"""A start that a flow cannot represent is refused, or given to one that can; never replaced."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from runner import ROOT

from deeplin import DeepLinear, MatrixApproximation, init
from deeplin.flows import DLRAFlow, EndToEndFlow, PQWFlow, PSDDLRAFlow, compress
from deeplin.network import check_balanced, relative_gap
from deeplin.runner.build import build

F64 = torch.float64
SMALL = ["problem=gaussian", "problem.d=6", "network.rank=2", "network.depth=2", "method.t1=5"]


def network(batch=(), dtype=F64):
    net = DeepLinear([5, 3, 3, 5], batch_shape=batch, dtype=dtype)
    return init.gaussian_(net, 0.5, generator=torch.Generator().manual_seed(0))


PROBLEM = MatrixApproximation(torch.eye(5, dtype=F64))


@pytest.mark.parametrize(
    "start",
    [EndToEndFlow(PROBLEM, 3).init_state, PQWFlow(PROBLEM, 3).init_state, compress],
    ids=["end to end", "pqw", "compress"],
)
def test_layers_that_are_not_balanced_have_no_end_to_end_flow(start):
    net = network()
    with pytest.raises(ValueError, match=r"needs balanced layers.* of the largest ‖W_j‖²"):
        start(net)
    start(init.orthogonal_balanced_(net))


def test_flows_of_matrices_start_from_any_layers():
    net = network()
    W = net.end_to_end().detach()
    for flow in (DLRAFlow(PROBLEM), EndToEndFlow(PROBLEM, 1)):
        torch.testing.assert_close(flow.end_to_end(flow.init_state(net)), W)
    flow = EndToEndFlow(PROBLEM, 3)  # and from a matrix each
    torch.testing.assert_close(flow.end_to_end(flow.init_state(W)), W)


def test_balance_is_judged_for_each_trajectory():
    """One small trajectory that is not balanced beside a large one that is."""
    net = init.orthogonal_balanced_(network(batch=(2,)), scale=1e6)
    layers = [W_j.detach().clone() for W_j in net.weights]
    for W_j, other in zip(layers, network().weights, strict=True):
        W_j[1] = 1e-3 * other.detach()
    gap = relative_gap(layers)
    assert gap[0] < 1e-14
    assert gap[1] > 0.1
    with pytest.raises(ValueError, match="balanced"):
        check_balanced(layers, "this")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_round_off_is_balanced_in_every_precision(dtype):
    net = init.orthogonal_balanced_(network((4,), dtype))
    check_balanced(net.weights, "this")
    check_balanced([torch.zeros_like(W_j) for W_j in net.weights], "this")
    check_balanced([torch.ones(2, 2)], "this")


@pytest.mark.parametrize(
    ("W", "what"),
    [
        (torch.diag(torch.tensor([1.0, -1, 0, 0, 0], dtype=F64)), "smallest eigenvalue is -1"),
        (torch.eye(5, dtype=F64) + torch.ones(5, 5, dtype=F64).triu(1), "not Hermitian"),
    ],
)
def test_the_cone_is_entered_by_its_own_points_alone(W, what):
    with pytest.raises(ValueError, match=f"positive semidefinite W.*{what}.*flow=dlra"):
        PSDDLRAFlow(PROBLEM).init_state(W)
    with pytest.raises(ValueError, match=r"square matrices.*flow=dlra"):
        PSDDLRAFlow(MatrixApproximation(torch.ones(2, 3)))


# -- in the runner ---------------------------------------------------------------------------------


def built(*words):
    """The objects of a run of these words; nothing is written."""
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return build(compose("train", list(words)))


@pytest.mark.parametrize(
    "choice",
    [
        "method=structure",
        "method=rk4 flow=end_to_end",
        "method=rk4 flow=pqw",
        "method=rk4 flow=compressed",
        "method=rk4 method.rebalance=true",
    ],
)
def test_an_unbalanced_start_is_refused_in_a_sentence(choice):
    with pytest.raises(ValueError, match="needs balanced layers"):
        built(*SMALL, "init=gaussian", *choice.split())
    built(*SMALL, "init=orthogonal", *choice.split())


def test_auto_takes_a_flow_that_can_and_says_so():
    """Rosenbrock's usual flow cannot follow these layers; that of RK4 is their own."""
    unbalanced = {m: built(*SMALL, "init=gaussian", f"method={m}") for m in ("rosenbrock", "rk4")}
    said = "flow=layers, since end_to_end follows balanced layers only"
    assert any(said in note for note in unbalanced["rosenbrock"].notes)
    assert not any(said in note for note in unbalanced["rk4"].notes)
    rosenbrock, rk4 = (run.stepper.state for run in unbalanced.values())
    assert len(rosenbrock) == 2
    assert all(torch.equal(a, b) for a, b in zip(rosenbrock, rk4, strict=True))
    balanced = built(*SMALL, "init=orthogonal", "method=rosenbrock")
    assert isinstance(balanced.flow, EndToEndFlow)
    assert not any(said in note for note in balanced.notes)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_factors_are_not_stepped_explicitly_to_the_edge_of_the_cone(method):
    """X has one positive eigenvalue, so that of W(t), of rank 2, one tends to 0."""
    words = ["problem=approximation", "problem.n=6", "problem.kind=hermitian", "network.rank=2"]
    words += ["network.depth=2", "method.t1=5", "init=balanced", "init.psd=true", "flow=psd_dlra"]
    low, high = "problem.spectrum=[2,-1.5,-1]", "problem.spectrum=[2,1,-1.5]"
    with pytest.raises(ValueError, match="tends to rank 1"):
        built(*words, low, f"method={method}")
    built(*words, high, f"method={method}")
    built(*words, low, "method=rgd")
    built(*words, low, "method=rosenbrock")
