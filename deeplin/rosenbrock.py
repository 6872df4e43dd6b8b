"""A linearly implicit method: one factorisation a step, no limit by stiffness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.integrators import ErrorControlled, Packing, State

__all__ = ["Rosenbrock", "jacobian"]

_GAMMA = 0.25
# Row i: a_ij, the weights of the stages in the argument of the field; the end of the step is the
# argument of stage 6 and stage 6 itself, which is also the estimate of the error.
_A = (
    (),
    (1.544,),
    (0.9466785280815826, 0.2557011698983284),
    (3.314825187068521, 2.896124015972201, 0.9986419139977817),
    (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.6878860361058950),
    (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.6878860361058950, 1.0),
)
_C = (
    (),
    (-5.6688,),
    (-2.430093356833875, -0.2063599157091915),
    (-0.1073529058151375, -9.594562251023355, -20.47028614809616),
    (7.496443313967647, -10.24680431464352, -33.99990352819905, 11.70890893206160),
    (
        8.083246795921522,
        -7.981132988064893,
        -31.52159432874371,
        16.31930543123136,
        -6.058818238834054,
    ),
)
_D = (
    (10.12623508344586, -7.487995877610167, -34.80091861555747, -7.992771707568823, 1.025137723295662, 0.0),
    (-0.6762803392801253, 6.087714651680015, 16.43084320892478, 24.76722511418386, -6.594389125716872, 0.0),
)


class Rosenbrock(ErrorControlled):
    """RODAS, of orders 4(3): L-stable and stiffly accurate; no step is limited by stability.

    The six stages solve (I/(γh) − J)k_i = F(y + Σ_j a_ij k_j) + Σ_j c_ij k_j/h with one matrix, J
    the derivative of the field at y and γ = ¼. J is dense, by differences of the field: a batch of
    D + 1 states per trajectory, D the number of entries of a state, evaluated at once.

    Source: Hairer, Wanner, Solving Ordinary Differential Equations II, §IV.10 (1996).
    Cost: six fields on the batch and one on D + 1 times it, and a factorisation, ⅔D³ flops.
    Accuracy: order 4, dense output of order 3; J is good to about 1e-7 of its norm in float64,
    which is felt where tolerances are below 1e-9.
    Raises: ValueError for states with D > max_size.
    """

    order = 4
    error_order = 4

    def __init__(self, max_size: int = 2000):
        self.max_size = max_size

    def stages(
        self, flow: Any, t: float, y: State, dt: Tensor, k1: State | None = None
    ) -> tuple[State, State, list[State]]:
        """(y(t + dt), the estimate of its error, what the dense output needs)."""
        packing = Packing(y, dt.ndim)
        size = sum(packing.sizes)
        if size > self.max_size:
            raise ValueError(
                f"Rosenbrock needs states of at most max_size = {self.max_size} entries for a "
                f"dense Jacobian; got {size}: take RKC(), or the end-to-end flow at a small rank."
            )

        def field(vector: Tensor) -> Tensor:
            return packing.packed(flow.velocity(t, packing.unpacked(vector)))

        start = packing.packed(y)
        F, J = jacobian(field, start, _scales(packing, y, getattr(flow, "logarithmic_parts", ())))
        h = torch.where(dt > 0, dt, 1.0)[..., None]
        matrix = torch.diag_embed((1 / (_GAMMA * h)).expand_as(start)) - J
        LU, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        weights = start.new_tensor([(*row, *[0.0] * (6 - len(row))) for row in (*_A, *_C, *_D)])
        k = start.new_zeros((6, *start.shape))
        k[0] = torch.linalg.lu_solve(LU, pivots, F[..., None])[..., 0]
        argument = start
        for i in range(1, 6):
            moved, pulled = torch.tensordot(weights[[i, 6 + i], :i], k[:i], 1)
            argument = start + moved
            right = field(argument) + pulled / h
            k[i] = torch.linalg.lu_solve(LU, pivots, right[..., None])[..., 0]
        third, fourth = torch.tensordot(weights[12:], k, 1)
        end = packing.unpacked(argument + k[5])
        error = packing.unpacked(k[5])
        return end, error, [end, packing.unpacked(third), packing.unpacked(fourth)]

    def dense(self, y: State, dt: Tensor, k: Sequence[State], theta: Tensor) -> State:
        result = []
        for y_i, e, c, d in zip(y, *k, strict=True):
            s = theta.reshape(theta.shape + (1,) * (y_i.ndim - theta.ndim))
            result.append(y_i * (1 - s) + s * (e + (1 - s) * (c + s * d)))
        return tuple(result)


def _scales(packing: Packing, y: State, logarithmic: Sequence[int]) -> Tensor:
    """The size of each entry: the root mean square of its tensor, 1 for logarithms."""
    sizes = []
    for i, (part, shape) in enumerate(zip(y, packing.shapes, strict=True)):
        flat = part.flatten(part.ndim - len(shape))
        size = flat.square().mean(-1, keepdim=True).sqrt()
        one = torch.ones_like(size)
        sizes.append((one if i in logarithmic else torch.where(size > 0, size, one)).expand_as(flat))
    return torch.cat(sizes, -1)


def jacobian(
    field: Any, y: Float[Tensor, "*batch D"], scales: Float[Tensor, "*batch D"]
) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch D D"]]:
    """(F(y), DF(y)) by forward differences, of steps eps^{1/2} times the scale of each entry.

    Cost: the field on batches of D + 1 states per trajectory, in pieces of about 2²² entries.
    Accuracy: eps^{1/2}, relative to the norm.
    """
    D = y.shape[-1]
    steps = torch.finfo(y.dtype).eps ** 0.5 * scales
    moved = torch.diag_embed(steps)  # row i moves entry i
    moved = torch.cat([torch.zeros_like(moved[..., :1, :]), moved], -2)
    values = field((y[..., None, :] + moved))
    F = values[..., 0, :]
    # The steps as they were taken, round-off of y + step included.
    return F, ((values[..., 1:, :] - F[..., None, :]) / steps[..., :, None]).mT


