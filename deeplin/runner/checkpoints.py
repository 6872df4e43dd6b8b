"""Checkpoints: what a run goes on from, sealed so that a damaged or foreign one is known."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from deeplin.integrators.steppers import Stepper
from deeplin.loop import History, Kind, Result

__all__ = ["FORMAT", "Checkpoint", "Damaged", "check_format", "sealed", "unsealed"]

# The format of folders and checkpoints; one of another number is refused. 1 carried no number.
FORMAT = 5
_WRITERS = {
    1: ("deeplin 0.1.0 before folders carried a number", "91e24ea"),
    2: ("deeplin before checkpoints carried a digest", "4863c04"),
    3: ("deeplin before checkpoints carried what was done to the data", "65c0c99"),
}
# A checkpoint is what torch.save writes, an archive; the digest of it stands in its comment.
_SEAL, _LENGTH = b"deeplin sha256 ", 15 + 64


class Damaged(ValueError):
    """What lies in a run's folder is not as deeplin wrote it."""


@dataclass(frozen=True)
class Checkpoint:
    """From what a run goes on: the stepper's state, all records, the seconds used, how it ended.

    `config` are the options of its run by their dotted names, `inputs` the digests of the files
    that these name. What it takes to use the run without these files: `factors`, matrices whose
    product is W, the first to be applied first (`layers`: they are those of the network), and
    `preparation`, what was done to the data (`Preparation.state_dict`). `best` are the factors of
    the W that predicted best what is held out, where something is.
    """

    stepper: dict
    history: History
    seconds: float
    result: Result | None
    config: Mapping[str, object] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    factors: Sequence[Tensor] = ()
    layers: bool = False
    preparation: Mapping[str, object] | None = None
    best: Sequence[Tensor] = ()

    def check_fits(self, stepper: Stepper) -> None:
        """Raise ValueError unless the state is one that a stepper of the run could have."""
        fresh = stepper.state_dict()
        if self.stepper.keys() != fresh.keys():
            raise ValueError(f"it holds {', '.join(self.stepper)}, not {', '.join(fresh)}")
        state, expected = self.stepper["state"], [_kind(part) for part in stepper.state]
        kinds = [_kind(part) for part in state] if isinstance(state, list) else [_kind(state)]
        if kinds != expected:
            raise ValueError(f"its state is {', '.join(kinds)}, not {', '.join(expected)}")
        for name in self.stepper.keys() & {"t", "step", "stretches", "dt"}:
            value, kind = self.stepper[name], type(fresh[name])
            number = isinstance(value, int | float) and type(value) is kind
            if not (number and 0 <= value < math.inf):
                raise ValueError(f"its {name} must be a {kind.__name__} >= 0; it is {value!r}")
        if "t" in fresh and "stretches" not in fresh:  # steps are fixed
            t, steps = self.stepper["t"], self.stepper["step"]
            if t > steps * stepper.stretch * (1 + 1e-6):
                raise ValueError(
                    f"its t is {t:.6g} after {steps} steps of at most {stepper.stretch:.6g}"
                )
        moments = [(r.step, r.t) for r in self.history.records]
        if any(not 0 <= t < math.inf or step < 0 for step, t in moments) or moments != sorted(
            moments
        ):
            raise ValueError("its records are in no order of steps and times >= 0")


def _kind(part: object) -> str:
    if not isinstance(part, Tensor):
        return type(part).__name__
    return f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}"


def sealed(checkpoint: Checkpoint) -> bytes:
    """The bytes of a checkpoint's file."""
    result = checkpoint.result
    content = {
        "format": FORMAT,
        "config": dict(checkpoint.config),
        "inputs": dict(checkpoint.inputs),
        "stepper": dict(checkpoint.stepper),
        "history": checkpoint.history.state_dict(),
        "seconds": checkpoint.seconds,
        "result": None if result is None else _plain(result),
        "factors": list(checkpoint.factors),
        "layers": checkpoint.layers,
        "preparation": checkpoint.preparation,
        "best": list(checkpoint.best),
    }
    archive = io.BytesIO()
    torch.save(content, archive)
    # The last two bytes are the length of the comment.
    body = archive.getvalue()[:-2] + _LENGTH.to_bytes(2, "little")
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode()


def unsealed(data: bytes, device: str = "cpu") -> Checkpoint:
    """The checkpoint of a file's bytes. Nothing but tensors and plain values is ever unpickled.

    Raises: Damaged unless every bit is as it was written; ValueError for another format.
    """
    body, seal = data[:-_LENGTH], data[-_LENGTH:]
    whole = seal == _SEAL + hashlib.sha256(body).hexdigest().encode()
    if not whole and seal.startswith(_SEAL):
        raise Damaged("it is not as it was written (its SHA-256 digest differs)")
    try:
        saved = torch.load(io.BytesIO(data), weights_only=True, map_location=device)
        number = saved.get("format", 1)
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        raise Damaged("it is no checkpoint") from error
    check_format(number)
    if not whole:
        raise Damaged("it carries no digest")
    result = None
    if saved["result"] is not None:
        result = _result(saved["result"])
    return Checkpoint(
        saved["stepper"],
        History.from_state_dict(saved["history"]),
        saved["seconds"],
        result,
        saved["config"],
        saved["inputs"],
        saved["factors"],
        saved["layers"],
        saved["preparation"],
        saved.get("best", []),  # which the first of this format did not have
    )


def _plain(result: Result) -> dict[str, object]:
    rest = None if result.rest is None else str(result.rest)
    return {**asdict(result), "kind": str(result.kind), "rest": rest}


def _result(saved: dict) -> Result:
    rest = None if saved["rest"] is None else Kind(saved["rest"])
    return Result(**{**saved, "kind": Kind(saved["kind"]), "rest": rest})


def check_format(number: object) -> None:
    """Raise ValueError, with the end of a sentence, for another format's number."""
    if number == FORMAT:
        return
    known = number if isinstance(number, int) else 0
    writer, commit = _WRITERS.get(known, ("another one", None))
    remedy = "" if commit is None else f", or continue it with commit {commit}"
    raise ValueError(
        f"was written in format {number} of run folders ({writer}); this deeplin reads format "
        f"{FORMAT}: start the run anew in another folder{remedy}."
    )
