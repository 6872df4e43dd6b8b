"""A stabilised explicit method: stages buy stability, as the square of their number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypedDict, cast

import torch
from torch import Tensor

from deeplin.flows.contract import Flow, State
from deeplin.integrators.contract import ErrorControlled
from deeplin.integrators.states import Packing, hermite, stage_times

__all__ = ["RKC"]

_DAMPING = 2 / 13


class _Known(TypedDict):
    """What is carried from step to step: ρ and its vector by trajectory, and for how many steps."""

    radius: Tensor
    vector: Tensor
    age: int


class RKC(ErrorControlled):
    """The Runge–Kutta–Chebyshev method of order 2, for stiffness that is real and negative.

    With T_j the Chebyshev polynomials, w_0 = 1 + ε/s², w_1 = T_s'(w_0)/T_s''(w_0),
    b_j = T_j''(w_0)/T_j'(w_0)², a_j = 1 − b_jT_j(w_0), the stages are
    Y_1 = Y_0 + (w_1/w_0) hF_0,
    Y_j = Y_0 + μ_j(Y_{j−1} − Y_0) + ν_j(Y_{j−2} − Y_0) + m_j h(F_{j−1} − a_{j−1}F_0),
    μ_j = 2w_0 b_j/b_{j−1}, ν_j = −b_j/b_{j−2}, m_j = 2w_1 b_j/b_{j−1}, F_j the field at Y_j and
    t + c_j h, c_j what the same recurrence makes of the field 1. They are stable for
    hρ ≤ about 0.65 s², ρ the spectral radius of the field's derivative, so that a time T takes
    about T·(1.54 ρ/h)^{1/2} fields where other explicit methods take some ρT. No matrix is
    formed. Gradient flows have such spectra near an optimum. ρ comes from a power iteration on
    differences of the field, 1.2 times its value, renewed every 25 steps and after a rejected one.

    The estimate of the error is ⅘(y_0 − y_1) + ⅖h(F_0 + F_1); dense output by cubic Hermite.

    Without a limit by stability steps grow without bound once a flow has come to rest within the
    tolerance, and the rate at which it does is lost. So an error must also be below `motion_tol`
    of what the step moves (0: no such rule): with the default, rates of decay are good to about
    half a per cent, down to round-off.

    Source: [SSV98] (RKC), damping ε = 2/13.
    Shapes: in a batch the number of stages is the largest that a trajectory needs.
    Cost: s = 1 + (1 + 1.54 hρ)^{1/2} fields a step, and a few in 25 steps for ρ.
    Accuracy: order 2; 3 between the ends of a step. Round-off grows like s²·eps, and steps that
    would need more than `max_stages` are cut.
    Raises: ValueError for max_stages < 2 or motion_tol < 0.
    """

    order = 2
    error_order = 3
    reuses_last_stage = True
    _renewal, _iterations = 25, 50

    def __init__(self, max_stages: int = 10_000, motion_tol: float = 3e-3):
        if max_stages < 2:
            raise ValueError(f"RKC(max_stages=...) must be >= 2; got {max_stages}.")
        if not motion_tol >= 0:
            raise ValueError(f"RKC(motion_tol=...) must be >= 0; got {motion_tol}.")
        self.max_stages, self.motion_tol = max_stages, motion_tol

    def stages(
        self, flow: Flow, t: float | Tensor, y: State, dt: Tensor, k1: State | None = None
    ) -> tuple[State, State, list[State]]:
        """(y(t + dt), the estimate of its error, [the end, F_0, F_1])."""
        packing = Packing(y, dt.ndim)
        at = stage_times(flow, t, dt)

        def field(vector: Tensor, c: float = 0.0) -> Tensor:
            return packing.packed(flow.velocity(at(c), packing.unpacked(vector)))

        start = packing.packed(y)
        F0 = field(start) if k1 is None else packing.packed(k1)
        h: float | Tensor = dt[..., None] if dt.ndim else float(dt)
        s = self._number(dt * self._radius(field, start, F0, dt != 0))
        first, rows = _coefficients(s)
        hF0 = h * F0
        older, old = torch.zeros_like(start), first * hF0
        for mu, nu, m, a, c in rows:
            F = field(start + old, c)
            new = (F if dt.ndim == 0 else h * F).mul_(m if dt.ndim else m * h)
            new.add_(hF0, alpha=-m * a).add_(old, alpha=mu).add_(older, alpha=nu)
            older, old = old, new
        F1 = field(start + old, 1.0)
        error = (0.4 * h) * (F0 + F1) - 0.8 * old
        end = packing.unpacked(start + old)
        k = [end, packing.unpacked(F0), packing.unpacked(F1)]
        return end, packing.unpacked(error), k

    def dense(self, y: State, dt: Tensor, k: Sequence[State], theta: Tensor) -> State:
        return hermite(y, k[0], dt, k[1], k[2], theta)

    @property
    def _known(self) -> _Known | None:
        return cast("_Known | None", self.memory)

    def limited(self, dt: Tensor) -> Tensor:
        known = self._known
        if known is None:
            return dt
        longest = (self.max_stages - 1) ** 2 - 1
        return torch.minimum(dt, longest / (1.54 * known["radius"].clamp(min=1e-300)))

    def tolerated(self, allowed: Tensor, size: Tensor, motion: Tensor, dt: Tensor) -> Tensor:
        known = self._known
        if known is None:
            return allowed
        # F is known to eps·ρ‖y‖, and so the estimate to h times that.
        eps = torch.finfo(known["vector"].dtype).eps
        noise = 4 * eps * size * dt * known["radius"].double()
        return torch.minimum(allowed, torch.maximum(self.motion_tol * motion, noise))

    def judged(self, accepted: Tensor, active: Tensor) -> None:
        if self.memory is not None and bool((active & ~accepted).any()):
            self.memory = {**self.memory, "age": self._renewal}

    def _number(self, z: Tensor) -> int:
        """The least s >= 2 that is stable for all of z = hρ."""
        largest = float(z.max())
        if not math.isfinite(largest):
            return 2
        return max(2, min(1 + int(math.sqrt(1 + 1.54 * largest)), self.max_stages))

    def _radius(
        self, field: Callable[[Tensor], Tensor], y: Tensor, F0: Tensor, active: Tensor
    ) -> Tensor:
        """The spectral radius of the field's derivative at y, by trajectory, 1.2 times too large.

        v ← y + δ(F(v) − F(y))/‖F(v) − F(y)‖, from the last vector found.
        """
        known = self._known
        if known is not None and known["age"] < self._renewal and known["vector"].shape == y.shape:
            radius, age = known["radius"], known["age"] + 1
            self.memory = {"radius": radius, "vector": known["vector"], "age": age}
            return radius
        norm = _norm(y)
        size = torch.finfo(y.dtype).eps ** 0.5 * torch.where(norm > 0, norm, 1.0)
        if known is None or known["vector"].shape != y.shape:
            generator = torch.Generator().manual_seed(0)
            vector = torch.randn(y.shape, dtype=y.dtype, generator=generator).to(y.device)
        else:
            vector = known["vector"]
        radius, last = torch.zeros_like(norm), None
        for _ in range(self._iterations):
            vector = vector * (size / _norm(vector).clamp(min=1e-300))
            change = field(y + vector) - F0
            radius = _norm(change) / size
            usable = (radius > 0) & torch.isfinite(radius)
            vector = torch.where(usable, change, vector)
            if last is not None:
                moved = (radius - last).abs() > 0.01 * radius
                if not bool((moved[..., 0] & active).any()):
                    break
            last = radius
        radius = 1.2 * radius[..., 0].nan_to_num(0.0, 0.0)  # 0 where the field is not finite
        self.memory = {"radius": radius, "vector": vector, "age": 1}
        return radius


def _norm(vector: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vector, dim=-1, keepdim=True)


@lru_cache(maxsize=64)
def _coefficients(s: int) -> tuple[float, list[tuple[float, float, float, float, float]]]:
    """(m_1, [(μ_j, ν_j, m_j, a_{j−1}, c_{j−1}) for j = 2..s])."""
    w0 = 1 + _DAMPING / s**2
    T, dT, ddT = [1.0, w0], [0.0, 1.0], [0.0, 0.0]
    for _ in range(2, s + 1):
        T.append(2 * w0 * T[-1] - T[-2])
        dT.append(2 * T[-2] + 2 * w0 * dT[-1] - dT[-2])
        ddT.append(4 * dT[-2] + 2 * w0 * ddT[-1] - ddT[-2])
    w1 = dT[s] / ddT[s]
    b = [0.0, 1 / w0, *(ddT[j] / dT[j] ** 2 for j in range(2, s + 1))]
    b[0] = b[2]
    rows, before, c = [], 0.0, w1 * b[1]
    for j in range(2, s + 1):
        quotient = 2 * b[j] / b[j - 1]
        a = 1 - b[j - 1] * T[j - 1]
        mu, nu, m = w0 * quotient, -b[j] / b[j - 2], w1 * quotient
        rows.append((mu, nu, m, a, c))
        before, c = c, mu * c + nu * before + m * (1 - a)
    return w1 * b[1], rows
