"""Command lines as hypothesis draws them: every one is run, or answered in one sentence.

No word of Python's, torch's or Hydra's own in any message, and no status 0 without a normal end.
"""

import collections
import json
import os
import shutil
import time
from pathlib import Path

import hydra
import pytest
from answers import CONF, answered, faults, only_built
from command_lines import command_lines
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, Phase, given, settings
from runner import Remembered

from deeplin.loop import Kind
from deeplin.runner import cli
from deeplin.runner.run import run

NORMAL = {Kind.TIME, Kind.STEPS, Kind.CONVERGED, Kind.NEAR_LOWER_RANK, Kind.STAGNATED}
DRAWN = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to run in, with composed configurations remembered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        patch.setattr(cli, "Configurations", Remembered)
        yield Path.cwd()


def test_command_lines_are_built_or_answered(place):
    seen = collections.Counter()

    @settings(DRAWN, max_examples=100)
    @given(command_lines())
    def holds(words):
        status, _, err = answered(entry, words)
        seen[status] += 1
        assert not faults(status, err), words

    with pytest.MonkeyPatch.context() as patch:
        entry = only_built(place, patch)
        holds()
    assert min(seen[0], seen[2]) > 20, seen  # the draws are neither all right nor all wrong


@pytest.mark.slow
def test_command_lines_are_run_or_answered(place):
    """Through Hydra and every step of the program; a normal end wherever the status is 0."""
    seen = collections.Counter()

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
    def entry(cfg):
        cli.job(cfg)

    @settings(DRAWN, max_examples=int(os.environ.get("DEEPLIN_FUZZ", "2000")))
    @given(command_lines())
    def holds(words):
        if not any(word.startswith("stop.max_steps=") for word in words):
            words = [*words, "stop.max_steps=2"]
        for old in place.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        status, out, err = answered(entry, words)
        GlobalHydra.instance().clear()
        seen[status] += 1
        assert not faults(status, err), words
        if status == 0:
            for summary in place.rglob("summary.json"):
                seen["runs"] += 1
                assert json.loads(summary.read_text())["result_kind"] in NORMAL, (words, out)

    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "run", lambda cfg, folder: run(cfg, folder, draw=False))
        holds()
    print(f"{sum(seen[s] for s in (0, 1, 2))} in {time.monotonic() - started:.0f} s: {dict(seen)}")
