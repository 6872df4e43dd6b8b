"""The house rules that a reader relies on: who may import whom, how long a file may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "deeplin").rglob("*.py"))

# A module imports only from the rows above its own.
ROWS = [
    {"linalg"},
    {"geometry"},
    {"problems"},
    {"network", "exact"},
    {"flows", "manifolds", "landscape"},
    {"integrators", "optim"},
    {"prediction"},
    {"loop"},
    {"estimators"},
    {"runner"},
]
ROW = {name: i for i, names in enumerate(ROWS) for name in names}
# Libraries that one place alone knows.
HOMES = {
    "geoopt": {"manifolds", "optim"},
    "hydra": {"runner"},
    "omegaconf": {"runner"},
    "matplotlib": {"runner"},
    "tqdm": {"runner"},
    "sklearn": {"problems", "estimators"},
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "deeplin").with_suffix("").parts[0]


def imports(path: Path) -> list[str]:
    """Dotted names of everything that a file imports, at its top or inside a function."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards(path):
    own = name_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "deeplin" and own != "__init__":
            assert parts[1] == own or ROW[parts[1]] < ROW[own], f"{own} imports {name}"
        if parts[0] in HOMES:
            assert own in HOMES[parts[0]], f"{parts[0]} is imported in {own}"
        if name.startswith("torch.utils.tensorboard"):
            assert own == "runner"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short_and_named_for_what_they_hold(path):
    assert path.read_text().count("\n") <= 400
    assert path.stem not in {"utils", "helpers", "common", "manager", "misc"}


def test_importing_the_package_is_light():
    """Neither geoopt, nor TensorBoard, matplotlib or Hydra is needed to use the library."""
    import subprocess
    import sys

    code = (
        "import sys, deeplin;"
        "print([m for m in ('geoopt', 'tensorboard', 'matplotlib', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
