"""The house rules that a reader relies on: who may import whom, how long a file may be."""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# At the top of the package, above all folders.
TOP = {"__init__", "__main__"}
PACKAGE = sorted((ROOT / "deeplin").rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
FILES = PACKAGE + SCRIPTS

# Libraries that one place alone knows.
HOMES = {
    "geoopt": {"manifolds", "optim"},
    "hydra": {"runner"},
    "omegaconf": {"runner"},
    "matplotlib": {"runner"},
    "tqdm": {"runner"},
    "sklearn": {"problems", "estimators"},
}


def layers(text: str) -> list[set[str]]:
    """The rows of the figure of layers in CONTRIBUTING.md, the lowest first."""
    figure = text.split("<!-- layers -->")[1].split("```")[1]
    rows = [line.split("│")[1] for line in figure.splitlines() if line.startswith("│")]
    return [set(row.split("—")[0].replace(",", " ").split()) for row in reversed(rows)]


ROWS = layers((ROOT / ".github" / "CONTRIBUTING.md").read_text())
ROW = {name: i for i, names in enumerate(ROWS) for name in names}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "deeplin").with_suffix("").parts[0]


def module_of(path: Path) -> str:
    """The dotted name under which a file is imported."""
    base = ROOT if path.is_relative_to(ROOT / "deeplin") else ROOT / "scripts"
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[str]:
    """Dotted names of everything that a file imports, at its top or inside a function."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def arrows(files: Iterable[Path]) -> dict[str, set[str]]:
    """module -> the modules of the same files that it imports, by its own words."""
    names = {module_of(path): path for path in files}
    return {
        name: {
            target
            for full in imports(path)
            if (target := full if full in names else full.rpartition(".")[0]) in names
        }
        for name, path in names.items()
    }


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """A closed path in a graph; empty if there is none."""
    done: set[str] = set()

    def search(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph[name]):
            if found := search(target, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := search(name, []))), [])


def test_every_folder_stands_in_the_figure_of_layers():
    assert {name_of(path) for path in PACKAGE} - TOP == set(ROW)


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards(path):
    own = name_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "deeplin" and own not in TOP:
            assert parts[1] == own or ROW[parts[1]] < ROW[own], f"{own} imports {name}"
        if parts[0] in HOMES:
            assert own in HOMES[parts[0]], f"{parts[0]} is imported in {own}"
        if name.startswith("torch.utils.tensorboard"):
            assert own == "runner"
        assert parts[0] not in {"reproduction", "benchmarks"}, f"{own} imports {name}"


def test_there_are_no_import_cycles():
    assert cycle(arrows(FILES)) == []


def test_cycles_are_found():
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    graph = arrows(FILES)
    assert "reproduction.ledger" in graph["reproduction.ledger_text"]
    assert "deeplin.geometry.coordinates" in graph["deeplin.geometry.metric"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short_and_named_for_what_they_hold(path):
    assert path.read_text().count("\n") <= 400
    assert path.stem not in {"utils", "helpers", "common", "manager", "misc"}


def untyped(path: Path) -> int:
    """How many annotations say Any, and how many calls are hasattr or getattr."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [node.id for node in nodes if isinstance(node, ast.Name)]
    strings = [node.value for node in nodes if isinstance(node, ast.Constant)]
    written = sum(isinstance(s, str) and s.strip("'\"") == "Any" for s in strings)
    return written + sum(name in {"Any", "hasattr", "getattr"} for name in names)


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_contracts_are_asked_not_names(path):
    """Nothing in the package is typed Any, or asked by name whether it has something."""
    assert untyped(path) == 0


def test_untyped_names_are_counted(tmp_path):
    (tmp_path / "a.py").write_text(
        "from typing import Any\n\n"
        "def f(x: Any, y: 'Any'):\n"
        "    return getattr(x, 'a', hasattr(y, 'b'))\n"
    )
    assert untyped(tmp_path / "a.py") == 4
