"""The trust region's model, minimised by conjugate gradients that stop at its border."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deeplin.optim.space import Space, Vector

__all__ = ["ModelStep", "truncated_cg"]


@dataclass
class ModelStep:
    """A step η, and what the model m(η) = ⟨g, η⟩ + ½⟨η, Hη⟩ says of it.

    Shapes: change = m(η), at_border (*batch).
    """

    step: list[Tensor]
    change: Float[Tensor, "*batch"]
    at_border: Bool[Tensor, "*batch"]


def truncated_cg(
    space: Space,
    x: Vector,
    gradient: Vector,
    hessian: Callable[[Vector], list[Tensor]],
    precondition: Callable[[Vector], Vector],
    radius: Float[Tensor, "*batch"],
    active: Bool[Tensor, "*batch"],
    *,
    theta: float,
    kappa: float,
    most: int,
) -> ModelStep:
    """min m(η) over ‖η‖_{P⁻¹} ≤ Δ, approximately: linear CG with Steihaug's and Toint's stops.

    Where CG meets negative curvature, or leaves the region, it goes along its direction to the
    border and ends. Otherwise it ends when ‖g + Hη‖ ≤ ‖g‖ min(‖g‖^θ, κ), or where round-off lets
    the model rise. Each matrix of the batch ends by itself; the products with the Hessian go on
    until all have.

    Source: [AMS08], Algorithm 11, as Steihaug and Toint have it; θ and κ: §7.3.2 there.
    Cost: a product with the Hessian for each step of CG.
    """
    zero = torch.zeros_like(radius)
    eta, model = [torch.zeros_like(part) for part in gradient], zero
    H_eta = [torch.zeros_like(part) for part in gradient]
    residual = list(gradient)
    z = precondition(residual)
    delta = [-part for part in z]
    norm0 = space.norm(x, residual)
    goal = norm0 * torch.minimum(norm0**theta, torch.full_like(norm0, kappa))
    z_r = space.inner(x, z, residual)
    e_Pe, e_Pd, d_Pd = zero, zero, z_r
    at_border, running = torch.zeros_like(active), active & (z_r > 0)
    for _ in range(most):
        if not bool(running.any()):
            break
        H_delta = hessian(delta)
        curvature = space.inner(x, delta, H_delta)
        alpha = z_r / curvature
        ahead = e_Pe + 2 * alpha * e_Pd + alpha**2 * d_Pd
        leaves = running & ~((curvature > 0) & (ahead < radius**2))
        inside = (e_Pd**2 + d_Pd * (radius**2 - e_Pe).clamp(min=0)).sqrt()
        to_border = (inside - e_Pd) / d_Pd
        length = torch.where(running, torch.where(leaves, to_border, alpha), 0.0)
        new_eta = space.plus(eta, length, delta)
        new_H = space.plus(H_eta, length, H_delta)
        new_model = space.inner(x, new_eta, gradient) + 0.5 * space.inner(x, new_eta, new_H)
        # A rise is round-off, inside: CG lowers the model. Nothing finite: the Hessian is not.
        good = running & (leaves | (new_model < model)) & torch.isfinite(new_model)
        eta, H_eta = space.where(good, new_eta, eta), space.where(good, new_H, H_eta)
        model = torch.where(good, new_model, model)
        at_border = at_border | (leaves & good)
        running = good & ~leaves
        residual = space.where(running, space.plus(residual, length, H_delta), residual)
        running = running & (space.norm(x, residual) > goal)
        e_Pe = torch.where(running, ahead, e_Pe)
        z = precondition(residual)
        new_z_r = space.inner(x, z, residual)
        beta = torch.where(running, new_z_r / z_r, 0.0)
        delta = space.where(running, space.plus([-part for part in z], beta, delta), delta)
        e_Pd = torch.where(running, beta * (e_Pd + alpha * d_Pd), e_Pd)
        d_Pd = torch.where(running, new_z_r + beta**2 * d_Pd, d_Pd)
        z_r = torch.where(running, new_z_r, z_r)
    return ModelStep(eta, model, at_border)
