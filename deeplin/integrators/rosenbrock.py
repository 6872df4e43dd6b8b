"""A linearly implicit method: one factorisation a step, no limit by stiffness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.flows.contract import Flow, State
from deeplin.integrators.contract import ErrorControlled
from deeplin.integrators.states import Packing, stage_times

__all__ = ["Rosenbrock", "jacobian"]

_GAMMA = 0.21193756319429014
# a_ij, the weights of the stages in the argument of the field. The arguments of stages 7 and 8 and
# the end of the step are each the one before and the stage there: the last is the error's estimate.
_A = (
    (),
    (3.0,),
    (2.849394379747939, 0.45842242204463923),
    (-6.954028509809101, 2.489845061869568, -10.358996098473584),
    (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
    (
        -7.502846399306121,
        2.561846144803919,
        -11.627539656261098,
        -0.18268767659942256,
        0.030198172008377946,
    ),
)
_C = (
    (),
    (-14.155112264123755,),
    (-17.97296035885952, -2.859693295451294),
    (147.12150275711716, -1.41221402718213, 71.68940251302358),
    (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
    (
        24.854864614690072,
        -3.0009227002832186,
        47.4931110020768,
        5.5814197821558125,
        -0.6610691825249471,
    ),
    (
        30.91273214028599,
        -3.1208243349937974,
        77.79954646070892,
        34.28646028294783,
        -19.097331116725623,
        -28.087943162872662,
    ),
    (
        37.80277123390563,
        -3.2571969029072276,
        112.26918849496327,
        66.9347231244047,
        -40.06618937091002,
        -54.66780262877968,
        -9.48861652309627,
    ),
)
# The stages' weights in the dense output.
_D = (
    (
        25.948786856663858,
        -2.5579724845846235,
        10.433815404888879,
        -2.3679251022685204,
        0.524948541321073,
        1.1241088310450404,
        0.4272876194431874,
        -0.17202221070155493,
    ),
    (
        -9.91568850695171,
        -0.9689944594115154,
        3.0438037242978453,
        -24.495224566215796,
        20.176138334709044,
        15.98066361424651,
        -6.789040303419874,
        -6.710236069923372,
    ),
    (
        11.419903575922262,
        2.8879645146136994,
        72.92137995996029,
        80.12511834622643,
        -52.072871366152654,
        -59.78993625266729,
        -0.15582684282751913,
        4.883087185713722,
    ),
)
_STAGES = len(_C)
_PIECE = 1 << 22


def _clock() -> tuple[list[float], list[float]]:
    """(α_i, γ_i): stage i is at t + α_i h and takes γ_i h ∂F/∂t; what `_A` and `_C` imply.

    On ẏ = 1 all (I/(γh) − J)k_i are 1 + Σ_j c_ij k_j/h: so k_i = γ_i h, and the stage's argument
    has moved by α_i h = Σ_j a_ij k_j.
    """
    nodes: list[float] = []
    slopes: list[float] = []
    for a, c in zip(_ROWS, _C, strict=True):
        nodes.append(sum(w * g for w, g in zip(a, slopes, strict=True)))
        slopes.append(_GAMMA * (1 + sum(w * g for w, g in zip(c, slopes, strict=True))))
    return nodes, slopes


_ROWS = (*_A, (*_A[-1], 1.0), (*_A[-1], 1.0, 1.0))
_NODES, _SLOPES = _clock()


@lru_cache
def _weights(dtype: torch.dtype, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """For each stage the rows (a_ij), (c_ij), (2, i); and those of the dense output."""
    pairs = [
        torch.tensor([a, c], dtype=dtype, device=device) for a, c in zip(_ROWS, _C, strict=True)
    ]
    return pairs, torch.tensor(_D, dtype=dtype, device=device)


class Rosenbrock(ErrorControlled):
    """RODAS5P, of orders 5(4): L-stable and stiffly accurate; no step is limited by stability.

    The eight stages solve
    (I/(γh) − J)k_i = F(t + α_i h, y + Σ_j a_ij k_j) + Σ_j c_ij k_j/h + γ_i h ∂F/∂t
    with one matrix, J the derivative of the field at y. J is dense, by differences of the field: a
    batch of D + 1 states per trajectory, D the number of real entries of a state, evaluated at
    once; ∂F/∂t, where the flow is not `autonomous`, is one more difference.

    Source: [Ste23] (Rodas5P); [HW96], §IV.7 for the form.
    Cost: eight fields on the batch and one on D + 1 times it, one more if not autonomous, and a
    factorisation, ⅔D³ flops.
    Accuracy: order 5, dense output of order 4; J is good to about 1e-7 of its norm in float64.
    Raises: ValueError for states with D > max_size.
    """

    order = error_order = 5

    def __init__(self, max_size: int = 2000):
        self.max_size = max_size

    def stages(
        self, flow: Flow, t: float | Tensor, y: State, dt: Tensor, k1: State | None = None
    ) -> tuple[State, State, list[State]]:
        """(y(t + dt), the estimate of its error, what the dense output needs)."""
        packing = Packing(y, dt.ndim)
        size = sum(packing.sizes)
        if size > self.max_size:
            raise ValueError(
                f"Rosenbrock needs states of at most max_size = {self.max_size} entries for a "
                f"dense Jacobian; got {size}: take RKC(), or the end-to-end flow at a small rank."
            )

        def field(time: float | Tensor, vector: Tensor) -> Tensor:
            return packing.packed(flow.velocity(time, packing.unpacked(vector)))

        def at_start(vector: Tensor) -> Tensor:
            each = t[..., None].expand(vector.shape[:-1]) if isinstance(t, Tensor) else t
            return field(each, vector)

        start = packing.packed(y)
        F, J = jacobian(at_start, start, _scales(packing, start, flow.logarithmic_parts))
        h = torch.where(dt > 0, dt, 1.0)[..., None]
        at, drift = stage_times(flow, t, dt), None
        if not flow.autonomous:
            # Between the round-off of t and of F, and what F_tt adds: their geometric mean.
            eps = torch.finfo(start.dtype).eps
            now = torch.as_tensor(t, dtype=dt.dtype, device=dt.device)
            later = now + (eps * h[..., 0] * torch.maximum(now.abs(), h[..., 0])).sqrt()
            drift = h * (field(later, start) - F) / (later - now)[..., None]
            F = F + _SLOPES[0] * drift
        J.neg_().diagonal(dim1=-2, dim2=-1).add_(1 / (_GAMMA * h))
        LU, pivots, _ = torch.linalg.lu_factor_ex(J)
        pairs, dense = _weights(start.dtype, start.device)
        k = start.new_empty((_STAGES, start.numel()))
        k[0] = torch.linalg.lu_solve(LU, pivots, F[..., None]).flatten()
        argument = start
        for i in range(1, _STAGES):
            moved, pulled = (pairs[i] @ k[:i]).view(2, *start.shape)
            argument = start + moved
            right = field(at(_NODES[i]), argument).addcdiv_(pulled, h)
            if drift is not None:
                right.add_(drift, alpha=_SLOPES[i])
            k[i] = torch.linalg.lu_solve(LU, pivots, right[..., None]).flatten()
        last = k[-1].view(start.shape)
        end, error = packing.unpacked(argument + last), packing.unpacked(last)
        middle = (dense @ k).view(-1, *start.shape)
        return end, error, [end, *map(packing.unpacked, middle)]

    def dense(self, y: State, dt: Tensor, k: Sequence[State], theta: Tensor) -> State:
        result = []
        for y_i, e, *rest in zip(y, *k, strict=True):
            s = theta.reshape(theta.shape + (1,) * (y_i.ndim - theta.ndim))
            b, c, d = rest
            result.append(y_i + s * (e - y_i + (1 - s) * (b + s * (c + s * d))))
        return tuple(result)


def _scales(packing: Packing, y: Tensor, logarithmic: Sequence[int]) -> Tensor:
    """The size of each entry: the root mean square of its tensor, 1 for logarithms and zeros."""
    sizes = []
    for i, flat in enumerate(y.split(packing.sizes, -1)):
        size = flat.square().mean(-1, keepdim=True).sqrt()
        if i in logarithmic:
            size = torch.ones_like(size)
        sizes.append(torch.where(size > 0, size, 1.0).expand_as(flat))
    return torch.cat(sizes, -1)


def jacobian(
    field: Callable[[Tensor], Tensor],
    y: Float[Tensor, "*batch D"],
    scales: Float[Tensor, "*batch D"],
) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch D D"]]:
    """(F(y), DF(y)) by forward differences, of steps eps^{1/2} times the scale of each entry.

    Cost: the field on batches of D + 1 states per trajectory, in pieces of about 2²² entries.
    Accuracy: eps^{1/2}, relative to the norm.
    """
    steps = torch.finfo(y.dtype).eps ** 0.5 * scales
    states = torch.cat([y[..., None, :], y[..., None, :] + torch.diag_embed(steps)], -2)
    pieces = states.split(max(1, _PIECE // y.numel()), -2)
    values = torch.cat([field(piece) for piece in pieces], -2) if pieces[1:] else field(states)
    F = values[..., 0, :]
    return F, ((values[..., 1:, :] - F[..., None, :]) / steps[..., :, None]).mT
