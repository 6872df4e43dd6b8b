"""What is built from the tree: a wheel that runs anywhere, an sdist that can test itself."""

import configparser
import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from runner import ROOT, SMALL

import deeplin

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def files_of(folder: Path) -> set[Path]:
    """What somebody wrote, below a folder of the tree."""
    return {
        path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return zipfile.ZipFile(next(WheelBuilder(str(ROOT)).build(directory=str(folder))))


def told(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"deeplin-{PROJECT['version']}.dist-info/{name}").decode()


def test_the_wheel_holds_the_package_and_its_configurations(wheel):
    code = {path.relative_to(ROOT) for path in files_of(ROOT / "deeplin")}
    conf = {"deeplin" / path.relative_to(ROOT) for path in files_of(ROOT / "conf")}
    found = {Path(name) for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == code | conf
    assert {"deeplin/py.typed", "deeplin/conf/train.yaml"} <= set(wheel.namelist())
    sources = {name for name in wheel.namelist() if name.endswith(".c")}
    assert {Path(name).parent.as_posix() for name in sources} == {
        "deeplin/linalg",
        "deeplin/manifolds",
        "deeplin/sampled",
        "deeplin/integrators/compiled",
    }


def test_the_wheel_says_whose_it_is(wheel):
    """As CITATION.cff has it; the version is the one that the package tells."""
    said = email.message_from_string(told(wheel, "METADATA"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert said["Version"] == citation["version"] == PROJECT["version"] == deeplin.__version__
    assert said["Author"] == ", ".join(author["name"] for author in citation["authors"])
    assert said["License-Expression"] == citation["license"]
    needs = said.get_all("Requires-Dist") or []
    assert [need for need in needs if "torchdiffeq" in need and "extra" not in need] == []
    console = configparser.ConfigParser()
    console.read_string(told(wheel, "entry_points.txt"))
    assert dict(console["console_scripts"]) == {"deeplin": "deeplin.__main__:main"}


def test_the_page_of_an_index_points_at_nothing_that_is_not_there(wheel):
    """Neither at files of the repository nor of a machine; what a picture shows stays as words."""
    page = email.message_from_string(told(wheel, "METADATA")).get_payload()
    assert "singular values and balancedness of the first run" in page
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    assert links
    for link in links:
        assert link.startswith(("https://", "#")), link


def test_the_sdist_holds_what_its_tests_need(tmp_path):
    with tarfile.open(next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path)))) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    folders = ("deeplin", "conf", "scripts", "tests", ".github", ".readme")
    needed = {p.relative_to(ROOT).as_posix() for name in folders for p in files_of(ROOT / name)}
    needed |= {"pyproject.toml", "constraints.txt", "README.md", "CITATION.cff", "CHANGELOG.md"}
    assert needed <= held
    assert {"deeplin/sampled/products.c", "deeplin/integrators/compiled/layer_steps.c"} <= held
    assert not [n for n in held - needed if n.startswith(("runs/", "build/")) and ".git" not in n]


@pytest.mark.slow
def test_a_wheel_runs_where_there_is_no_repository(wheel, tmp_path):
    """Unpacked, as pip does it, in an empty folder."""
    wheel.extractall(tmp_path / "site")
    surroundings = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    words = [*SMALL, "hydra.run.dir=run", "stop.max_steps=20"]
    done = subprocess.run(
        [sys.executable, "-m", "deeplin", *words],
        cwd=tmp_path,
        env=surroundings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "site" / "conf").exists()
