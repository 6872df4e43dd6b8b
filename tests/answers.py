"""How train.py answers a command line, inside the test process; and what no answer may hold."""

import contextlib
import io
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from runner import ROOT

from deeplin.runner import cli
from deeplin.runner.build import build
from deeplin.runner.configurations import task

CONF = ROOT / "conf"
CHECK = cli.check_words


# What only a program says of itself. Messages repeat what was typed, and none of it was.
INTERNAL = re.compile(
    r"Traceback|omegaconf|hydra\.errors|Exception|Error\b|object_type|full_key|<class|<function|"
    r"tensor\(|NoneType|\bNone\b|\bTrue\b|\bFalse\b|'\w+' object|keyword argument|positional|"
    r"unexpected|0x[0-9a-f]{6}|DictConfig|ListConfig|mismatched|no viable|token|struct\b|File \"|"
    r"not supported between|os\.PathLike|stack trace|HYDRA_FULL|\bnot iterable|unpack|"
    r"size mismatch|must match the size|expected m1|INTERNAL ASSERT"
)


def faults(status: int, err: str) -> list[str]:
    """What is wrong with how a command line was answered."""
    found = [] if status in (0, 1, 2, 3) else [f"status {status}"]
    lines = err.splitlines()
    if status == 0 and any("error" in line.lower() for line in lines):
        found.append("an error with status 0")
    if status != 0 and (len(lines) != 1 or not err.startswith("error: ")):
        found.append(f"{len(lines)} lines, not one that begins with error:")
    if inside := INTERNAL.search(err):
        found.append(f"internal: {inside[0]!r}")
    return [f"{fault}; {err[:1000]}" for fault in found]


def answered(entry, words: list[str]) -> tuple[int, str, str]:
    """(status, output, errors) of train.py's own main, called with these words."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("always")  # shown, as in a process of its own
        warnings.simplefilter("ignore", ResourceWarning)  # as there
        patch.setattr(sys, "argv", ["train.py", *words])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = cli.main(entry, CONF, words)
            except SystemExit as exit:
                status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    torch.set_num_threads(1)
    said, told = (stream.buffer.getvalue().decode() for stream in (out, err))
    return status, said, told


def only_built(place: Path, patch: pytest.MonkeyPatch):
    """An entry that builds the first run of what was checked, without Hydra and without a step."""
    checked = []

    def check_words(*args, **kwargs):
        checked.append(CHECK(*args, **kwargs))
        return checked[-1]

    def entry():
        if any(
            word.startswith("-") and word not in ("-m", "--multirun", "--run") for word in sys.argv
        ):
            return  # what Hydra shows
        cfg = checked[-1].first
        OmegaConf.set_readonly(cfg.hydra, False)
        cfg.hydra.runtime.output_dir = str(place / "run")
        HydraConfig.instance().set_config(cfg)
        try:
            cli.job(task(cfg))
        finally:
            HydraConfig.instance().cfg = None

    patch.setattr(cli, "check_words", check_words)
    patch.setattr(cli, "run", lambda cfg, folder: int(build(cfg) is None))
    return entry
