"""Oracles for the manifold tests: explicit matrix powers, quadratures, integrated geodesics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

torch.set_num_threads(1)  # the matrices are tiny: threads only wait for each other

SPECTRA = {
    "generic": lambda r: torch.linspace(1.7, 0.6, r, dtype=torch.float64),
    "equal": lambda r: torch.full((r,), 1.3, dtype=torch.float64),
    "gap 1e-12": lambda r: 1.0 - 1e-12 * torch.arange(r, dtype=torch.float64),
    "tail 1e-3": lambda r: torch.logspace(0, -3, r, dtype=torch.float64) if r > 1 else one(1e-3),
    "tail 1e-6": lambda r: torch.logspace(0, -6, r, dtype=torch.float64) if r > 1 else one(1e-6),
    "tail 1e-9": lambda r: torch.logspace(0, -9, r, dtype=torch.float64) if r > 1 else one(1e-9),
}
# (m, n, r): generic, m < n, r = 1, r = min < max, 2r > min, full rank
SHAPES = [(7, 5, 2), (5, 7, 2), (5, 4, 1), (4, 6, 4), (6, 5, 4), (4, 4, 4)]
PSD_SHAPES = [(7, 2), (5, 1), (5, 4), (4, 4)]
DEPTHS = [1, 2, 2.5, 3, 10, 64]


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def unitary(n: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """All columns of an orthonormal basis."""
    return torch.linalg.qr(randn(n, n, seed=seed, dtype=dtype)).Q


@dataclass
class Case:
    """A matrix of known singular value decomposition, with full bases."""

    left: Tensor  # m×m, its first r columns are U
    right: Tensor  # n×n
    sigma: Tensor

    @classmethod
    def build(cls, m, n, spectrum="generic", *, r, dtype=torch.float64, seed=0, psd=False):
        left = unitary(m, seed + 1, dtype)
        return cls(left, left if psd else unitary(n, seed + 2, dtype), SPECTRA[spectrum](r))

    @property
    def r(self):
        return len(self.sigma)

    @property
    def dtype(self):
        return self.left.dtype

    @property
    def U(self):
        return self.left[:, : self.r]

    @property
    def V(self):
        return self.right[:, : self.r]

    @property
    def S(self):
        return torch.diag(self.sigma).to(self.dtype)

    @property
    def W(self):
        return self.U @ self.S @ self.V.mH

    def power(self, side: str, p: float) -> Tensor:
        """(WWᴴ)^p or (WᴴW)^p with 0⁰ = 1, from the known decomposition: no power of round-off."""
        basis = self.left if side == "left" else self.right
        if p == 0:
            return torch.eye(len(basis), dtype=self.dtype)
        frame = basis[:, : self.r]
        return (frame * self.sigma ** (2 * p)) @ frame.mH

    def definition(self, Z: Tensor, N: int) -> Tensor:
        """𝒜_W(Z) as BRTW (8) writes it."""
        return sum(
            (
                self.power("left", (N - j) / N) @ Z @ self.power("right", (j - 1) / N)
                for j in range(1, N + 1)
            ),
            torch.zeros_like(Z),
        )

    def project(self, Z: Tensor) -> Tensor:
        """P_W(Z) as BRTW Lemma 7 writes it."""
        QU, QV = self.U @ self.U.mH, self.V @ self.V.mH
        return QU @ Z + Z @ QV - QU @ Z @ QV


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.conj() * b).real.sum((-2, -1))


def relative(a: Tensor, b: Tensor) -> float:
    return (torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)).item()


def gauss_panels(a: float, b: float, panels: int, nodes: int = 10):
    """Nodes and weights of a composite Gauss-Legendre rule."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    edges = np.linspace(a, b, panels + 1)
    half = (edges[1:] - edges[:-1]) / 2
    middle = (edges[1:] + edges[:-1]) / 2
    return (middle[:, None] + half[:, None] * x).ravel(), (half[:, None] * w).ravel()


def integral_19(case: Case, Z1: Tensor, Z2: Tensor, N: float) -> float:
    """BRTW (19) by quadrature in log t.

    The corner of a tangent vector is exactly 0 and is written so: its round-off would meet t⁻².
    """
    s, w = gauss_panels(-45.0 * N, 45.0 * N / (N - 1), 200)
    total = 0.0
    inside = case.left.mH @ Z1 @ case.right
    inside[case.r :, case.r :] = 0
    outside = case.left.mH @ Z2 @ case.right

    def resolvent(size, t):
        squares = torch.zeros(size, dtype=torch.float64)
        squares[: case.r] = case.sigma**2
        return 1 / (t + squares)

    for si, wi in zip(s, w, strict=True):
        t = math.exp(si)
        weights = resolvent(len(case.left), t)[:, None] * resolvent(len(case.right), t)
        weights[case.r :, case.r :] = 0
        total += wi * dot(weights * inside, outside).item() * math.exp(si * (1 / N + 1))
    return math.sin(math.pi / N) / math.pi * total


def integral_20(case: Case, Z1: Tensor, Z2: Tensor, N: float) -> float:
    """BRTW (20): the inner integral is a block of one matrix exponential (Van Loan)."""
    m, n = Z1.shape
    A, B = case.power("left", 1), case.power("right", 1)
    block = torch.zeros(m + n, m + n, dtype=Z1.dtype)
    block[:m, :m], block[:m, m:], block[m:, m:] = -A, Z1, -B
    top = 7.0
    tau, w = gauss_panels(-40.0 * N / (N - 1), top, 40)
    total, t = 0.0, 1.0

    def inner(t):
        return dot(torch.linalg.matrix_exp(block * t)[:m, m:], Z2).item() * t ** (-1 / N)

    for ti, wi in zip(tau, w, strict=True):
        t = math.exp(ti)
        total += wi * inner(t)
    total += N * inner(math.exp(top))  # beyond, only t^{-1/N} is left to integrate
    return total / (N * math.gamma(1 - 1 / N))


def integral_21(case: Case, Z1: Tensor, Z2: Tensor) -> float:
    """BRTW (21), depth 2."""
    A, B = case.power("left", 0.5), case.power("right", 0.5)
    t, w = gauss_panels(0.0, 45.0 / case.sigma.min().item(), 60)
    values = [
        dot(torch.linalg.matrix_exp(-ti * A) @ Z1 @ torch.linalg.matrix_exp(-ti * B), Z2).item()
        for ti in t
    ]
    return float(np.dot(w, values))


class Geodesic:
    """Geodesics of g_W by RK4 on Hamilton's equations in a chart; numpy, finite differences.

    The chart is W(θ) = (U T + A)T⁻¹(T Vᵀ + Bᵀ), T = Σ + M, θ = (M, A, B); a symmetric one has
    M = Mᵀ and B = A. The cometric in the chart is J⁺ 𝒜_W J⁺ᵀ with 𝒜_W the mn×mn matrix of BRTW (8).
    """

    def __init__(self, case: Case, N: int, symmetric: bool = False):
        self.N, self.r, self.symmetric = N, case.r, symmetric
        self.U, self.V, self.S = (A.numpy() for A in (case.U, case.V, case.S))
        self.Uc, self.Vc = case.left[:, case.r :].numpy(), case.right[:, case.r :].numpy()
        r, m, n = case.r, len(case.left), len(case.right)
        core = r * (r + 1) // 2 if symmetric else r * r
        self.sizes = np.cumsum([core, (m - r) * r, 0 if symmetric else (n - r) * r])
        self.dim, self.mn = self.sizes[-1], m * n

    def chart(self, theta):
        """W(θ), of each θ of a batch (..., dim)."""
        r, batch = self.r, theta.shape[:-1]
        core, a, b = np.split(theta, self.sizes[:2], axis=-1)
        if self.symmetric:
            M = np.zeros((*batch, r, r))
            M[(..., *np.triu_indices(r))] = core
            M = (M + M.swapaxes(-2, -1)) / 2
        else:
            M = core.reshape(*batch, r, r)
        A = self.Uc @ a.reshape(*batch, self.Uc.shape[1], r)
        B = A if self.symmetric else self.Vc @ b.reshape(*batch, self.Vc.shape[1], r)
        T = self.S + M
        return (self.U @ T + A) @ np.linalg.solve(T, T @ self.V.T + B.swapaxes(-2, -1))

    def difference(self, f, theta, h=2e-3):
        """All partial derivatives of f, which takes batches: central, fourth order, (..., dim)."""
        e = h * np.eye(self.dim)
        values = f(theta[..., None, None, :] + np.stack([e, -e, 2 * e, -2 * e]))
        ahead, behind, far_ahead, far_behind = np.moveaxis(values, theta.ndim - 1, 0)
        return (8 * (ahead - behind) - (far_ahead - far_behind)) / (12 * h)

    def jacobian(self, theta):
        """∂vec W/∂θ, (..., mn, dim)."""
        rows = self.difference(lambda q: self.chart(q).reshape(*q.shape[:-1], -1), theta)
        return rows.swapaxes(-2, -1)

    def operator(self, W):
        """The matrix of 𝒜_W, of each W of a batch (..., m, n)."""
        U, s, Vt = np.linalg.svd(W)

        def power(basis, p):
            if p == 0:
                return np.broadcast_to(np.eye(basis.shape[-1]), basis.shape)
            frame = basis[..., : self.r]
            return (frame * s[..., None, : self.r] ** (2 * p)) @ frame.swapaxes(-2, -1)

        N = self.N
        terms = [
            (power(U, (N - j) / N), power(Vt.swapaxes(-2, -1), (j - 1) / N))
            for j in range(1, N + 1)
        ]
        products = sum(np.einsum("...ij,...kl->...ikjl", *pair) for pair in terms)
        return products.reshape(*W.shape[:-2], self.mn, self.mn)

    def cometric(self, theta):
        pinv = np.linalg.pinv(self.jacobian(theta))
        return pinv @ self.operator(self.chart(theta)) @ pinv.swapaxes(-2, -1)

    def flow(self, theta, p):
        slope = self.difference(lambda q: 0.5 * (self.cometric(q) @ p) @ p, theta)
        return self.cometric(theta) @ p, -slope

    def __call__(self, xi: Tensor, t: float, steps: int) -> Tensor:
        theta = np.zeros(self.dim)
        J = self.jacobian(theta)
        velocity = np.linalg.lstsq(J, xi.numpy().ravel(), rcond=None)[0]
        p = np.linalg.solve(self.cometric(theta), velocity)
        h = t / steps
        for _ in range(steps):
            a = self.flow(theta, p)
            b = self.flow(theta + h / 2 * a[0], p + h / 2 * a[1])
            c = self.flow(theta + h / 2 * b[0], p + h / 2 * b[1])
            d = self.flow(theta + h * c[0], p + h * c[1])
            theta = theta + h / 6 * (a[0] + 2 * b[0] + 2 * c[0] + d[0])
            p = p + h / 6 * (a[1] + 2 * b[1] + 2 * c[1] + d[1])
        return torch.tensor(self.chart(theta))
