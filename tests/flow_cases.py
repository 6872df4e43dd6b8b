"""Losses and flows for tests of every flow, beside dense references that know nothing of factors.

A reference works on dense matrices (or plain layers) and autograd of the loss alone.
"""

import math

import numpy as np
import scipy.integrate
import torch

from deeplin import DeepLinear, init
from deeplin.flows import DLRAFlow, EndToEndFlow, LayerFlow, PQWFlow, PSDDLRAFlow
from deeplin.problems import (
    LeastSquares,
    LogisticRegression,
    MatrixApproximation,
    MatrixCompletion,
    MatrixSensing,
    Problem,
    from_loss,
)

F64, C128 = torch.float64, torch.complex128
M, N, RANK = 4, 5, 2


def draw(*shape, seed, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Quartic(Problem):
    """A user's own: Σ ½|w − x|² + ¼|w|⁴, known by its loss alone."""

    def __init__(self, X):
        self.X, self.shape = X, tuple(X.shape)

    def loss(self, W):
        distance, size = (W - self.X).abs().square(), W.abs().square()
        return (0.5 * distance + 0.25 * size.square()).sum((-2, -1))


def entropy(W):
    """A function of W, not quadratic and not symmetric in its entries."""
    weights = torch.arange(1.0, W.shape[-1] + 1, dtype=F64, device=W.device)
    return ((W - 0.3).abs().square() * weights).sum((-2, -1)).log1p()


def problems(dtype, shape=(M, N)):
    """Every kind of loss on matrices of that shape; LogisticRegression is real."""
    m, n = shape
    X = draw(m, n, seed=1, dtype=dtype)
    table = {
        "least squares": LeastSquares(
            draw(n, 30, seed=2, dtype=dtype) / 6, draw(m, 30, seed=3, dtype=dtype) / 6
        ),
        "approximation": MatrixApproximation(X),
        "completion": MatrixCompletion(
            [0, 1, 2, 3, 0, 2], [0, 1, 2, 3, 3, 0], draw(6, seed=4, dtype=dtype), shape
        ),
        "sensing": MatrixSensing(
            draw(9, m, n, seed=5, dtype=dtype) / 3, draw(9, seed=6, dtype=dtype)
        ),
        "own class": Quartic(X),
        "own function": from_loss(entropy, shape, field="complex" if dtype.is_complex else "real"),
    }
    if not dtype.is_complex:
        x = draw(20, n, seed=7)
        table["logistic"] = LogisticRegression(x, torch.arange(20) % m)
    return table


def steep(dtype, quartic, shape=None):
    """Curvature 1000, and more away from the optimum, given only by loss(W)."""
    m, n = shape or (M, N)
    X = 3 * draw(m, n, seed=8, dtype=dtype)
    X = (X + X.mH) / 2 if shape else X

    def loss(W):
        square = (W - X).abs().square()
        return (500 * square + (50 * square.square() if quartic else 0.0)).sum((-2, -1))

    return from_loss(loss, (m, n), field="complex" if dtype.is_complex else "real")


FLOWS = {
    "layers": LayerFlow,
    **{
        f"end to end {depth}": lambda problem, depth=depth: EndToEndFlow(problem, depth)
        for depth in (1, 2, 3.5, math.inf)
    },
    "end to end, rescaled": lambda problem: EndToEndFlow(problem, 1, rescaled=True),
    "pqw": lambda problem: PQWFlow(problem, 3),
    "dlra": DLRAFlow,
    "dlra, rescaled": lambda problem: DLRAFlow(problem, rescaled=True),
    "dlra 3": lambda problem: DLRAFlow(problem, depth=3),
}
PSD_FLOWS = {
    "psd dlra": PSDDLRAFlow,
    "psd dlra, rescaled": lambda problem: PSDDLRAFlow(problem, rescaled=True),
    "psd dlra 3": lambda problem: PSDDLRAFlow(problem, depth=3),
}


def depth_of(name):
    """The depth of the metric of a flow."""
    if name == "pqw":
        return 3
    last = name.split()[-1]
    return 1 if last in ("dlra", "rescaled") else float(last)


def start(name, dtype, scale=1.0, seed=9):
    """Balanced layers for the flow of layers, a dense W of rank 2 for the others."""
    if name.startswith("psd"):
        A = draw(M, RANK, seed=seed, dtype=dtype)
        return scale * A @ A.mH / 2
    W = scale * draw(M, RANK, seed=seed, dtype=dtype) @ draw(RANK, N, seed=seed + 1, dtype=dtype)
    if name != "layers":
        return W
    generator = torch.Generator().manual_seed(seed)
    net = DeepLinear([N, 3, RANK, M], dtype=dtype)
    return init.balanced_(net, W, rotate=True, generator=generator)


def gradient(loss, W):
    """∇loss(W) by plain autograd."""
    W = W.detach().requires_grad_()
    return torch.autograd.grad(loss(W).sum(), W)[0]


def operator(W, G, depth, rank=RANK):
    """𝒜_W(G) from a full SVD and the quotients of BRTW (8), 1/N of it at N = ∞."""
    m, n = W.shape
    U, s, Vh = torch.linalg.svd(W)
    a, b = (torch.cat([s[:rank], s.new_zeros(d - rank)]) for d in (m, n))
    a, b = a[:, None].expand(m, n), b[None, :].expand(m, n)
    both, one = (a > 0) & (b > 0), (a > 0) | (b > 0)
    if depth == 1:
        factor = one.to(s)
    elif math.isinf(depth):
        quotient = (a**2 - b**2) / (2 * a.log() - 2 * b.log())
        factor = torch.where(both, torch.where(a == b, a**2, quotient), 0.0)
    else:
        quotient = (a**2 - b**2) / (a ** (2 / depth) - b ** (2 / depth))
        factor = torch.where(a == b, depth * a ** (2 - 2 / depth), quotient)
    return U @ (factor * (U.mH @ G @ Vh.mH)) @ Vh


def dense_field(name, problem, W):
    """The velocity of W that the flow of this name should have."""
    G = gradient(problem.loss, W)
    if name.startswith("psd"):
        G = (G + G.mH) / 2
    W_dot = -operator(W, G, depth_of(name))
    return torch.linalg.svdvals(W)[RANK - 1] * W_dot if "rescaled" in name else W_dot


def integrated(field, y0, t):
    """The end of ẏ = field(y) on a tuple of tensors, by SciPy's DOP853."""
    sizes, shapes, dtype = [p.numel() for p in y0], [p.shape for p in y0], y0[0].dtype

    def unpacked(flat):
        flat = torch.from_numpy(flat.copy())
        flat = torch.view_as_complex(flat.view(-1, 2)) if dtype.is_complex else flat
        return [p.view(s) for p, s in zip(flat.split(sizes), shapes, strict=True)]

    def packed(parts):
        flat = torch.cat([p.detach().resolve_conj().reshape(-1) for p in parts])
        return (torch.view_as_real(flat).reshape(-1) if dtype.is_complex else flat).numpy()

    def right(_, flat):
        return packed(field(unpacked(flat)))

    done = scipy.integrate.solve_ivp(
        right, (0.0, t), packed(y0).astype(np.float64), method="DOP853", rtol=1e-8, atol=1e-9
    )
    return unpacked(np.ascontiguousarray(done.y[:, -1]))
