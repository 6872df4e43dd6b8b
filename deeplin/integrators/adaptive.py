"""Steps chosen by the error, for each trajectory of a batch by its own."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from deeplin.flows.contract import Flow, State
from deeplin.integrators.contract import ErrorControlled
from deeplin.integrators.explicit import DormandPrince

__all__ = ["AdaptiveStepper"]

_LEAST, _MOST, _SAFETY, _MEMORY = 0.2, 10.0, 0.9, 0.2


class AdaptiveStepper:
    """An `ErrorControlled` method in which every trajectory of a batch keeps its own time and step.

    The method is Dormand–Prince 5(4) unless given: `chebyshev.RKC` or `rosenbrock.Rosenbrock` for
    stiff flows.

    A step is accepted when, for each tensor of the state, ‖error‖_F <= atol + rtol·‖y‖_F (and,
    if the method has a `motion_tol`, what it tolerates of the step's own motion); the next one
    follows by a PI controller. For tensors of logarithms (`flow.logarithmic_parts`) ‖y‖ counts
    as 1: their errors are relative already. Trajectories run freely past the asked times, whose
    states come from the dense output: a step is never cut short to meet a time.

    Why our own: torchdiffeq's dopri5 controls one norm of the whole batch, so that the fastest
    trajectory sets everybody's step and hides behind everybody's error; torchode controls each,
    but on one flat tensor of features and without a place to renew a flow's coordinates
    (`flow.normalised`) between steps, which is where rank and sign are kept.

    `advance` is one *stretch* of the loop, of length at most dt, over as many steps as it takes;
    `step` counts stretches, `steps_taken` the accepted steps of each trajectory.

    Shapes: batch dimensions are those that the flow's end-to-end matrix has before its last two;
    a flow without that method has one trajectory.
    Accuracy: the local error per step is below the tolerance; the global one usually near it.
    Raises: ValueError for tolerances that are not >= 0 and dt <= 0.
    """

    max_steps = 1_000_000

    def __init__(
        self,
        flow: Flow,
        y0: State,
        *,
        rtol: float = 1e-6,
        atol: float = 1e-9,
        dt: float = math.inf,
        integrator: ErrorControlled | None = None,
    ):
        for name, value in (("rtol", rtol), ("atol", atol)):
            if not 0 <= value < math.inf or max(rtol, atol) == 0:
                raise ValueError(f"{name} must be >= 0, and one of rtol, atol > 0; got {value}.")
        if not dt > 0:
            raise ValueError(f"dt must be positive; got {dt}.")
        self.flow, self.rtol, self.atol, self.dt = flow, rtol, atol, dt
        # A copy: what a method remembers belongs to this run.
        self.integrator = DormandPrince() if integrator is None else copy.copy(integrator)
        self.t, self.step, self.state = 0.0, 0, tuple(y0)
        zero = y0[0].new_zeros(flow.batch_shape(self.state), dtype=torch.float64)
        self._times, self._ends = zero, self.state  # each trajectory's own time, and state then
        self._begins, self._spans, self._stages = self.state, zero, None
        self._h, self._memory = self._first_step(zero), torch.full_like(zero, 1e-4)
        self.steps_taken = zero.long()
        self._trouble: str | None = None

    # -- the loop's side -----------------------------------------------------------------------

    def advance(self, target: float) -> None:
        """All trajectories to min(target, t + dt), each by its own steps."""
        goal = min(target, self.t + self.dt)
        count = 0
        while bool((behind := self._times < goal).any()):
            self._attempt(behind)
            count += 1
            small = behind & (self._h < 1e-14 * (self._times.abs() + 1e-300))
            if bool(small.any()) or count > self.max_steps:
                self._trouble = (
                    f"the steps that rtol = {self.rtol:.2g}, atol = {self.atol:.2g} ask for fell "
                    f"to {float(self._h.min()):.2g} at t = {float(self._times.min()):.6g}: the "
                    "solution ends there, or the tolerance is below round-off; take a larger rtol."
                )
                goal = float(self._times.min())
                break
        self.t, self.step, self.state = goal, self.step + 1, self._at(goal)

    def fault(self) -> str | None:
        """Why it cannot go on, if so."""
        return self._trouble

    def remark(self) -> str | None:
        return self.flow.remark(self.state)

    def state_dict(self) -> dict[str, Any]:
        return {
            "t": self.t,
            "step": self.step,
            "state": list(self.state),
            "ends": list(self._ends),
            "begins": list(self._begins),
            "stages": None if self._stages is None else [list(k) for k in self._stages],
            "clocks": [self._times, self._spans, self._h, self._memory, self.steps_taken],
            "memory": self.integrator.memory,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.t, self.step = saved["t"], saved["step"]
        self.state, self._ends = tuple(saved["state"]), tuple(saved["ends"])
        self._begins = tuple(saved["begins"])
        stages = saved["stages"]
        self._stages = None if stages is None else [tuple(k) for k in stages]
        self._times, self._spans, self._h, self._memory, self.steps_taken = saved["clocks"]
        self.integrator.memory = saved.get("memory")

    # -- one step ------------------------------------------------------------------------------

    def _attempt(self, active: Tensor) -> None:
        """One step of every active trajectory, kept where its error is within the tolerance."""
        y, length = self._ends, self.integrator.limited(self._h)
        h = torch.where(active, length, 0.0).to(y[0].dtype)
        k1 = None
        if self.integrator.reuses_last_stage and not self.flow.normalises and self._fresh:
            k1 = None if self._stages is None else self._stages[-1]
        end, error, stages = self.integrator.stages(self.flow, 0.0, y, h, k1)
        ratio = self._ratio(error, y, end, length)
        settled = self.flow.normalised(end, y)
        finite = torch.isfinite(ratio)
        for part in settled:
            finite = finite & torch.isfinite(part).flatten(ratio.ndim).all(-1)
        ratio = torch.where(finite, ratio.clamp(min=1e-10), math.inf)
        accepted = active & (ratio <= 1)
        self._fresh = bool(accepted.all())
        q = self.integrator.error_order
        growth = _SAFETY * ratio ** ((0.75 * _MEMORY - 1) / q) * self._memory ** (_MEMORY / q)
        growth = growth.clamp(_LEAST, _MOST)
        growth = torch.where(accepted, growth, growth.clamp(max=1.0))
        if self._fresh:
            self._begins, self._ends, self._spans, self._stages = y, settled, length, stages
        else:
            old = stages if self._stages is None else self._stages
            self._stages = [self._chosen(accepted, a, b) for a, b in zip(stages, old, strict=True)]
            self._begins = self._chosen(accepted, y, self._begins)
            self._ends = self._chosen(accepted, settled, self._ends)
            self._spans = torch.where(accepted, length, self._spans)
        self._times = torch.where(accepted, self._times + length, self._times)
        self._memory = torch.where(accepted, ratio.clamp(min=1e-4), self._memory)
        self._h = torch.where(active, length * growth, self._h)
        self.integrator.judged(accepted, active)
        self.steps_taken = self.steps_taken + accepted

    _fresh = False  # whether the last stage of the last step is the first of the next

    def _ratio(self, error: State, y: State, end: State, length: Tensor) -> Tensor:
        """The largest ‖error‖/(atol + rtol‖y‖) over the tensors of the state, by trajectory."""
        dims = self._times.ndim
        worst = torch.zeros_like(self._times)
        motion = worst
        if self.integrator.motion_tol:
            parts = [(b - a).flatten(dims).double() for a, b in zip(y, end, strict=True)]
            motion = torch.linalg.vector_norm(torch.cat(parts, -1), dim=-1)
        for i, (e, a, b) in enumerate(zip(error, y, end, strict=True)):
            norms = [v.flatten(dims).norm(dim=-1).double() for v in (e, a, b)]
            size = torch.maximum(norms[1], norms[2])
            if i in self.flow.logarithmic_parts:
                size = torch.ones_like(size)
            allowed = self.atol + self.rtol * size
            if self.integrator.motion_tol:
                allowed = self.integrator.tolerated(allowed, size, motion, length)
            worst = torch.maximum(worst, norms[0] / allowed)
        return worst

    def _first_step(self, like: Tensor) -> Tensor:
        """A hundredth of the time in which the state would change by itself."""
        velocity = self.flow.velocity(0.0, self.state)
        h = torch.full_like(like, math.inf)
        for part, rate in zip(self.state, velocity, strict=True):
            size, speed = (v.flatten(like.ndim).norm(dim=-1).double() for v in (part, rate))
            h = torch.minimum(h, 0.01 * (size + self.atol) / speed.clamp(min=1e-300))
        return h.clamp(max=1.0)

    def _chosen(self, mask: Tensor, new: State, old: State) -> State:
        return tuple(
            torch.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b)
            for a, b in zip(new, old, strict=True)
        )

    def _at(self, t: float) -> State:
        """The states at time t, inside everybody's last step."""
        if self._stages is None:
            return self.state
        theta = 1 - (self._times - t) / torch.where(self._spans > 0, self._spans, 1.0)
        dtype = self.state[0].dtype
        inside = self.integrator.dense(
            self._begins, self._spans.to(dtype), self._stages, theta.clamp(0, 1).to(dtype)
        )
        settled = self.flow.normalised(inside, self._begins)
        return self._chosen(theta < 1, settled, self._ends)
