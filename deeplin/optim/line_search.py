"""Step lengths along R_x(td): exact for quadratic losses, else by the strong Wolfe conditions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deeplin.optim.objectives import Objective
from deeplin.optim.space import Vector

__all__ = ["Landing", "search"]


@dataclass
class Landing:
    """Where a line search has come to, and what is known there.

    Shapes: loss, length, decreased (*batch).
    """

    x: list[Tensor]
    loss: Float[Tensor, "*batch"]
    gradient: list[Tensor]
    length: Float[Tensor, "*batch"]
    decreased: Bool[Tensor, "*batch"]


def search(
    objective: Objective,
    x: Vector,
    loss: Float[Tensor, "*batch"],
    gradient: Vector,
    direction: Vector,
    slope: Float[Tensor, "*batch"],
    first: Float[Tensor, "*batch"],
    active: Bool[Tensor, "*batch"],
    *,
    decrease: float,
    curvature: float,
    most: int,
    exact: bool,
) -> Landing:
    """A point y = R_x(td) with f(y) ≤ f(x) + c_1 t φ' and, unless exact, |φ'(t)| ≤ c_2 |φ'|.

    φ(t) = f(R_x(td)), φ' = `slope` < 0, and φ'(t) = ⟨grad f(y), T(d)⟩. The interval [low, high]
    holds such a t: it begins as [0, ∞), a step that is too long or past the minimum becomes its
    end, one that is too short its begin; the next is where the secant of the slopes has its zero,
    kept away from the ends, or four times as far. Where f changes by less than √ε|f|, of which
    round-off may be any part, the first condition is read from the slopes: φ'(t) ≤ (1 − 2c_1)|φ'|.
    Each matrix of the batch has its own interval; one that has arrived stays. After `most`
    evaluations each takes the best point seen; where that is x, `decreased` is False.

    With `exact`, first steps are those of a quadratic: the slopes are not asked, and a step that
    does not decrease the loss is halved.

    Source: conditions [NW06], (3.7); approximate ones [HZ05], (4.1).
    """
    space, eps = objective.space, torch.finfo(loss.dtype).eps
    low, high = torch.zeros_like(loss), torch.full_like(loss, torch.inf)
    low_slope, high_slope = slope.clone(), torch.full_like(loss, torch.nan)
    best = Landing(list(x), loss.clone(), list(gradient), torch.zeros_like(loss), ~active)
    best.decreased = torch.zeros_like(active)
    t, running = first.clone(), active.clone()
    for _ in range(most):
        step = space.scaled(torch.where(running, t, 0.0), direction)
        y = space.where(running, space.retract(x, step), x)
        f, g = objective.evaluate(y)
        there = slope
        if exact:
            enough = f <= loss + decrease * t * slope + 10 * eps * loss.abs()
            done = enough
        else:
            there = space.across(x, direction, y, g)
            plain = f <= loss + decrease * t * slope
            blurred = (f <= loss + eps**0.5 * loss.abs()) & (there <= (2 * decrease - 1) * slope)
            enough = plain | blurred
            done = enough & (there.abs() <= -curvature * slope)
        finite = torch.isfinite(f)
        enough, done = enough & finite, done & finite
        better = running & finite & (done | (enough & (f < best.loss)))
        best = Landing(
            space.where(better, y, best.x),
            torch.where(better, f, best.loss),
            space.where(better, g, best.gradient),
            torch.where(better, t, best.length),
            best.decreased | better,
        )
        running = running & ~done
        if not bool(running.any()):
            break
        if exact:
            t = torch.where(running, t / 2, t)
            continue
        past = ~enough | (there > 0)
        high = torch.where(running & past, t, high)
        high_slope = torch.where(running & past, there, high_slope)
        low = torch.where(running & ~past, t, low)
        low_slope = torch.where(running & ~past, there, low_slope)
        width = high - low
        share = (low_slope / (low_slope - high_slope)).nan_to_num(nan=0.5).clamp(0.1, 0.9)
        inside = low + torch.where(high_slope > 0, share, 0.5) * width
        t = torch.where(running, torch.where(torch.isinf(high), 4 * t, inside), t)
    space.move(best.x)
    return best
