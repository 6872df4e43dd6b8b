"""A command from its first moment: a line at once, and Ctrl-C in a sentence."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deeplin.runner.signals import unbegun
from deeplin.runner.terminal import patient

if TYPE_CHECKING:
    from deeplin.runner.experiments import Draw

__all__ = ["launch"]

# Of the flags, those with which something runs.
_RUNNING = ("-m", "--multirun", "-r", "--run")


def launch(trusted: Sequence[str] = (), draw: Draw | None = None) -> int:
    """Run the command line of this process; its exit status.

    `trusted` are packages of the user's own that the files of conf/ name as `_target_`; `draw`
    makes the figure of an experiment from its runs.
    """
    words = sys.argv[1:]
    rank, size = _place()
    with unbegun(words, silent=rank > 0):
        if rank == 0:
            with patient():
                _greet(words)
        from deeplin.runner import cli, ranks, targets  # torch and all else: seconds
        from deeplin.runner.build import data_of
        from deeplin.runner.configurations import CONF

        for package in trusted:
            targets.trust(package)
        if rank > 0:
            return ranks.serve(data_of)

        def run() -> int:
            return cli.main(cli.train, CONF, words, draw)

        status = run() if size == 1 else ranks.lead(run)
    # All is said and written: from here Ctrl-C ends the process without a word.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return status


def _place() -> tuple[int, int]:
    """The number of this process among those that torchrun has started, and how many these are."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(name in os.environ for name in names):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _greet(words: Sequence[str]) -> None:
    shows = any(word.startswith("-") and word not in _RUNNING for word in words)
    if not shows:
        print("deeplin: loading torch and the options ...", flush=True)
    elif sys.stderr.isatty():  # what is shown may go to a file
        print("deeplin: loading the options ...", file=sys.stderr, flush=True)
