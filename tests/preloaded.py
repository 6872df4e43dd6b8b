"""What a forkserver loads before it forks: all that a run imports, the late ones by a small run."""

import contextlib
import os
import tempfile
from pathlib import Path

import sklearn.preprocessing
import torch
from runner import SMALL, train

assert sklearn.preprocessing
torch.set_num_threads(1)
with (
    tempfile.TemporaryDirectory() as folder,
    open(os.devnull, "w") as nowhere,
    contextlib.redirect_stdout(nowhere),
):
    assert train(*SMALL, "stop.max_steps=1", folder=Path(folder, "run")) == 0
