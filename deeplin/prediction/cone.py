"""What is predicted where W stays positive semidefinite: another limit, another rate."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Inexact
from torch import Tensor

from deeplin.geometry.metric import DepthMetric, Metric
from deeplin.linalg import hermitian_part, is_semidefinite
from deeplin.prediction.statement import Prediction
from deeplin.problems import LeastSquares, MatrixApproximation
from deeplin.problems.contract import Problem
from deeplin.problems.spectrum import Spectrum

__all__ = ["PositivePart", "case_on_cone", "positive_part"]


class PositivePart(MatrixApproximation):
    """½‖W − H_+‖² + const, which on the cone has the limits of ½‖W − X‖²; H_+ of H = ½(X + Xᴴ).

    On Hermitian W it is H = Σ_i λ_iu_iu_iᴴ alone that counts. The critical points on the
    semidefinite matrices of rank k are Σ_J λ_ju_ju_jᴴ, |J| = k, λ_j > 0: those of
    H_+ = Σ_{λ_i>0} λ_iu_iu_iᴴ, with losses that differ by a constant. At such a point the Hessian
    of a metric (c, d) has on u_iu_jᴴ + u_ju_iᴴ the eigenvalue c_ij for i, j ∈ J, and
    d_i(1 − λ_j/λ_i) for i ∈ J, j ∉ J: all but that of the k largest are strict saddles, and
    negative λ_j change the rate alone. Where H has fewer than k positive eigenvalues there is no
    minimum of rank k, and W(t) goes to the edge of the cone: for N >= 2 to H_+, in infinite time;
    for N = 1, where σ̇ = −(σ + |λ|) along an eigenvector, in finite time, and there its flow ends.

    Source: ours; for semidefinite X HLZ Lemma 2.4 and HLZ Theorem 3.1.
    Shapes: X (n, n), real or complex.
    Cost: an eigendecomposition. Accuracy: eigenvalues below n·eps·max|λ| count as 0.
    """

    def __init__(self, X: Inexact[Tensor, "n n"]):
        values, vectors = torch.linalg.eigh(hermitian_part(X))
        self.values, self.vectors = values.flip(-1), vectors.flip(-1)
        noise = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
        positive = int((self.values > noise).sum())
        self._U, self._s = self.vectors[:, :positive], self.values[:positive]
        skew = 0.5 * torch.linalg.matrix_norm(X - X.mH)
        self._residual = 0.5 * (self.values[positive:].square().sum() + skew.square())
        super().__init__((self._U * self._s) @ self._U.mH)

    @cached_property
    def optimum(self) -> Spectrum:  # pyright: ignore[reportIncompatibleMethodOverride]
        """That of H_+, with the losses of ½‖W − X‖²."""
        return Spectrum(self._U, self._s, self._U, self._U * self._s, self._residual)

    def slowest_mode(self, metric: Metric, k: int) -> tuple[float, Inexact[Tensor, "n n"]]:
        """(ρ, P) at the limit of rank k: ⟨P, W(t) − limit⟩ ~ e^{−ρt}, P Hermitian."""
        inside, outside = self.values[:k], self.values[k:]
        side = metric.side(inside)[:, None] * (1 - outside / inside[:, None])
        rates = torch.cat([metric.core(inside), side], 1)
        i, j = divmod(int(rates.argmin()), len(self.values))
        P = torch.outer(self.vectors[:, j], self.vectors[:, i].conj())
        return float(rates.min()), P + P.mH


def positive_part(problem: Problem) -> PositivePart | None:
    """What ½‖W − X‖² + const is on the cone; None where X is semidefinite, and for other losses."""
    X = None
    if isinstance(problem, MatrixApproximation) and problem.X.ndim == 2:
        X = problem.X
    elif isinstance(problem, LeastSquares):
        eye = torch.eye(problem.d_x, dtype=problem.C.dtype, device=problem.C.device)
        X = problem.B if torch.equal(problem.C, eye) else None
    return None if X is None or is_semidefinite(X) else PositivePart(X)


def case_on_cone(
    problem: Problem, positive: PositivePart | None, metric: Metric | None, case: Prediction
) -> Prediction:
    """A prediction of `problem`, or of its positive part, as it holds where W is semidefinite.

    A minimizer on M_k that is semidefinite is that on the cone, too. Where it is not, and the loss
    is not ½‖W − X‖², nothing is predicted.
    """
    if positive is not None:
        return _of_positive_part(positive, metric, case)
    optimum = problem.optimum
    if optimum is None or is_semidefinite(optimum.minimizer(optimum.rank)):
        return case  # the slowest directions on M_k are Hermitian ones
    if is_semidefinite(optimum.minimizer(case.rank)):
        reason = "the optimum of full rank is not semidefinite: it changes the rate on the cone"
        return replace(case, rate=None, mode=None, rate_missing=reason)
    missing = (
        f"the optimum of rank {case.rank} is not positive semidefinite, as W(t) is, and of this "
        "loss no other is known on the cone"
    )
    return _without_limit(case, missing)


def _without_limit(case: Prediction, missing: str) -> Prediction:
    return replace(
        case, limit=None, loss=None, unique=False, rate=None, mode=None, pace=None,
        missing=missing, rate_missing=missing,
    )  # fmt: skip


def _of_positive_part(
    positive: PositivePart, metric: Metric | None, case: Prediction
) -> Prediction:
    if case.why:
        return case
    case = replace(case, note="of X the positive part of ½(X + Xᴴ) counts, as W(t) is semidefinite")
    if case.start_rank is not None and case.start_rank > positive.optimum.rank:
        few = f"X has fewer positive eigenvalues than the rank {case.start_rank} of W(0)"
        if isinstance(metric, DepthMetric) and metric.depth >= 2:
            reason = f"{few}: the limit lies on the edge of the cone"
            return replace(case, rate=None, mode=None, pace=None, rate_missing=reason)
        missing = f"{few}: W(t) meets the edge of the cone in finite time, where its flow ends"
        return _without_limit(case, missing)
    if case.rate is None or metric is None:
        return case
    rate, P = positive.slowest_mode(metric, case.rank)
    return replace(case, rate=rate, pace=rate, mode=P)
