"""The files of conf/: which groups there are, and what they compose to."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deeplin.runner.schema import flatten, is_internal

__all__ = ["CONF", "Configurations", "changed", "task", "visible"]

_PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout beside the package, in a wheel inside it.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"


@dataclass(frozen=True)
class Configurations:
    """A folder of configurations, the name of the first of them, and a folder that adds to it."""

    folder: Path
    name: str = "train"
    more: Path | None = None

    def groups(self) -> Mapping[str, list[str]]:
        """The names that each group has, Hydra's own groups among them, as hydra/launcher.

        The names of a group are looked up when they are asked for: Hydra takes 10 ms for each.
        """
        with self._loader() as loader:
            known = [g for g in loader.list_groups("") if g != "hydra"]
            known += [f"hydra/{g}" for g in loader.list_groups("hydra")]
        return _Groups(self, known)

    def names_of(self, group: str) -> list[str]:
        """Those of a group, and those of its folders as folder/name."""
        with self._loader() as loader:
            return _names(loader, group, self._words)

    def composed(self, choices: Sequence[str] = ()) -> DictConfig:
        """The configuration of some choices of groups, Hydra's own part included.

        Raises: ValueError for a name that no file has.
        """
        with self._loader():
            try:
                return compose(self.name, [*self._words, *choices], return_hydra_config=True)
            except MissingConfigException as error:
                raise ValueError(
                    f"there is no configuration {error.missing_cfg_file or self.name} in "
                    f"{self.folder}{f' or {self.more}' if self.more else ''}."
                ) from error

    def file(self, group: str, name: str) -> Path | None:
        """The file of a name of a group, that of the added folder first; None where none is."""
        folders = [folder for folder in (self.more, self.folder) if folder is not None]
        paths = [folder / group / f"{name}.yaml" for folder in folders]
        return next((path for path in paths if path.is_file()), None)

    @property
    def _words(self) -> list[str]:
        if self.more is None:
            return []
        quoted = str(self.more).replace("\\", "\\\\").replace("'", "\\'")
        return [f"hydra.searchpath=['file://{quoted}']"]

    @contextlib.contextmanager
    def _loader(self) -> Iterator[ConfigLoader]:
        with initialize_config_dir(version_base="1.3", config_dir=str(self.folder)):
            yield GlobalHydra.instance().config_loader()


class _Groups(Mapping[str, list[str]]):
    def __init__(self, configurations: Configurations, known: Sequence[str]):
        self._configurations, self._known = configurations, known
        self._names: dict[str, list[str]] = {}

    def __getitem__(self, group: str) -> list[str]:
        if group not in self._known:
            raise KeyError(group)
        if group not in self._names:
            self._names[group] = self._configurations.names_of(group)
        return self._names[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _names(loader: ConfigLoader, group: str, words: list[str], prefix: str = "") -> list[str]:
    """The names of a group, those of its folders as folder/name."""
    names = [prefix + name for name in loader.get_group_options(group, overrides=words)]
    for folder in loader.get_group_options(group, ObjectType.GROUP, overrides=words):
        names += _names(loader, f"{group}/{folder}", words, f"{prefix}{folder}/")
    return names


def visible(cfg: DictConfig) -> dict[str, object]:
    """The options that a user can set, by their dotted names, with their values."""
    return {key: value for key, value in flatten(task(cfg)).items() if not is_internal(key)}


def task(cfg: DictConfig) -> DictConfig:
    """A composed configuration without Hydra's own part."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def changed(cfg: DictConfig) -> dict[str, object]:
    """The options of a run that were typed, or are not what the files have for its choices.

    What a sweep varies is typed in each of its jobs, the usual value too. Where nothing was
    changed, the problem and the method.
    """
    given, names = flatten(cfg), ("problem.name", "init.name", "method.name")
    usual = _files_of(given)
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    typed = {word.partition("=")[0].lstrip("+") for word in words}
    found = {
        key: value
        for key, value in given.items()
        if (key in names or not is_internal(key))
        and not key.startswith(("log.", "resume"))
        and (value != usual.get(key) or key.removesuffix(".name") in typed or key in typed)
    }
    return found or {key: given[key] for key in ("problem.name", "method.name") if key in given}


def _files_of(given: Mapping[str, object]) -> Mapping[str, object]:
    """What the files have where no option is given but the groups, of the usual names."""
    named = {key: given[key] for key in given if key.count(".") == 1 and key.endswith(".name")}
    return _files_named(tuple((key.removesuffix(".name"), str(named[key])) for key in named))


@functools.cache  # reading YAML takes longer than many a run, of which one process may make many
def _files_named(chosen: tuple[tuple[str, str], ...]) -> Mapping[str, object]:
    whole = OmegaConf.load(CONF / "train.yaml")
    assert isinstance(whole, DictConfig)
    entries = [entry for entry in whole.defaults if isinstance(entry, DictConfig)]
    names = {str(group): name for entry in entries for group, name in entry.items()}
    for group, name in names.items():
        file = CONF / group / f"{dict(chosen).get(group, name)}.yaml"
        if file.is_file():
            whole[group] = OmegaConf.load(file)
    try:
        flat = flatten(task(whole))
    except OmegaConfBaseException:  # a reference to what an experiment has
        return {}
    return flat | {f"{group}.name": name for group, name in names.items()}
