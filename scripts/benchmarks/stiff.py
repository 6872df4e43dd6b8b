"""A stiff problem to the end: the linearly implicit step against explicit ones on the layers.

The autoencoder of N = 20, d = 20, r = 1 (BRTW §7.1) from balanced orthogonal starts to t = 30, at
rtol = atol = 1e-6. Ours is `Rosenbrock` on the end-to-end flow, the peers are the dopri5 of
torchdiffeq and of torchode on the layers, with the layers' velocity of deeplin. A ratio counts as
0 unless our W(30) is as close as the peer's to that of Dormand–Prince steps at rtol 1e-10, on the
trajectory where it is farthest (seen for one: 1.4e-7, torchdiffeq 7.7e-6, torchode 7.6e-5).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import CPU, clock, line
from benchmarks.flows import gaussian_autoencoder
from deeplin import DeepLinear, init, solve
from deeplin.flows import EndToEndFlow, LayerFlow
from deeplin.integrators import Packing
from deeplin.integrators.rosenbrock import Rosenbrock
from deeplin.network import grid_widths

TOLERANCE, END = 1e-6, 30.0


def case(repeats: int | None, device: torch.device = CPU) -> tuple[Any, Any, Any, Any]:
    """The layer flow and its state on the grid of widths, the end-to-end flow and the product."""
    problem = gaussian_autoencoder(20, 60, device)
    shape = () if repeats is None else (repeats,)
    net = DeepLinear(grid_widths(20, 20, 20, 1), batch_shape=shape, dtype=torch.float64)
    init.orthogonal_balanced_(net, tied=True, generator=torch.Generator().manual_seed(2))
    flow, product = LayerFlow(problem), EndToEndFlow(problem, 20)
    layers = flow.init_state(net.to(device))
    return flow, layers, product, product.init_state(flow.end_to_end(layers), 1)


def ours(product: Any, y, t1: float = END) -> torch.Tensor:
    """W(t1)."""
    options = {"rtol": TOLERANCE, "atol": TOLERANCE, "integrator": Rosenbrock()}
    return product.end_to_end(solve(product, y, t1, **options).y[-1])


def of_torchdiffeq(flow: LayerFlow, layers, t1: float = END) -> torch.Tensor:
    from torchdiffeq import odeint  # pyright: ignore[reportMissingImports]

    t = torch.tensor([0.0, t1], dtype=torch.float64, device=layers[0].device)
    path = odeint(flow.velocity, layers, t, rtol=TOLERANCE, atol=TOLERANCE, method="dopri5")
    return flow.end_to_end(tuple(part[-1] for part in path))


def of_torchode(flow: LayerFlow, layers, t1: float = END) -> torch.Tensor:
    torchode: Any = importlib.import_module("torchode")
    batched = tuple(W_j if W_j.ndim == 3 else W_j[None] for W_j in layers)
    packing = Packing(batched, 1)
    y0 = packing.packed(batched)

    def velocity(t, y):
        return packing.packed(flow.velocity(0.0, packing.unpacked(y)))

    term = torchode.ODETerm(velocity)
    method = torchode.Dopri5(term=term)
    controller = torchode.IntegralController(atol=TOLERANCE, rtol=TOLERANCE, term=term)
    t_eval = torch.tensor([[0.0, t1]], dtype=torch.float64, device=y0.device).expand(len(y0), 2)
    problem = torchode.InitialValueProblem(y0=y0, t_eval=t_eval)
    with torch.no_grad():
        solution = torchode.AutoDiffAdjoint(method, controller).solve(problem)
    return flow.end_to_end(packing.unpacked(solution.ys[:, -1]))


def against(peer: Callable[..., torch.Tensor], repeats: int | None, device: torch.device) -> float:
    """The peer's time over the mean of ours before and after it: a minute would not repeat well."""
    flow, layers, product, y = case(repeats, device)
    ours(product, y, 0.1)  # warm up
    peer(flow, layers, 0.1)
    times, answers = [], []
    for run in (lambda: ours(product, y), lambda: peer(flow, layers), lambda: ours(product, y)):
        start = clock()
        answers.append(run())
        times.append(clock() - start)
    reference = product.end_to_end(solve(product, y, END, rtol=1e-10).y[-1])
    errors = [(W.reshape(reference.shape) - reference).norm(dim=(-2, -1)).max() for W in answers]
    before, theirs, after = times
    return 2 * theirs / (before + after) if errors[0] <= errors[1] else 0.0


@line("stiff-one", "times faster", at_least=10)
def stiff_one(device: torch.device) -> float:
    """torchdiffeq's dopri5 on the layers over ours, N = 20, d = 20, r = 1, t = 30, rtol 1e-6."""
    return against(of_torchdiffeq, None, device)


@line("stiff-64", "times faster", at_least=20)
def stiff_64(device: torch.device) -> float:
    """The same for 64 starts at once."""
    return against(of_torchdiffeq, 64, device)


@line("stiff-one-torchode", "times faster", at_least=10)
def stiff_one_torchode(device: torch.device) -> float:
    """torchode's dopri5 on the layers over ours, N = 20, d = 20, r = 1, t = 30, rtol 1e-6."""
    return against(of_torchode, None, device)


@line("stiff-64-torchode", "times faster", at_least=20)
def stiff_64_torchode(device: torch.device) -> float:
    """The same for 64 starts at once; torchode, like ours, has a step for each."""
    return against(of_torchode, 64, device)
