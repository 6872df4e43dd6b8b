"""HLZ §6: escape from every S_s, for every kind of X, and where the rescaled field ends."""

import pytest
import torch
from many_starts import none_of

from deeplin.flows import DLRAFlow, PSDDLRAFlow
from deeplin.landscape import neighbours_of, spurious_points
from deeplin.problems import MatrixApproximation
from deeplin.problems.data import approximation

F64 = torch.float64
N, R, EACH = 9, 4, 20

DISTINCT, REPEATED = (1.0, 0.8, 0.6, 0.4), (1.0, 1.0, 0.5, 0.5)
KINDS = [
    pytest.param(kind, field, spectrum, rows, id=f"{kind} {field} {name}")
    for kind, field, name, spectrum, rows in [
        ("psd", "real", "distinct", DISTINCT, None),
        ("psd", "real", "repeated", REPEATED, None),
        ("psd", "complex", "distinct", DISTINCT, None),
        ("psd", "complex", "repeated", REPEATED, None),
        ("general", "real", "distinct", DISTINCT, 10),
        ("general", "real", "repeated", REPEATED, 10),
        ("general", "complex", "repeated", REPEATED, 10),
        ("hermitian", "real", "indefinite", (1.0, -0.8, 0.6, -0.4), None),
        ("hermitian", "complex", "repeated", (1.0, -1.0, 0.5, -0.5), None),
    ]
]


def kept_on_top(Z, r, semidefinite):
    """The nearest matrix of rank r: by its singular values, on the cone by its eigenvalues."""
    if semidefinite:
        values, E = torch.linalg.eigh(Z)
        return (E[..., -r:] * values[..., None, -r:]) @ E[..., -r:].mH
    U, s, Vh = torch.linalg.svd(Z)
    return (U[..., :r] * s[..., None, :r]) @ Vh[..., :r, :]


def one_step(Z, X, alpha, rescaled, semidefinite):
    """HLZ (2) by dense projections."""
    U, s, Vh = torch.linalg.svd(Z)
    U, V, G = U[..., :R], Vh[..., :R, :].mH, Z - X
    P, Q = U @ U.mH, V @ V.mH
    step = alpha * (s[..., R - 1, None, None] if rescaled else 1.0)
    return kept_on_top(Z - step * (P @ G + G @ Q - P @ G @ Q), R, semidefinite)


@pytest.mark.statement("HLZ §6")
@pytest.mark.parametrize(("rescaled", "alpha"), [(False, 0.2), (True, 1.0)])
@pytest.mark.parametrize(("kind", "field", "spectrum", "rows"), KINDS)
def test_descent_leaves_every_spurious_point(
    generator, seen, kind, field, spectrum, rows, rescaled, alpha
):
    """From 20 points of M_r at distance 1e-2 of each Z_# of rank 0, …, r − 1 it arrives at X.

    Of equal values one Z_# of each continuum is taken. Starts that lack what Z_# misses stay.
    """
    problem = approximation(
        N, spectrum, kind=kind, field=field, rows=rows, rotate=False, generator=generator
    ).problem
    X, semidefinite = problem.B, kind == "psd"
    points = list(spurious_points(X))
    assert {point.rank for point in points} == set(range(R))
    flow = (PSDDLRAFlow if semidefinite else DLRAFlow)(MatrixApproximation(X), rescaled)

    def run(Z, steps):
        y = flow.init_state(Z, R)
        for _ in range(steps):
            y = flow.gradient_step(y, alpha)
        return flow.end_to_end(y)

    starts = torch.cat([neighbours_of(p, 1e-2, R, EACH, generator=generator) for p in points])
    seen(run(starts, 1) - one_step(starts, X, alpha, rescaled, semidefinite), 1e-12)
    there = torch.linalg.matrix_norm(run(starts, 160) - X)
    none_of(seen, "runs that do not arrive at X", int((there > 1e-9).sum()), len(starts))
    # It can fail: X is diagonal, so that directions which a start lacks never come.
    left, right = (torch.eye(size, dtype=X.dtype) for size in X.shape)
    extra = [slice(R, 2 * R - point.rank) for point in points]  # columns orthogonal to X
    noise = [1e-2 * left[:, columns] @ right[:, columns].mT for columns in extra]
    spurious = torch.stack([point.dense() for point in points])
    stuck = torch.linalg.matrix_norm(run(spurious + torch.stack(noise), 40) - spurious)
    assert float(stuck.max()) < 2e-2, "they have not left"


@pytest.mark.statement("HLZ §6")
@pytest.mark.parametrize(("s", "continuous"), [(3, True), (2, False), (1, False)])
def test_the_rescaled_field_has_no_limit_at_lower_ranks(randn, seen, s, continuous):
    """(DLRA*) at (U, S_# + ε·diag(1, 1, …)) and at (U, S_# + ε·diag(1, 2, …)): two limits."""
    d = torch.tensor(DISTINCT, dtype=F64)
    basis, U = (torch.linalg.qr(randn(N, R)).Q for _ in range(2))
    problem = MatrixApproximation((basis * d) @ basis.mT)
    flow = PSDDLRAFlow(problem, rescaled=True)
    inside = torch.cat([d[:s], torch.zeros(R - s, dtype=F64)])
    spread = []
    for eps in (1e-3, 1e-6):
        equal, apart = inside.clone(), inside.clone()
        equal[s:] += eps
        apart[s:] += eps * torch.arange(1, R - s + 1)
        fields = [flow.velocity(0.0, (U, torch.diag(values)))[0] for values in (equal, apart)]
        P = torch.eye(N, dtype=F64) - U @ U.mT
        for field, values in zip(fields, (equal, apart), strict=True):
            seen(field - P @ problem.X @ U / values * values.min(), 1e-12)
        size = (P @ problem.X @ U[:, s:]).norm()
        spread.append(float((fields[0] - fields[1]).norm() / size))
    seen.number(f"distance of the two limits, s = r − {R - s}", spread[-1])
    if continuous:
        one, other = inside.clone(), inside * 1.001  # any two ways give one limit
        one[s], other[s] = 1e-6, 3e-6
        a, b = (flow.velocity(0.0, (U, torch.diag(values)))[0] for values in (one, other))
        seen((a - b).norm(), 1e-5)
    else:
        assert min(spread) > 0.2
