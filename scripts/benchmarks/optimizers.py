"""Problems on geoopt's manifolds to a gradient of 1e-10: our methods beside geoopt's."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
    import geoopt

from benchmarks import clock, line
from deeplin.manifolds.optimizers import RiemannianLineSearch
from deeplin.optim import ConjugateGradient, TrustRegion

F64 = torch.float64
_GOAL, _MOST, _SECONDS = 1e-10, 5000, 10.0

Problem = tuple[geoopt.ManifoldParameter, Callable[[], Tensor]]


def _on(manifold: geoopt.Manifold, start: Tensor) -> geoopt.ManifoldParameter:
    return geoopt.ManifoldParameter(start, manifold=manifold)  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True)
class Draws:
    """Normal numbers, the same on every device."""

    device: torch.device
    generator: torch.Generator

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64, generator=self.generator).to(self.device)

    def spd(self, size: int) -> Tensor:
        A = self(size, 2 * size)
        return A @ A.mT / size


def rayleigh(draw: Draws) -> Problem:
    """The smallest eigenvalue of a 100×100 matrix, on the sphere."""
    A = draw.spd(100)
    start = draw(100)
    x = _on(geoopt.Sphere(), start / start.norm())
    return x, lambda: x @ A @ x


def procrustes(draw: Draws) -> Problem:
    """½‖AX − B‖² over 60×10 matrices with orthonormal columns, AX* = B for one of them."""
    A = draw(80, 60) / 60**0.5
    truth, start = (torch.linalg.qr(draw(60, 10)).Q for _ in range(2))
    start = torch.linalg.qr(truth + 0.5 * start).Q
    x = _on(geoopt.EuclideanStiefel(), start)
    B = A @ truth
    return x, lambda: 0.5 * (A @ x - B).square().sum()


def karcher(draw: Draws) -> Problem:
    """The mean of eight 10×10 matrices: ½Σ dist² over the positive definite ones."""
    matrices = torch.stack([draw.spd(10) for _ in range(8)])
    L = torch.linalg.cholesky(matrices)
    x = _on(geoopt.SymmetricPositiveDefinite(), matrices.mean(0))

    def loss() -> Tensor:
        inner = torch.linalg.solve_triangular(L, x.expand_as(L), upper=False)
        inner = torch.linalg.solve_triangular(L, inner.mT, upper=False)
        return 0.5 * torch.linalg.eigvalsh((inner + inner.mT) / 2).log().square().sum()

    return x, loss


PROBLEMS = (rayleigh, procrustes, karcher)
METHODS: dict[str, Callable[[geoopt.ManifoldParameter], torch.optim.Optimizer]] = {
    "ConjugateGradient": lambda x: ConjugateGradient([x], tol=_GOAL),
    "TrustRegion": lambda x: TrustRegion([x], tol=_GOAL),
    "geoopt's line search": lambda x: RiemannianLineSearch(
        [x], line_search_method="wolfe", cg_method="pr"
    ),
    "RiemannianAdam": lambda x: geoopt.optim.RiemannianAdam([x], lr=1e-2),
}


def _solved(
    make: Callable[[Draws], Problem], method: str, device: torch.device
) -> tuple[float, int, float]:
    """(seconds, steps, ‖grad‖) of a method, to the goal or to as many steps as it may take."""
    x, loss = make(Draws(device, torch.Generator().manual_seed(0)))
    optimizer = METHODS[method](x)
    ours = isinstance(optimizer, ConjugateGradient | TrustRegion)

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            value = loss()
            value.backward()
        return value.detach()

    def gradient_norm() -> float:
        assert x.grad is not None
        gradient = x.manifold.egrad2rgrad(x.detach(), x.grad.detach())
        return float(x.manifold.inner(x.detach(), gradient).sum().sqrt())

    begin, norm, step = clock(), float("inf"), 0
    for step in range(1, _MOST + 1):  # noqa: B007
        optimizer.step(closure)  # pyright: ignore[reportCallIssue, reportArgumentType]
        if ours:
            norm = float(optimizer.gradient_norm)
            rests = bool(optimizer.finished)
        else:
            before = norm
            closure()
            norm = gradient_norm()
            rests = norm == before
        if norm <= _GOAL or rests or clock() - begin > _SECONDS:
            break
    return clock() - begin, step, norm


@line("geoopt-second-order", "of 6 solved", at_least=6)
def geoopt_second_order(device: torch.device) -> float:
    """Rayleigh quotient, Procrustes, Karcher mean: how often our two methods get to 1e-10.

    Told are time, steps and the last gradient norm, of RiemannianAdam (learning rate 0.01) and
    geoopt's line search (strong Wolfe, Polak–Ribière), too, which may take 5000 steps or 10 s.
    """
    reached = 0
    _solved(rayleigh, "TrustRegion", device)  # loads what is loaded once
    for make in PROBLEMS:
        print(make.__name__, file=sys.stderr)
        for method in METHODS:
            taken, steps, norm = _solved(make, method, device)
            reached += norm <= _GOAL and "Riemannian" not in method and "geoopt" not in method
            told = f"{taken:8.3f} s {steps:6} steps, gradient {norm:.1e}"
            print(f"  {method:<22}{told}", file=sys.stderr, flush=True)
    return float(reached)
