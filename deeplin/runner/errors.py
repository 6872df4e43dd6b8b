"""What is said of an error: one sentence, without the words of the libraries beneath."""

from __future__ import annotations

import re

from hydra.errors import HydraException
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

__all__ = ["EXPECTED", "is_out_of_memory", "sentence"]

# What bad input raises; everything else is a fault of the program's own, and keeps its traceback.
EXPECTED = (
    ValueError,
    TypeError,
    OSError,
    MemoryError,
    OmegaConfBaseException,
    HydraException,
    YAMLError,
)
_OF_OPTIMIZER = re.compile(r"Invalid (.+?)(?: value)?: (\S+)$")
_ALLOCATION = re.compile(r"(?:tried|Tried) to allocate ([\d.]+ ?\w+)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was asked for that there is not; torch raises RuntimeError for it."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(
        _ALLOCATION.search(str(error)) or "can't allocate memory" in str(error)
    )


def sentence(error: BaseException) -> str:
    """One line, for the user, that says what an error is about."""
    if isinstance(error, InterpolationResolutionError):
        return _of_reference(error)
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key or 'an option'} cannot take this value: {_first_line(error)}"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror[0].lower()}{error.strerror[1:]}."
    if is_out_of_memory(error):
        asked = _ALLOCATION.search(str(error))
        much = f" of {asked[1]}" if asked else ""
        return (
            f"there is not enough memory for a matrix{much}: take smaller sizes or fewer repeats."
        )
    if refused := _OF_OPTIMIZER.match(str(error)):
        return (
            f"{refused[1].lower()} cannot be {refused[2]}: the optimizer refuses it, and its page "
            "in torch's documentation says what it takes."
        )
    return " ".join(str(error).split())


def _of_reference(error: InterpolationResolutionError) -> str:
    key = error.full_key or "an option"
    missing = re.match(r"Interpolation key '(.+)' not found", str(error))
    if missing:
        return f"{key} refers to ${{{missing[1]}}}, but there is no option {missing[1]}."
    unknown = re.match(r"Unsupported interpolation type (\S+)", str(error))
    if unknown:
        return f"{key} refers to ${{{unknown[1]}:…}}, but there is no function {unknown[1]}."
    return f"{key} refers to something that has no value here: write the value itself."


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]
