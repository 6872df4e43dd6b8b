"""The options of a run: what each means, and which values it takes, in one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

__all__ = ["OPTIONS", "Option", "check", "check_kind", "flatten", "is_internal"]


@dataclass(frozen=True)
class Option:
    """What an option means, what its values must be, in words, and whether a value is."""

    help: str
    must: str = ""
    holds: Callable[[object], bool] = lambda value: True

    def check(self, key: str, value: object) -> None:
        """Raise ValueError with one sentence for a value that the option cannot take."""
        if not self.holds(value):
            raise ValueError(f"{key} must be {self.must}; got {value!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(
    help: str,
    must: str,
    fits: Callable[[float], bool],
    *,
    words: tuple[object, ...] = (),
    whole: bool = False,
) -> Option:
    """A number for which `fits`, or one of some words; null is the word None."""

    def holds(value: object) -> bool:
        if any(value is word or (isinstance(word, str) and value == word) for word in words):
            return True
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            return False
        return fits(value)

    return Option(help, must, holds)


def _least(help: str, least: int, *, null: bool = False) -> Option:
    """A number >= least."""
    must = f">= {least}{' or null' if null else ''}"
    return _number(help, must, lambda x: x >= least, words=(None,) if null else ())


def _whole(help: str, least: int, *, null: bool = False) -> Option:
    """An integer >= least."""
    must = f"an integer >= {least}{' or null' if null else ''}"
    return _number(help, must, lambda x: x >= least, words=(None,) if null else (), whole=True)


def _choice(help: str, *values: object, must: str = "") -> Option:
    """One of some values."""
    names = [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
    words = " or ".join(names) if len(names) == 2 else f"one of {', '.join(names)}"
    chosen = [(type(v), v) for v in values]
    return Option(help, must or words, lambda value: (type(value), value) in chosen)


def _switch(help: str) -> Option:
    return _choice(help, True, False)


def _is_time(value: object) -> bool:
    if isinstance(value, str):
        number, slash, rho = value.partition("/")
        return value == "auto" or (slash + rho == "/rho" and number.replace(".", "", 1).isdigit())
    return isinstance(value, int | float) and _is_number(value) and 0 < value < math.inf


_SCALE = _number("spectral norm of W(0)", "positive", lambda x: 0 < x < math.inf)
_SINGULAR = _choice(
    "a singular XXᵀ: keep it (and warn), project onto its range, or whiten",
    *("keep", "project", "whiten"),
)
_TOLERANCE = "a number >= 0"

# By dotted name, in the order in which they are checked. An option of a group means the same in
# all files of the group. One that is not here is held against its default's type alone.
OPTIONS: Mapping[str, Option] = {
    "flow": Option(
        "what the method advances: layers, compressed (hidden widths of rank W), end_to_end, oja, "
        "coupled, riccati, pqw, dlra, dlra_rescaled, psd_dlra, psd_dlra_rescaled; auto: what the "
        "method is made for",
        "the name of a flow",
        lambda value: isinstance(value, str),
    ),
    "seed": _number(
        "of data, initial values and mini-batches",
        "an integer with 0 <= seed < 2**31",
        lambda x: 0 <= x < 2**31,
        whole=True,
    ),
    "repeats": _least("initial values at once, as a batch; figures show their median and range", 1),
    "dtype": _choice("of all numbers", "float64", "float32", must="one of float64, float32"),
    "device": Option("cpu, or cuda", "the name of a device", lambda value: isinstance(value, str)),
    "threads": _least(
        "of torch: one is fastest for small matrices, and its bits do not depend on the machine's "
        "load; more for widths of several hundred, null for all",
        1,
        null=True,
    ),
    "resume": Option("folder of a run to continue"),
    "stop.grad_norm": _least(
        "stop when the gradient norm of every repeat is below; null: never", 0, null=True
    ),
    "stop.stagnation": _least(
        "stop when nothing has moved for this fraction of t1; null: never", 0, null=True
    ),
    "stop.max_steps": _least("stop after so many steps; null: never", 1, null=True),
    "log.records": _least("about so many moments of a whole run are recorded", 1),
    "log.singular_values": _least("so many of them go to TensorBoard; files hold all", 0),
    "log.checkpoint_seconds": _least("between two checkpoints", 0),
    "log.factors": _switch("record W(t) too, as two thin factors, in the checkpoint's history"),
    "problem.target": _choice(
        "what the labels are: x itself, or one-hot digits", "autoencoder", "labels"
    ),
    "problem.standardize": _switch(
        "drop constant columns, centre, divide by the standard deviation"
    ),
    "problem.normalize": _switch("divide samples by sqrt(m), so that XXᵀ is the covariance"),
    "problem.singular": _SINGULAR,
    "problem.path": Option("the file, or a pattern of files such as shards/*.npz"),
    "problem.labels": _whole(
        "where there is no y: so many last columns of x are labels; 0: autoencoder", 0
    ),
    "problem.d": _whole("dimension of the samples", 1),
    "problem.m": _whole("number of samples; null: 3d", 1, null=True),
    "problem.n": _whole("size of the matrix X", 1),
    "problem.spectrum": Option(
        "eigenvalues of X, of a general one singular values, as a list; choose network.rank for r"
    ),
    "problem.kind": _choice(
        "of X: semidefinite, Hermitian with eigenvalues of either sign, or any matrix",
        *("psd", "hermitian", "general"),
    ),
    "problem.field": _choice("of X, and so of all matrices of the run", "real", "complex"),
    "problem.rows": _whole("of a general X; null: n", 1, null=True),
    "problem.rotate": _switch("singular vectors at random; false: X is diagonal"),
    "problem.rank": Option("of the teacher"),
    "problem.depth": Option("of the teacher"),
    "problem.seed": _number(
        "of the data", "an integer with 0 <= seed < 2**31", lambda x: 0 <= x < 2**31, whole=True
    ),
    "network.depth": _whole("number of layers N", 2),
    "network.rank": _number("smallest width, d_1", "an integer", lambda x: True, whole=True),
    "network.widths": Option("all widths [d_0,...,d_N] instead of depth and rank"),
    "init.matrix": Option("W(0) itself, as a list of rows"),
    "init.path": Option("or a file that holds W(0), d_y by d_x; null: a product of Gaussians"),
    "init.scale": _SCALE,
    "init.psd": _switch("W(0) is positive semidefinite"),
    "init.rotate": _switch("random bases of the hidden layers"),
    "init.std": Option(
        "of the entries: fan_max, 1/sqrt(max(d_j, d_{j-1})); null: 1/sqrt(d_j); a number, or one "
        "per layer"
    ),
    "init.rank": Option("of W(0); null: the smallest width"),
    "init.tied": _choice(
        "U_0 = U_N, which gives condition (37); auto: for an autoencoder", True, False, "auto"
    ),
    "init.keep": Option("the eigenvalues of X that Z_# keeps, from 1; it misses the others"),
    "init.radius": _number("of the neighbourhood", "positive", lambda x: 0 < x < math.inf),
    "init.law": _choice(
        "ball, or fan: directions from the stable one, evenly, to the missing eigenvector",
        *("ball", "fan"),
    ),
    "method.dt": _number(
        "the step, of an optimizer its learning rate; auto: safety times the stability limit",
        "a positive number or auto",
        lambda x: 0 < x < math.inf,
        words=("auto",),
    ),
    "method.safety": _number(
        "fraction of the stability limit that dt=auto takes", "in (0, 1]", lambda x: 0 < x <= 1
    ),
    "method.t1": Option(
        "flow time; auto: 20/rho, rho the local rate of balanced layers",
        "a positive number, 20/rho or auto",
        _is_time,
    ),
    "method.batch_size": _number(
        "samples of a step; null: all at once, from the moments",
        "an integer or null",
        lambda x: True,
        words=(None,),
        whole=True,
    ),
    "method.rebalance": _switch("project the layers back onto exact balancedness after each step"),
    "method.compiled": _switch("layers of widths <= 8: steps in C, by the system's compiler"),
    "method.rtol": _number(
        "of the error of a step, relative to the norm of each part of the state",
        _TOLERANCE,
        lambda x: 0 <= x < math.inf,
    ),
    "method.atol": _number(
        "of the error of a step, absolute", _TOLERANCE, lambda x: 0 <= x < math.inf
    ),
    "method.order": _choice("of the projected Runge-Kutta method", 1, 2, 4, must="1, 2 or 4"),
}


def is_internal(key: str) -> bool:
    """Whether an option is no user's to set: targets, and what a file of conf/ says of itself."""
    return key.endswith(".name") or any(part.startswith("_") for part in key.split("."))


def flatten(cfg: DictConfig) -> dict[str, object]:
    """The leaves of a configuration by their dotted names."""

    def walk(prefix: str, node: object) -> dict[str, object]:
        if not isinstance(node, dict):
            return {prefix: node}
        flat: dict[str, object] = {}
        for key, value in node.items():
            flat |= walk(f"{prefix}.{key}" if prefix else str(key), value)
        return flat

    return walk("", OmegaConf.to_container(cfg, resolve=True))


def check(cfg: DictConfig) -> None:
    """Raise ValueError with one sentence for the first value that its option cannot take."""
    given = flatten(cfg)
    for key, option in OPTIONS.items():
        if key in given:
            option.check(key, given[key])


def check_kind(key: str, value: object, default: object) -> None:
    """Raise ValueError with one sentence for a value of another kind than the default's.

    What an option of the schema takes besides, null or a word, is no other kind.
    """
    option = OPTIONS.get(key)
    if value is None and option is not None and option.must and option.holds(None):
        return
    if isinstance(default, bool):
        fits, kind = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits, kind = isinstance(value, int) and not isinstance(value, bool), "an integer"
    elif isinstance(default, float):
        fits, kind = value is None or _is_number(value), "a number"
    else:
        return
    if not fits:
        raise ValueError(f"{key} must be {kind}, as its default {default}; got {value!r}.")
