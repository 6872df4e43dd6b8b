"""The flags of the command line: Hydra's own, those that it cannot do here answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

__all__ = ["CommandLine", "read"]

_COMPLETION = ("install=", "uninstall=", "query=")


@dataclass(frozen=True)
class CommandLine:
    """What was typed: overrides, and what the flags beside them ask for.

    `shows` is that Hydra only shows something, and `package` which part of the configuration.
    """

    flags: tuple[str, ...]
    overrides: tuple[str, ...]
    sweep: bool = False
    help: bool = False
    shows: bool = False
    package: str | None = None
    name: str | None = None
    folder: Path | None = None


def read(arguments: Sequence[str]) -> CommandLine:
    """The words of a command line, in any order. Raises ValueError, with one sentence."""
    parser = get_args_parser()
    parser.prog, parser.error = "train.py", _refuse
    found, unknown = parser.parse_known_intermixed_args(list(arguments))
    if unknown:
        raise ValueError(
            f"there is no flag {unknown[0]}; options are set with key=value, and --help lists them."
        )
    if found.experimental_rerun is not None:
        raise ValueError("--experimental-rerun is not used here: resume=<folder> continues a run.")
    if found.config_path is not None:
        raise ValueError("--config-path is not used here: --config-dir=<folder> adds a folder.")
    asked = [
        flag
        for flag, is_given in (
            ("--run", found.run),
            ("--multirun", found.multirun),
            ("--cfg", found.cfg is not None),
            ("--info", found.info is not None),
            ("--shell-completion", found.shell_completion),
        )
        if is_given
    ]
    if len(asked) > 1:
        raise ValueError(f"only one of {' and '.join(asked)} can be asked for at a time.")
    for flag, value, is_given in (
        ("--resolve", "", found.resolve),
        ("--package", " problem", found.package is not None),
    ):
        if is_given and found.cfg is None:
            raise ValueError(f"{flag} goes with --cfg: for instance --cfg job {flag}{value}.")
    folder = None if found.config_dir is None else Path(found.config_dir).absolute()
    if folder is not None and not folder.is_dir():
        raise ValueError(
            f"--config-dir must name a folder of configurations; there is no {folder}."
        )
    if found.shell_completion and not any(word.startswith(_COMPLETION) for word in found.overrides):
        raise ValueError("--shell-completion needs install=<shell> or uninstall=<shell>.")
    if found.hydra_help:
        return CommandLine(("--hydra-help",), (), shows=True)
    flags = list(arguments)
    for word in reversed(found.overrides):
        del flags[len(flags) - 1 - flags[::-1].index(word)]
    return CommandLine(
        tuple(flags),
        tuple(found.overrides),
        sweep=found.multirun,
        help=found.help,
        shows=found.shell_completion,
        package=found.package,
        name=found.config_name,
        folder=folder,
    )


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"{message[0].lower()}{message[1:]}; --help lists the options.")
