"""Optimizers as steppers: torch.optim's, geoopt's, and whatever has `step(closure)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TypedDict, cast

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from deeplin.flows.contract import Flow, State
from deeplin.integrators.batches import Frozen, checked_start, finite_trajectories
from deeplin.integrators.steppers import check_dt

__all__ = ["OptimizerStepper", "minibatch_indices"]


# What makes steps others than those of gradient descent.
_BESIDE = ("momentum", "weight_decay")


class _Scheduled(TypedDict):
    t: float
    dt: float
    schedule: dict[str, object]


class _Optimized(TypedDict):
    step: int
    state: list[Tensor]
    optimizer: dict[str, object]
    schedule: _Scheduled | None
    frozen: object
    working: list[Tensor] | None


class OptimizerStepper:
    """A torch optimizer on parameters, with the flow time t = k·dt of its k steps of length dt.

    `loss(k)` is the scalar whose gradient step k follows; with torch.optim.SGD and a learning rate
    dt this is Euler's method for the gradient flow of the loss. Steps are all of length dt, so a
    target is met within less than one step. Given the `flow` whose states the parameters are, the
    stepper knows the trajectories of a batch; else all is one. Optimizers whose `step` needs a
    closure, such as torch.optim.LBFGS, get one: the loss, as a number, whose gradient it leaves.

    - `gradients`: where that gradient is known without a backward pass, the function k -> new
      tensors that become the `grad` of the parameters; the optimizer then takes its step as ever
    - `state_of`: parameters -> the flow's state, where that is not the parameters themselves
    - `take`: one step of an optimizer that evaluates the loss itself, for each matrix of a batch by
      itself
    - `descends`: whether a step is one of gradient descent and nothing else: no momentum, no decay
    - `schedule`: of the learning rate; then t is the sum of the rates of the steps taken, unless
      `counts`, for optimizers that follow no flow, lets t count steps

    Raises: ValueError for dt <= 0, for a start that `batches.checked_start` refuses, and for
        trajectories of a batch under an optimizer that takes a closure: it has one step for all.
    """

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        loss: Callable[[int], Tensor],
        dt: float,
        flow: Flow | None = None,
        *,
        gradients: Callable[[int], list[Tensor]] | None = None,
        state_of: Callable[[list[Tensor]], State] | None = None,
        take: Callable[[], object] | None = None,
        descends: bool = False,
        schedule: LRScheduler | None = None,
        counts: bool = False,
    ):
        self.parameters, self.optimizer, self.loss = parameters, optimizer, loss
        self.gradients, self.schedule, self.counts = gradients, schedule, counts
        self.descends, self._take = descends, take
        self.stretch = check_dt(dt)
        self.step, self.flow, self._frozen = 0, flow, Frozen()
        self._own_state, self._state_of = state_of is None, state_of or tuple
        self._passed, self._last, self._stuck = 0.0, self.stretch, ""
        self._needs_closure = _needs_closure(optimizer)
        here = self._here()
        self.batch = torch.Size() if flow is None else flow.batch_shape(checked_start(flow, here))
        if self._needs_closure and self.batch.numel() > 1:
            raise ValueError(
                f"{type(optimizer).__name__} has one step for all of a batch, which would tie its "
                f"{self.batch.numel()} trajectories together: use repeats=1."
            )

    @property
    def name(self) -> str:
        """The optimizer's, and of SGD what makes it another."""
        group, name = self.optimizer.param_groups[0], type(self.optimizer).__name__
        with_ = [f"{key.replace('_', ' ')} {group[key]:g}" for key in _BESIDE if group.get(key)]
        return f"{name} with {' and '.join(with_)}" if with_ else name

    def _here(self) -> State:
        """The flow's state at the parameters."""
        return self._state_of([p.detach() for p in self.parameters])

    @property
    def stretches(self) -> int:
        return self.step

    @property
    def dt(self) -> float:
        return self._last

    @property
    def t(self) -> float:
        return self.step * self.stretch if self.schedule is None or self.counts else self._passed

    @property
    def state(self) -> State:
        """A copy: optimizers move the parameters in place."""
        return tuple(part.clone() for part in self._frozen.shown(self._here()))

    def advance(
        self,
        target: float,
        max_steps: int | None = None,
        pause: Callable[[], bool] = lambda: False,
    ) -> None:
        if self.schedule is not None and not self.counts:
            self._last = float(self.optimizer.param_groups[0]["lr"])
        try:
            if self._take is not None:
                self._take()
            elif self._needs_closure:
                self.optimizer.step(self._evaluated)
            elif self.gradients is None:
                self._differentiated()
                self.optimizer.step()
            else:
                gradients = self._differentiated()
                if _is_bare(self.optimizer):
                    rate = self.optimizer.param_groups[0]["lr"]
                    with torch.no_grad():
                        torch._foreach_add_(tuple(self.parameters), gradients, alpha=-rate)
                else:
                    self.optimizer.step()
        except torch.linalg.LinAlgError:
            raise
        except RuntimeError as error:  # a manifold's, which says why no step keeps the rank
            if self._own_state:
                raise
            self._stuck = str(error)
            return
        if self.schedule is not None:
            self._passed += self._last
            self.schedule.step()
        self.step += 1

    def _differentiated(self) -> list[Tensor]:
        """The gradients of the step to come, which the parameters then hold, too."""
        if self.gradients is None:
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(self.step).backward()
            return []
        gradients = self.gradients(self.step)
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient
        return gradients

    def _evaluated(self) -> float:
        """The closure: the loss at the parameters as they are, and its gradient in them."""
        with torch.enable_grad():
            if self.gradients is None:
                self.optimizer.zero_grad(set_to_none=True)
                loss = self.loss(self.step)
                loss.backward()
                return float(loss.detach())
        with torch.no_grad():
            self._differentiated()
            return float(self.loss(self.step))

    def freeze(self, lost: Tensor, at: State) -> None:
        self._frozen.add(lost, at)
        if self._take is not None:  # it sees that its point was moved, and begins anew
            self.optimizer.state.clear()
        with torch.no_grad():
            for p in self.parameters:
                p.copy_(self._frozen.filled(p.detach()))
                own = self.optimizer.state[p]  # momentum and the like
                for name, value in own.items():
                    if isinstance(value, Tensor) and value.shape == p.shape:
                        own[name] = self._frozen.filled(value)

    def failing(self, target: float) -> Tensor:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return ~finite_trajectories((*self.parameters, *gradients), len(self.batch))

    def end_to_end(self) -> Tensor | None:
        return None if self.flow is None else self.flow.end_to_end(self._here())

    def faults(self) -> Mapping[int, str]:
        return dict.fromkeys(range(self.batch.numel()), self._stuck) if self._stuck else {}

    def remark(self) -> str | None:
        return None

    def state_dict(self) -> dict[str, object]:
        frozen, here = self._frozen.state_dict(), [p.detach().clone() for p in self.parameters]
        plain = frozen is None and self._own_state
        schedule = None
        if self.schedule is not None:
            schedule = {
                "t": self._passed,
                "dt": self._last,
                "schedule": self.schedule.state_dict(),
            }
        return {
            "step": self.step,
            "state": list(self.state),
            "optimizer": self.optimizer.state_dict(),
            "schedule": schedule,
            "frozen": frozen,
            "working": None if plain else here,
        }

    def load_state_dict(self, saved: Mapping[str, object]) -> None:
        moment = cast(_Optimized, saved)
        self.step = moment["step"]
        self._frozen.load_state_dict(moment["frozen"])
        with torch.no_grad():  # first: what an optimizer knows, it knows of the point where it is
            values = moment["working"] or moment["state"]
            for p, value in zip(self.parameters, values, strict=True):
                p.copy_(value)
        self.optimizer.load_state_dict(moment["optimizer"])
        self._restore_numbers(moment["optimizer"])
        if self.schedule is not None and moment["schedule"] is not None:
            scheduled = moment["schedule"]
            self._passed, self._last = scheduled["t"], scheduled["dt"]
            self.schedule.load_state_dict(scheduled["schedule"])

    def _restore_numbers(self, saved: dict[str, object]) -> None:
        """Plain numbers of an optimizer's state as they were saved: torch makes float32 of a step,
        with which geoopt's Adam corrects its means in float32."""
        moved = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, kept in cast(dict[int, dict[str, object]], saved["state"]).items():
            for name, value in kept.items():
                if isinstance(value, int | float):
                    self.optimizer.state[moved[index]][name] = value


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step` evaluates the loss itself, as line searches do."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _is_bare(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step is p ← p − lr·grad and nothing else: no momentum, hooks or schedule.

    Such a step is taken directly: what torch has around it takes four times as long as itself.
    """
    if type(optimizer) is not torch.optim.SGD or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    more = group["momentum"] or group["weight_decay"] or group["maximize"]
    if more or not isinstance(group["lr"], float) or "step" in vars(optimizer):
        return False
    return not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def minibatch_indices(m: int, batch_size: int, seed: int) -> Callable[[int], Tensor]:
    """step ↦ indices of the samples of that step: each epoch visits all m once, in random order.

    A function of the step alone, so that a resumed run sees the batches of an uninterrupted one.
    The last, smaller batch of an epoch is left out.

    Raises: ValueError unless 1 <= batch_size <= m.
    """
    if not 1 <= batch_size <= m:
        raise ValueError(
            f"batch_size must satisfy 1 <= batch_size <= m = {m} samples; got {batch_size}."
        )
    per_epoch = m // batch_size
    cached: tuple[int, Tensor] = (-1, torch.empty(0))

    def indices(step: int) -> Tensor:
        nonlocal cached
        epoch, position = divmod(step, per_epoch)
        if cached[0] != epoch:
            generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
            cached = (epoch, torch.randperm(m, generator=generator))
        return cached[1][position * batch_size : (position + 1) * batch_size]

    return indices
