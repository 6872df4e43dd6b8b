"""A configuration held against the options of a run, by `check`, wherever it comes from.

A file of conf/, the command line, a run that is continued, and Python.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from deeplin.runner import kinds
from deeplin.runner.kinds import shown
from deeplin.runner.options import OBJECTIVES, OF_HYDRA, OF_OPTIMIZERS, OPTIONS, Option

__all__ = [
    "GROUPS",
    "LEFT_OUT",
    "OBJECTIVES",
    "OF_HYDRA",
    "OF_OPTIMIZERS",
    "OPTIONS",
    "Option",
    "check",
    "check_kind",
    "flatten",
    "is_internal",
]


# The groups that name what is called with their options; and those whose options are all above.
GROUPS = ("problem", "init", "method")
# Those of which a run need not have one.
LEFT_OUT = ("experiment", "manifold")
_CLOSED = ("network", "stop", "log")
_REQUIRED = (
    *("flow", "seed", "repeats", "dtype", "device", "threads", "method.t1"),
    *(key for key in OPTIONS if key.startswith(tuple(f"{group}." for group in _CLOSED))),
)
_NEW = ("stop.held_out",)  # which runs of this format may have begun without


def is_internal(key: str) -> bool:
    """Whether an option is no user's to set: targets, and what a file of conf/ says of itself."""
    group, *rest = key.split(".")
    named = group in (*GROUPS, "manifold") and rest == ["name"]
    return named or any(part.startswith("_") for part in (group, *rest))


def flatten(cfg: DictConfig) -> dict[str, object]:
    """The leaves of a configuration by their dotted names."""
    return _leaves("", OmegaConf.to_container(cfg, resolve=True))


def _leaves(prefix: str, node: object) -> dict[str, object]:
    if not isinstance(node, dict) or prefix in OPTIONS:
        return {prefix: node}
    flat: dict[str, object] = {}
    for key, value in node.items():
        flat |= _leaves(f"{prefix}.{key}" if prefix else str(key), value)
    return flat


def check(cfg: DictConfig) -> None:
    """Raise ValueError with one sentence unless a configuration has all that a run needs.

    Each option has a value that it takes, none of the schema's own groups has another option, and
    the groups that name what is called do.
    """
    given = flatten(cfg)
    for key, option in OPTIONS.items():
        if key in given:
            option.check(key, given[key])
    for key in _REQUIRED:
        if key not in given and key not in _NEW:
            raise ValueError(
                f"the configuration has no {key}, which must be {OPTIONS[key].kind.must}: it is "
                "damaged, or of another version of deeplin."
            )
    chosen = (*GROUPS, "manifold") if "manifold.name" in given else GROUPS
    for group in chosen:
        for part in ("name", "_target_"):
            if not isinstance(given.get(f"{group}.{part}"), str):
                raise ValueError(
                    f"the configuration has no {group}.{part}, which its file in conf/{group} "
                    f"gives: choose one with {group}=<name>."
                )
    for key in given:
        if key not in OPTIONS and key.split(".")[0] in _CLOSED and not is_internal(key):
            near = [known for known in OPTIONS if known.startswith(f"{key.split('.')[0]}.")]
            raise ValueError(f"there is no {key}; what there is are {', '.join(near)}.")


def check_kind(key: str, value: object, default: object) -> None:
    """Raise ValueError with one sentence for a value that an option cannot take.

    One without a line in the schema takes values of its default's kind.
    """
    option = OPTIONS.get(key) or OF_OPTIMIZERS.get(key)
    if option is not None:
        option.check(key, value)
        return
    if isinstance(default, bool):
        fits, kind = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits, kind = isinstance(value, int) and not isinstance(value, bool), "an integer"
    elif isinstance(default, float):
        fits, kind = value is None or kinds.number("", lambda x: True).holds(value), "a number"
    else:
        return
    if not fits:
        as_default = f"as its default {shown(default)}"
        raise ValueError(f"{key} must be {kind}, {as_default}; got {shown(value)}.")
