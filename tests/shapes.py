"""The checker that jaxtyping's import hook uses under `pytest -m shapes`: beartype."""

from collections.abc import Callable
from typing import Self

from beartype import BeartypeConf, FrozenDict, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception

# The hook decorates methods one by one, where beartype cannot know what Self is; an int is a float.
_CONF = BeartypeConf(hint_overrides=FrozenDict({Self: object}), is_pep484_tower=True)


def checked(function: Callable) -> Callable:
    """The function with its arguments and its value held to their annotations at every call."""
    try:
        return beartype(conf=_CONF)(function)
    except BeartypeDecorHintPep3119Exception:  # an argument is a Protocol: no class to ask
        return function
