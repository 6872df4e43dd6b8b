"""Running scripts/train.py inside the test process, as a user would type it."""

import contextlib
import functools
import os
import pickle
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import composing
import hydra
import pytest
from hydra._internal.hydra import Hydra

import deeplin.runner.run as running
from deeplin.runner import cli
from deeplin.runner.configurations import Configurations

composing.keep()
ROOT = Path(__file__).resolve().parent.parent
SMALL = ["problem=gaussian", "problem.d=6", "network.rank=2", "method=rk4", "log.records=100"]

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CC", "cc").split()[0]) is None, reason="there is no C compiler"
)


class Remembered(Configurations):
    """Composes each choice of groups once: what the files of conf/ hold does not change here."""

    @functools.lru_cache(maxsize=500)  # noqa: B019
    def groups(self):
        return super().groups()

    def composed(self, choices=()):
        return pickle.loads(self._composed(tuple(choices)))

    @functools.lru_cache(maxsize=500)  # noqa: B019
    def _composed(self, choices):
        return pickle.dumps(super().composed(choices))  # read faster than copied


@contextlib.contextmanager
def _quick(arguments: tuple[str, ...], draw: bool) -> Iterator[pytest.MonkeyPatch]:
    """Without what a test need not wait for: pictures, which cost more than most runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "Configurations", Remembered)
        words = [word for word in arguments if word != "-m"]
        if not any(word.startswith(("-", "experiment=", "hydra.mode=")) for word in words):
            # Hydra composes all once more to see whether a file asks for a sweep: none does here.
            patch.setattr(Hydra, "get_mode", lambda self, config_name, overrides: None)
        if cli.run is running.run:
            patch.setattr(cli, "run", functools.partial(running.run, draw=draw))
        yield patch


def train_with(conf: Path, *arguments: str, draw: bool = False) -> int:
    """`train` with another folder of configurations."""

    @hydra.main(version_base="1.3", config_path=str(conf), config_name="train")
    def entry(cfg):
        cli.job(cfg)

    with _quick(arguments, draw) as patch:
        patch.setattr(sys, "argv", ["train.py", *arguments])
        return cli.main(entry, conf, arguments)


def train(*arguments: str, folder: Path | None = None, draw: bool = False) -> int:
    """The exit status of `python scripts/train.py ARGUMENTS`; hydra.run.dir=FOLDER if given.

    With pictures if they are what is looked at.
    """
    where = [] if folder is None else [f"hydra.run.dir={folder}"]
    with _quick(arguments, draw) as patch:
        patch.setattr(sys, "argv", ["scripts/train.py", *arguments, *where])
        try:
            runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
        except SystemExit as exit:
            return int(exit.code or 0)
    return 0
