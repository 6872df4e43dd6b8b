"""The shapes in the signatures are true: tests run with all of them checked at every call."""

import os
import subprocess
import sys

import pytest
from runner import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.shapes]

# Bad input must end in a sentence of ours; under the hook it ends in one of the checker's.
# torch.compile cannot trace the checker itself.
SELECTION = "not bad and not raises and not refuse and not transforms"
FILES = (
    "linalg",
    "truncation",
    "graded",
    "network",
    "init",
    "problems",
    "manifolds_metric",
    "solve",
)


def run(*arguments: str) -> subprocess.CompletedProcess:
    """pytest in a process of its own, whose imports of deeplin are instrumented."""
    hook = "--jaxtyping-packages=deeplin,shapes.checked"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", hook]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("name", FILES)
def test_shapes_are_true(name):
    done = run(f"tests/test_{name}.py", "-k", SELECTION)
    assert done.returncode == 0, done.stdout[-3000:]


FALSE = """
import pytest, torch
from deeplin.linalg import matmul

def test_false():
    with pytest.raises(Exception, match="Type-check error"):
        matmul(torch.ones(2, 3), torch.ones(4, 5))
"""


def test_a_false_shape_is_found(tmp_path):
    (tmp_path / "test_false.py").write_text(FALSE)
    done = run(str(tmp_path / "test_false.py"), "-c", str(ROOT / "pyproject.toml"))
    assert done.returncode == 0, done.stdout[-3000:]
