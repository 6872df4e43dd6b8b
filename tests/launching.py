"""What tests of launchers share: commands in processes of their own, kills in the middle."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path

import torch
from runner import SMALL

from deeplin.runner.folder import Checkpointer, RunFolder

SHORT = [*SMALL, "log.checkpoint_seconds=0", "stop.max_steps=12", "log.records=6"]
Prepare = Callable[[Path], None]


def status(folder: Path) -> object:
    return RunFolder(folder).read_status().get("status")


def wait_for(done: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


@dataclass(frozen=True)
class Command:
    """A command in a fresh process of the context; what it says stands in said.txt at `place`."""

    context: BaseContext
    main: Callable[[list[str]], int]
    words: tuple[str, ...]
    place: Path

    def begun(self, *words: str, prepare: Prepare | None = None):
        """The process, which has only been started."""
        (self.place / "said.txt").unlink(missing_ok=True)
        arguments = self.main, [*self.words, *words], self.place, prepare
        process = self.context.Process(target=_run, args=arguments)  # pyright: ignore
        process.start()
        return process

    def said(self) -> str:
        return (self.place / "said.txt").read_text()

    def __call__(self, *words: str, prepare: Prepare | None = None) -> tuple[int | None, str]:
        """(exit status, what was said), once it has ended."""
        process = self.begun(*words, prepare=prepare)
        process.join()
        return process.exitcode, self.said()


def _run(
    main: Callable[[list[str]], int],
    words: list[str],
    place: Path,
    prepare: Prepare | None,
) -> None:
    os.chdir(place)
    said = os.open("said.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout, sys.stderr = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(2), "w")
    torch.set_num_threads(1)
    # A shell that runs pytest in the background has it ignored, by whatever it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if prepare is not None:
        prepare(place)
    code = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    for worker in multiprocessing.active_children():  # which would idle for five minutes
        worker.kill()
    os._exit(code)


def deadly(place: Path) -> None:
    """Seed 1 kills its process after its fifth step, as long as there is a file `deadly`."""
    original = Checkpointer.on_step

    def on_step(self, stepper):
        original(self, stepper)
        if self.config["seed"] == 1 and stepper.step == 5 and (place / "deadly").exists():
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpointer.on_step = on_step


def lasting(place: Path) -> None:
    """From the fifth step on each takes a second, as long as there is a file `lasting`."""
    original = Checkpointer.on_step

    def on_step(self, stepper):
        original(self, stepper)
        if stepper.step >= 5 and (place / "lasting").exists():
            time.sleep(1)

    Checkpointer.on_step = on_step


def forked(place: Path, then: Prepare) -> None:
    """joblib's workers are forks of this process, which need not import anything."""
    from joblib.externals.loky.backend.context import set_start_method

    set_start_method("fork", force=True)
    then(place)
