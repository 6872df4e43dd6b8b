"""A run that is over, or on its way, as an object: what it showed, what it learned, and its use."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Inexact
from numpy.typing import ArrayLike
from omegaconf import DictConfig
from torch import Tensor

from deeplin.flows import LayerFlow
from deeplin.linalg import halves
from deeplin.loop import Kind
from deeplin.network import DeepLinear, end_to_end, init
from deeplin.prediction import Prediction
from deeplin.problems.biases import Biases
from deeplin.problems.contract import Problem
from deeplin.problems.data import Data
from deeplin.problems.pairs import Pairs
from deeplin.problems.preparation import Preparation
from deeplin.problems.tables import Encoding, Table
from deeplin.runner.build import Experiment, build, data_of, widths_of
from deeplin.runner.folder import Checkpoint, RunFolder
from deeplin.runner.provenance import digests

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Curves", "Run", "load"]


def load(folder: str | Path) -> Run:
    """The run of a folder, finished or not, from its last checkpoint.

    Neither the data nor anything but the folder is needed to predict; `problem` and `prediction`
    are made anew from the configuration and the data's files, when they are first asked for.

    Raises: ValueError, with one sentence, for a folder without a run, one that is damaged, or was
        written in another format.
    """
    files = RunFolder(folder)
    if not files.config.is_file() or not files.checkpoint.is_file():
        missing = "config.yaml" if not files.config.is_file() else "checkpoint.pt"
        raise ValueError(
            f"{folder} must be the folder of a run; it holds no {missing}: train.py says where a "
            "run's folder is, runs/<problem>/<date> for instance."
        )
    return Run(files, files.read_config(), files.load_checkpoint())


class Curves(dict[str, np.ndarray]):
    """Arrays by their names, the first axis of each the records of a run."""

    def to_frame(self) -> DataFrame:
        """The same as a pandas table, a row per record; further axes are columns name_1, …

        Raises: ImportError where pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install 'deeplin[data]'.") from error
        columns: dict[str, np.ndarray] = {}
        for name, values in self.items():
            if values.ndim == 1:
                columns[name] = values
                continue
            for index in np.ndindex(values.shape[1:]):
                numbers = "_".join(str(i + 1) for i in index)
                columns[f"{name}_{numbers}"] = values[(slice(None), *index)]
        return DataFrame(columns)


class Run:
    """What a run was told, what it showed, and what it learned.

    - `path`, `config`, `history`: the folder, all options, the records
    - `W`, `factors`, `network`, on a manifold `point`: the matrix, two thin ones whose product it
      is, its layers, the parameter, in the coordinates that the problem has
    - `predict`, `decision_function`, `affine`: its use on new samples, in the user's units
    - `preparation`: what was done to the samples, None where nothing was
    """

    def __init__(self, files: RunFolder, config: DictConfig, checkpoint: Checkpoint):
        self.path, self.config = files.path, config
        self._files, self._checkpoint = files, checkpoint

    def __repr__(self) -> str:
        result = self._checkpoint.result
        end = "unfinished" if result is None else result.sentence.rstrip(".")
        return f"Run({str(self.path)!r}: {self.config.problem.name}, {end})"

    # -- what it showed ------------------------------------------------------------------------

    @cached_property
    def summary(self) -> dict[str, object]:
        """How the run ended: the content of summary.json. Raises ValueError while it has not."""
        if not self._files.summary.is_file():
            raise ValueError(
                f"{self.path} has no summary.json, since the run is unfinished: "
                f"resume={self.path} continues it."
            )
        return self._files.read_summary()

    @cached_property
    def history(self) -> Curves:
        """`step`, `t`, `dt` and all that was observed at each record."""
        records = self._checkpoint.history
        curves = Curves(
            step=np.array([record.step for record in records.records]),
            t=records.t.numpy(),
            dt=np.array([record.dt for record in records.records]),
        )
        for name in records.records[0].observed if records.records else ():
            curves[name] = records.column(name).numpy(force=True)
        return curves

    # -- what it learned -----------------------------------------------------------------------

    @cached_property
    def W(self) -> Inexact[Tensor, "*batch d_y d_x"]:
        """The matrix that was learned; with repeats one for each."""
        return end_to_end(self._factors)

    @cached_property
    def network(self) -> DeepLinear:
        """The layers; where the run had none, balanced ones of its widths, whose product is W."""
        factors, W = self._factors, self.W
        if self._checkpoint.layers:
            widths = [factors[0].shape[-1], *(W_j.shape[-2] for W_j in factors)]
        else:
            rank = max(1, int(torch.linalg.matrix_rank(W).max()))
            found = rank if self.config.network.rank == "gap" else None
            widths = widths_of(self.config.network, W.shape[-2:], rank, found)
        net = DeepLinear(widths, batch_shape=W.shape[:-2], dtype=W.dtype)
        if not self._checkpoint.layers:
            return init.balanced_(net, W)
        with torch.no_grad():
            for parameter, W_j in zip(net.weights, factors, strict=True):
                parameter.copy_(W_j)
        return net

    @cached_property
    def point(self) -> Tensor:
        """The parameter of a run on a manifold, on its manifold, geoopt's ManifoldParameter.

        Raises: ValueError for a run on none, and as `problem`.
        """
        on = self._experiment.on
        if on is None:
            raise ValueError(f"{self.path} is a run on no manifold: its layers are network.")
        with torch.no_grad():
            on.point.copy_(self._checkpoint.stepper["working"][0])
        return on.point

    @cached_property
    def _data(self) -> Data:
        inputs = digests(self.config)
        for key, digest in self._checkpoint.inputs.items():
            if inputs.get(key) != digest:
                now = "has changed since" if inputs.get(key) else "is not there"
                raise ValueError(
                    f"{self.path} is a run on {key}={_option(self.config, key)}, which {now}: its "
                    "problem can be made again from the same file alone; predict needs none."
                )
        return data_of(self.config)

    @property
    def problem(self) -> Problem:
        """The problem, made anew from the configuration and the data's files.

        Raises: ValueError where a file is gone, or not what it was.
        """
        return self._data.problem

    @cached_property
    def _experiment(self) -> Experiment:
        _ = self._data  # says whether its files are there
        return build(self.config)

    @cached_property
    def prediction(self) -> Prediction:
        """What the theory says of the start, and of where its layers end. Raises: as `problem`."""
        experiment, result = self._experiment, self._checkpoint.result
        gone = result is not None and result.kind is Kind.DIVERGED and result.rest is None
        if not isinstance(experiment.flow, LayerFlow) or gone:
            return experiment.prediction
        return experiment.prediction.arrived(experiment.data.problem, self._checkpoint.factors)

    # -- its use -------------------------------------------------------------------------------

    @cached_property
    def preparation(self) -> Preparation | Pairs | None:
        """What was done to the samples, None where nothing was; of a completion what pairs mean."""
        saved = self._checkpoint.preparation
        if saved is None:
            return None
        pairs = "cols" in saved  # which samples have not
        return Pairs.from_state_dict(saved) if pairs else Preparation.from_state_dict(saved)

    @property
    def _done(self) -> Preparation:
        done = self.preparation
        if isinstance(done, Pairs):
            raise ValueError(
                f"{self.path} is a completion, which knows no samples: predict(pairs) gives the "
                f"{done.names[2]} of pairs ({done.names[0]}, {done.names[1]})."
            )
        return done or Preparation.nothing(self._factors[0].shape[-1], self._factors[-1].shape[-2])

    @property
    def factors(self) -> tuple[Inexact[Tensor, "*batch d_y k"], Inexact[Tensor, "*batch k d_x"]]:
        """(A, B) with W = AB, thin where W has a low rank; of large runs W itself is not needed."""
        parts = halves(self._factors)
        if parts is None:
            W = self.W
            return W, torch.eye(W.shape[-1], dtype=W.dtype)
        return parts

    @property
    def _factors(self) -> list[Tensor]:
        """Of the end; with stop.held_out of the record that predicted best what is held out."""
        best = self.config.stop.get("held_out") is not None and self._checkpoint.best
        return [factor.cpu() for factor in best or self._checkpoint.factors]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns of x that `predict` takes, in their order."""
        if isinstance(self.preparation, Pairs):
            return self.preparation.names[:2]
        encoding = self._done.encoding
        return self._done.x.names if encoding is None else encoding.columns

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what is predicted: columns of labels, of an autoencoder those of x."""
        if isinstance(self.preparation, Pairs):
            return self.preparation.names[2:]
        return self._done.outputs.names

    @property
    def classes(self) -> Sequence[object] | None:
        """The classes that are predicted, None where the labels are numbers."""
        return None if isinstance(self.preparation, Pairs) else self._done.classes

    def decision_function(self, x: ArrayLike | Tensor | DataFrame) -> np.ndarray:
        """The labels that W gives of new samples, in the units of the data that it learned from.

        ŷ = ȳ + W T (x − x̄)/s, with x̄, s and T what was done to the samples it learned from: columns
        that were dropped are taken and not used. For classes it has a column for each, and the
        largest is that of the class predicted. An autoencoder gives x as it reconstructs it.

        Shapes: x (n, p), the columns of the data without the labels; or a pandas table that has
            columns of these names, whatever others. The result (*batch, n, d_y), with repeats one
            for each.
        Raises: ValueError for samples without these columns, or that are not finite.
        """
        samples, done = self._samples(x), self._done
        W = self.W.to(torch.promote_types(self.W.dtype, torch.float64))
        values = done.inputs(samples).to(W.dtype) @ W.mT
        return done.predicted(values).numpy()

    def predict(self, x: ArrayLike | Tensor | DataFrame) -> np.ndarray:
        """What W predicts of new samples: labels as `decision_function`, or the names of classes.

        Of a completion x are pairs, row and column as the data call them, and the result are their
        values in the data's units: W[i, j], and where biases were fitted μ + a_i + b_j with it. A
        row or column that the data did not have counts 0.

        Shapes: x (n, p); the result (*batch, n, d_y), for classes (*batch, n). Pairs (n, 2), or a
            table with the two columns; the result (*batch, n).
        Raises: as `decision_function`, and as `Pairs.places`.
        """
        if isinstance(self.preparation, Pairs):
            A, B = self.factors
            return self.preparation.predicted(A, B.mH, x).numpy(force=True)
        values = self.decision_function(x)
        if self.classes is None:
            return values
        return np.array(self.classes)[values.argmax(-1)]

    def export(self, path: str | Path) -> None:
        """Write what predicts, y = (x − centre) Aᵀ + offset in the user's units, to a file.

        - `.npz`: arrays `W` (the A of this formula), `centre`, `offset`, the names `columns` and
          `outputs`, for classes `classes`: numpy alone predicts. Of a completion `left`, `right`,
          `mean`, `row_bias`, `col_bias`, and what `rows` and `cols` are called
        - `.pt2`: a program of torch.export, x -> y, that torch.export.load reads
        - `.onnx`: the same by torch.onnx, which needs the packages onnx and onnxscript

        Columns of words stand there as those that one-hot encoding makes of them, name=category.

        Raises: ValueError for other kinds of files; ImportError for ONNX without its packages.
        """
        path = Path(path)
        if path.suffix not in (".npz", ".pt2", ".onnx"):
            raise ValueError(f"export writes files .npz, .pt2 and .onnx; got {path.name}.")
        if isinstance(self.preparation, Pairs):
            self._export_pairs(path, self.preparation)
            return
        done = self._done
        A, centre, offset = done.affine(self.W.to(torch.promote_types(self.W.dtype, torch.float64)))
        if path.suffix == ".npz":
            arrays = {
                "W": A.numpy(),
                "centre": centre.numpy(),
                "offset": offset.numpy(),
                "columns": np.array(done.x.names),
                "outputs": np.array(self.outputs),
            }
            if self.classes is not None:
                arrays["classes"] = np.array(self.classes)
            np.savez(path, allow_pickle=False, **arrays)
            return
        module, example = _Affine(A, centre, offset), torch.zeros(2, len(centre)).to(A)
        rows = {"x": {0: torch.export.Dim("rows")}}
        if path.suffix == ".pt2":
            torch.export.save(torch.export.export(module, (example,), dynamic_shapes=rows), path)
            return
        try:
            import onnxscript  # noqa: F401  # pyright: ignore
        except ImportError as error:
            raise ImportError("ONNX needs its packages: pip install onnx onnxscript.") from error
        torch.onnx.export(module, (example,), path, dynamic_shapes=rows, input_names=["x"],
                          output_names=["y"], dynamo=True, verbose=False)  # fmt: skip

    def _export_pairs(self, path: Path, pairs: Pairs) -> None:
        """The factors of a completion: left[i] · right[j] + mean + row_bias[i] + col_bias[j]."""
        if path.suffix != ".npz":
            raise ValueError(f"a completion is exported as .npz, its factors; got {path.name}.")
        A, B = self.factors
        b = pairs.biases or Biases(A.new_zeros(()), A.new_zeros(()), A.new_zeros(()))
        rows, cols = (
            np.arange(labels.size) if labels.of is None else labels.of
            for labels in (pairs.rows, pairs.cols)
        )
        arrays = {
            "left": A.numpy(), "right": B.mT.resolve_conj().numpy(), "mean": b.mean.numpy(),
            "row_bias": b.rows.expand(len(rows)).numpy(), "rows": rows,
            "col_bias": b.cols.expand(len(cols)).numpy(), "cols": cols,
        }  # fmt: skip
        np.savez(path, allow_pickle=False, **arrays)

    def _samples(self, x: ArrayLike | Tensor | DataFrame) -> Tensor:
        done = self._done
        encoding = done.encoding
        pandas = sys.modules.get("pandas")  # who has a table of its has it loaded
        if pandas is not None and isinstance(x, pandas.DataFrame):
            table = Table.of_frame(x, "x")  # pyright: ignore[reportArgumentType]
            given = (encoding or Encoding(done.x.names, {}, first=False))(table)
        else:
            given = x.detach().cpu() if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
            if encoding is not None and encoding.categories:
                words = ", ".join(encoding.categories)
                raise ValueError(f"x must be a pandas table, since {words} held words.")
        p = len(done.x.names)
        if given.ndim != 2 or given.shape[1] != p or given.dtype == torch.bool:
            raise ValueError(
                f"x must be a table of numbers, a sample per row, with the {p} columns of the data "
                f"without labels; got shape {tuple(given.shape)}, {given.dtype}."
            )
        wide = given if given.is_complex() else given.double()
        unknown = ~wide.isfinite()
        if done.x.fill is not None:
            unknown &= ~wide.isnan()
        if bool(unknown.any()):
            row, column = unknown.nonzero()[0].tolist()
            raise ValueError(
                f"x must be finite; column {done.x.names[column]!r}, row {row + 1} is NaN or ±inf."
            )
        return wide


class _Affine(torch.nn.Module):
    """x ↦ (x − centre) Aᵀ + offset."""

    def __init__(self, A: Tensor, centre: Tensor, offset: Tensor):
        super().__init__()
        self.A, self.centre, self.offset = (torch.nn.Buffer(v.to(A)) for v in (A, centre, offset))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.A) - self.centre) @ self.A.mT + self.offset


def _option(config: DictConfig, key: str) -> object:
    group, name = key.split(".")
    return config[group][name]
