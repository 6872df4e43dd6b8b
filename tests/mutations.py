"""Mutations: an error put into one formula, under which the tests of a row of the ledger must fail.

A mutation replaces a text that stands once in a file of `deeplin/` or `tests/` by a plausible
error: a wrong sign, exponent, order or bound. The marked tests of the row run on a copy of the
tree, in a process of their own; the row is said to fail if one of them does by an `assert`, and if
that test passes on the tree as it is. What crashes, warns or hangs counts as nothing.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("conf", "deeplin", "scripts", "tests")
# A mutation may keep a run from its end: seconds of the processor, and by the clock.
LIMIT, PATIENCE = 120, 1200.0
# Of pytest's plugins; the second collects the garbage of all that is preloaded.
UNUSED = ("cacheprovider", "unraisableexception", "threadexception")
# Imported once for all: nothing of this tree.
PRELOADED = ["torch", "pytest", "scipy.integrate", "hypothesis", "mpmath", "geoopt"]


@dataclass(frozen=True)
class Mutation:
    """`right`, once in `file`, becomes `wrong`; the row `source` of the ledger must fail.

    `test` names the marked test that is to notice, "test_flows::test_rank_is_constant", where
    those before it would take their time; without it they run in order.
    """

    source: str
    file: str
    right: str
    wrong: str
    test: str = ""

    def text(self, root: Path = ROOT) -> str:
        """The file with the error in it.

        Raises: ValueError unless the text stands there once.
        """
        text = (root / self.file).read_text()
        if text.count(self.right) != 1:
            raise ValueError(
                f"The mutation of {self.source} needs a text that {self.file} has once, not "
                f"{text.count(self.right)} times: {self.right!r}. If the line was rewritten, break "
                "the new one in the same way."
            )
        return text.replace(self.right, self.wrong)


@dataclass(frozen=True)
class Ending:
    """How a test ended: "passed", or the exception; `asserted` if that was an assertion."""

    test: str
    told: str
    asserted: bool = False


class Tree:
    """A copy of the sources, in which tests run in processes of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in FOLDERS:
            shutil.copytree(ROOT / name, folder / name)
        shutil.copy2(ROOT / "pyproject.toml", folder)
        self._passed: set[tuple[str, str]] = set()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def endings(
        self, source: str, tests: Sequence[str], mutation: Mutation | None = None
    ) -> list[Ending]:
        """How the tests of a row ended, up to the first that fails: node ids, or names."""
        with self._broken(mutation):
            here, there = self._context.Pipe(duplex=False)
            work = (self.folder, source, list(tests), there)
            process = self._context.Process(target=_run, args=work)
            process.start()
            there.close()
            try:
                if not here.poll(PATIENCE):
                    return [Ending(tests[0], f"no end within {PATIENCE:.0f} s")]
                return here.recv()
            except EOFError:
                return [Ending(tests[0], f"the process died, or no end within its {LIMIT} s")]
            finally:
                process.kill()
                process.join()

    def passes(self, source: str, test: str) -> bool:
        """Whether a test of the row passes on the tree as it is; asked once.

        Of parameters that the mutation has changed, there are none of that name: all are asked.
        """
        if (source, test) not in self._passed:
            whole = test.partition("[")[0]
            endings = self.endings(source, [test]) or self.endings(source, [whole])
            if not endings or endings[-1].told != "passed":
                return False
            self._passed.add((source, test))
        return True

    @contextlib.contextmanager
    def _broken(self, mutation: Mutation | None) -> Iterator[None]:
        if mutation is None:
            yield
            return
        file = self.folder / mutation.file
        right = file.read_text()
        # Bytecode is told apart by second and size, too coarse for what comes and goes.
        for kept in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
            kept.unlink()
        file.write_text(mutation.text(self.folder))
        try:
            yield
        finally:
            file.write_text(right)


class _Endings:
    """A plugin: runs what carries the statement, and keeps how it ended."""

    def __init__(self, source: str):
        self.source = source
        self.found: list[Ending] = []

    def pytest_collection_modifyitems(self, items):
        items[:] = [
            item
            for item in items
            if self.source in [mark.args[0] for mark in item.iter_markers("statement")]
        ]

    def pytest_collectreport(self, report):
        if report.failed:
            self.found.append(
                Ending(report.nodeid, "not collected: " + str(report.longrepr)[-300:])
            )

    def pytest_runtest_makereport(self, item, call):
        if call.excinfo is not None:
            told = f"{call.excinfo.typename}: {call.excinfo.value}".splitlines()[0]
            asserted = call.when == "call" and call.excinfo.errisinstance(AssertionError)
            self.found.append(Ending(item.nodeid, told, asserted))
        elif call.when == "call":
            self.found.append(Ending(item.nodeid, "passed"))


def _run(folder: Path, source: str, tests: Sequence[str], there) -> None:
    """Runs in a process of its own."""
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    sys.dont_write_bytecode = True
    os.chdir(folder)
    # The tree that is copied is left out, but not an environment inside of it.
    found = [(p, Path(p or ".").resolve()) for p in sys.path]
    installed = Path(sys.prefix).resolve()
    kept = [p for p, at in found if at.is_relative_to(installed) or not at.is_relative_to(ROOT)]
    sys.path[:] = [str(folder), *kept]
    # A forkserver that another test has begun knows the tree that is copied.
    for name, module in list(sys.modules.items()):
        at = Path(module.__dict__.get("__file__") or installed)
        ours = at.is_relative_to(ROOT) and not at.is_relative_to(installed)
        if ours and name != __name__:  # whose endings are sent
            del sys.modules[name]
    import pytest

    plugin = _Endings(source)
    names = [t if ".py::" in t else "tests/{}.py::{}".format(*t.split("::")) for t in tests]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # what is installed beside costs a second
    options = ["-x", "-q", "-n0", "-p", "xdist.plugin"]
    options += [part for name in UNUSED for part in ("-p", f"no:{name}")]
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main([*options, *names], plugins=[plugin])
    import deeplin

    if not Path(str(deeplin.__file__)).is_relative_to(folder):
        raise ImportError(f"The tests ran on {deeplin.__file__}, not on the copy in {folder}.")
    there.send(plugin.found)


def caught(
    tree: Tree, mutations: Sequence[Mutation], tests: Mapping[str, Sequence[str]]
) -> dict[Mutation, Ending]:
    """How the tests of the rows ended under every mutation: the failing one, if there is one.

    A failure counts if that test passes on the tree as it is.
    """
    seen = {}
    for mutation in mutations:
        names = [mutation.test] if mutation.test else tests[mutation.source]
        *_, last = tree.endings(mutation.source, names, mutation)
        if last.asserted and not tree.passes(mutation.source, last.test):
            last = Ending(last.test, "fails without the mutation, too")
        seen[mutation] = last
    return seen
