"""geoopt's optimizers, where a run that is cut short asks for more than they keep."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import geoopt
import torch
from geoopt.optim.rlinesearch import LineSearchWarning
from torch import Tensor

from deeplin.manifolds.low_rank import LowRankManifold

__all__ = ["RiemannianLineSearch", "RiemannianSGD", "is_riemannian_sgd"]

# What geoopt's line search remembers beside the state of its parameters.
_REMEMBERED = (
    *("old_phi0", "old_derphi0", "last_step_size", "_last_step", "_grads_computed", "prev_loss"),
)


class RiemannianLineSearch(geoopt.optim.RiemannianLineSearch):
    """geoopt's, whose `state_dict` holds all that the next step depends on.

    Where no step is found it stays where it is, without the warnings of geoopt, SciPy and NumPy.
    """

    def state_dict(self) -> dict:
        remembered = {name: vars(self)[name] for name in _REMEMBERED}
        return {**super().state_dict(), "remembered": remembered}

    def load_state_dict(self, state_dict: dict) -> None:
        vars(self).update(state_dict["remembered"])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "remembered"})

    def step(
        self,
        closure: Callable[[], float],
        force_step: bool = False,
        recompute_gradients: bool = False,
        no_step: bool = False,
    ) -> float | None:
        self.step_size_history.clear()  # grows by one in every step, and nothing here reads it
        with warnings.catch_warnings():
            for kind in (LineSearchWarning, RuntimeWarning, DeprecationWarning):
                warnings.simplefilter("ignore", kind)
            return super().step(closure, force_step, recompute_gradients, no_step)


class RiemannianSGD(geoopt.optim.RiemannianSGD):
    """geoopt's RiemannianSGD, the same steps to round-off and the same state, in less time.

    A point of deeplin's manifolds takes its step in one pass (`LowRankManifold.descend`), one of
    `FixedRankFactored` by "splitting" in compiled code, and all Euclidean parameters of a group
    take theirs together. Other manifolds are moved as there.

    >>> from deeplin.nn import FixedRankLinear
    >>> layer = FixedRankLinear(20, 30, rank=4)
    >>> optimizer = RiemannianSGD(layer.parameters(), lr=0.1, momentum=0.9)
    >>> layer(torch.ones(8, 20)).square().sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        stabilize: int | None = None,
    ) -> None:
        numbers = momentum, dampening, weight_decay
        super().__init__(params, lr, *numbers, nesterov, stabilize)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            plain: list[tuple[Tensor, Tensor]] = []
            for point in group["params"]:
                grad = point.grad
                if grad is None:
                    continue
                if grad.is_sparse:
                    raise RuntimeError(
                        "RiemannianSGD must get dense gradients; got a sparse one: take "
                        "geoopt.optim.SparseRiemannianSGD."
                    )
                manifold = _manifold_of(point)
                if group["momentum"] > 0 and not self.state[point]:
                    first = grad.clone()  # as geoopt begins
                    if isinstance(manifold, LowRankManifold):
                        first = manifold.proju(point, first)
                    self.state[point]["momentum_buffer"] = first
                if isinstance(manifold, geoopt.Euclidean):
                    plain.append((point, grad))
                elif isinstance(manifold, LowRankManifold):
                    self._descend(manifold, point, grad, group)
                else:
                    self._move(manifold, point, grad, group)
            if plain:
                self._step_plain(plain, group)
            if group["stabilize"] is not None and group["step"] % group["stabilize"] == 0:
                self.stabilize_group(group)
        return loss

    def _descend(self, manifold: LowRankManifold, point: Tensor, grad: Tensor, group: dict) -> None:
        state = self.state[point]
        if group["weight_decay"]:
            grad.add_(point, alpha=group["weight_decay"])
        options = {key: group[key] for key in ("lr", "momentum", "dampening", "nesterov")}
        buffer = state["momentum_buffer"] if group["momentum"] > 0 else None
        new, moved = manifold.descend(point, grad, buffer, **options)
        point.copy_(new)
        if moved is not None:
            state["momentum_buffer"].copy_(moved)

    def _move(self, manifold: geoopt.Manifold, point: Tensor, grad: Tensor, group: dict) -> None:
        """As geoopt does."""
        momentum, lr = group["momentum"], group["lr"]
        grad = manifold.egrad2rgrad(point, grad.add_(point, alpha=group["weight_decay"]))
        if not momentum > 0:
            point.copy_(manifold.retr(point, -lr * grad))
            return
        buffer = self.state[point]["momentum_buffer"]
        buffer.mul_(momentum).add_(grad, alpha=1 - group["dampening"])
        grad = grad.add_(buffer, alpha=momentum) if group["nesterov"] else buffer
        new, moved = manifold.retr_transp(point, -lr * grad, buffer)
        buffer.copy_(moved)
        point.copy_(new)

    def _step_plain(self, plain: list[tuple[Tensor, Tensor]], group: dict) -> None:
        points, grads = [point for point, _ in plain], [grad for _, grad in plain]
        momentum = group["momentum"]
        if group["weight_decay"]:
            torch._foreach_add_(grads, points, alpha=group["weight_decay"])
        if momentum > 0:
            buffers = [self.state[point]["momentum_buffer"] for point in points]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, grads, alpha=1 - group["dampening"])
            if group["nesterov"]:
                torch._foreach_add_(grads, buffers, alpha=momentum)
            else:
                grads = buffers
        torch._foreach_add_(points, grads, alpha=-group["lr"])


_EUCLIDEAN = geoopt.Euclidean()


def _manifold_of(point: Tensor) -> geoopt.Manifold:
    known = isinstance(point, geoopt.ManifoldParameter | geoopt.ManifoldTensor)
    return point.manifold if known else _EUCLIDEAN


def is_riemannian_sgd(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer is RiemannianSGD, geoopt's or ours, and no other."""
    return type(optimizer) in (geoopt.optim.RiemannianSGD, RiemannianSGD)
