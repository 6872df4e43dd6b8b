"""What a ridge adds to the products of a loss, against dense formulas."""

import pytest
import torch
from problem_cases import CASES, F64, draw

from deeplin.problems import Ridge


@pytest.mark.parametrize("name", ["completion", "sensing, rank one, complex", "logistic"])
def test_products_and_curvature_along_a_line(name):
    case = CASES[name]
    problem, dtype = Ridge(case.problem, 0.7), case.dtype
    m, n = problem.shape
    U, V = (torch.linalg.qr(draw(d, 2, seed=d, dtype=dtype)).Q for d in (m, n))
    s = torch.tensor([2.0, 0.5], dtype=F64)
    W = (U * s) @ V.mH
    G = torch.func.grad(lambda X: case.plain(X) + 0.35 * (X.abs() ** 2).sum())(W)
    for S in (s, torch.diag(s).to(dtype)):
        loss, GV, GhU = problem.loss_and_products(U, S, V)
        torch.testing.assert_close(loss, case.plain(W) + 0.35 * s.square().sum())
        torch.testing.assert_close(GV, G @ V)
        torch.testing.assert_close(GhU, G.mH @ U)
    left, right = draw(m, 3, seed=1, dtype=dtype), draw(n, 3, seed=2, dtype=dtype)
    found, xi = problem.quadratic_along(left, right), left @ right.mH
    slope = problem.slope_along(U * s, V, left, right)
    torch.testing.assert_close(slope, (G.conj() * xi).real.sum())
    if name == "logistic":
        assert found is None, "not quadratic"
        return
    second = [case.plain(t * xi) + 0.35 * (t * xi).abs().square().sum() for t in (-1, 0, 1)]
    torch.testing.assert_close(found, second[0] + second[2] - 2 * second[1])


def test_bad_ridges():
    for reg in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="reg must be a finite number >= 0; got"):
            Ridge(CASES["completion"].problem, reg)
