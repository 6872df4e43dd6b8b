"""Where a result comes from: versions, code, machine, command, and the files it was made of."""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from omegaconf import DictConfig

from deeplin.runner.custom import digest_of
from deeplin.runner.schema import flatten

__all__ = ["code_digest", "digests", "provenance"]

PACKAGE = Path(__file__).resolve().parents[1]
_PACKAGES = ("deeplin", "torch", "geoopt", "hydra-core", "tensorboard", "numpy", "scikit-learn")


def provenance() -> dict[str, object]:
    """Versions, commit, code, machine and command of this process."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": _commit(PACKAGE),
        "code": code_digest(PACKAGE),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "threads": torch.get_num_threads(),
        "command": shlex.join(sys.argv),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


@functools.cache
def _versions() -> Mapping[str, str]:
    """Of each package on which numbers may depend."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@functools.cache
def _commit(package: Path) -> str | None:
    """The commit of a package's own checkout, marked if it has local changes.

    None where the package is installed, or lies in a checkout of something else.
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    options = ("--always", "--dirty=+changes", "--abbrev=40", "--exclude=*")
    return _git(package, "describe", *options)


def _git(folder: Path, *words: str) -> str | None:
    """What git says in a folder; None where there is no git, or it fails."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


@functools.cache
def code_digest(package: Path = PACKAGE) -> str:
    """The first 16 digits of a SHA-256 digest of a package's source: what ran, committed or not."""
    total = hashlib.sha256()
    for path in sorted(p for p in package.rglob("*") if p.suffix in (".py", ".c")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(package).as_posix()} {content}\n".encode())
    return total.hexdigest()[:16]


def digests(cfg: DictConfig) -> dict[str, str]:
    """The SHA-256 digests of the files that the options called `path` name; "" where there is none.

    One digest for all files of a pattern. And of the files of a MODULE:NAME, `problem.target`.
    """
    named = {key: value for key, value in flatten(cfg).items() if isinstance(value, str)}
    found = {key: _digest(value) for key, value in named.items() if key.endswith(".path")}
    target = named.get("problem.target", "")
    return found | ({"problem.target": digest_of(target)} if ":" in target else {})


def _digest(pattern: str) -> str:
    files = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
    contents = []
    for name in filter(os.path.isfile, files):
        with open(name, "rb") as file:
            contents.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(contents) < 2:
        return "".join(contents)
    return hashlib.sha256("".join(contents).encode()).hexdigest()
