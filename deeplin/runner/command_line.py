"""A command line held against the configuration, before anything is run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deeplin.runner.configurations import Configurations, task, visible
from deeplin.runner.errors import sentence
from deeplin.runner.kinds import shown
from deeplin.runner.overrides import MOST_RUNS, Given, read_overrides
from deeplin.runner.plugins import missing
from deeplin.runner.schema import (
    GROUPS,
    LEFT_OUT,
    OF_HYDRA,
    OPTIONS,
    check,
    check_kind,
    is_internal,
)

__all__ = ["Checked", "check_words"]

_OF_PLUGINS = ("hydra.launcher.", "hydra.sweeper.")  # theirs to check


@dataclass(frozen=True)
class Checked:
    """Words that the configuration can take, and what it and its folder are in the first run.

    `chosen` is the first name of each group that was chosen, `constant` what is the same in all
    runs of a sweep.
    """

    words: tuple[str, ...]
    first: DictConfig
    folder: str
    is_sweep: bool
    chosen: Mapping[str, str]
    constant: tuple[str, ...] = ()


def check_words(
    words: Sequence[str], configurations: Configurations, *, sweep: bool = False
) -> Checked:
    """Hold overrides against the configuration, for each choice of groups that a sweep makes.

    Checked are the syntax, that nothing to be called is named, the names of groups and options
    (with the nearest valid ones), the kind and range of every value, and the references.

    Raises: ValueError, with one sentence, for the first that a run could not take.
    """
    groups = configurations.groups()
    given = read_overrides(words, groups)
    for one in given:
        _check_no_target(one)
    # Hydra has no value for leaving out what is left out by default.
    given = [one for one in given if not (one.key in LEFT_OUT and one.values == (None,))]
    chosen = [one for one in given if one.key in groups]
    for one in chosen:
        _check_choice(one, groups[one.key])
    base = configurations.composed([f"{one.key}={one.value}" for one in chosen])
    is_sweep = _is_sweep(given, base, sweep)
    every = [*given, *(_swept_by_file(given, base, groups) if is_sweep else ())]
    _check_sweep(every, is_sweep, base)
    rest = [one for one in every if one.key not in groups]
    first, folder = None, ""
    for names in _choices([one for one in every if one.key in groups]):
        cfg = configurations.composed(names) if names else base
        _set(rest, cfg, list(groups))
        of_hydra = _checked_composed(cfg)
        if first is None:
            first = cfg
            folder = str(of_hydra["hydra.sweep.dir" if is_sweep else "hydra.run.dir"])
    assert first is not None
    of_groups = {one.key: str(one.value) for one in chosen if "/" not in one.key}
    last = {one.key: one for one in every if one.key.split(".")[0].split("/")[0] != "hydra"}
    constant = tuple(key for key, one in last.items() if len(one.values) == 1)
    if len(constant) == len(last):  # a sweep of one run
        constant = ()
    words = tuple(one.word for one in given)
    return Checked(words, first, folder, is_sweep, of_groups, constant)


# -- single words ----------------------------------------------------------------------------------


def _check_no_target(one: Given) -> None:
    inner = [key for value in one.values for key in _keys(value)]
    if is_internal(one.key) or any(key.startswith("_") for key in inner):
        raise ValueError(
            "what an option of a group is made of stands in its file in conf/ alone; got "
            f"{one.word}: choose another option, such as method=rk4."
        )


def _keys(value: object) -> Iterator[str]:
    """The keys of all mappings inside a value."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _keys(inner)
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item)


def _check_choice(one: Given, names: Sequence[str]) -> None:
    if one.mark:
        raise ValueError(
            f"a run has one of each group, chosen with {one.key}=<name>; got {shown(one.word)}."
        )
    for value in one.values:
        if package := missing(one.key, value):
            raise ValueError(
                f"{one.key}={value} is a plugin of Hydra that is not installed: pip install "
                f"{package}, or all of them with pip install deeplin[cluster]."
            )
        if value not in names:
            name = value if isinstance(value, str) else shown(value)
            raise ValueError(_unknown(f"{one.key}=", name, names))


def _unknown(prefix: str, given: str, valid: Sequence[str]) -> str:
    near = get_close_matches(given, valid, n=3, cutoff=0.6)
    last = given.rsplit(".", 1)[-1]
    near += [v for v in valid if v.rsplit(".", 1)[-1] == last and v not in near]
    if not near and not prefix:
        return f"there is no option {given}; --help lists those that there are."
    hint = " or ".join(f"{prefix}{n}" for n in near) or ", ".join(f"{prefix}{v}" for v in valid)
    return f"there is no {prefix}{given}; the nearest valid names are {hint}."


# -- sweeps ----------------------------------------------------------------------------------------


def _is_sweep(given: Sequence[Given], base: DictConfig, sweep: bool) -> bool:
    mode = next((one.value for one in given if one.key == "hydra.mode"), None)
    if sweep and mode == "RUN":
        raise ValueError("-m makes a sweep, hydra.mode=RUN one run: leave one of them out.")
    stored = base.hydra.mode
    return sweep or (mode or (stored and stored.name)) == "MULTIRUN"


def _swept_by_file(
    given: Sequence[Given], base: DictConfig, groups: Mapping[str, Sequence[str]]
) -> list[Given]:
    """What an experiment's file sweeps over, where the command line says nothing else."""
    typed = {one.key for one in given}
    params = OmegaConf.select(base, "hydra.sweeper.params") or {}
    words = [f"{key}={value}" for key, value in params.items() if key not in typed]
    return read_overrides(words, groups)


def _check_sweep(given: Sequence[Given], is_sweep: bool, base: DictConfig) -> None:
    draws = base.hydra.runtime.choices.get("hydra/sweeper") != "basic"
    for one in given:
        if one.is_interval and not (is_sweep and draws):
            raise ValueError(
                f"a sweep runs through values that can be listed, such as {one.key}=range(0,3) or "
                f"0,1,2; got {shown(one.word)}, from which hydra/sweeper=optuna draws with -m."
            )
        if len(one.values) > 1 and one.key.startswith("hydra"):
            raise ValueError(
                f"{one.key} takes one value, one with commas in quotes, '{one.quoted()}'; got "
                f"{shown(one.word)}."
            )
        if len(one.values) > 1 and not is_sweep:
            raise ValueError(
                f"several values of {one.key} make a sweep, which -m runs; one value with commas "
                f"stands in quotes, '{one.quoted()}'; got {shown(one.word)}."
            )
    runs = math.prod(len(one.values) for one in given)
    if runs > MOST_RUNS and not draws:
        raise ValueError(f"a sweep can have {MOST_RUNS} runs at most; this one has more.")


def _choices(chosen: Sequence[Given]) -> Iterator[list[str]]:
    """What each run chooses of the groups; nothing where all runs choose the same."""
    if all(len(one.values) == 1 for one in chosen):
        yield []
        return
    for names in itertools.product(*(one.values for one in chosen)):
        yield [f"{one.key}={name}" for one, name in zip(chosen, names, strict=True)]


# -- a whole configuration -------------------------------------------------------------------------


def _set(given: Sequence[Given], cfg: DictConfig, groups: Sequence[str]) -> None:
    """Set the options of one run, after every value of a sweep was checked."""
    defaults = visible(cfg)
    for one in given:
        is_new = one.key not in defaults and not _is_of_hydra(one)
        if one.mark.startswith("~"):
            if is_new:
                raise ValueError(_unknown("", one.key, [*defaults, *groups]))
            raise ValueError(
                f"a run needs every option, so none can be taken away; got {shown(one.word)}: give "
                "it another value."
            )
        if one.mark and not is_new and not one.key.startswith(_OF_PLUGINS):
            raise ValueError(f"{one.key} is there already: leave out the {one.mark} of {one.word}.")
        if is_new and any(key.startswith(f"{one.key}.") for key in defaults):
            inner = [key for key in defaults if key.startswith(f"{one.key}.")]
            raise ValueError(
                f"{one.key} stands for several options, {', '.join(inner)}: set these; got "
                f"{shown(one.word)}."
            )
        if is_new and not _may_be_added(one, given):
            raise ValueError(_unknown("", one.key, [*defaults, *groups]))
        for value in one.values:
            if not is_new and not (isinstance(value, str) and "${" in value):
                _check_value(one.key, value, defaults)
        try:
            OmegaConf.update(cfg, one.key, one.value, merge=True, force_add=bool(one.mark))
        except OmegaConfBaseException as error:
            raise ValueError(
                f"{one.key} cannot take {shown(one.value)}; got {one.word}."
            ) from error


def _is_of_hydra(one: Given) -> bool:
    if one.key in OF_HYDRA or one.key.startswith(_OF_PLUGINS):
        return True
    if one.key.split(".")[0] == "hydra":
        raise ValueError(_unknown("", one.key, list(OF_HYDRA)))
    return False


def _check_value(key: str, value: object, defaults: Mapping[str, object]) -> None:
    if key in OF_HYDRA:
        OF_HYDRA[key].check(key, value)
    elif key in defaults:
        check_kind(key, value, defaults[key])


def _may_be_added(one: Given, given: Sequence[Given]) -> bool:
    """Whether an option that no file has can be of use: what is called may take it, another refer.

    One of the schema that this group's file does not have is none of its own.
    """
    if not one.mark or one.key in OPTIONS:
        return False
    if one.key.split(".")[0] in GROUPS and "." in one.key:
        return True
    return any(f"{{{one.key}}}" in other.word or f"{{{one.key}," in other.word for other in given)


def _checked_composed(cfg: DictConfig) -> dict[str, object]:
    """Hydra's own options, after all references were resolved and held against the schema."""
    config = HydraConfig.instance()
    before = config.cfg
    cfg.hydra.job.num, cfg.hydra.job.id = 0, "0"  # as in the first run of a sweep
    cfg.hydra.runtime.output_dir = "."
    config.set_config(cfg)
    try:
        own = {key: _plain(OmegaConf.select(cfg, key)) for key in OF_HYDRA}
        for key, value in own.items():
            OF_HYDRA[key].check(key, value)
        check(task(cfg))
        return own
    except OmegaConfBaseException as error:
        raise ValueError(sentence(error)) from error
    finally:
        config.cfg = before


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.name
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
