"""Shared by all tests: one thread (repeatable bits, no contention), seeded draws, residuals.

A test of a numbered statement carries `@pytest.mark.statement("BRTW Prop. 32")` and compares
through the fixture `seen`, which notes the error beside its tolerance. `pytest --ledger=FILE`
writes, for every statement, the tests that ran with their outcomes and what they saw.
"""

import gc
import json
import multiprocessing
import multiprocessing.forkserver
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # pytest's own process, which runs no test where there are others, needs no torch
    import torch


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: many tests wait for processes that they start."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True, scope="session")
def same_on_every_machine():
    """One thread; no announcements of waits, costs from one step: no test sees how fast it is.

    And nothing waits for the disk, since no test cuts the power.
    """
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deeplin.runner.terminal._SECONDS", 1e5)
        patch.setattr("deeplin.runner.cost._TIMED", 0.0)
        patch.setattr("os.fsync", lambda file: None)
        yield


@pytest.fixture(params=[1, 2], ids="{} threads".format)
def threads(request):
    """One thread has a matrix to itself; two share it, and have one each of a batch of two."""
    import torch

    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def processes():
    """Fresh processes that have imported everything already: a kill hits the run, not imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        # Else it would not find that, and not say so: Python 3.11 hands it no path.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture
def generator() -> "torch.Generator":
    import torch

    return torch.Generator().manual_seed(20201015)


@pytest.fixture
def randn(generator):
    """Standard Gaussian tensors in float64."""
    import torch

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return draw


# -- residuals -------------------------------------------------------------------------------------


class Seen:
    """Assertions that keep their numbers: of each test the comparison nearest to its bound.

    In a test of several statements `seen.of(source, ...)` speaks of some of them alone; what is
    noted without it counts for those that have nothing of their own.
    """

    def __init__(self, notes: dict, sources: tuple[str, ...] = ("",)):
        self._notes, self._sources = notes, sources

    def of(self, *sources: str) -> "Seen":
        return Seen(self._notes, sources)

    def __call__(self, error, bound: float) -> None:
        """|error| <= bound, of a number or of every entry of a tensor."""
        size = self._keep(_size(error), bound)
        assert size <= bound

    def at_most(self, value, bound: float) -> None:
        """value <= bound, whatever its sign."""
        value = self._keep(float(value), bound)
        assert value <= bound

    def below(self, error, bound: float) -> None:
        """|error| < bound."""
        size = self._keep(_size(error), bound)
        assert size < bound

    def ratio(self, value, expected, rel: float) -> None:
        """|value/expected − 1| <= rel, as pytest.approx has it."""
        value, expected = float(value), float(expected)
        self._keep(abs(value - expected) / abs(expected), rel)
        assert value == pytest.approx(expected, rel=rel, abs=0)

    def close(self, actual, expected, rtol: float, atol: float) -> None:
        """torch.testing.assert_close; noted as the largest difference against its tolerance."""
        import torch

        difference = (actual - expected).detach().abs()
        allowed = atol + rtol * expected.detach().abs()
        if difference.numel():
            worst = (difference / allowed.clamp(min=1e-300)).argmax()
            self._keep(float(difference.flatten()[worst]), float(allowed.flatten()[worst]))
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)

    def norm(self, actual, expected, bound: float) -> None:
        """‖actual − expected‖_F <= bound."""
        self((actual - expected).norm(), bound)

    def number(self, name: str, value) -> None:
        """A measured value that the ledger shows by its name, or the range of its values."""
        for source in self._sources:
            numbers = self._notes.setdefault(source, {}).setdefault("numbers", {})
            low, high = numbers.get(name, (value, value))
            numbers[name] = [min(float(value), float(low)), max(float(value), float(high))]

    def _keep(self, value: float, bound: float) -> float:
        for source in self._sources:
            notes = self._notes.setdefault(source, {})
            worst = notes.get("residual")
            # Written so that nan is kept: it is no better than anything.
            if worst is None or not value * notes["bound"] <= worst * bound:
                notes.update(residual=value, bound=float(bound))
        return value


def _size(error) -> float:
    import torch

    return float(error.detach().abs().max() if isinstance(error, torch.Tensor) else abs(error))


@pytest.fixture
def seen(request) -> Seen:
    notes: dict = {}
    request.node.user_properties.append(("seen", notes))  # travels with the test's report
    return Seen(notes)


# -- the ledger ------------------------------------------------------------------------------------


def pytest_addoption(parser):
    parser.addoption(
        "--ledger", metavar="FILE", help="write what each statement's tests saw, as JSON"
    )


def pytest_configure(config):
    if config.getoption("--ledger") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Ledger(Path(config.getoption("--ledger"))))


# What takes longest, and shares the server of `processes`: begun first, so that what is left in the
# end is short, and the processes of pytest end together.
_FIRST = (
    "experiment",
    "reproduce",
    "torchrun",
    "processes",
    "launchers",
    "launched_reproduction",
    "faults",
    "many_starts",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in _FIRST)
    for item in items:
        names = [mark.args[0] for mark in item.iter_markers("statement")]
        if names:
            item.user_properties.append(("statements", names[::-1]))


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Half a million objects of modules and tests stay to the end: none is looked at for cycles.

    To look at them took a twentieth of the suite's time. What tests leave behind is collected as
    ever, more of it at a time.
    """
    gc.disable()
    result = yield
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 100)
    gc.enable()
    return result


class Ledger:
    """Collects the reports, which come from the workers when there are any."""

    def __init__(self, file: Path):
        self.file = file
        self.rows: dict[str, dict] = {}

    def pytest_runtest_logreport(self, report):
        properties = dict(report.user_properties)
        if "statements" not in properties:
            return
        row = self.rows.setdefault(report.nodeid, {"test": report.nodeid, "outcome": "passed"})
        row["statements"], row["seen"] = properties["statements"], properties.get("seen", {})
        if report.outcome != "passed":
            row["outcome"] = report.outcome

    def pytest_sessionfinish(self, exitstatus):
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            return  # interrupted: half a ledger is none
        statements: dict[str, list] = {}
        for row in sorted(self.rows.values(), key=lambda row: row["test"]):
            names, notes = row.pop("statements"), row.pop("seen")
            for name in names:
                own = notes.get(name, notes.get("", {}))
                statements.setdefault(name, []).append({**row, **own})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(statements, indent=1, sort_keys=True) + "\n")
