"""What the processes of `test_processes.py` do, all of it in one set of them."""

import traceback
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from benchmarks.processes import bytes_of
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from deeplin import DeepLinear, LeastSquares
from deeplin.linalg import adjoint_products, orthonormal_factor, own_rows, tangent_step
from deeplin.manifolds import FixedRankFactored, ShardedFixedRank
from deeplin.optim import ConjugateGradient, continuation, minimize
from deeplin.problems import (
    MatrixCompletion,
    Ridge,
    ShardedCompletion,
    alternating_start,
    begin_processes,
    spectral_start,
)
from deeplin.problems.moments import _over_processes

F64, C128 = torch.float64, torch.complex128
PROCESSES = 4
SHAPE, RANK = (61, 47), 3
# name: (dtype, weighted, ridge, depth, method, most steps)
CASES = {
    "cg": (F64, False, 0.0, 1, "cg", 100),
    "complex": (C128, True, 0.1, 2, "cg", 12),
    "trust region": (F64, True, 0.0, 1, "trust_region", 20),
}


def work(rank, port, queue, folder):
    """Puts (rank, what was found) into the queue, or a traceback."""
    torch.set_num_threads(1)
    begin_processes(
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(minutes=1),
    )
    try:
        queue.put((rank, jobs(rank, folder)))
        dist.barrier()
    except Exception:
        queue.put((rank, traceback.format_exc()))
    dist.destroy_process_group()


def work_on_gpus(rank, port, queue):
    """The same of two processes with a GPU each: completion, and moments of the first's samples."""
    here = {"init_method": f"tcp://127.0.0.1:{port}", "rank": rank, "world_size": 2}
    device = begin_processes("cuda", **here, timeout=timedelta(minutes=1))
    try:
        known = known_entries(F64, False).to(device)
        losses, point = solved(shard_of(known, dist.group.WORLD), *CASES["cg"][2:])
        W = point.dense().cpu()
        x, y = samples(F64)
        batches = [] if rank else [(x.to(device), y.to(device))]
        moments = LeastSquares.from_batches(batches, dist.group.WORLD)
        queue.put((rank, (str(device), losses, W.numpy(), moments.B.cpu().numpy())))
        dist.barrier()
    except Exception:
        queue.put((rank, traceback.format_exc()))
    dist.destroy_process_group()


def jobs(rank, folder):
    pair, everyone = dist.new_group([0, 1]), dist.group.WORLD
    found = {"moments": moments(rank), "refused": refused(everyone)}
    found["cg", 4] = completion(everyone, *CASES["cg"])
    found["checkpoint", 4] = interrupted(everyone, folder)
    found["operations"] = operations(everyone)
    found["steep"] = steep(everyone)
    if rank < 2:
        found |= {(name, 2): completion(pair, *case) for name, case in CASES.items()}
        found["checkpoint", 2] = resumed(pair, folder)
        found["data parallel"] = data_parallel(pair)
        found["tensor parallel"] = tensor_parallel(pair)
    return found


# -- moments ---------------------------------------------------------------------------------------


def samples(dtype):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(90, 5, dtype=dtype, generator=generator)
    return x, torch.randn(90, 2, dtype=dtype, generator=generator)


def batches_of(rank, dtype, tied):
    """Of unequal lengths; the last processes have none."""
    x, y = samples(dtype)
    for a, b in [(0, 20), (20, 31)] if rank == 0 else [(31, 90)] if rank == 1 else []:
        yield x[a:b] if tied else (x[a:b], y[a:b])


def moments(rank):
    found = {}
    for dtype in (F64, torch.float32, C128):
        for tied in (False, True):
            problem = LeastSquares.from_batches(batches_of(rank, dtype, tied), dist.group.WORLD)
            parts = (problem.C.numpy(), problem.B.numpy(), float(problem.yy), problem.m)
            found[str(dtype), tied] = (*parts, problem.is_autoencoder)
    for columns in (None, 4 + rank):
        wrong = [] if columns is None else [torch.ones(9, columns)]
        found[columns is None] = said(partial(LeastSquares.from_batches, wrong, dist.group.WORLD))
    C = torch.zeros(2, 2, device="meta" if rank else "cpu", dtype=F64)  # as if on a GPU
    sums = C, C, C.diagonal().sum(), 3, True, F64, dist.group.WORLD
    found["kinds"] = said(partial(_over_processes, *sums))
    return found


def said(call):
    """The sentence of what a call raises."""
    try:
        call()
    except (ValueError, TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


# -- completion ------------------------------------------------------------------------------------


def known_entries(dtype, weighted):
    """The same on each process; of the columns one has very many entries."""
    generator = torch.Generator().manual_seed(0)
    known, _ = MatrixCompletion.planted(
        SHAPE, RANK, oversampling=4, generator=generator, dtype=dtype
    )
    weights = torch.rand(len(known.rows), dtype=F64, generator=generator) + 0.5
    weights[known.cols == 5] = 9.0
    weights = weights if weighted else None
    return MatrixCompletion(known.rows, known.cols, known.values, SHAPE, weights=weights)


def shard_of(known, group):
    own = own_rows(SHAPE[0], group)
    here = (known.rows >= own.start) & (known.rows < own.stop)
    weights = None if known.weights is None else known.weights[here]
    entries = (known.rows[here], known.cols[here], known.values[here])
    return ShardedCompletion(*entries, SHAPE, group=group, weights=weights)


def solved(problem, ridge, depth, method, most):
    """The losses of each step, and where it came to."""
    losses = []
    whole = Ridge(problem, ridge) if ridge else problem
    found = minimize(
        whole,
        spectral_start(whole, RANK),
        method=method,
        depth=depth,
        tol=1e-8,
        max_iter=most,
        after_each=lambda solver, point: losses.append(float(solver.loss)),
    )
    return losses, found.point


def completion(group, dtype, weighted, *options):
    problem = shard_of(known_entries(dtype, weighted), group)
    losses, point = solved(problem, *options)
    whole = point.gathered()
    W = point.dense()
    return {
        "losses": losses,
        "alternating": alternating_start(problem, RANK).dense().numpy(),
        "W": W.numpy(),
        "orthonormal": max(
            float((A.mH @ A - torch.eye(RANK)).abs().max()) for A in (whole.U, whole.V)
        ),
        "loss of W": float(problem.loss(W)),
        "egrad": problem.egrad(W).numpy(),
        "curvature": problem.curvature(W),
        "bytes": bytes_of((problem, point.U, point.V)),
        "S": point.S.numpy().tobytes(),
    }


# -- operations ------------------------------------------------------------------------------------


def operations(group):
    """Of the manifold: those of whole matrices, and those of shards put together."""
    found = {}
    for retraction in ("svd", "orthographic", "splitting", "layers"):
        for scale in (0.1, 30.0):  # the long step: steep for the svd, too long for others
            generator = torch.Generator().manual_seed(1)
            whole = FixedRankFactored(*SHAPE, RANK, 2, retraction)
            x = whole.random(dtype=F64, generator=generator)
            y = whole.random(dtype=F64, generator=generator)
            u, v = (
                whole.proju(x, scale * torch.randn(*x.shape, dtype=F64, generator=generator))
                for _ in range(2)
            )
            shards = ShardedFixedRank(*SHAPE, RANK, 2, retraction, group=group)
            X, Y, U, V = shards.shard((x, y, u, v))
            for name, ours, theirs in (
                ("inner", shards.inner(X, U, V), whole.inner(x, u, v)),
                ("retr", shards.to_dense(shards.retr(X, U)), whole.to_dense(whole.retr(x, u))),
                ("transp", shards.gather(shards.transp(X, Y, U)), whole.transp(x, y, u)),
                ("proju", shards.gather(shards.proju(X, Y)), whole.proju(x, y)),
            ):
                error = (ours - theirs).abs().max() / theirs.abs().max()
                found[retraction, scale, name] = float(error)
            drawn = shards.random(dtype=F64, generator=torch.Generator().manual_seed(1))
            found[retraction, scale, "random"] = float((shards.gather(drawn) - x).abs().max())
    return found


def steep(group):
    """(‖QᴴQ − I‖, ‖A − QR‖) where Cholesky QR fails, and the error of a steep step."""
    generator = torch.Generator().manual_seed(2)
    A = torch.randn(30, 4, dtype=F64, generator=generator)
    A[:, 3] = A[:, 0] + 1e-10 * A[:, 1]
    own = own_rows(30, group)
    Q, R = orthonormal_factor(A[own], group=group)
    (gram,) = adjoint_products((Q, Q), group=group)
    whole = FixedRankFactored(30, 30, 2, 1)
    x = whole.random(dtype=F64, generator=generator)
    u = whole.proju(x, 40 * torch.randn(*x.shape, dtype=F64, generator=generator))
    (U, S, V), (Up, M, Vp) = whole._split(x), whole._split(u)
    parts = tangent_step(U[own], S + M, V[own], Up[own], Vp[own], diagonal=True, group=group)
    target = (U @ (S + M) + Up) @ V.mT + U @ Vp.mT
    P, s, Qh = torch.linalg.svd(target)
    best = (P[:, :2] * s[:2]) @ Qh[:2]
    error = (parts[0] @ parts[1] @ parts[2].mT - best[own, own]).norm() / best.norm()
    return (
        float((gram - torch.eye(4)).abs().max()),
        float((Q @ R - A[own]).abs().max()),
        float(error),
    )


# -- checkpoints -----------------------------------------------------------------------------------

BEFORE, AFTER = 5, 6


def stepped(solver, count):
    return [float(solver.step()) for _ in range(count)]


def interrupted(group, folder):
    """Steps of four processes, a checkpoint between them."""
    problem = shard_of(known_entries(F64, False), group)
    manifold = ShardedFixedRank(*SHAPE, RANK, 1, group=group)
    start = spectral_start(problem, RANK)
    x = manifold.parameter(manifold.pack_point(start.U, start.S, start.V))
    solver = ConjugateGradient([x], problem=problem)
    stepped(solver, BEFORE)
    state = manifold.gather({"x": x.detach(), "solver": solver.state_dict()})
    if dist.get_rank() == 0:
        torch.save(state, f"{folder}/checkpoint.pt")
    dist.barrier(group)
    return stepped(solver, AFTER)


def resumed(group, folder):
    problem = shard_of(known_entries(F64, False), group)
    manifold = ShardedFixedRank(*SHAPE, RANK, 1, group=group)
    state = manifold.shard(torch.load(f"{folder}/checkpoint.pt"))
    x = manifold.parameter(state["x"])
    solver = ConjugateGradient([x], problem=problem)
    solver.load_state_dict(state["solver"])
    return stepped(solver, AFTER)


# -- what is refused -------------------------------------------------------------------------------


def refused(group):
    m, n = SHAPE
    known = known_entries(F64, False)
    problem = shard_of(known, group)
    manifold = ShardedFixedRank(m, n, RANK, 1, group=group)
    x = manifold.parameter(manifold.random(dtype=F64, generator=torch.Generator().manual_seed(0)))
    point = manifold._point(x)

    def by_autograd():
        ConjugateGradient([x]).step(lambda: closure(x))

    def closure(x):
        loss = x.square().sum()
        loss.backward()
        return loss

    own = own_rows(m, group)
    other = torch.tensor([(own.stop + 1) % m])
    one = torch.ones(1, dtype=F64)
    whole = FixedRankFactored(m, n, RANK, 1)
    return {
        "rows": said(lambda: ShardedCompletion(other, [0], one, SHAPE, group=group)),
        "one": said(
            lambda: ShardedCompletion(
                [own.start], [0], one / (dist.get_rank() != 1), SHAPE, group=group
            )
        ),
        "processes": said(lambda: ShardedFixedRank(5, 5, 1, group=group)),
        "batch": said(lambda: ShardedCompletion([], [], torch.ones(2, 0), SHAPE, group=group)),
        "autograd": said(by_autograd),
        "tape": said(lambda: problem.pair_loss(point.U.requires_grad_(), point.V)),
        "continuation": said(lambda: next(continuation(problem, 2))),
        "depth": said(lambda: ShardedFixedRank(m, n, RANK, float("inf"), group=group)),
        "hessian": said(
            lambda: minimize(problem, point, depth=2, method="trust_region", max_iter=2)
        ),
        "backend": said(lambda: problem.to("meta")),
        "group": said(
            lambda: ConjugateGradient([whole.parameter(whole.origin(dtype=F64))], problem=problem)
        ),
    }


# -- networks --------------------------------------------------------------------------------------

WIDTHS = (6, 8, 4, 5)


def network():
    torch.manual_seed(4)
    return DeepLinear(WIDTHS, dtype=F64)


def batches(count=4, size=12):
    generator = torch.Generator().manual_seed(5)
    return [
        [torch.randn(size, d, dtype=F64, generator=generator) for d in (WIDTHS[0], WIDTHS[-1])]
        for _ in range(count)
    ]


def trained(net, part=slice(None), given=lambda tensor: tensor, known=lambda tensor: tensor):
    """The layers after each step of SGD on a batch, of which this process has a part."""
    inner = net.module if isinstance(net, nn.parallel.DistributedDataParallel) else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5)
    seen = []
    for x, y in batches():
        optimizer.zero_grad()
        error = net(given(x[part])) - given(y[part])
        (0.5 * error.square().sum() / len(x[part])).backward()
        optimizer.step()
        seen.append([known(W_j.detach()).clone().numpy() for W_j in inner.weights])
    return seen


def data_parallel(group):
    half = slice(dist.get_rank(group) * 6, dist.get_rank(group) * 6 + 6)
    net = nn.parallel.DistributedDataParallel(network(), process_group=group)
    return trained(net, half)


def tensor_parallel(group):
    mesh = DeviceMesh.from_group(group, "cpu")
    net = network()
    for j, W_j in enumerate(net.weights):
        net.weights[j] = nn.Parameter(distribute_tensor(W_j.data, mesh, [Shard(j % 2)]))
    here = [W_j.to_local().numel() for W_j in net.weights]
    seen = trained(
        net,
        given=lambda tensor: distribute_tensor(tensor, mesh, [Replicate()]),
        known=lambda W_j: W_j.full_tensor(),
    )
    W = net.end_to_end().full_tensor().detach().numpy()
    return seen, W, here
