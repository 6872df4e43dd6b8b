"""What is computed on a GPU is what the processor computes; without one the latter, twice."""

import pytest
import torch
from flow_cases import FLOWS, problems, start
from problem_cases import CASES, draw
from runner import ROOT, train

import deeplin
from deeplin.integrators import RK4
from deeplin.manifolds import FixedRank, FixedRankFactored, PSDFixedRank, PSDFixedRankFactored
from deeplin.optim import minimize
from deeplin.problems import MatrixCompletion, spectral_start
from deeplin.runner.folder import RunFolder

F64 = torch.float64
METHODS = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def device(request) -> torch.device:
    return torch.device(request.param)


def assert_same(ours, theirs, device, tolerance=1e-12):
    assert ours.device.type == device.type
    size = float(theirs.abs().max())
    assert float((ours.cpu() - theirs).abs().max()) <= tolerance * max(size, 1e-300)


# Those of a function that holds tensors of its own cannot move.
@pytest.mark.parametrize("name", [name for name in CASES if "function" not in name])
def test_problems(name, device):
    case = CASES[name]
    there, m, n = case.problem.to(device), *case.problem.shape
    A, B = (draw(d, 2, seed=i, dtype=case.dtype) for i, d in ((20, m), (21, n)))
    for call in (
        lambda problem, A, B: problem.loss(A @ B.mH),
        lambda problem, A, B: problem.egrad(A @ B.mH),
        lambda problem, A, B: problem.pair_loss(A, B),
        lambda problem, A, B: problem.egrad_pair(A, B.mH)[0],
        lambda problem, A, B: problem.egrad_pair(A, B.mH)[1],
    ):
        if not case.batch:
            assert_same(call(there, A.to(device), B.to(device)), call(case.problem, A, B), device)


@pytest.mark.parametrize("name", FLOWS)
def test_flows(name, device):
    for problem in problems(F64).values():
        ends = []
        for there in (device, torch.device("cpu")):
            flow = FLOWS[name](problem.to(there))
            begin = start(name, F64)
            begin = begin.to(there) if isinstance(begin, torch.Tensor | torch.nn.Module) else begin
            y0 = flow.init_state(begin) if name == "layers" else flow.init_state(begin, 2)
            solution = deeplin.solve(flow, y0, 0.03, integrator=RK4(), dt=0.01)
            ends.append(flow.end_to_end(solution.y[-1]))
        assert_same(*ends, device, 1e-10)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    "manifold",
    [
        lambda depth: FixedRank(2, depth),
        lambda depth: PSDFixedRank(2, depth),
        lambda depth: FixedRankFactored(5, 5, 2, depth),
        lambda depth: PSDFixedRankFactored(5, 2, depth),
    ],
)
def test_manifolds(manifold, depth, device):
    manifold = manifold(depth)
    size = (5, 5) if "Factored" not in manifold.name else ()
    x = manifold.random(*size, dtype=F64, generator=torch.Generator().manual_seed(0))
    g = draw(*x.shape, seed=30)
    there = x.to(device), g.to(device)
    steps = [-0.1 * manifold.egrad2rgrad(*pair) for pair in (there, (x, g))]
    assert_same(*steps, device)
    points = [manifold.retr(*pair) for pair in zip((there[0], x), steps, strict=True)]
    if isinstance(manifold, FixedRankFactored | PSDFixedRankFactored):
        points = [manifold.to_dense(point) for point in points]
    assert_same(*points, device)


@pytest.mark.parametrize("method", ["cg", "trust_region"])
def test_solvers(method, device):
    known, _ = MatrixCompletion.planted(
        (40, 30), 2, oversampling=4, generator=torch.Generator().manual_seed(0), dtype=F64
    )
    begin = spectral_start(known, 2)
    losses = []
    for there in (device, torch.device("cpu")):
        seen: list[float] = []
        minimize(
            known.to(there),
            type(begin)(begin.U.to(there), begin.S.to(there), begin.V.to(there)),
            method=method,
            max_iter=5,
            after_each=lambda solver, point, seen=seen: seen.append(float(solver.loss)),
        )
        losses.append(seen)
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@needs_gpu
@pytest.mark.parametrize("method", sorted(METHODS - {"auto"}))
def test_runs(method, tmp_path):
    words = ["network.rank=2", "log.records=20", "stop.max_steps=10", f"method={method}"]
    words += ["problem=digits"] if method == "sgd" else ["problem=gaussian", "problem.d=6"]
    ends = []
    for device in ("cuda", "cpu"):
        assert train(*words, f"device={device}", folder=tmp_path / device) == 0
        ends.append(RunFolder(tmp_path / device).load_checkpoint().history.column("loss"))
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-12)
