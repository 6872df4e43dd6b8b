"""Losses without and with a closed form, points of theirs, and their Hessians by autograd."""

from collections.abc import Callable

import torch
from torch import Tensor

from deeplin import LeastSquares
from deeplin.geometry import Metric
from deeplin.problems import (
    LogisticRegression,
    MatrixApproximation,
    MatrixCompletion,
    MatrixSensing,
    Problem,
    from_loss,
)

OPEN = ["completion", "sensing", "complex sensing", "logistic", "user"]
CLOSED = ["least squares", "complex least squares", "approximation", "complex approximation"]


class ScaledGD(Metric):
    """∇f ↦ ∇f VVᴴ + UUᴴ ∇f: c = 2, d = 1."""

    def core(self, sigma):
        return 2 * torch.ones_like(sigma[..., :, None] * sigma[..., None, :])

    def side(self, sigma):
        return torch.ones_like(sigma)


def problem_of(name: str, draw: Callable[..., Tensor]) -> Problem:
    """Losses of 4×3 matrices whose minimum of rank 2 is no zero of the gradient."""
    if name == "completion":
        rows, cols = torch.meshgrid(torch.arange(4), torch.arange(3), indexing="ij")
        kept = torch.arange(12) != 9
        rows, cols = rows.flatten()[kept], cols.flatten()[kept]
        W = draw(4, 2) @ draw(2, 3) + 0.1 * draw(4, 3)
        return MatrixCompletion(rows, cols, W[rows, cols], (4, 3))
    if name == "sensing":
        return MatrixSensing(draw(30, 4, 3), draw(30))
    if name == "complex sensing":
        return MatrixSensing(torch.complex(draw(40, 4, 3), draw(40, 4, 3)), draw(40) + 0j)
    if name == "logistic":
        return LogisticRegression(draw(60, 3), torch.arange(60) % 4)
    if name == "user":
        X, weights = draw(4, 3), 0.5 + draw(4, 3).square()
        return from_loss(lambda W: (weights * (W - X).cosh()).sum((-2, -1)), (4, 3))
    if name == "least squares":
        return LeastSquares(draw(3, 20), draw(4, 20))
    if name == "complex least squares":
        x, y = (torch.complex(draw(n, 20), draw(n, 20)) for n in (3, 4))
        return LeastSquares(x, y)
    if name == "approximation":
        return MatrixApproximation(draw(4, 3))
    return MatrixApproximation(torch.complex(draw(4, 3), draw(4, 3)))


class Chart:
    """(M, A, B) ↦ (U + U_⊥A)(Σ + M)(V + V_⊥B)ᴴ on M_k around W, of real numbers."""

    def __init__(self, W: Tensor, k: int):
        U, s, Vh = torch.linalg.svd(W)
        V = Vh.mH
        self.k, self.s, self.complex = k, s[:k], W.is_complex()
        self.U1, self.U2, self.V1, self.V2 = U[:, :k], U[:, k:], V[:, :k], V[:, k:]
        self.shapes = [(k, k), (len(U) - k, k), (len(V) - k, k)]
        self.sizes = [(1 + self.complex) * a * b for a, b in self.shapes]
        self.dim = sum(self.sizes)

    def parts(self, x: Tensor) -> list[Tensor]:
        parts = x.split(self.sizes)
        if self.complex:
            parts = [torch.view_as_complex(part.view(-1, 2)) for part in parts]
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def __call__(self, x: Tensor) -> Tensor:
        M, A, B = self.parts(x)
        core = torch.diag(self.s).to(M.dtype) + M
        return (self.U1 + self.U2 @ A) @ core @ (self.V1 + self.V2 @ B).mH

    def derivatives(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """The gradient and the Hessian of the loss in the chart at W."""

        def loss(x):
            return problem.loss(self(x))

        zero = torch.zeros(self.dim, dtype=self.s.dtype)
        return torch.func.grad(loss)(zero), torch.autograd.functional.hessian(loss, zero)

    def embedded(self, H: Tensor) -> Tensor:
        """A quadratic form of (M, A, B) as one of the orthonormal coordinates (M, AΣ, BΣ)."""
        size = torch.cat(
            [
                (torch.ones(rows, self.k) if n == 0 else torch.ones(rows, self.k) * self.s)
                .flatten()
                .repeat_interleave(1 + self.complex)
                for n, (rows, _) in enumerate(self.shapes)
            ]
        ).to(H)
        return H / size[:, None] / size

    def operator(self, depth: int) -> Tensor:
        """𝒜_W of BRTW (8) in those coordinates, as a matrix, by the powers of WWᴴ and WᴴW."""
        W = self(torch.zeros(self.dim, dtype=self.s.dtype))

        def power(A: Tensor, p: float) -> Tensor:
            values, vectors = torch.linalg.eigh(A)
            kept = values > 1e-12 * values[-1]
            return (vectors * torch.where(kept, values.abs() ** p, float(p == 0))) @ vectors.mH

        columns = []
        for x in torch.eye(self.dim, dtype=self.s.dtype):
            M, A, B = self.parts(x)
            Z = (self.U1 @ M + self.U2 @ A) @ self.V1.mH + self.U1 @ B.mH @ self.V2.mH
            Y = sum(
                power(W @ W.mH, (depth - j) / depth) @ Z @ power(W.mH @ W, (j - 1) / depth)
                for j in range(1, depth + 1)
            )
            core, left = self.U1.mH @ Y @ self.V1, self.U2.mH @ Y @ self.V1
            right = self.V2.mH @ Y.mH @ self.U1
            flat = [part.flatten() for part in (core, left, right)]
            if self.complex:
                flat = [torch.view_as_real(part.resolve_conj()).flatten() for part in flat]
            columns.append(torch.cat(flat))
        return torch.stack(columns, 1)


def critical_point(problem: Problem, k: int, draw: Callable[..., Tensor]) -> Tensor:
    """A critical point of rank k: descent on factors, then Newton steps in charts."""
    m, n = problem.shape
    parts = 2 if problem.field == "complex" else 1
    leaves = [draw(m + n, k).requires_grad_() for _ in range(parts)]
    optimizer = torch.optim.LBFGS(leaves, max_iter=300, line_search_fn="strong_wolfe")

    def product() -> Tensor:
        factors = torch.complex(leaves[0], leaves[1]) if parts == 2 else leaves[0]
        return factors[:m] @ factors[m:].mH

    def closure():
        optimizer.zero_grad()
        loss = problem.loss(product())
        loss.backward()
        return loss

    optimizer.step(closure)
    W = product().detach()
    for _ in range(4):
        chart = Chart(W, k)
        gradient, H = chart.derivatives(problem)
        W = chart(-torch.linalg.pinv(H, rtol=1e-7, hermitian=True) @ gradient)
    return W
