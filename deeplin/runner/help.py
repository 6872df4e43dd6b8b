"""What --help prints: the groups, and every option with its value, its meaning and its kind."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from omegaconf import DictConfig

from deeplin.runner.configurations import Configurations, visible
from deeplin.runner.kinds import shown
from deeplin.runner.schema import OF_HYDRA, OPTIONS, Option

__all__ = ["help_page"]

_INDENT = 8 * " "


def help_page(configurations: Configurations, cfg: DictConfig) -> str:
    """The page of a composed configuration."""
    groups = configurations.groups().items()
    lines = [
        "deeplin: train a deep linear network and hold it against the theory.",
        "",
        "Groups, chosen with group=name:",
        *(f"  {group}: {', '.join(names)}" for group, names in groups if "/" not in group),
        "",
        "Options, set with key=value; those of another method, say, by method=rk4 --help:",
    ]
    for key, value in visible(cfg).items():
        text = value if isinstance(value, str) else shown(value)
        lines += [f"  {key}={text}", *_told(OPTIONS.get(key))]
    lines += ["", "Of Hydra's own options:"]
    for key, option in OF_HYDRA.items():
        lines += [f"  {key}", *_told(option)]
    return "\n".join([*lines, "", "-m runs a sweep: -m network.depth=2,3,5 seed=0,1"])


def _told(option: Option | None) -> Iterator[str]:
    if option is not None:
        line = f"{option.help} ({option.kind.must})"
        yield from wrap(line, 96, initial_indent=_INDENT, subsequent_indent=_INDENT)
