"""A run of several processes of torchrun: the first runs, the others read their share of the data.

The first process composes, writes and trains, as if it were alone: one folder, one log, one
checkpoint. For problem=file with a pattern of files all of them read, each its share, and the
moments of all samples are summed; a step then costs what it costs with any number of samples. The
state is the same whatever the number of processes, and so a run goes on with another one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf

from deeplin.linalg import begin_processes
from deeplin.problems.readers import from_file, is_pattern
from deeplin.runner.errors import EXPECTED
from deeplin.runner.terminal import complain

__all__ = ["lead", "processes", "serve", "shared"]

_SECONDS = 0.1  # between two looks at what the first process has said
_AT_MOST = 60.0  # that it waits for the others to have heard its last word,
_STOPPED = 5.0  # and if a signal has ended it, which they may have got, too
_STREAMED = f"{from_file.__module__}.{from_file.__qualname__}"


@dataclass
class _Team:
    """This process among those of a run; `said` counts what the first one has told the others."""

    rank: int
    size: int
    store: dist.Store
    said: int = 0
    group: dist.ProcessGroup | None = None

    @classmethod
    def joined(cls) -> _Team:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(minutes=5)))
        return cls(rank, size, dist.PrefixStore("deeplin", store))

    def reading(self) -> dist.ProcessGroup:
        """The group of all processes, begun when it is first needed: files are read on the CPU."""
        if self.group is None:
            store = dist.PrefixStore("reading", self.store)
            begin_processes(
                store=store,
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(days=1),  # shares may be of unequal length
            )
            self.group = dist.group.WORLD
            assert self.group is not None
        return self.group

    def tell(self, message: dict[str, object]) -> None:
        self.store.set(f"said {self.said}", json.dumps(message))
        self.said += 1

    def heard(self) -> dict[str, object]:
        """What the first process says next."""
        key = f"said {self.said}"
        while not self.store.check([key]):
            time.sleep(_SECONDS)
        self.said += 1
        return json.loads(self.store.get(key))

    def leave(self) -> None:
        if self.group is not None:
            dist.destroy_process_group()


_team: _Team | None = None


def lead(run: Callable[[], int]) -> int:
    """What the first process does: run, and tell the others the exit status, which is returned."""
    global _team
    _team = _Team.joined()
    status = 1
    try:
        status = run()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        raise
    finally:
        with contextlib.suppress(RuntimeError):  # who has the store may have gone
            _team.tell({"status": status})
            latest = time.monotonic() + (_AT_MOST if status < 128 else _STOPPED)
            # It may be this process.
            while _team.store.add("left", 0) < _team.size - 1 and time.monotonic() < latest:
                time.sleep(_SECONDS)
        _team.leave()
        _team = None
    return status


def serve(read: Callable[[DictConfig], object]) -> int:
    """What the others do: read their share whenever the first process does; its exit status."""
    global _team
    for number in (signal.SIGINT, signal.SIGTERM):  # the first process says what there is to say
        signal.signal(number, lambda number, frame: os._exit(128 + number))
    _team = _Team.joined()
    try:
        while "status" not in (message := _team.heard()):
            os.chdir(str(message["place"]))
            cfg = OmegaConf.create(str(message["data"]))
            assert isinstance(cfg, DictConfig)
            with contextlib.suppress(*EXPECTED):  # which all processes have, and the first tells
                read(cfg)
        status = message["status"]
        assert isinstance(status, int)
        _team.store.add("left", 1)
    except dist.DistError:  # of its store
        complain("the first process of this run has gone without a word.")
        return 1
    finally:
        _team.leave()
        _team = None
    return status


def processes() -> int:
    """How many processes the run has."""
    return 1 if _team is None else _team.size


def shared(cfg: DictConfig) -> dist.ProcessGroup | None:
    """The group of processes that read the data of a run together; None where one process does.

    The first process tells the others.
    """
    if _team is None or cfg.problem.get("_target_") != _STREAMED:
        return None
    if not cfg.problem.path or not is_pattern(cfg.problem.path):
        return None
    if _team.rank == 0:
        parts = {key: cfg[key] for key in ("problem", "dtype", "seed")}
        data = OmegaConf.to_yaml(OmegaConf.create(parts), resolve=True)
        _team.tell({"data": data, "place": os.getcwd()})
    return _team.reading()
