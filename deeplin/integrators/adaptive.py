"""Steps chosen by the error, for each trajectory of a batch by its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypedDict, cast

import torch
from torch import Tensor

from deeplin.flows.contract import Flow, State
from deeplin.integrators.batches import Frozen, checked_start
from deeplin.integrators.contract import ErrorControlled, Memory
from deeplin.integrators.explicit import DormandPrince

__all__ = ["AdaptiveStepper"]

_LEAST, _MOST, _SAFETY, _MEMORY = 0.2, 10.0, 0.9, 0.2
# How many steps show a pace; at more than so many ahead, days at a microsecond each, none arrives.
_SEEN, _ENDLESS = 2_000, 1e12


class _Saved(TypedDict):
    t: float
    goal: float
    stretches: int
    ends: list[Tensor]
    begins: list[Tensor]
    stages: list[list[Tensor]] | None
    clocks: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    memory: Memory | None
    pace: tuple[int, Tensor]
    steps_before: int
    frozen: object
    working: list[Tensor]


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

    `advance` is one *stretch*, of length at most `stretch`, over as many steps as it takes.
    `steps_taken` counts the accepted steps of each trajectory, `step` is the largest of them; `dt`
    is the last accepted step, in a batch the smallest, before the first the one to be tried.

    Shapes: batch dimensions are those of `flow.batch_shape`.
    Accuracy: the local error per step is below the tolerance; the global one usually near it.
    Raises: ValueError for tolerances that are not >= 0, a relative one alone below round-off,
    stretch <= 0, a start that `batches.checked_start` refuses, and an empty batch.
    """

    def __init__(
        self,
        flow: Flow,
        y0: State,
        *,
        rtol: float = 1e-6,
        atol: float = 1e-9,
        stretch: float = math.inf,
        integrator: ErrorControlled | None = None,
    ):
        for name, value in (("rtol", rtol), ("atol", atol)):
            if not 0 <= value < math.inf or max(rtol, atol) == 0:
                raise ValueError(f"{name} must be >= 0, and one of rtol, atol > 0; got {value}.")
        if not stretch > 0:
            raise ValueError(f"stretch must be positive; got {stretch}.")
        self.flow, self.rtol, self.atol, self.stretch = flow, rtol, atol, stretch
        self.integrator = DormandPrince() if integrator is None else integrator.fresh()
        self.t, self.stretches, self._y = 0.0, 0, checked_start(flow, y0)
        self._dtype = self._y[0].real.dtype  # of the times and steps that the field is given
        least = 8 * torch.finfo(self._dtype).eps  # a step sums about so many numbers
        if atol == 0 and rtol < least:
            raise ValueError(
                f"without atol, rtol must be >= {least:.2g}, the round-off of a step in "
                f"{str(self._dtype).removeprefix('torch.')}; got {rtol}."
            )
        self._goal = stretch  # where the stretch under way ends
        self.batch = flow.batch_shape(self._y)
        if 0 in self.batch:
            raise ValueError(
                f"steps by the error need a trajectory; got the batch {tuple(self.batch)}: give dt "
                "and an integrator of fixed steps."
            )
        zero = self._y[0].real.new_zeros(self.batch, dtype=torch.float64)
        self._times, self._ends = zero, self._y  # each trajectory's own time, and state then
        self._begins, self._spans, self._stages = self._y, zero, None
        self._h, self._memory = self._first_step(zero), torch.full_like(zero, 1e-4)
        self.steps_taken = zero.long()
        self._steps_before = 0  # of trajectories that are out, the most
        self._pace = (0, zero)  # attempts since the times that follow
        self._stuck: dict[int, str] = {}
        self._frozen = Frozen()

    # -- the loop's side -----------------------------------------------------------------------

    @property
    def step(self) -> int:
        """The number of accepted steps of the trajectory that took most."""
        return max(self._steps_before, int(self.steps_taken.max()))

    @property
    def dt(self) -> float:
        """The smallest of the trajectories' last steps."""
        return float(torch.where(self.steps_taken > 0, self._spans, self._h).min())

    @property
    def state(self) -> State:
        return self._frozen.shown(self._y)

    def advance(
        self,
        target: float,
        max_steps: int | None = None,
        pause: Callable[[], bool] = lambda: False,
    ) -> None:
        """All trajectories to min(target, the end of the stretch), each by its own steps."""
        goal, enough = min(target, self._goal), False
        while bool((behind := self._times < goal).any()):
            limited = max_steps is not None and self.step >= max_steps
            if enough or limited or self._stuck:
                self._halt()
                return
            self._attempt(behind)
            self._stuck = self._without_progress(behind, target)
            enough = pause()
        self.t, self._y = goal, self._at(goal)
        self._goal, self.stretches = goal + self.stretch, self.stretches + 1

    def _halt(self) -> None:
        """To the time that all have reached, if it lies in everybody's last step; else stay."""
        reached = float(self._times.min())
        if reached >= float((self._times - self._spans).max()):
            self.t, self._y = reached, self._at(reached)

    def _without_progress(self, behind: Tensor, target: float) -> dict[int, str]:
        """A sentence for each trajectory that is behind and will not arrive, by its number."""
        count, since = self._pace
        self._pace = count + 1, since
        stuck = behind & ~(self._h > 1e-14 * self._times.abs())
        endless = None
        if count + 1 >= _SEEN:
            ahead = (target - self._times) / (self._times - since) * _SEEN
            endless = behind & ~(ahead < _ENDLESS)
            stuck = stuck | endless
            self._pace = 0, self._times
        if not bool(stuck.any()):
            return {}
        steps, times = self._h.flatten().tolist(), self._times.flatten().tolist()
        slow = [False] * len(steps) if endless is None else endless.flatten().tolist()
        return {
            i: f"the steps that rtol = {self.rtol:.2g}, atol = {self.atol:.2g} ask for fell to "
            f"{steps[i]:.2g} at t = {times[i]:.6g}: {self._advice(slow[i], target)}"
            for i in stuck.flatten().nonzero().flatten().tolist()
        }

    def _advice(self, endless: bool, target: float) -> str:
        if self.rtol >= 0.1:
            return "a tolerance so large lets them leave the solution; take a smaller rtol."
        if endless:
            return (
                f"at their pace t = {target:.6g} is more than {_ENDLESS:.0e} steps away; take a "
                "method for stiff flows, Rosenbrock, or a smaller start."
            )
        return "the solution ends there, or the tolerance is below round-off; take a larger rtol."

    def freeze(self, lost: Tensor, at: State) -> None:
        self._steps_before = self.step
        self._frozen.add(lost, at)
        fill = self._frozen.filled
        self._y, self._begins, self._ends = (
            tuple(map(fill, y)) for y in (self._y, self._begins, self._ends)
        )
        if self._stages is not None:
            self._stages = [tuple(map(fill, k)) for k in self._stages]
        self._times, self._spans, self._h = map(fill, (self._times, self._spans, self._h))
        self._memory, self.steps_taken = fill(self._memory), fill(self.steps_taken)
        self._pace = self._pace[0], fill(self._pace[1])
        self.integrator.memory = self._frozen.filled_memory(self.integrator.memory)
        self._stuck = {}

    def failing(self, target: float) -> Tensor:
        """All: a trial step that cannot be factorised has been rejected, another one is a fault."""
        return torch.ones_like(self._times, dtype=torch.bool)

    def end_to_end(self) -> Tensor:
        return self.flow.end_to_end(self._y)

    def faults(self) -> Mapping[int, str]:
        """Why trajectories cannot go on, if so."""
        return self._stuck

    def remark(self) -> str | None:
        return self.flow.remark(self.state)

    def state_dict(self) -> dict[str, object]:
        return {
            "t": self.t,
            "goal": self._goal,
            "stretches": self.stretches,
            "state": list(self.state),
            "ends": list(self._ends),
            "begins": list(self._begins),
            "stages": None if self._stages is None else [list(k) for k in self._stages],
            "clocks": [self._times, self._spans, self._h, self._memory, self.steps_taken],
            "memory": self.integrator.memory,
            "pace": self._pace,
            "steps_before": self._steps_before,
            "frozen": self._frozen.state_dict(),
            "working": list(self._y),
        }

    def load_state_dict(self, saved: Mapping[str, object]) -> None:
        moment = cast(_Saved, saved)
        self.t, self._goal = moment["t"], moment["goal"]
        self.stretches = moment["stretches"]
        self._frozen.load_state_dict(moment["frozen"])
        self._y, self._ends = tuple(moment["working"]), tuple(moment["ends"])
        self._begins = tuple(moment["begins"])
        stages = moment["stages"]
        self._stages = None if stages is None else [tuple(k) for k in stages]
        self._times, self._spans, self._h, self._memory, self.steps_taken = moment["clocks"]
        self.integrator.memory = moment["memory"]
        self._pace, self._steps_before = moment["pace"], moment["steps_before"]

    # -- one step ------------------------------------------------------------------------------

    def _attempt(self, active: Tensor) -> None:
        """One step of every active trajectory, kept where its error is within the tolerance."""
        y, length = self._ends, self.integrator.limited(self._h)
        h = torch.where(active, length, 0.0).to(self._dtype)
        k1 = None
        if self.integrator.reuses_last_stage and not self.flow.normalises and self._fresh:
            k1 = None if self._stages is None else self._stages[-1]
        try:
            end, error, stages = self.integrator.stages(
                self.flow, self._times.to(self._dtype), y, h, k1
            )
            ratio = self._ratio(error, y, end, length)
            settled = self.flow.normalised(end, y)
        except torch.linalg.LinAlgError:  # of what is not finite: steps far too long
            self._fresh = False
            self._h = torch.where(active, length * _LEAST, self._h)
            self.integrator.judged(torch.zeros_like(active), active)
            return
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
            parts = [(b - a).flatten(dims) for a, b in zip(y, end, strict=True)]
            motion = torch.linalg.vector_norm(torch.cat(parts, -1), dim=-1).double()
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
        velocity = self.flow.velocity(like.to(self._dtype), self._y)
        h = torch.full_like(like, math.inf)
        for part, rate in zip(self._y, velocity, strict=True):
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
            return self._y
        theta = 1 - (self._times - t) / torch.where(self._spans > 0, self._spans, 1.0)
        inside = self.integrator.dense(
            self._begins,
            self._spans.to(self._dtype),
            self._stages,
            theta.clamp(0, 1).to(self._dtype),
        )
        settled = self.flow.normalised(inside, self._begins)
        return self._chosen(theta < 1, settled, self._ends)
