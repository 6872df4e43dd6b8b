"""The examples of CONTRIBUTING.md run as they stand, and it has a place for everything it names."""

import json
import re
import shutil
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
import reproduce
import torch
from reproduction import SUBJECTS, runs
from runner import ROOT, train_with

from deeplin.runner import targets

PAGE = ROOT / ".github" / "CONTRIBUTING.md"
TEXT = PAGE.read_text()


@dataclass(frozen=True)
class Block:
    """What stands between two fences, and where."""

    language: str
    code: str
    line: int


def blocks(text: str) -> dict[str, list[Block]]:
    """The fenced blocks of every section that has some, by its heading."""
    found: dict[str, list[Block]] = {}
    for section in re.finditer(r"^#+ (.*?)$(.*?)(?=^#+ |\Z)", _without_comments(text), re.M | re.S):
        for fence in re.finditer(r"^```(\w+)\n(.*?)^```$", section[2], re.M | re.S):
            line = text.count("\n", 0, section.start(2) + fence.start(2)) + 1
            code = text[section.start(2) + fence.start(2) : section.start(2) + fence.end(2)]
            found.setdefault(section[1], []).append(Block(fence[1], code, line))
    return found


def _without_comments(text: str) -> str:
    """The text with the comments in its blocks, which look like headings, overwritten."""
    return re.sub(
        r"^```\w+\n.*?^```$",
        lambda fence: re.sub(r"^#", "-", fence[0], flags=re.M),
        text,
        flags=re.M | re.S,
    )


SECTIONS = blocks(TEXT)


def test_each_thing_to_add_has_its_example():
    table = re.findall(r"^\| \[(.*?)\]\(#(.*?)\)", TEXT, re.M)
    headings = {heading.lower().replace(" ", "-") for heading in SECTIONS}
    assert {anchor for _, anchor in table} == headings
    assert len(table) == 6
    assert all("assert " in "".join(b.code for b in group) for group in _checked())


def _checked():
    """The blocks of each example but the figure's, whose command judges it."""
    return [group for heading, group in SECTIONS.items() if heading != "A figure"]


@pytest.fixture
def names():
    """What the blocks of a section share, with what every example may take for granted."""
    generator = torch.Generator().manual_seed(0)
    import deeplin

    target = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    return {
        "__name__": "ours",
        "torch": torch,
        "deeplin": deeplin,
        "generator": generator,
        "target": target,
    }


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of conf/ to which the examples' configurations are added; `ours` holds their code."""
    monkeypatch.setattr(targets._Trusted(), "packages", {"deeplin", "ours"})
    monkeypatch.setitem(sys.modules, "ours", ModuleType("ours"))
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.setattr(runs, "CONF", tmp_path / "conf")
    known = dict(SUBJECTS)
    yield tmp_path
    for name in SUBJECTS.keys() - known:
        del SUBJECTS[name]


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_example_runs(heading, names, tree, capsys):
    for block in SECTIONS[heading]:
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + block.code, str(PAGE), "exec")
            exec(code, names)
            vars(sys.modules["ours"]).update(names)
        elif block.language == "yaml":
            file = re.search(r"^# (conf/\S+\.yaml)", block.code, re.M)
            assert file, "the first lines of a configuration name its file"
            path = tree / file[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)
        elif block.code.startswith("python scripts/train.py"):
            arguments = [*block.code.split()[2:], f"hydra.run.dir={tree / 'run'}"]
            assert train_with(tree / "conf", *arguments) == 0
            assert "verdict" in json.loads((tree / "run" / "summary.json").read_text())
        else:
            program, script, *arguments = block.code.split()
            assert (program, script) == ("python", "scripts/reproduce.py")
            arguments += ["--processes", "1", "--root", str(tree / "runs")]
            assert reproduce.main(arguments) == 0
            assert "1 hold" in capsys.readouterr().out


def test_blocks_are_found_with_their_lines():
    found = blocks("# A\n\n```python\n# comment\nx = 1\n```\n## B\ntext\n```sh\nls\n```\n")
    assert found == {
        "A": [Block("python", "# comment\nx = 1\n", 4)],
        "B": [Block("sh", "ls\n", 10)],
    }


def test_every_file_that_the_page_names_exists():
    named = re.findall(r"`((?:\.?[a-z_]+/)+[\w.*]*|[a-z_]+\.py)`", TEXT)
    assert named
    for name in named:
        places = [ROOT, ROOT / "deeplin", ROOT / "scripts"]
        pattern = name.rstrip("/") if "/" in name else f"**/{name}"
        assert any(next(place.glob(pattern), None) for place in places), name
