"""The memory promise of scripts/benchmark.py, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_step_of_adam_on_a_20000_square_matrix_fits_into_200_mb(tmp_path):
    command = [sys.executable, "scripts/benchmark.py", "adam-memory"]
    run = subprocess.run(
        [*command, "--json", str(tmp_path / "out.json")], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert '"ok": true' in (tmp_path / "out.json").read_text()
