"""Oracles for every metric that is entrywise in the singular basis: dense 𝒜_W, geodesics."""

from __future__ import annotations

import math

import numpy as np
import torch
from manifold_oracles import Geodesic
from torch import Tensor


def depth_kernel(N):
    """(c, d) of depth N as quotients of powers; only for singular values that are apart."""
    if math.isinf(N):

        def mean(a, b):
            gap = np.where(a == b, 1.0, np.log(a**2) - np.log(b**2))
            return np.where(a == b, a**2, (a**2 - b**2) / gap)

        return mean, np.zeros_like

    def c(a, b):
        gap = np.where(a == b, 1.0, a ** (2 / N) - b ** (2 / N))
        return np.where(a == b, N * a ** (2 - 2 / N), (a**2 - b**2) / gap)

    return c, lambda a: a ** (2 - 2 / N)


def dense_operator(W: Tensor, kernel, rank: int) -> Tensor:
    """The mn×mn matrix of 𝒜_W, rows first, from a full SVD of W and c(a, b), d(a) on numpy."""
    U, s, Vh = np.linalg.svd(W.numpy())
    s, (c, d) = s[:rank], kernel
    factors = np.zeros(W.shape)
    factors[:rank, :rank] = c(s[:, None], s[None, :])
    factors[rank:, :rank] = d(s)
    factors[:rank, rank:] = d(s)[:, None]
    basis = np.kron(U, Vh.T)
    return torch.from_numpy((basis * factors.ravel()) @ basis.conj().T)


def depth_operator(N, rank):
    """W ↦ the matrix of 𝒜_W for depth N."""
    return lambda W: dense_operator(W, depth_kernel(N), rank)


def scaled_operator(rank: int):
    """W ↦ the matrix of G ↦ G VVᴴ + UUᴴ G (Tong, Ma, Chi 2021)."""

    def matrix(W):
        U, _, Vh = torch.linalg.svd(W)
        left, right = U[:, :rank] @ U[:, :rank].mH, Vh[:rank].mH @ Vh[:rank]
        rows, columns = (torch.eye(size, dtype=W.dtype) for size in W.shape)
        return torch.kron(rows, right.mT.contiguous()) + torch.kron(left, columns)

    return matrix


def shifted_operator(N: int, u: float):
    """W ↦ the matrix of Σ_j (uI + WWᵀ)^{(N−j)/N} Z (uI + WᵀW)^{(j−1)/N}, the 𝒜_{W,u} of BRTW."""

    def power(A, p):
        values, vectors = torch.linalg.eigh(A + u * torch.eye(len(A), dtype=A.dtype))
        return (vectors * values**p) @ vectors.mT

    def matrix(W):
        terms = [
            torch.kron(power(W @ W.mT, (N - j) / N), power(W.mT @ W, (j - 1) / N))
            for j in range(1, N + 1)
        ]
        return torch.stack(terms).sum(0)

    return matrix


class MetricGeodesic(Geodesic):
    """Geodesics of ⟨𝒜_W⁻¹·, ·⟩ given as W ↦ the matrix of 𝒜_W; chart and integration: Geodesic."""

    def __init__(self, case, operator, symmetric=False):
        super().__init__(case, 0, symmetric)
        self.matrix = operator
        self.last = (torch.zeros(0), None)

    def operator(self, W):
        of_each = [self.matrix(A).numpy() for A in torch.from_numpy(W).reshape(-1, *W.shape[-2:])]
        return np.stack(of_each).reshape(*W.shape[:-2], self.mn, self.mn)

    def parabola(self, xi: Tensor):
        """t ↦ the point at θ'(0)t + ½θ''(0)t² in the chart: the geodesic along ξ to order 2."""
        start = np.zeros(self.dim)
        J = self.jacobian(start)
        velocity = np.linalg.lstsq(J, xi.numpy().ravel(), rcond=None)[0]
        p = np.linalg.solve(self.cometric(start), velocity)
        rate, h = self.flow(start, p)[1], 2e-3
        near, far = (
            (self.cometric(s * velocity) - self.cometric(-s * velocity)) @ p for s in (h, 2 * h)
        )
        second = (8 * near - far) / (12 * h) + self.cometric(start) @ rate
        return lambda t: torch.tensor(self.chart(t * velocity + 0.5 * t * t * second))

    def to_order_2(self, xi: Tensor, t: float) -> Tensor:
        """The point at t on the `parabola` along ξ, which is built once per ξ."""
        if not torch.equal(self.last[0], xi):
            self.last = (xi, self.parabola(xi))
        return self.last[1](t)


def second_derivative(f, h: float) -> float:
    """f''(0) by the central difference of order 4."""
    near, far = f(h) + f(-h), f(2 * h) + f(-2 * h)
    return (16 * near - far - 30 * f(0.0)) / (12 * h * h)
