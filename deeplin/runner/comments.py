"""What the files of conf/ say in their comments: of themselves, and of each option."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

__all__ = ["header", "remarks"]


def header(path: Path) -> str:
    """The comment at the top of a file, without the command that runs it."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("#").strip()
        if not text.startswith(("@", "python ")):
            found.append(text)
    return " ".join(found)


def remarks(path: Path) -> dict[str, str]:
    """The comment behind each value, by its dotted key, with the lines that go on below it."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    found = {}
    for key, row, column in _ends(yaml.compose(text, yaml.SafeLoader), ""):
        behind = re.match(r"\s*#\s*(.*)", lines[row][column:])
        if behind is None:
            continue
        at, words = lines[row].index("#", column), [behind[1].strip()]
        for line in lines[row + 1 :]:
            if line.strip() == "" or line.find("#") != at or line[:at].strip():
                break
            words.append(line.lstrip(" #").strip())
        found[key] = " ".join(words)
    return found


def _ends(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int, int]]:
    """(dotted key, line, column) of the end of every value; of a list only of the whole."""
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        key = f"{prefix}{name.value}"
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _ends(value, f"{key}.")
        else:
            yield key, value.end_mark.line, value.end_mark.column
