"""Several processes of torch.distributed: what all of them have is what one would have."""

import pytest
import torch
import torch.distributed as dist
from benchmarks.processes import bytes_of, fitted
from process_jobs import (
    AFTER,
    CASES,
    PROCESSES,
    RANK,
    SHAPE,
    known_entries,
    network,
    samples,
    solved,
    stepped,
    trained,
    work,
    work_on_gpus,
)

from deeplin.manifolds import FixedRankFactored
from deeplin.optim import ConjugateGradient
from deeplin.problems import ShardedCompletion, alternating_start, begin_processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


def together(processes, count, target, *more):
    """What so many processes have put into their queue, by rank."""
    queue = processes.Queue()
    store = dist.TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)
    port = store.port
    del store
    arguments = [(rank, port, queue, *more) for rank in range(count)]
    members = [processes.Process(target=target, args=each, daemon=True) for each in arguments]
    for process in members:
        process.start()
    seen = {}
    for _ in members:
        rank, found = queue.get(timeout=200)
        assert not isinstance(found, str), f"process {rank}: {found}"
        seen[rank] = found
    for process in members:
        process.join()
    return seen


@pytest.fixture(scope="module")
def found(processes, folder):
    return together(processes, PROCESSES, work, str(folder))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_all_processes_have_the_problem_of_all_samples(found, dtype, tied):
    x, y = samples(dtype)
    y = x if tied else y
    wide = x.to(torch.complex128 if dtype.is_complex else torch.float64).numpy()
    labels = y.to(torch.complex128 if dtype.is_complex else torch.float64).numpy()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for rank in range(PROCESSES):
        C, B, yy, m, autoencoder = found[rank]["moments"][str(dtype), tied]
        assert abs(C - wide.T @ wide.conj()).max() <= tolerance * abs(C).max()
        assert abs(B - labels.T @ wide.conj()).max() <= tolerance * abs(C).max()
        assert yy == pytest.approx((abs(labels) ** 2).sum(), rel=tolerance)
        assert (m, autoencoder) == (90, tied)
        assert (found[0]["moments"][str(dtype), tied][0] == C).all()


def test_what_does_not_go_together_is_said_by_each(found):
    for rank in range(PROCESSES):
        said = found[rank]["moments"]
        assert "needs at least one batch" in said[True]
        assert "must have the same numbers of columns; got (d_y, d_x) =" in said[False]
        assert "must be on devices of one kind; got cpu, meta" in said["kinds"]


@pytest.fixture(scope="module")
def alone():
    """The cases of completion, each by one process."""
    ends = {}
    for name, (dtype, weighted, *options) in CASES.items():
        problem = known_entries(dtype, weighted)
        losses, point = solved(problem, *options)
        ends[name] = problem, losses, point
    return ends


@pytest.mark.parametrize(
    ("name", "count"), [("cg", 2), ("cg", 4), ("complex", 2), ("trust region", 2)]
)
def test_completion_is_that_of_one_process(found, alone, name, count):
    """Step by step, and where it ends."""
    problem, losses, point = alone[name]
    W = point.dense()
    assert len(losses) > 4
    for rank in range(count):
        ours = found[rank][name, count]
        assert len(ours["losses"]) == len(losses)
        for before, a, b in zip([losses[0], *losses], ours["losses"], losses, strict=False):
            # The inner CG of a trust region multiplies the round-off of where it begins.
            relative = 1e-7 * before if name == "trust region" else 1e-9 * b
            assert abs(a - b) <= relative + 1e-16 * losses[0]
        assert abs(ours["W"] - W.numpy()).max() <= 1e-9 * float(W.abs().max())
        begun = alternating_start(problem, RANK).dense().numpy()
        assert abs(ours["alternating"] - begun).max() <= 1e-9 * abs(begun).max()
        assert ours["orthonormal"] < 1e-13
        assert ours["loss of W"] == pytest.approx(float(problem.loss(W)), rel=1e-6, abs=1e-18)
        size = float(problem.egrad(torch.zeros_like(W)).abs().max())
        assert abs(ours["egrad"] - problem.egrad(W).numpy()).max() <= 1e-9 * size
        assert ours["curvature"] == problem.curvature(W)
        assert ours["S"] == found[0][name, count]["S"]


def test_memory_falls_as_the_number_of_processes(found, alone):
    """Of entries and factors; the last block of rows is the smallest."""
    problem, _, point = alone["cg"]
    whole = bytes_of((problem, point.U, point.V))
    for processes in (2, 4):
        parts = [found[rank]["cg", processes]["bytes"] for rank in range(processes)]
        assert max(parts) < 1.3 * whole / processes
        assert sum(parts) > 0.99 * whole


def test_a_model_of_times_is_found():
    terms = torch.tensor([[8.0, 0, 1], [4, 1, 1], [2, 2, 1], [16, 0, 1]]).numpy()
    coefficients, error = fitted(terms, terms @ [0.5, 0.0, 2.0])
    assert coefficients == pytest.approx([0.5, 0.0, 2.0], abs=1e-12)
    assert error < 1e-12


def test_operations_are_those_of_whole_matrices(found):
    for rank in range(PROCESSES):
        for error in found[rank]["operations"].values():
            assert error < 1e-11
        orthonormal, product, step = found[rank]["steep"]
        assert orthonormal < 1e-14
        assert product < 1e-13
        assert step < 1e-13


def test_a_checkpoint_of_four_processes_is_resumed_by_two_and_by_one(found, folder):
    state = torch.load(folder / "checkpoint.pt")
    manifold = FixedRankFactored(*SHAPE, RANK, 1)
    x = manifold.parameter(state["x"])
    solver = ConjugateGradient([x], problem=known_entries(torch.float64, False))
    solver.load_state_dict(state["solver"])
    by_one, uninterrupted = stepped(solver, AFTER), found[0]["checkpoint", 4]
    assert uninterrupted[-1] < 0.1 * uninterrupted[0]
    for losses in (by_one, found[0]["checkpoint", 2], found[1]["checkpoint", 2]):
        assert losses == pytest.approx(uninterrupted, rel=1e-9)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("rows", "ValueError: ShardedCompletion: this process has the rows"),
        ("one", "MatrixCompletion: values must be finite; 1 of 1 are NaN"),
        ("processes", "take at most 3 processes"),
        ("batch", "ShardedCompletion takes one matrix"),
        ("autograd", "TypeError: ShardedFixedRank takes no gradients by autograd"),
        ("tape", "RuntimeError: ShardedCompletion: autograd does not go through processes"),
        ("continuation", "continuation takes a problem that one process has"),
        ("depth", "finite depths alone"),
        ("hessian", "take depth=1, or conjugate gradients"),
        ("group", "must be spread over the same processes"),
        ("backend", "send nothing that is on meta, with the backends cpu:gloo: begin them with"),
    ],
)
def test_what_shards_cannot_do_is_said_by_each(found, what, sentence):
    for rank in range(PROCESSES):
        assert sentence in found[rank]["refused"][what]
    assert "process 1 of 4: " in found[0]["refused"]["one"]


def test_processes_that_have_not_begun_are_asked_for():
    with pytest.raises(ValueError, match="none have begun: call deeplin"):
        ShardedCompletion([0], [0], torch.ones(1), (2, 2))


def test_layers_trained_on_halves_of_each_batch_are_those_of_whole_batches(found):
    """DistributedDataParallel over two processes, parameters after each step."""
    steps = trained(network())
    for rank in range(2):
        for ours, theirs in zip(found[rank]["data parallel"], steps, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert abs(a - b).max() <= 1e-12 * abs(b).max()


def test_layers_cut_over_two_processes_are_those_of_one(found):
    """DTensors by rows and by columns in turns, parameters after each step."""
    net = network()
    steps = trained(net)
    sizes = [W_j.numel() for W_j in net.weights]
    here = [found[rank]["tensor parallel"][2] for rank in range(2)]
    assert [a + b for a, b in zip(*here, strict=True)] == sizes
    assert all(a < 0.7 * size for a, size in zip(here[0], sizes, strict=True))
    for rank in range(2):
        seen, W, _ = found[rank]["tensor parallel"]
        for ours, theirs in zip(seen, steps, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert abs(a - b).max() <= 1e-12 * abs(b).max()
        assert abs(W - net.end_to_end().detach().numpy()).max() <= 1e-12 * abs(W).max()


# -- on GPUs ---------------------------------------------------------------------------------------


def test_each_process_has_the_gpu_of_its_number(monkeypatch):
    """And the backends of its device; what torchrun says of this machine counts, not of all."""
    begun, chosen = [], []
    monkeypatch.setattr(
        dist, "init_process_group", lambda *a, **options: begun.append((a, options))
    )
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert begin_processes() == torch.device("cpu")
    assert begun.pop() == (("cpu:gloo",), {})
    here = {"rank": 1, "world_size": 2}
    assert begin_processes("cuda", **here) == torch.device("cuda", 1)
    assert begun.pop() == (("cpu:gloo,cuda:nccl",), here)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert begin_processes("cuda", rank=6, world_size=8) == torch.device("cuda", 0)
    assert chosen == [torch.device("cuda", 1), torch.device("cuda", 0)]
    begun.clear()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="this one has 3 processes and 2 GPUs: begin as many as"):
        begin_processes("cuda")
    with pytest.raises(ValueError, match="each on the GPU of its own number; got 'cuda:1'"):
        begin_processes("cuda:1")
    assert begun == []


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")
def test_two_gpus_are_one_process(processes, alone):
    """NCCL: completion step by step, moments of samples that one of the two has."""
    _, losses, point = alone["cg"]
    x, y = samples(torch.float64)
    for rank, (device, ours, W, B) in together(processes, 2, work_on_gpus).items():
        assert device == f"cuda:{rank}"
        assert ours[:20] == pytest.approx(losses[:20], rel=1e-8)
        assert abs(W - point.dense().numpy()).max() <= 1e-8 * abs(W).max()
        assert abs(B - (y.mT @ x).numpy()).max() <= 1e-12 * abs(B).max()
