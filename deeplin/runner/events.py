"""TensorBoard's event file, written by this thread, so that a full disk is an error here."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import (
    Summary,  # pyright: ignore[reportAttributeAccessIssue]
)

from deeplin.runner import files

__all__ = ["EventFile"]


class EventFile:
    """A new file of summaries, of which a reader sees what is older than `seconds`."""

    def __init__(self, path: Path, seconds: float = 5.0):
        self._file = files.create(path)
        self._seconds, self._flushed = seconds, -float("inf")
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, summary: Summary, step: int = 0) -> None:
        self._add(Event(wall_time=time.time(), step=step, summary=summary))

    def _add(self, event: Event) -> None:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._file.write(length + _masked(length) + data + _masked(data))
        if time.monotonic() - self._flushed > self._seconds:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()


def _masked(data: bytes) -> bytes:
    """The check sum of a TFRecord; tensorboard's own, in Python, takes most of a record's time."""
    sum32 = google_crc32c.value(data)
    return struct.pack("<I", ((sum32 >> 15 | sum32 << 17) + 0xA282EAD8) & 0xFFFFFFFF)
