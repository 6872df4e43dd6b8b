"""What a forkserver loads before it forks: all that a run imports, the late ones by small runs."""

import contextlib
import os
import tempfile
from pathlib import Path

import process_jobs
import reproduce
import sklearn.preprocessing
import tensorboard.backend.event_processing.event_accumulator
import torch
from runner import SMALL, train

assert process_jobs
assert sklearn.preprocessing
assert tensorboard.backend.event_processing.event_accumulator
assert reproduce
torch.set_num_threads(1)
with (
    tempfile.TemporaryDirectory() as folder,
    open(os.devnull, "w") as nowhere,
    contextlib.redirect_stdout(nowhere),
):
    for method in ("rk4", "sgd"):
        words = [*SMALL, f"method={method}", "stop.max_steps=1"]
        assert train(*words, folder=Path(folder, method)) == 0
