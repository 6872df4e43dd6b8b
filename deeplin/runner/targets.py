"""From the `_target_` of a configuration to what it names, called with its options.

Only what is defined inside a trusted package is ever called, and classes of optimizers: a
configuration from elsewhere, a stored run's for instance, cannot name anything else.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping

import torch
from hydra.core.singleton import Singleton
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from deeplin.runner.schema import check_kind

__all__ = ["call", "check_options", "make", "options_of", "parameters", "trust"]


class _Trusted(metaclass=Singleton):
    """The packages of this process; launchers bring Hydra's singletons to those of their jobs."""

    def __init__(self) -> None:
        self.packages = {"deeplin"}


# Their classes of optimizers, and nothing else of them.
_OF_OPTIMIZERS = ("torch.optim", "geoopt.optim")


def trust(package: str) -> None:
    """Let configurations of this process name what a package of the user's own defines."""
    _Trusted().packages.add(package)


def make(group: Mapping[str, object], key: str, /, **offered: object) -> object:
    """Call a group's target with its options, and with those of `offered` that it takes by name.

    Raises: ValueError, with one sentence, for a target that is not trusted, or does not exist.
    """
    _check(group, key)
    try:
        partial = instantiate({**group, "_partial_": True, "_convert_": "all"})
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | TypeError):
            raise error.__cause__ from None
        raise ValueError(f"{key} cannot be made: {str(error).splitlines()[0]}") from error
    assert isinstance(partial, functools.partial)
    return call(partial, key, offered)


def call(partial: functools.partial, key: str, offered: Mapping[str, object]) -> object:
    """Call a function with its options, and with those of `offered` that it takes by name.

    Raises: ValueError for an option that the run gives itself, and for one that is missing.
    """
    names = parameters(partial.func)
    given = {name: value for name, value in offered.items() if name in names}
    own = [name for name in given if name in partial.keywords]
    if own:
        raise ValueError(f"{key}.{own[0]} is the run's to give, no option: leave it out.")
    for name, parameter in names.items():
        if parameter.default is parameter.empty and name not in {*partial.keywords, *given}:
            raise ValueError(f"{key}.{name} is missing: give {key}.{name}=<value>.")
    return partial(**given)


def options_of(group: DictConfig, *without: str) -> dict[str, object]:
    """The options of a group as plain values, without those that its builder keeps to itself."""
    plain = OmegaConf.to_container(group, resolve=True)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items() if name not in without}


def parameters(called: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """What something takes by name."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(called).parameters.items()
    return {name: parameter for name, parameter in parameters if parameter.kind in named}


def _check(node: object, key: str) -> None:
    """Raise ValueError for a target anywhere in a node that is not trusted, or its options not."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            target = str(node["_target_"])
            check_options(node, key, _resolved(node["_target_"], key), target)
        for name, value in node.items():
            _check(value, f"{key}.{name}")
    elif isinstance(node, list | tuple):
        for value in node:
            _check(value, key)


def check_options(
    node: Mapping[str, object], key: str, called: Callable[..., object], target: str
) -> None:
    """Raise ValueError for an option that `called` does not take, or of another kind there."""
    names = parameters(called)
    kinds = {parameter.kind for parameter in inspect.signature(called).parameters.values()}
    for name, value in node.items():
        if str(name).startswith("_"):
            continue
        if name not in names:
            if inspect.Parameter.VAR_KEYWORD in kinds:
                continue
            taken = [n for n, p in names.items() if p.default is not p.empty]
            raise ValueError(
                f"there is no {key}.{name}; options of {target} are {', '.join(taken) or 'none'}."
            )
        default = names[str(name)].default
        is_count = isinstance(default, int) and not isinstance(default, bool)
        # In Python 0 is a default of what takes any number.
        check_kind(f"{key}.{name}", value, float(default) if is_count else default)


def _resolved(target: object, key: str) -> Callable[..., object]:
    trusted = _Trusted().packages
    refusal = ValueError(
        f"{key}._target_ must name something inside {' or '.join(sorted(trusted))}, or an "
        f"optimizer of torch.optim or geoopt.optim; got {target}."
    )
    if not isinstance(target, str):
        raise refusal
    optimizer = target.startswith(tuple(f"{package}." for package in _OF_OPTIMIZERS))
    if not optimizer and target.split(".")[0] not in trusted:
        raise refusal
    try:
        found = get_object(target)
    except Exception as error:  # Hydra raises whatever importing raises
        raise ValueError(f"{key}._target_={target} does not exist.") from error
    # A trusted module also holds what it imports: os, subprocess.
    if optimizer and isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return found
    if not callable(found) or str(found.__module__).split(".")[0] not in trusted:
        raise refusal
    return found
