"""Hydra's compositions are kept: what it reads and merges of the files of conf/, once a process.

To read YAML in Python and to merge it takes longer than most runs of a test. A file that has
changed is read anew: it is known by its time and size.
"""

import os
import pickle
from collections.abc import Callable, Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra.core.object_type import ObjectType

_read, _merge = ConfigRepository.load_config, ConfigLoaderImpl._compose_config_from_defaults_list
_made: dict[object, bytes] = {}


def _place(repository: ConfigRepository, config_path: str) -> object:
    """Where a configuration comes from, and of a file what tells it from what it was."""
    source = repository._find_object_source(config_path, ObjectType.CONFIG)
    if source is None:
        return None
    stands = None
    if source.scheme() == "file":
        file = os.stat(os.path.join(source.path, source._normalize_file_name(config_path)))
        stands = file.st_mtime_ns, file.st_size, file.st_ino
    return source.scheme(), source.path, source.provider, config_path, stands


def _kept(key: object, make: Callable[[], object]) -> object:
    if key not in _made:
        made = make()
        try:
            _made[key] = pickle.dumps(made)
        except pickle.PicklingError:  # of a class that a search for plugins has made anew
            return made
    return pickle.loads(_made[key])  # which is faster than a copy


def _load_config(self: ConfigRepository, config_path: str) -> object:
    return _kept(_place(self, config_path), lambda: _read(self, config_path))


def _compose(self: ConfigLoaderImpl, defaults: Sequence, repo: IConfigRepository) -> object:
    of = repo.delegate
    key = (
        tuple((d.config_path, d.package, d.primary, _place(of, d.config_path)) for d in defaults),
        tuple((source.scheme(), source.path, source.provider) for source in of.get_sources()),
    )
    return _kept(key, lambda: _merge(self, defaults, repo))


def keep() -> None:
    """From now on, in this process and in what it forks."""
    ConfigRepository.load_config = _load_config
    ConfigLoaderImpl._compose_config_from_defaults_list = _compose
