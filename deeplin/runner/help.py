"""What --help prints: the groups, and every option with its value, its meaning and its kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap

from omegaconf import DictConfig

from deeplin.runner.comments import header, remarks
from deeplin.runner.configurations import Configurations, visible
from deeplin.runner.kinds import shown
from deeplin.runner.schema import OF_HYDRA, OPTIONS, Option

__all__ = ["help_page"]

_WIDEST = 100
_INDENT = 8 * " "
_EXAMPLES = (
    "-m runs a sweep: -m network.depth=2,3,5 seed=0,1",
    "resume=<folder> continues a run; method=rkc --help tells all of one method, and so of each "
    "group",
)


def help_page(
    configurations: Configurations,
    cfg: DictConfig,
    chosen: Mapping[str, str],
    columns: int | None = None,
) -> str:
    """The page of a composed configuration; of the groups that were chosen, if any were.

    The meaning of an option is the comment behind it in its group's file, or the schema's line.
    """
    columns = min(columns or _WIDEST, _WIDEST)
    lines = ["deeplin: train a deep linear network and hold it against the theory.", ""]
    if chosen:
        for group, name in chosen.items():
            lines += _of_choice(configurations, cfg, group, name, columns)
        lines += _paragraph("--help alone lists all groups and options.", columns)
        return "\n".join(lines)
    lines += ["Groups, chosen with group=name (* by default):"]
    groups = sorted(configurations.groups().items(), key=lambda item: item[0] == "experiment")
    for group, names in groups:
        if "/" not in group:
            lines += ["", f"  {group}", *_names(configurations, cfg, group, names, columns)]
    lines += ["", "Options, set with key=value:"]
    told = _remarks(configurations, cfg)
    for key, value in visible(cfg).items():
        lines += _option(key, value, told, columns)
    lines += ["", "Of Hydra's own options:"]
    for key, option in OF_HYDRA.items():
        lines += [f"  {key}", *_told(option.help, option, columns)]
    lines.append("")
    for line in _EXAMPLES:
        lines += _paragraph(line, columns)
    return "\n".join(lines)


def _of_choice(
    configurations: Configurations, cfg: DictConfig, group: str, name: str, columns: int
) -> Iterator[str]:
    """All that is known of one name of a group."""
    yield f"{group}={name}"
    path = configurations.file(group, name)
    if path is not None:
        yield from _paragraph(header(path), columns, "  ")
    yield ""
    told = _remarks(configurations, cfg)
    own = [(key, value) for key, value in visible(cfg).items() if key.startswith(f"{group}.")]
    for key, value in own:
        yield from _option(key, value, told, columns)
    if own:
        yield ""


def _names(
    configurations: Configurations, cfg: DictConfig, group: str, names: Sequence[str], columns: int
) -> Iterator[str]:
    """The names of a group, each with the first sentence of its file."""
    by_default = cfg.hydra.runtime.choices.get(group)
    for name in names:
        path = configurations.file(group, name)
        about = "" if path is None else _first_sentence(header(path))
        mark = "*" if name == by_default else " "
        yield from wrap(
            f"{name:<16}{about}", columns, initial_indent=f"  {mark} ", subsequent_indent=20 * " "
        )


def _first_sentence(text: str) -> str:
    return re.split(r"\.(?=\s+[A-Z])", text, maxsplit=1)[0].rstrip(".")


def _remarks(configurations: Configurations, cfg: DictConfig) -> dict[str, str]:
    """What the files that a configuration is composed of say behind its options.

    A remark that begins with "or" goes on from the value, and says nothing on its own.
    """
    found = {}
    main = configurations.file("", configurations.name)
    if main is not None:
        found |= remarks(main)
    for group, name in cfg.hydra.runtime.choices.items():
        path = None if "/" in group or name is None else configurations.file(group, name)
        if path is not None and group != "experiment":
            found |= {f"{group}.{key}": text for key, text in remarks(path).items()}
    return {key: text for key, text in found.items() if not text.startswith("or ")}


def _option(key: str, value: object, told: Mapping[str, str], columns: int) -> Iterator[str]:
    option = OPTIONS.get(key)
    yield f"  {key}={value if isinstance(value, str) else shown(value)}"
    meaning = told.get(key) or (option.help if option else "")
    yield from _told(meaning, option, columns)


def _told(meaning: str, option: Option | None, columns: int) -> Iterator[str]:
    kind = f"({option.kind.must})" if option else ""
    line = " ".join(filter(None, (meaning, kind)))
    yield from wrap(line, columns - 4, initial_indent=_INDENT, subsequent_indent=_INDENT)


def _paragraph(text: str, columns: int, indent: str = "") -> list[str]:
    return wrap(text, columns, initial_indent=indent, subsequent_indent=indent)
