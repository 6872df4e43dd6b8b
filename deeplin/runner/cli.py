"""The command line: Hydra's overrides checked before Hydra sees them, errors as one sentence."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from textwrap import wrap

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from deeplin.runner.folder import RunFolder
from deeplin.runner.run import RESUMABLE, run
from deeplin.runner.schema import OPTIONS, check_kind, is_internal

__all__ = ["check_overrides", "help_page", "job", "main", "visible"]

_INDENT = 8 * " "
# Exit statuses of the jobs of this process: more than one in a sweep.
_statuses: list[int] = []


def _run_folder(resume: str | None, problem: str, now: str) -> str:
    return str(resume) if resume else f"runs/{problem}/{now}"


# Sizes that depend on others in an experiment's file: [a/b], half rounded up, and a·b.
OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)
OmegaConf.register_new_resolver("nearest", lambda a, b: math.floor(a / b + 0.5), replace=True)
OmegaConf.register_new_resolver("times", lambda a, b: a * b, replace=True)


def main(entry: Callable[[], object], config_dir: Path, arguments: Sequence[str]) -> int:
    """Check the overrides, run Hydra's entry point, return the process's exit status."""
    flags = [word for word in arguments if word in ("-m", "--multirun")]
    # Hydra's parser wants flags before overrides; people type them anywhere.
    sys.argv[1:] = [*flags, *(word for word in arguments if word not in flags)]
    try:
        words = [word for word in arguments if not word.startswith("-")]
        check_overrides(words, config_dir)
        if any(word in ("-h", "--help") for word in arguments):
            print(help_page(words, config_dir))
            return 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _statuses.clear()
    entry()
    return max(_statuses, default=0)


def job(cfg: DictConfig) -> None:
    """Run one configuration in Hydra's folder; bad input is one sentence, and a sweep goes on."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    try:
        status = run(cfg if cfg.resume is None else _resumed(cfg, folder), folder)
    except (ValueError, TypeError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        print(f"error: {error}", file=sys.stderr)
        status = 2
        _remove_if_empty(folder)
    _statuses.append(status)
    if status >= 128:  # stopped by a signal: so is the whole sweep
        sys.exit(status)


def _resumed(cfg: DictConfig, folder: Path) -> DictConfig:
    """The stored configuration of a run, with those options changed that may change on the way."""
    stored = RunFolder(folder).read_config()
    for word in HydraConfig.get().overrides.task:
        key = word.split("=")[0].lstrip("+~")
        if key == "resume":
            continue
        if not key.startswith(RESUMABLE):
            raise ValueError(
                f"resume continues the stored run, in which only {', '.join(RESUMABLE)} can "
                f"change; got {word}: leave it out."
            )
        OmegaConf.update(stored, key, OmegaConf.select(cfg, key))
    return stored


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def check_overrides(words: Sequence[str], config_dir: Path) -> None:
    """Raise ValueError with one sentence for an override that the configuration cannot take.

    Checked are the syntax, that nothing to be called is named, the names of groups and options
    (with the nearest valid ones), the kind of each value against its default, the folder to
    resume, and that outputs can be written.
    """
    overrides = _parsed(words)
    for word, override in zip(words, overrides, strict=True):
        inner = [key for value in _values(override) for key in _keys(value)]
        if is_internal(override.key_or_group) or any(key.startswith("_") for key in inner):
            raise ValueError(
                "what an option of a group is made of stands in its file in conf/ alone; got "
                f"{word}: choose another option, such as method=rk4."
            )
    groups, cfg, chosen = _composed(overrides, config_dir)
    defaults = visible(cfg)
    for override in overrides:
        key = override.key_or_group
        if override in chosen or key.startswith("hydra") or override.is_add():
            continue
        if key not in defaults:
            raise ValueError(_unknown("", key, [*defaults, *groups]))
        if not override.is_delete():
            for value in _values(override):
                check_kind(key, value, defaults[key])
    _check_folders(overrides)


def _parsed(words: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(words))
    except HydraException as error:
        raise ValueError(
            f"overrides must look like key=value; {str(error).splitlines()[0]}"
        ) from error


def _composed(
    overrides: Sequence[Override], config_dir: Path
) -> tuple[dict[str, list[str]], DictConfig, list[Override]]:
    """(the options of each group, the configuration of those chosen, the overrides that choose).

    Raises: ValueError for an option that a group does not have, with the nearest names.
    """
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir)):
        loader = GlobalHydra.instance().config_loader()
        groups = {g: _group_options(loader, g) for g in loader.list_groups("") if g != "hydra"}
        chosen = [o for o in overrides if o.key_or_group in groups]
        for override in chosen:
            options = groups[override.key_or_group]
            for value in _values(override):
                if value is not None and value not in options:
                    raise ValueError(_unknown(f"{override.key_or_group}=", value, options))
        cfg = compose("train", [f"{o.key_or_group}={_text(_values(o)[0])}" for o in chosen])
    return groups, cfg, chosen


def _group_options(loader: ConfigLoader, group: str, prefix: str = "") -> list[str]:
    """The options of a group, those of its folders as folder/option."""
    options = [prefix + name for name in loader.get_group_options(group)]
    for folder in loader.get_group_options(group, results_filter=ObjectType.GROUP):
        options += _group_options(loader, f"{group}/{folder}", f"{prefix}{folder}/")
    return options


def _values(override: Override) -> list[object]:
    """The value of an override, or all values of a sweep over choices."""
    if override.is_delete():
        return [None]
    if override.is_sweep_override():
        return [_plain(v) for v in override.sweep_iterator()]
    return [_plain(override.value())]


def _plain(value: object) -> object:
    text = value.text if isinstance(value, QuotedString) else value
    if isinstance(text, str):  # sweeps yield text: read it as a configuration would
        return OmegaConf.create(f"v: {text}").v if text else text
    return text


def _keys(value: object) -> list[str]:
    """The keys of all mappings inside a value."""
    if isinstance(value, Mapping):
        return [str(key) for key in value] + [k for v in value.values() for k in _keys(v)]
    if isinstance(value, list | tuple | ListConfig):
        return [key for item in value for key in _keys(item)]
    return []


def _text(value: object) -> str:
    return "null" if value is None else str(value)


def visible(cfg: DictConfig) -> dict[str, object]:
    """The options that a user can set, by their dotted names, with their values."""

    def walk(node: object, prefix: str) -> dict[str, object]:
        if not isinstance(node, DictConfig):
            return {prefix: node}
        leaves: dict[str, object] = {}
        for key in node:
            leaves |= walk(node[key], f"{prefix}.{key}" if prefix else str(key))
        return leaves

    return {key: value for key, value in walk(cfg, "").items() if not is_internal(key)}


def _unknown(prefix: str, given: object, valid: Sequence[str]) -> str:
    given = str(given)
    near = get_close_matches(given, valid, n=3, cutoff=0.6)
    last = given.rsplit(".", 1)[-1]
    near += [v for v in valid if v.rsplit(".", 1)[-1] == last and v not in near]
    hint = " or ".join(f"{prefix}{n}" for n in near) or ", ".join(f"{prefix}{v}" for v in valid)
    return f"there is no {prefix}{given}; the nearest valid names are {hint}."


def help_page(words: Sequence[str], config_dir: Path) -> str:
    """What --help prints: the groups, and every option with its value, its meaning, its range."""
    groups, cfg, _ = _composed(_parsed(words), config_dir)
    lines = [
        "deeplin: train a deep linear network and hold it against the theory.",
        "",
        "Groups, chosen with group=option:",
        *(f"  {group}: {', '.join(options)}" for group, options in groups.items()),
        "",
        "Options, set with key=value; those of another method, say, by method=rk4 --help:",
    ]
    for key, value in visible(cfg).items():
        text = str(value).lower() if isinstance(value, bool) else _text(value)
        lines.append(f"  {key}={text}")
        option = OPTIONS.get(key)
        if option is not None:
            rule = f" ({option.must})" if option.must else ""
            lines += wrap(
                f"{option.help}{rule}", 96, initial_indent=_INDENT, subsequent_indent=_INDENT
            )
    return "\n".join([*lines, "", "-m runs a sweep: -m network.depth=2,3,5 seed=0,1"])


def _check_folders(overrides: Sequence[Override]) -> None:
    given = {o.key_or_group: o.value() for o in overrides if not o.is_sweep_override()}
    resume = given.get("resume")
    if resume is not None and not Path(str(resume), "checkpoint.pt").is_file():
        raise ValueError(
            f"resume={resume} must name the folder of a run with a checkpoint; "
            f"there is no {Path(str(resume), 'checkpoint.pt')}."
        )
    for key in ("hydra.run.dir", "hydra.sweep.dir"):
        folder = Path(str(given.get(key, resume or "runs")))
        existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise ValueError(
                f"outputs go to {folder}, but {existing} is no folder that can be written: "
                "choose another with hydra.run.dir=<folder>."
            )
