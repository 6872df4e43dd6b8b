"""Running scripts/train.py inside the test process, as a user would type it."""

import functools
import os
import pickle
import runpy
import shutil
import sys
from pathlib import Path

import hydra
import pytest
from hydra._internal.hydra import Hydra

import deeplin.runner.run as running
from deeplin.runner import cli
from deeplin.runner.configurations import Configurations

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


def train_with(conf: Path, *arguments: str) -> int:
    """The same with another folder of configurations."""

    @hydra.main(version_base="1.3", config_path=str(conf), config_name="train")
    def entry(cfg):
        cli.job(cfg)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *arguments])
        return cli.main(entry, conf, arguments)


def train(*arguments: str, folder: Path | None = None, draw: bool = False) -> int:
    """The exit status of `python scripts/train.py ARGUMENTS`; hydra.run.dir=FOLDER if given.

    Without pictures, which cost more than most runs, unless they are what is looked at.
    """
    where = [] if folder is None else [f"hydra.run.dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["scripts/train.py", *arguments, *where])
        patch.setattr(cli, "Configurations", Remembered)
        if not any(word.startswith(("-", "experiment=", "hydra.")) for word in arguments):
            # Hydra composes all once more to see whether a file asks for a sweep: none does here.
            patch.setattr(Hydra, "get_mode", lambda self, config_name, overrides: None)
        if cli.run is running.run:
            patch.setattr(cli, "run", functools.partial(running.run, draw=draw))
        try:
            runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
        except SystemExit as exit:
            return int(exit.code or 0)
    return 0
