"""Several processes of torch.distributed: the samples of all of them are those of one."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist

from deeplin import LeastSquares

PROCESSES = 3


def samples(dtype):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(90, 5, dtype=dtype, generator=generator)
    return x, torch.randn(90, 2, dtype=dtype, generator=generator)


def batches_of(rank, dtype, tied):
    """Of unequal lengths; the last process has none."""
    x, y = samples(dtype)
    for a, b in [(0, 20), (20, 31)] if rank == 0 else [(31, 90)] if rank == 1 else []:
        yield x[a:b] if tied else (x[a:b], y[a:b])


def work(rank, port, queue):
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES
    )
    found = {}
    for dtype in (torch.float64, torch.float32, torch.complex128):
        for tied in (False, True):
            problem = LeastSquares.from_batches(batches_of(rank, dtype, tied), dist.group.WORLD)
            moments = (problem.C.numpy(), problem.B.numpy(), float(problem.yy), problem.m)
            found[str(dtype), tied] = (*moments, problem.is_autoencoder)
    for columns in (None, 4 + rank):
        wrong = [] if columns is None else [torch.ones(9, columns)]
        try:
            LeastSquares.from_batches(wrong, dist.group.WORLD)
        except ValueError as error:
            found[columns is None] = str(error)
    queue.put((rank, found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found():
    context = multiprocessing.get_context("forkserver")
    queue = context.Queue()
    store = dist.TCPStore("127.0.0.1", 0, PROCESSES, is_master=True, wait_for_workers=False)
    port = store.port
    del store
    processes = [context.Process(target=work, args=(i, port, queue)) for i in range(PROCESSES)]
    for process in processes:
        process.start()
    seen = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    return seen


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_all_processes_have_the_problem_of_all_samples(found, dtype, tied):
    x, y = samples(dtype)
    y = x if tied else y
    wide = x.to(torch.complex128 if dtype.is_complex else torch.float64).numpy()
    labels = y.to(torch.complex128 if dtype.is_complex else torch.float64).numpy()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for rank in range(PROCESSES):
        C, B, yy, m, autoencoder = found[rank][str(dtype), tied]
        assert abs(C - wide.T @ wide.conj()).max() <= tolerance * abs(C).max()
        assert abs(B - labels.T @ wide.conj()).max() <= tolerance * abs(C).max()
        assert yy == pytest.approx((abs(labels) ** 2).sum(), rel=tolerance)
        assert (m, autoencoder) == (90, tied)
        assert (found[0][str(dtype), tied][0] == C).all()


def test_what_does_not_go_together_is_said_by_each(found):
    for rank in range(PROCESSES):
        assert "needs at least one batch" in found[rank][True]
        assert "must have the same numbers of columns; got (d_y, d_x) =" in found[rank][False]
