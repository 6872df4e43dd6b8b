"""A loss of the user's own: from MODULE:NAME to the problem that it is, or makes."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import operator
import os
import site
import sys
import sysconfig
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from hydra.core.hydra_config import HydraConfig
from torch import Tensor

from deeplin.problems import Problem, from_loss
from deeplin.problems.data import Data
from deeplin.runner.targets import call, check_options, parameters

__all__ = ["custom", "digest_of"]

T = TypeVar("T")

_OFFERED = ("generator", "dtype")
# The digest of a module's file as it was when this process imported it.
_imported: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()


def custom(
    *,
    target: str | None = None,
    shape: Sequence[int] | None = None,
    options: Mapping[str, object] | None = None,
    generator: torch.Generator,
    dtype: torch.dtype,
) -> Data:
    """The problem of MODULE:NAME: what it returns, called with `options`, or with a shape itself.

    Without a shape the target is a function or class that returns a Problem (or Data, or is a
    Problem itself); of `generator` and `dtype` it is given what it takes by these names. With one
    it is the loss, a function of W (*batch, m, n) -> (*batch), written with torch. Modules are
    found as `python -m` finds them: in the working directory first.

    Raises: ValueError, with one sentence, where there is no such thing, it is not the user's own
        (`_check_own`), it gives no problem, or its loss is not one real number for each matrix,
        with its derivative.
    """
    if target is None:
        raise ValueError(
            "problem=custom needs problem.target=MODULE:NAME, such as my_module:make_problem: what "
            "returns a deeplin.problems.Problem, or with problem.shape=[m,n] the loss of W itself."
        )
    found, given = _found(target), dict(options or {})
    if shape is None:
        made = _made(target, found, given, {"generator": generator, "dtype": dtype})
    else:
        made = _of_function(target, found, given, shape)
    data = made if isinstance(made, Data) else Data(made)
    problem = _told(target, "cannot be moved to the run's dtype", lambda: data.problem.to(dtype))
    _check_loss(target, problem, dtype)
    m, n = problem.shape
    return replace(data, problem=problem, notes=(f"the loss of {target}, {m}×{n}", *data.notes))


def digest_of(target: str) -> str:
    """The SHA-256 digest of the files that hold the module and what it names, as imported."""
    found = _found(target)
    module = importlib.import_module(target.partition(":")[0])
    own = inspect.getmodule(_plain(found)) or module
    each = dict.fromkeys([module, own])
    return hashlib.sha256("".join(map(_digest_of_module, each)).encode()).hexdigest()


# -- from a name to an object ----------------------------------------------------------------------


def _found(target: str) -> object:
    """What MODULE:NAME names. Raises: ValueError where that does not exist, or is not allowed."""
    name, _, path = target.partition(":")
    top = name.split(".")[0]
    if top in sys.stdlib_module_names:
        raise ValueError(
            f"problem.target={target} must name something of your own, and {top} is a module of "
            "Python's: give yours another name."
        )
    where = HydraConfig.get().runtime.cwd if HydraConfig.initialized() else os.getcwd()
    if where not in sys.path:
        sys.path.insert(0, where)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ValueError(_failed(target, f"importing {name}", error)) from error
        hint = ": leave .py away" if name.endswith(".py") else ""
        raise ValueError(
            f"problem.target={target}: there is no module {name} in {where}, nor on Python's "
            f"path{hint}."
        ) from error
    except Exception as error:  # whatever a module raises that is imported
        raise ValueError(_failed(target, f"importing {name}", error)) from error
    _digest_of_module(module)
    try:
        found = operator.attrgetter(path)(module)
    except AttributeError as error:
        own = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = get_close_matches(path, own, n=3, cutoff=0.6) or own[:10]
        told = f"; it has {', '.join(near)}" if near else ""
        raise ValueError(f"problem.target={target}: {name} has no {path}{told}.") from error
    _check_own(target, found)
    return found


def _check_own(target: str, found: object) -> None:
    """Raise ValueError for what is neither the user's own nor declared to make a problem.

    A stored configuration may come from elsewhere: with it comes no code, and of what is installed
    nothing can be called but what says that it returns a Problem.
    """
    made = _plain(found)
    module = inspect.getmodule(made)
    if isinstance(found, Problem) or _makes_problems(made):
        return
    top = "" if module is None else module.__name__.split(".")[0]
    foreign = module is None or top in sys.stdlib_module_names or top == "deeplin"
    if not foreign and module is not None:
        file = module.__file__ and Path(module.__file__).resolve()
        foreign = not file or any(file.is_relative_to(place) for place in _installed())
    if foreign:
        raise ValueError(
            f"problem.target={target} is defined in {module.__name__ if module else 'no module'}, "
            "which is not your own, and is not annotated to return a Problem: name a function or "
            "class of yours."
        )


def _plain(found: object) -> object:
    """What has a module: the function of a partial one, the class of an instance."""
    while isinstance(found, functools.partial):
        found = found.func
    named = inspect.isclass(found) or inspect.isroutine(found) or inspect.ismodule(found)
    return found if named else type(found)


def _makes_problems(made: object) -> bool:
    """Whether something is a class of problems, or a function annotated to return one."""
    if inspect.isclass(made):
        return issubclass(made, Problem | Data)
    try:
        returned = typing.get_type_hints(made).get("return")
    except Exception:  # annotations that cannot be evaluated here say nothing
        return False
    return inspect.isclass(returned) and issubclass(returned, Problem | Data)


def _installed() -> list[Path]:
    """Where Python's own modules and installed packages lie."""
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    places = [*paths, *site.getsitepackages(), site.getusersitepackages()]
    return [Path(place).resolve() for place in places if place]


def _digest_of_module(module: ModuleType) -> str:
    if module not in _imported:
        file = module.__file__
        content = Path(file).read_bytes() if file and os.path.isfile(file) else b""
        _imported[module] = hashlib.sha256(content).hexdigest()
    return _imported[module]


# -- from an object to a problem -------------------------------------------------------------------


def _made(
    target: str, found: object, options: dict[str, object], offered: Mapping[str, object]
) -> Problem | Data:
    if isinstance(found, Problem | Data):
        if options:
            raise ValueError(f"problem.target={target} is a problem and takes no problem.options.")
        return found
    if not callable(found):
        raise ValueError(
            f"problem.target={target} must be a function or a class; it is a "
            f"{type(found).__name__}."
        )
    names = _told(target, "has no signature that can be read", lambda: parameters(found))
    missing = [
        name
        for name, parameter in names.items()
        if parameter.default is parameter.empty and name not in {*options, *_OFFERED}
    ]
    if missing:
        raise ValueError(
            f"problem.target={target} takes {missing[0]}, which nothing gives: the loss of a "
            "matrix needs problem.shape=[m,n], what makes a problem "
            f"+problem.options.{missing[0]}=<value>."
        )
    check_options(options, "problem.options", found, target)
    filled = functools.partial(found, **options)
    made = _told(target, "fails", lambda: call(filled, "problem.options", offered))
    if not isinstance(made, Problem | Data):
        raise ValueError(
            f"problem.target={target} must return a deeplin.problems.Problem; it returned a "
            f"{type(made).__name__}: where it is the loss itself, give problem.shape=[m,n]."
        )
    return made


def _of_function(
    target: str, found: object, options: dict[str, object], shape: Sequence[int]
) -> Problem:
    is_problem = isinstance(found, Problem) or (
        inspect.isclass(found) and issubclass(found, Problem)
    )
    if is_problem or not callable(found):
        what = "a problem" if is_problem else f"a {type(found).__name__}"
        raise ValueError(
            f"problem.target={target} must be a loss of W where problem.shape is given; it is "
            f"{what}: {'leave out problem.shape' if is_problem else 'name a function'}."
        )
    m, n = shape
    return from_loss(functools.partial(cast(Callable[..., Tensor], found), **options), (m, n))


def _check_loss(target: str, problem: Problem, dtype: torch.dtype) -> None:
    """Raise ValueError unless the loss of random matrices is a real number, with its derivative.

    A loss need not be finite at them; at the start it must, which the run itself looks at.
    """
    dtype = dtype.to_complex() if problem.field == "complex" else dtype
    generator = torch.Generator().manual_seed(0)
    m, n = problem.shape
    W, direction = (torch.randn(2, m, n, dtype=dtype, generator=generator) for _ in range(2))
    for X in (W[0], W):
        loss = _told(target, f"fails at a random W {tuple(X.shape)}", lambda X=X: problem.loss(X))
        real = isinstance(loss, Tensor) and loss.is_floating_point()
        if not real or loss.shape != X.shape[:-2]:
            given = f"one of shape {tuple(loss.shape)} and " if isinstance(loss, Tensor) else ""
            given += str(loss.dtype) if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise ValueError(
                f"problem.target={target} must give one real number for each matrix of a batch, "
                f"for W of shape {tuple(X.shape)} a tensor of shape {tuple(X.shape[:-2])}; it gave "
                f"{given}: reduce over the last two dimensions alone, as .sum((-2, -1)) does."
            )
    W, direction = W[0], direction[0]
    gradient = _told(target, "has no derivative", lambda: problem.egrad(W))
    slope = float((gradient.conj() * direction).real.sum())
    there, before, after = (float(problem.loss(W + h * direction)) for h in (0, -1e-3, 1e-3))
    seen = (after - before) / 2e-3
    # Kinks, and losses that are computed in float32, are no reason to refuse one.
    if abs(seen - slope) > 0.1 * max(abs(seen), abs(slope)) + 1e-2 * abs(there):
        raise ValueError(
            f"problem.target={target} must give the derivative of its loss, by torch or by an "
            f"egrad of its own; along a random direction the loss changes by {seen:.4g} and the "
            f"gradient says {slope:.4g}: write it with torch throughout, without item(), detach() "
            "or NumPy."
        )


def _told(target: str, what: str, attempt: Callable[[], T]) -> T:
    """What user code gives. Raises: ValueError, in one sentence, for whatever it raises."""
    try:
        return attempt()
    except Exception as error:
        raise ValueError(_failed(target, what, error)) from error


def _failed(target: str, what: str, error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0].rstrip(".")
    return (
        f"problem.target={target}: {what} ({type(error).__name__}: {first}); HYDRA_FULL_ERROR=1 "
        "shows where."
    )
