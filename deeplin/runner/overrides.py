"""The words of a command line that set options: key=value, as Hydra reads them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString
from hydra.errors import HydraException

from deeplin.runner.kinds import shown

__all__ = ["Given", "in_quotes", "read_overrides", "whole"]

MOST_RUNS = 10**5  # of one sweep


@dataclass(frozen=True)
class Given:
    """What one word says: which option, or group, takes which value, or which of a sweep's.

    `mark` is + or ++ where the word adds an option, ~ where it takes one away. Of an interval,
    from which a sweeper draws, the values are the ends.
    """

    word: str
    key: str
    values: tuple[object, ...]
    mark: str = ""
    is_interval: bool = False

    @property
    def value(self) -> object:
        return self.values[0]

    def quoted(self) -> str:
        """The word with its value in quotes, for the shell and for Hydra."""
        return _quoted(self.word)


def read_overrides(words: Iterable[str], groups: Mapping[str, Sequence[str]]) -> list[Given]:
    """Raises: ValueError, with one sentence, for a word that is no key=value."""
    return [_given(word, _parsed(word), groups) for word in words]


def whole(word: str) -> str:
    """A word, in quotes where it names an existing folder whose name Hydra would take apart.

    So that what was printed, or completed by the shell, is taken as it stands.
    """
    key, _, value = word.partition("=")
    if key != "resume" or not os.path.isdir(value):
        return word
    override = _try(word)
    taken = override is not None and not override.is_sweep_override() and override.value() == value
    return word if taken else _quoted(word)


def _parsed(word: str) -> Override:
    override = _try(word)
    if override is not None and override.key_or_group:
        return override
    quoted = _quoted(word)
    if "=" not in word.lstrip("=") or _try(quoted) is None:
        raise ValueError(f"an option must look like key=value; got {shown(word)}.")
    if word.partition("=")[2].startswith("~"):
        quoted = quoted.replace("~", "$HOME", 1)
        raise ValueError(
            "an option must look like key=value, with $HOME instead of ~ and the value in quotes, "
            f'"{quoted.replace(chr(34), chr(39))}"; got {shown(word)}.'
        )
    raise ValueError(
        "an option must look like key=value, and a value that has more in it than letters, digits, "
        f"_ - . / stands in quotes, '{quoted}'; got {shown(word)}."
    )


def _try(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, ValueError):  # ValueError: a number of more digits than Python reads
        return None


def _quoted(word: str) -> str:
    key, _, value = word.partition("=")
    return in_quotes(key, value)


def in_quotes(key: str, value: str) -> str:
    """The word that gives an option a text, whatever characters that has."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{escaped}"'


def _given(word: str, override: Override, groups: Mapping[str, Sequence[str]]) -> Given:
    key = override.key_or_group
    if override.package is not None:
        raise ValueError(f"a name of a group or an option has no @; got {shown(word)}.")
    mark = word[: len(word) - len(word.lstrip("+~"))]
    if override.is_delete():
        return Given(word, key, (None,), mark)
    if override.is_interval_sweep():
        ends = override.value()
        assert isinstance(ends, IntervalSweep)
        return Given(word, key, (ends.start, ends.end), mark, is_interval=True)
    values = tuple(itertools.islice(_values(word, override, groups), MOST_RUNS + 1))
    if not values:
        raise ValueError(f"a sweep needs at least one value of {key}, and {shown(word)} has none.")
    return Given(word, key, values, mark)


def _values(word: str, override: Override, groups: Mapping[str, Sequence[str]]) -> Iterable[object]:
    """The value of an override, or all values of a sweep."""
    if not override.is_sweep_override():
        return [override.value()]
    if isinstance(override._value, Glob):
        if override.key_or_group not in groups:
            raise ValueError(
                f"glob() chooses among the names of a group, and {override.key_or_group} is none; "
                f"got {shown(word)}."
            )
        # Hydra's own choice: no names in folders.
        names = [name for name in groups[override.key_or_group] if "/" not in name]
        return override._value.filter(names)
    return map(_plain, override.sweep_iterator())


def _plain(value: object) -> object:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value
