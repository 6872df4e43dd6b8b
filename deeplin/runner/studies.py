"""A search by Optuna whose study is in a file: the same command goes on with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from deeplin.runner.lock import locked
from deeplin.runner.terminal import say, slow

__all__ = ["trials_left"]

_FILE = "sqlite:///"


@contextlib.contextmanager
def trials_left(cfg: DictConfig) -> Iterator[int | None]:
    """A context that has a sweep's study for itself, and how many of its trials are left to make.

    The sweeper adds n_trials trials to those that a study has. Here they are counted from its
    beginning; those that were cut off, or whose end the study was not told, are its next ones, with
    their own parameters: their runs go on in their folders. None where no file has a study.

    Raises: ValueError, with one sentence, for a study without a name, and for one that another
        command is at work on.
    """
    sweeper = cfg.hydra.sweeper
    storage = OmegaConf.select(cfg, "hydra.sweeper.storage")
    if cfg.hydra.runtime.choices["hydra/sweeper"] != "optuna" or not storage:
        yield None
        return
    name = sweeper.study_name
    if name is None:
        raise ValueError(
            "a study in a storage needs a name, by which the same command goes on with it: "
            "hydra.sweeper.study_name=<name>."
        )
    if not str(storage).startswith(_FILE):  # a server's, on which many may be at work
        yield None
        return
    file = Path(str(storage).removeprefix(_FILE))
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(file.with_name(f".{file.name}.{name}")))
        except ValueError as error:
            raise ValueError(
                f"another command is at work on the study {name} in {file}: wait for its end."
            ) from error
        done = _taken_up(str(storage), name) if file.exists() else 0
        left = max(0, sweeper.n_trials - done)
        if done:
            more = "" if left else ": hydra.sweeper.n_trials=<more> adds to them"
            say(f"{done} of {sweeper.n_trials} trials of the study {name} are done{more}")
        yield left


def _taken_up(storage: str, name: str) -> int:
    """How many trials of a study have ended, after the others were put at its front again."""
    # Of the extra `cluster`; the import takes seconds.
    with slow("reading the study"):
        import optuna  # pyright: ignore[reportMissingImports]
    from optuna.trial import TrialState  # pyright: ignore[reportMissingImports]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:  # a file of other studies
        return 0
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state is TrialState.RUNNING:
            study.enqueue_trial(trial.params)
            study.tell(trial.number, state=TrialState.FAIL)
    return sum(trial.state is TrialState.COMPLETE for trial in trials)
