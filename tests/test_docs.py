"""Every example in a docstring or the README runs and gives what it shows."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import deeplin

ROOT = Path(__file__).resolve().parent.parent
MODULES = [
    "deeplin",
    *(m.name for m in pkgutil.walk_packages(deeplin.__path__, prefix="deeplin.")),
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_readme(monkeypatch):
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert failed == 0
    assert tried > 5
