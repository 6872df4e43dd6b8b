"""Completion of a matrix of which more is known: the matrix itself, or entries held out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor

from deeplin.problems.completion import MatrixCompletion
from deeplin.problems.planted import entries_at

__all__ = ["KnownEntries"]

# Relative to the matrix: below this it is found.
_FOUND = 1e-6


class KnownEntries(MatrixCompletion):
    """The completion of a matrix; it reports how far W is from the truth and from held-out entries.

    - `truth`: (U, σ, V) of the matrix W* that the values are of; `noise`: of their errors, the
      standard deviation
    - `held_out`: (rows, cols, values) of entries that the loss does not know, and their weights

    Shapes, raises: as `MatrixCompletion`.
    """

    def __init__(
        self,
        rows: Int[Tensor, " p"],
        cols: Int[Tensor, " p"],
        values: Inexact[Tensor, " p"],
        shape: tuple[int, int],
        *,
        weights: Float[Tensor, " p"] | None = None,
        truth: tuple[Tensor, Tensor, Tensor] | None = None,
        noise: float = 0.0,
        held_out: tuple[Tensor, Tensor, Tensor, Tensor | None] | None = None,
    ):
        super().__init__(rows, cols, values, shape, weights=weights)
        self.truth, self.noise, self.held_out = truth, noise, held_out

    def report(self, W: Inexact[Tensor, "*#batch m n"]) -> Mapping[str, Float[Tensor, "*#batch"]]:
        """As `report_pair`, of W itself."""
        return self.report_pair(W, torch.eye(self.shape[1], dtype=W.dtype, device=W.device))

    def report_pair(
        self, A: Inexact[Tensor, "*#batch m k"], B: Inexact[Tensor, "*#batch n k"]
    ) -> Mapping[str, Float[Tensor, "*#batch"]]:
        """`train_rmse`, `test_rmse`: the roots of the (weighted) mean square error on the known and
        on the held-out entries; `relative_error`: ‖ABᴴ − W*‖_F/‖W*‖_F.

        Cost: O((m + n)(k + r)²), and O(qk) for q entries. Accuracy: eps, absolute.
        """
        total = float(len(self.rows)) if self.weights is None else float(self.weights.sum())
        seen = {"train_rmse": (2 * self.pair_loss(A, B) / total).sqrt()}
        if self.truth is not None:
            U, sigma, V = self.truth
            batch = A.shape[:-2]
            left = torch.cat([A, -(U * sigma).expand(*batch, *U.shape)], -1)
            right = torch.cat([B.expand(*batch, *B.shape[-2:]), V.expand(*batch, *V.shape)], -1)
            R, T = (torch.linalg.qr(M, mode="r").R for M in (left, right))
            size = torch.linalg.vector_norm(sigma)
            seen["relative_error"] = torch.linalg.matrix_norm(R @ T.mH) / size
        if self.held_out is not None:
            rows, cols, values, weights = self.held_out
            squares = (entries_at(rows, cols, A, B) - values).abs().square()
            w = torch.ones_like(squares) if weights is None else weights
            seen["test_rmse"] = ((w * squares).sum(-1) / w.sum(-1)).sqrt()
        return seen

    def told(self, report: Mapping[str, float]) -> str:
        """Whether W is the matrix that the values are of, or its error on what was held out."""
        if "relative_error" in report:
            error = report["relative_error"]
            if error <= _FOUND:
                return f"it is the planted matrix, to a relative error of {error:.1e}"
            alone = ""
            if self.noise:
                m, n = self.shape
                assert self.truth is not None
                r, size = len(self.truth[1]), float(torch.linalg.vector_norm(self.truth[1]))
                least = self.noise * (r * (m + n - r) * m * n / len(self.rows)) ** 0.5 / size
                alone = f", where the noise of the entries alone leaves about {least:.2g}"
            return f"its relative error to the planted matrix is {error:.2g}{alone}"
        if "test_rmse" in report:
            return f"its RMSE on the entries held out is {report['test_rmse']:.4g}"
        return ""
