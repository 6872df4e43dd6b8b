"""What a start is for a flow: its matrix, or its layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deeplin.flows.contract import Start
from deeplin.network import DeepLinear, check_balanced, end_to_end

__all__ = ["start_layers", "start_matrix", "start_product"]


def start_layers(start: Start, flow: str) -> list[Tensor]:
    """The layers W_1, …, W_N of a network, or those given, detached.

    Raises: ValueError for a bare matrix, which has no layers; TypeError for anything else.
    """
    if isinstance(start, Tensor):
        raise ValueError(
            f"{flow} starts from layers, a network or [W_1, …, W_N]; got one matrix of shape "
            f"{tuple(start.shape)}: make balanced layers of it, "
            "deeplin.init.balanced_(deeplin.DeepLinear(widths), W)."
        )
    weights = list(start.weights) if isinstance(start, DeepLinear) else list(start)
    if not weights or not all(isinstance(W_j, Tensor) for W_j in weights):
        raise TypeError(
            f"{flow} starts from a network or a list of tensors [W_1, …, W_N]; got "
            f"{type(start).__name__} of {[type(W_j).__name__ for W_j in weights]}."
        )
    return [W_j.detach() for W_j in weights]


def start_matrix(
    start: Start, shape: tuple[int, int], flow: str, *, balanced: bool = False
) -> Tensor:
    """The matrix W of a start: itself, or the product of the layers; detached.

    Raises: ValueError where it is not of the given shape (m, n); with `balanced`, for a flow that
    follows layers only where they are that, where layers are not.
    """
    if isinstance(start, Tensor):
        W = start.detach()
    else:
        layers = start_layers(start, flow)
        if balanced:
            check_balanced(layers, flow)
        W = end_to_end(layers)
    _check_shape(W.shape, shape, flow)
    return W


def start_product(start: Start, shape: tuple[int, int], flow: str) -> list[Tensor]:
    """Matrices whose product is the W of a start, the first to be applied first; W is not formed.

    Raises: as `start_matrix`.
    """
    layers = [start.detach()] if isinstance(start, Tensor) else start_layers(start, flow)
    first, last = layers[0], layers[-1]
    given = last.shape if min(first.ndim, last.ndim) < 2 else (*last.shape[:-1], first.shape[-1])
    _check_shape(given, shape, flow)
    return layers


def _check_shape(given: Sequence[int], shape: tuple[int, int], flow: str) -> None:
    if len(given) < 2 or tuple(given[-2:]) != tuple(shape):
        raise ValueError(
            f"{flow} needs W(0) of shape (*batch, m, n) with (m, n) = {tuple(shape)}, that of its "
            f"problem; got {tuple(given)}."
        )
