"""Hydra's plugins that run and choose the jobs of a sweep: which there are, what they are told."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf

__all__ = ["missing", "most_at_once", "told_to_launcher"]

_SUBMITIT = "hydra-submitit-launcher"
# Those that README names, with what holds them.
_PLUGINS: Mapping[tuple[str, str], str] = {
    ("hydra/launcher", "joblib"): "hydra-joblib-launcher",
    ("hydra/launcher", "submitit_local"): _SUBMITIT,
    ("hydra/launcher", "submitit_slurm"): _SUBMITIT,
    ("hydra/launcher", "ray"): "hydra-ray-launcher",
    ("hydra/sweeper", "optuna"): "hydra-optuna-sweeper",
}


def missing(group: str, name: object) -> str | None:
    """What to install for a launcher or a sweeper; None if it is there, or none that is known."""
    package = _PLUGINS.get((group, str(name)))
    if package is None:
        return None
    try:
        found = importlib.util.find_spec(f"hydra_plugins.{package.replace('-', '_')}")
    except ModuleNotFoundError:  # there is no plugin at all
        found = None
    return package if found is None else None


def most_at_once(cfg: DictConfig) -> int | None:
    """How many jobs a launcher is given at a time; None: all of them.

    submitit's local executor starts all that it is given at once: as many as there are cores.
    """
    chosen = cfg.hydra.runtime.choices
    if chosen["hydra/sweeper"] != "basic":
        return None
    given = OmegaConf.select(cfg, "hydra.sweeper.max_batch_size")
    cores = os.cpu_count() or 1
    return given or (cores if chosen["hydra/launcher"] == "submitit_local" else None)


def told_to_launcher(cfg: DictConfig) -> list[str]:
    """The words with which a sweep gives its launcher no more jobs than that."""
    most = most_at_once(cfg)
    return [] if most is None else [f"hydra.sweeper.max_batch_size={most}"]
