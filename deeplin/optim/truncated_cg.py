"""The trust region's model, minimised by conjugate gradients that stop at its border."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deeplin.optim.space import Space, Vector

__all__ = ["Model", "ModelStep", "truncated_cg"]


@dataclass(frozen=True)
class Model:
    """m(η) = ⟨g, η⟩ + ½⟨η, Hη⟩ for tangent vectors η at x, of each matrix of a batch.

    - `hessian`: η ↦ Hη; `precondition`: an approximate inverse, symmetric positive definite
    - `narrowed`: the model of some matrices of the batch alone, where it can be had
    """

    space: Space
    x: Vector
    gradient: Vector
    hessian: Callable[[Vector], list[Tensor]]
    precondition: Callable[[Vector], Vector]
    narrowed: Callable[[Bool[Tensor, "*batch"]], Model] | None = None


@dataclass
class ModelStep:
    """A step η, and what the model m(η) says of it.

    Shapes: change = m(η), at_border (*batch).
    """

    step: list[Tensor]
    change: Float[Tensor, "*batch"]
    at_border: Bool[Tensor, "*batch"]


@dataclass
class _State:
    """What is known after some steps of CG: η, −g − Hη, the direction d, and their products.

    The numbers of the matrices are NumPy's: on one number its operations cost a tenth of torch's.
    """

    step: list[Tensor]
    residual: Vector
    direction: list[Tensor]
    change: np.ndarray
    at_border: np.ndarray
    radius: np.ndarray
    goal: np.ndarray
    running: np.ndarray
    z_r: np.ndarray
    e_Pe: np.ndarray
    e_Pd: np.ndarray
    d_Pd: np.ndarray

    def of(self, which: np.ndarray) -> _State:
        """The state of some matrices of the batch."""
        index = torch.as_tensor(which)

        def part(value: np.ndarray | Vector) -> np.ndarray | list[Tensor]:
            return value[which] if isinstance(value, np.ndarray) else [v[index] for v in value]

        return _State(**{name: part(value) for name, value in vars(self).items()})  # pyright: ignore

    def put(self, which: np.ndarray, found: _State) -> None:
        """Takes over the steps of some matrices."""
        index = torch.as_tensor(which)
        for own, other in zip(self.step, found.step, strict=True):
            own[index] = other
        self.change[which], self.at_border[which] = found.change, found.at_border


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()[()]


def _factor(numbers: np.ndarray, like: Vector) -> Tensor | float:
    if numbers.ndim == 0:
        return float(numbers)
    return torch.as_tensor(numbers, device=like[0].device)


def truncated_cg(
    model: Model,
    radius: Float[Tensor, "*batch"],
    goal: Float[Tensor, "*batch"],
    active: Bool[Tensor, "*batch"],
    most: int,
) -> ModelStep:
    """min m(η) over ‖η‖_{P⁻¹} ≤ Δ, approximately: linear CG with Steihaug's and Toint's stops.

    Where CG meets negative curvature, or leaves the region, it goes along its direction to the
    border and ends. Otherwise it ends when ‖g + Hη‖ ≤ `goal`, or where round-off lets the model
    rise. Each matrix of the batch ends by itself; once half of them have, and `model.narrowed` is
    there, products are taken with the Hessians of the others alone.

    Source: [AMS08], Algorithm 11, as Steihaug and Toint have it.
    Cost: a product with the Hessian for each step of CG.
    """
    residual = [-part for part in model.gradient]
    z = model.precondition(residual)
    z_r = _numbers(model.space.inner(model.x, z, residual))
    zero = 0 * z_r
    with np.errstate(all="ignore"):
        found = _iterated(
            model,
            _State(
                step=[torch.zeros_like(part) for part in residual],
                change=zero,
                at_border=zero > 0,
                residual=residual,
                direction=list(z),
                radius=_numbers(radius),
                goal=_numbers(goal),
                running=_numbers(active) & (z_r > 0),
                z_r=z_r,
                e_Pe=zero,
                e_Pd=zero,
                d_Pd=z_r,
            ),
            most,
        )
    change, at_border = (
        torch.as_tensor(numbers, device=radius.device)
        for numbers in (found.change, found.at_border)
    )
    return ModelStep(found.step, change.to(radius.dtype), at_border)


def _iterated(model: Model, s: _State, most: int) -> _State:
    """After at most so many steps of CG. What has ended moves by 0 times its direction."""
    space, x = model.space, model.x

    def inner(u: Vector, v: Vector) -> np.ndarray:
        return _numbers(space.inner(x, u, v))

    for k in range(most):
        running = np.count_nonzero(s.running)
        if running == 0:
            break
        if model.narrowed is not None and 2 * running <= s.running.size:
            which = s.running
            s.put(which, _iterated(model.narrowed(torch.as_tensor(which)), s.of(which), most - k))
            break
        H = model.hessian(s.direction)
        curvature = inner(s.direction, H)
        alpha = s.z_r / curvature
        ahead = s.e_Pe + alpha * (2 * s.e_Pd + alpha * s.d_Pd)
        inside = (curvature > 0) & (ahead < s.radius**2)
        room = s.d_Pd * np.maximum(s.radius**2 - s.e_Pe, 0)
        length = np.where(inside, alpha, (np.sqrt(s.e_Pd**2 + room) - s.e_Pd) / s.d_Pd)
        gain = length * (inner(s.direction, s.residual) - 0.5 * length * curvature)
        # No gain is round-off, inside: CG lowers the model. Nothing finite: the Hessian is not.
        finite = np.isfinite(gain)
        good = s.running & finite & (~inside | (gain > 0))
        if np.any(s.running & ~finite):
            zeros = [torch.zeros_like(part) for part in H]
            H = space.where(torch.as_tensor(finite, device=H[0].device), H, zeros)
        length = np.where(good, length, 0)
        s.step = space.plus(s.step, _factor(length, H), s.direction)
        s.change = s.change - np.where(good, gain, 0)
        s.at_border = s.at_border | (good & ~inside)
        s.residual = space.plus(s.residual, _factor(-length, H), H)
        square = space.inner(x, s.residual, s.residual)
        s.running = good & inside & (np.sqrt(np.maximum(_numbers(square), 0)) > s.goal)
        z = model.precondition(s.residual)
        z_r = _numbers(square if z is s.residual else space.inner(x, z, s.residual))
        beta = np.where(s.running, z_r / s.z_r, 0)
        s.direction = space.plus(z, _factor(beta, H), s.direction)
        s.e_Pe, s.e_Pd = ahead, beta * (s.e_Pd + alpha * s.d_Pd)
        s.z_r, s.d_Pd = z_r, z_r + beta**2 * s.d_Pd
    return s
