"""Every example in a docstring or the README runs and gives what it shows."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest
from runner import train
from sklearn.datasets import load_wine

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


def test_readme(monkeypatch, tmp_path):
    """After the command that its section on data begins with, on scikit-learn's wines by name."""
    monkeypatch.chdir(tmp_path)
    wine = load_wine(as_frame=True).frame.rename(columns={"target": "class"})
    wine["class"] = np.array(["Barolo", "Grignolino", "Barbera"])[wine["class"]]
    wine.to_csv("wine.csv")
    lines = (ROOT / "README.md").read_text().splitlines()
    command = next(
        line.split() for line in lines if "train.py problem=file problem.path=wine" in line
    )
    assert command[:2] == ["python", "scripts/train.py"]
    assert train(*command[2:]) == 0
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert failed == 0
    assert tried > 5
