"""Kinds of values of options: in words what a value must be, and whether it is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "Kind",
    "choice",
    "list_of",
    "mapping",
    "matrix",
    "member",
    "named",
    "not_negative",
    "null",
    "number",
    "path",
    "positive",
    "shape",
    "shown",
    "switch",
    "text",
    "time",
    "whole",
]


@dataclass(frozen=True)
class Kind:
    """The values for which `holds`; `must` says in words which these are."""

    must: str
    holds: Callable[[object], bool]

    def __or__(self, other: Kind) -> Kind:
        """The values of either kind."""
        must = f"{self.must.replace(' or ', ', ')} or {other.must}"
        return Kind(must, lambda value: self.holds(value) or other.holds(value))


def shown(value: object) -> str:
    """A value as a configuration spells it, cut after 80 characters."""
    text = _spelled(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _spelled(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_spelled, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_spelled(v)}' for key, v in value.items())}}}"
    return str(value)


def number(must: str, fits: Callable[[float], bool]) -> Kind:
    """A number, no truth value and not NaN, for which `fits`."""
    return Kind(must, lambda value: (x := _as_number(value)) is not None and fits(x))


def whole(least: int, most: int | None = None) -> Kind:
    """An integer from `least` on, up to `most` where that is given."""
    must = f"an integer >= {least}" if most is None else f"an integer from {least} to {most}"

    def holds(value: object) -> bool:
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return least <= value and (most is None or value <= most)

    return Kind(must, holds)


def choice(*values: object) -> Kind:
    """One of some values; 1 is not true."""
    names = [_spelled(v).strip("'") for v in values]
    must = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    chosen = [(type(v), v) for v in values]
    return Kind(must, lambda value: (type(value), value) in chosen)


def list_of(entry: Kind, must: str, least: int = 1) -> Kind:
    """A list of at least so many values of a kind."""
    return Kind(
        must,
        lambda value: (
            isinstance(value, list) and len(value) >= least and all(map(entry.holds, value))
        ),
    )


def _as_number(value: object) -> float | None:
    """A finite or infinite number as a float; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        x = float(value)
    except OverflowError:  # an integer beyond the largest float
        return math.copysign(math.inf, value)
    return None if math.isnan(x) else x


def _is_entry(value: object) -> bool:
    """A finite number; complex ones come as text, 1+2j."""
    if isinstance(value, str):
        try:
            z = complex(value.replace(" ", ""))
        except ValueError:
            return False
        return math.isfinite(z.real) and math.isfinite(z.imag)
    x = _as_number(value)
    return x is not None and math.isfinite(x)


def _is_matrix(value: object) -> bool:
    """Rows of numbers, all of one length, or a list of such matrices, all of one shape."""

    def shape(node: object) -> tuple[int, ...] | None:
        if not isinstance(node, list):
            return () if _is_entry(node) else None
        shapes = {shape(part) for part in node}
        if len(shapes) != 1 or (inner := shapes.pop()) is None:
            return None
        return len(node), *inner

    found = shape(value)
    return found is not None and len(found) in (2, 3)


def _is_time(value: object) -> bool:
    if isinstance(value, str):
        times = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)/rho", value)
        value = float(times[1]) if times else None
    x = _as_number(value)
    return x is not None and 0 < x < math.inf


def _is_member(value: object) -> bool:
    if not isinstance(value, str) or value.count(":") != 1:
        return False
    return all(part.isidentifier() for path in value.split(":") for part in path.split("."))


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(whole(1).holds, value))


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


named = Kind(
    "a name with options, such as {name: ExponentialLR, gamma: 0.99}",
    lambda value: isinstance(value, dict) and isinstance(value.get("name"), str),
)
null = choice(None)
switch = choice(True, False)
matrix = Kind(
    "a list of rows of numbers, such as [[1,0],[0,2]], complex ones [[1,2j],[0,1+1j]],",
    _is_matrix,
)
time = Kind("a positive number, 20/rho", _is_time)
device = Kind("the name of a device, such as cpu or cuda", lambda value: isinstance(value, str))
text = Kind("a word", lambda value: isinstance(value, str) and value != "")
member = Kind("MODULE:NAME, such as my_module:make_problem", _is_member)
shape = Kind("two positive integers [m,n]", _is_shape)
mapping = Kind("names with their values, such as {scale: 2}", _is_mapping)
path = Kind("a path", lambda value: isinstance(value, str) and value != "")
positive = number("a positive number", lambda x: 0 < x < math.inf)
not_negative = number("a number >= 0", lambda x: 0 <= x < math.inf)
