"""Alternating least squares after the spectral start, against least squares row by row."""

import numpy as np
import pytest
import torch
from optim_cases import planted

from deeplin.optim import minimize
from deeplin.problems import (
    MatrixApproximation,
    MatrixCompletion,
    alternating_start,
    spectral_start,
)

F64 = torch.float64


def test_a_sweep_fits_each_row_by_damped_least_squares(randn):
    known, _ = planted()
    start = spectral_start(known, 3)
    found = alternating_start(known, 3, most=1)
    X, mask = np.zeros((60, 50)), np.zeros((60, 50), dtype=bool)
    X[known.rows, known.cols], mask[known.rows, known.cols] = known.values, True

    def fitted(A, B, X, mask):
        """Rows a of least Σ_j (x_j − ⟨a, B_j⟩)² + δμ|a − A_i|²."""
        damping = np.square((A @ B.T - X)[mask]).sum() / np.square(X[mask]).sum()
        mean = sum(np.trace(B[row].T @ B[row]) for row in mask) / (3 * len(A))
        root = np.sqrt(damping * mean) * np.eye(3)
        rows = []
        for a, x, row in zip(A, X, mask, strict=True):
            system = np.concatenate([B[row], root]), np.concatenate([x[row], root @ a])
            rows.append(np.linalg.lstsq(*system, rcond=None)[0])
        return np.stack(rows)

    A, V = fitted((start.U @ start.S).numpy(), start.V.numpy(), X, mask), start.V.numpy()
    U, S = np.linalg.qr(A)
    B = fitted(V @ S.T, U, X.T, mask.T)
    np.testing.assert_allclose(found.dense(), U @ B.T, atol=1e-10)
    assert float((found.U.mT @ found.U - torch.eye(3)).norm()) < 1e-13
    assert float((found.V.mT @ found.V - torch.eye(3)).norm()) < 1e-13


def test_sweeps_end_once_they_are_enough_or_do_not_pay(monkeypatch):
    known, _ = planted(shape=(200, 150))

    def residual(point):
        return (
            float(
                known.pair_loss(point.U @ point.S, point.V) / known.pair_loss(0 * point.U, point.V)
            )
            ** 0.5
        )

    counted = []
    of_known = MatrixCompletion.inverse_blocks
    monkeypatch.setattr(
        MatrixCompletion,
        "inverse_blocks",
        lambda self, *given, **options: counted.append(1) or of_known(self, *given, **options),
    )
    assert residual(alternating_start(known, 3, most=9, enough=0.02)) < 0.02
    assert 4 <= len(counted) < 18
    counted.clear()
    noise = known.with_values(torch.randn(len(known.values), dtype=F64))
    alternating_start(noise, 3, most=9)
    assert len(counted) == 4, "the second has not halved the loss"
    start, same = spectral_start(known, 3), alternating_start(known, 3, most=0)
    assert torch.equal(same.U, start.U)
    assert torch.equal(same.S, start.S)


def test_what_has_no_blocks_has_the_spectral_start(randn):
    problem = MatrixApproximation(randn(6, 5))
    start, same = spectral_start(problem, 2), alternating_start(problem, 2)
    assert torch.equal(same.dense(), start.dense())
    with pytest.raises(ValueError, match=r"most must be an integer >= 0; got -1"):
        alternating_start(problem, 2, most=-1)


def test_conjugate_gradients_need_fewer_steps_from_there():
    known, _ = planted(shape=(400, 300))
    tol = 1e-8 * float(known.values.norm())
    starts = alternating_start(known, 3), spectral_start(known, 3)
    near, far = (minimize(known, start, tol=tol) for start in starts)
    assert bool(near.converged)
    assert near.iterations < 0.85 * far.iterations
