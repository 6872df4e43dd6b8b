"""What folders are called: by the options that tell a run from others, short and safe."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from deeplin.runner.folder import RunFolder
from deeplin.runner.overrides import read_overrides
from deeplin.runner.run import RESUMABLE

__all__ = ["job_folder", "named", "run_folder", "short_keys"]

_LONGEST = 60  # most file systems take 255 bytes, most eyes fewer


def run_folder(resume: str | None, problem: str, now: str, words: Sequence[str]) -> str:
    """runs/<problem>/<what was typed>_<moment>: the moment makes it the run's own."""
    if resume:
        return str(resume)
    name = named(words, ("problem", "resume"))
    return f"runs/{problem}/{name}_{now}" if name else f"runs/{problem}/{now}"


def job_folder(words: Sequence[str], constant: Collection[str], parent: str) -> str:
    """The name of a job's folder in a sweep: what varies in it, the same for the same options.

    Where another sweep has left a run with other constants under that name, a digest is added.
    """
    name = named(words, constant) or "defaults"
    if _holds_another(RunFolder(Path(parent, name)), words):
        return f"{name}-{_digest(words)}"
    return name


def named(words: Sequence[str], without: Collection[str] = ()) -> str:
    """Options as key=value,key=value with the last part of each key, in at most 60 characters.

    What is cut, or has no safe character, leaves a digest of the whole behind.

    >>> named(["network.depth=2", "method.dt=0.1", "problem=gaussian"], ["problem"])
    'depth=2,dt=0.1'
    >>> named(["problem.seed=1", "seed=2", "size=[2,4]"])
    'problem.seed=1,seed=2,size=2_4'
    >>> named(["problem.path='/data/my wine.csv'"])
    'path=my_wine-1250a44f'
    """
    pairs = [word.lstrip("+~").partition("=") for word in words]
    pairs = [(key, value) for key, _, value in pairs if key not in without]
    short = short_keys([key for key, _ in pairs])
    parts, exact = [], True
    for key, value in pairs:
        shown, kept = _safe(value)
        parts.append(f"{short[key]}={shown}")
        exact = exact and kept
    name = ",".join(parts)
    if len(name) > _LONGEST:
        name, exact = name[:_LONGEST].rstrip(",=_"), False
    return name if exact else f"{name}-{_digest([f'{key}={value}' for key, value in pairs])}"


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted key, the whole where two have the same."""
    last = {key: key.rsplit(".", 1)[-1] for key in keys}
    often = list(last.values())
    return {key: name if often.count(name) == 1 else key for key, name in last.items()}


def _safe(value: str) -> tuple[str, bool]:
    """A value in characters that shells and file systems leave alone, and whether it is whole."""
    plain = value.strip("'\"")
    if re.fullmatch(r"-?\d+\.\d{5,}(e[+-]\d+)?", plain):  # as a sampler draws them
        return f"{float(plain):.4g}", False
    if "/" in plain and not plain.startswith("["):
        path = Path(plain)
        return re.sub(r"[^A-Za-z0-9.+-]+", "_", path.stem), False
    listed = re.sub(r"[\[\]\s]", "", plain).replace(",", "_")
    shown = re.sub(r"[^A-Za-z0-9_.+-]+", "_", listed)
    return shown, shown == listed


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256(",".join(sorted(words)).encode()).hexdigest()[:8]


def _holds_another(folder: RunFolder, words: Sequence[str]) -> bool:
    """Whether a folder has a run of which some option is another than these words say."""
    if not folder.config.exists():
        return False
    try:
        stored = folder.read_config()
    except (ValueError, OSError):
        return False  # the run itself says what is wrong there
    return any(not _has(stored, word) for word in words)


def _has(stored: DictConfig, word: str) -> bool:
    given = read_overrides([word], {})[0]
    if given.key.startswith(RESUMABLE) or "${" in word:
        return True
    found = OmegaConf.select(stored, given.key)
    if OmegaConf.is_dict(found) and isinstance(given.value, str):  # the name of a group's choice
        return found.get("name", given.value) == given.value
    plain = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
    return given.key == "experiment" or plain == given.value
