"""A command from its first moment: a line at once, and Ctrl-C in a sentence."""

from __future__ import annotations

import atexit
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
    with unbegun(words):
        with patient():
            _greet(words)
        from deeplin.runner import cli, targets  # torch and all else: seconds
        from deeplin.runner.configurations import CONF

        for package in trusted:
            targets.trust(package)
        status = cli.main(cli.train, CONF, words, draw)
    # All is said and written: from here Ctrl-C ends the process without a word.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return status


def _greet(words: Sequence[str]) -> None:
    shows = any(word.startswith("-") and word not in _RUNNING for word in words)
    if not shows:
        print("deeplin: loading torch and the options ...", flush=True)
    elif sys.stderr.isatty():  # what is shown may go to a file
        print("deeplin: loading the options ...", file=sys.stderr, flush=True)
