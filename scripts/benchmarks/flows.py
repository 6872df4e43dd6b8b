"""Fields and integrators: against torch.mm, autograd, the full layers, Pymanopt."""

from __future__ import annotations

import torch

from benchmarks import CPU, line, ratio, seconds
from deeplin import DeepLinear, LeastSquares, autoencoder, init
from deeplin.flows import DLRAFlow, EndToEndFlow, LayerFlow, PSDDLRAFlow, compress
from deeplin.integrators import RK4, Compiled, ProjectedRungeKutta, bound
from deeplin.network import grid_widths
from deeplin.problems import MatrixApproximation

PYMANOPT = "Pymanopt computes with NumPy"
COMPILED = "its steps are loops in C"


def draw(*shape: int, seed: int = 0, device: torch.device = CPU) -> torch.Tensor:
    """Normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(device)


def gaussian_autoencoder(d: int, m: int, device: torch.device = CPU) -> LeastSquares:
    return autoencoder(draw(d, m, device=device) / d**0.5)


def grid_network(d: int, depth: int, rank: int, device: torch.device) -> DeepLinear:
    """The widths of BRTW §7.1.1, with tied orthogonal ends."""
    net = DeepLinear(grid_widths(d, d, depth, rank), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    return init.orthogonal_balanced_(net, tied=True, generator=generator).to(device)


def layer_flow_case(device: torch.device) -> tuple[LayerFlow, tuple[torch.Tensor, ...]]:
    flow = LayerFlow(gaussian_autoencoder(400, 1200, device))
    return flow, flow.init_state(grid_network(400, 20, 200, device))


class PlainLayerFlow(LayerFlow):
    """The layer flow as it is written in BRTW (5): ∇L¹ formed, products with d_x columns."""

    def velocity(self, t, y):
        prefixes = [y[0]]
        for W_j in y[1:]:
            prefixes.append(W_j @ prefixes[-1])
        G = -self.problem.egrad(prefixes.pop())
        rates = []
        for W_j, prefix in zip(reversed(y[1:]), reversed(prefixes), strict=True):
            rates.append(G @ prefix.mT)
            G = W_j.mT @ G
        return (G, *reversed(rates))


@line("layer-mm", "of mm's rate", at_least=0.9)
def layer_mm(device: torch.device) -> float:
    """Flops per second of the layer velocity at d = 400, N = 20, r = 200, over torch.mm's own.

    Flops are those of the products that it makes; mm's rate is that of the same shapes, one by one.
    """
    flow, y = layer_flow_case(device)
    d, k = y[0].shape[-1], y[0].shape[-2]
    rest = [tuple(W_j.shape) for W_j in y[1:]]
    pairs = [(k, d, d), (k, d, k), (d, k, k), (k, d, d), (k, d, k), (k, k, d)]  # C, B, L, W_1
    pairs += [(after, before, k) for after, before in rest[1:]]  # prefixes, the last of them L
    pairs += [(before, after, k) for after, before in rest[1:]]  # W_jᵀ GW_1ᵀ
    pairs += [(after, k, before) for after, before in rest[1:]]  # GW_1ᵀ times a prefix
    matrices = [(draw(a, b, device=device), draw(b, c, device=device)) for a, b, c in pairs]

    def products() -> None:
        for A, B in matrices:
            torch.mm(A, B)

    return ratio(lambda: flow.velocity(0.0, y), products, 15)


@line("layer-autograd", "times faster", at_least=3)
def layer_autograd(device: torch.device) -> float:
    """Autograd through X with m = 3d samples over our velocity, at d = 400, N = 20, r = 200."""
    X = draw(400, 1200, device=device) / 20
    flow, y = layer_flow_case(device)
    weights = [W_j.clone().requires_grad_() for W_j in y]

    def backward() -> None:
        Z = X
        for W_j in weights:
            Z = W_j @ Z
        torch.autograd.grad(0.5 * (X - Z).square().sum(), weights)

    return ratio(lambda: flow.velocity(0.0, y), backward, 7)


@line("layer-samples", "times", at_most=1.1)
def layer_samples(device: torch.device) -> float:
    """The layer velocity at d = 400, N = 20, r = 200 for m = 10⁶ samples over that for m = 1200."""
    few, y = layer_flow_case(device)
    stream = (draw(10_000, 400, seed=i, device=device) / 20 for i in range(100))
    many = LayerFlow(LeastSquares.from_batches(stream))
    return ratio(lambda: few.velocity(0.0, y), lambda: many.velocity(0.0, y), 15)


@line("compressed-layers", "times faster", at_least=30)
def compressed_layers(device: torch.device) -> float:
    """A RK4 step of the full layers over one of the compressed, d = 400, r = 10, N = 20."""
    flow = LayerFlow(gaussian_autoencoder(400, 1200, device))
    full = flow.init_state(grid_network(400, 20, 10, device))
    small, step = compress(full), RK4().step
    plain = PlainLayerFlow(flow.problem)
    return ratio(lambda: step(flow, 0.0, small, 1e-3), lambda: step(plain, 0.0, full, 1e-3), 5)


@line("end-to-end-layers", "times faster", at_least=30)
def end_to_end_layers(device: torch.device) -> float:
    """A RK4 step of the full layers over one of the end-to-end flow, d = 400, r = 10, N = 20."""
    problem = gaussian_autoencoder(400, 1200, device)
    flow, product = LayerFlow(problem), EndToEndFlow(problem, 20)
    full = flow.init_state(grid_network(400, 20, 10, device))
    y, step = product.init_state(flow.end_to_end(full), 10), bound(RK4(), product)
    plain, layer_step = PlainLayerFlow(problem), RK4().step
    return ratio(lambda: step(0.0, y, 1e-3), lambda: layer_step(plain, 0.0, full, 1e-3), 5)


@line("end-to-end-depth", "times", at_most=1.1)
def end_to_end_depth(device: torch.device) -> float:
    """The end-to-end field at 400×400, k = 10: N = 64 over N = 2."""
    problem = gaussian_autoencoder(400, 1200, device)
    shallow, deep = EndToEndFlow(problem, 2), EndToEndFlow(problem, 64)
    W = draw(400, 10, device=device) @ draw(10, 400, seed=1, device=device) / 400
    y = shallow.init_state(W, 10)
    return ratio(lambda: shallow.velocity(0.0, y), lambda: deep.velocity(0.0, y), 101)


def rgd_case(kind: type[DLRAFlow], device: torch.device = CPU):
    """HLZ's workload: X of rank 5, n = 100, 100 random starts; the flow, the starts, a step."""
    Q = torch.linalg.qr(draw(100, 5, device=device)).Q
    sigma = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2], dtype=torch.float64, device=device)
    X = (Q * sigma) @ Q.mT
    flow = kind(MatrixApproximation(X))
    H = draw(100, 100, 5, device=device)
    K = H.mT if kind is PSDDLRAFlow else draw(100, 5, 100, seed=1, device=device)
    y = flow.init_state(H @ K / 100, 5)
    step = bound(ProjectedRungeKutta(1), flow)
    return X, y, lambda: step(0.0, y, 0.2)


def pymanopt_loop(X: torch.Tensor, y: tuple[torch.Tensor, ...]):
    """A loop of Pymanopt's own gradient and retraction over the starts, in its embedded metric.

    Its PSDFixedRank is another geometry, the quotient of n×r matrices by rotations; HLZ's is the
    embedded one, which Pymanopt has for general matrices of fixed rank.
    """
    import numpy as np
    from pymanopt.manifolds import FixedRankEmbedded  # pyright: ignore[reportMissingImports]

    manifold = FixedRankEmbedded(100, 100, 5)
    U, S = y[:2]
    V = y[2] if len(y) == 3 else U
    points = [
        type(manifold.random_point())(*(np.ascontiguousarray(part) for part in parts))
        for parts in zip(U.numpy(), S.diagonal(dim1=-2, dim2=-1).numpy(), V.mT.numpy(), strict=True)
    ]
    target = X.numpy()

    def loop() -> None:
        for u, s, vt in points:
            G = (u * s) @ vt - target
            partials = (G @ (vt.T * s), np.einsum("ij,ij->j", u, G @ vt.T), (G.T @ (u * s)).T)
            point = type(points[0])(u, s, vt)
            rgrad = manifold.euclidean_to_riemannian_gradient(point, partials)
            manifold.retraction(point, rgrad * -0.2)

    return loop


@line("rgd-psd-pymanopt", "times faster", at_least=12, processor=PYMANOPT)
def rgd_psd_pymanopt() -> float:
    """A Riemannian gradient step of 100 starts, n = 100, r = 5, as in HLZ §5: Pymanopt's loop.

    Per trajectory: gradient of ½‖Z − X‖² in factors, projection, retraction.
    """
    X, y, step = rgd_case(PSDDLRAFlow)
    return ratio(step, pymanopt_loop(X, y), 31)


@line("rgd-pymanopt", "times faster", at_least=5, processor=PYMANOPT)
def rgd_pymanopt() -> float:
    """The same on general matrices, which need two factors instead of one."""
    X, y, step = rgd_case(DLRAFlow)
    return ratio(step, pymanopt_loop(X, y), 31)


def rgd_limit(kind: type[DLRAFlow], device: torch.device) -> float:
    """The time of a step over the least one that its flops and bytes allow.

    Flops are those of XV (and XᵀU) and of five more products with n×r matrices for each factor, at
    torch.mm's rate for 100×100 times 100×500; bytes those of reading and writing the factors, at
    the rate of a copy. Both are measured in turns with the step.
    """
    n, r, repeats = 100, 5, 100
    factors = 2 if kind is DLRAFlow else 1
    X, _, step = rgd_case(kind, device)
    columns = draw(n, repeats * r, device=device)
    source = draw(factors, repeats, n, r, device=device)
    flops = factors * repeats * (n * n * r + 5 * n * r * r)
    share = flops / (n * n * repeats * r)  # of the flops of the one product that is timed
    products = 1 / ratio(step, lambda: torch.mm(X, columns), 31) / share
    copies = 1 / ratio(step, source.clone, 31)
    return min(products, copies)


@line("rgd-bound", "times its limit")
def rgd_bound(device: torch.device) -> float:
    """The step of rgd-pymanopt over the bound that its flops and bytes set."""
    return rgd_limit(DLRAFlow, device)


@line("rgd-psd-bound", "times its limit")
def rgd_psd_bound(device: torch.device) -> float:
    """The step of rgd-psd-pymanopt over the bound that its flops and bytes set."""
    return rgd_limit(PSDDLRAFlow, device)


def tiny_case():
    """The layer flow of N = 3, d = 4 and a batch of 10⁴ random starts."""
    flow = LayerFlow(gaussian_autoencoder(4, 12))
    return flow, flow.init_state([0.3 * draw(10_000, 4, 4, seed=j) for j in range(3)])


@line("tiny-rk4", "steps/s", at_least=1e6, processor=COMPILED)
def tiny_rk4() -> float:
    """RK4 steps per second of N = 3, d = 4 networks in a batch of 10⁴, in compiled code."""
    flow, y = tiny_case()
    step = bound(Compiled(RK4()), flow)  # a step of deeplin.solve
    return 10_000 / seconds(lambda: step(0.0, y, 1e-2), 30)


@line("tiny-rk4-torch", "times faster", at_least=2, processor=COMPILED)
def tiny_rk4_torch() -> float:
    """The same steps by torch's elementwise products, batch innermost, over the compiled ones."""
    flow, y = tiny_case()
    ours, theirs = bound(Compiled(RK4()), flow), bound(RK4(), flow)
    return ratio(lambda: ours(0.0, y, 1e-2), lambda: theirs(0.0, y, 1e-2), 15)
