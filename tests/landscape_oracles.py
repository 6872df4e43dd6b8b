"""Problems of every kind, and derivatives of their losses by autograd."""

import itertools

import scipy.linalg
import torch

import deeplin
from deeplin import LeastSquares
from deeplin.problems import MatrixApproximation

F64 = torch.float64
CASES = ["square", "wide", "q < r", "repeated", "autoencoder", "approximation"]


def square_root(C):
    """C^{1/2} of a positive definite C, by SciPy's Schur method."""
    return torch.as_tensor(scipy.linalg.sqrtm(C.numpy()))


def problem_of(name, randn):
    """Random and degenerate data, all with XXᵀ of full rank."""
    if name == "square":
        return LeastSquares(randn(4, 20), randn(4, 20))
    if name == "wide":  # d_y > d_x
        return LeastSquares(randn(3, 20), randn(5, 20))
    if name == "q < r":  # rank Q = 2
        X = randn(4, 20)
        return LeastSquares(X, randn(4, 2) @ randn(2, 4) @ X)
    if name == "repeated":
        U, V = (torch.linalg.qr(randn(4, 4)).Q for _ in range(2))
        C_root = torch.eye(4, dtype=F64) + 0.2 * randn(4, 4)
        s = torch.tensor([2.0, 1.0, 1.0, 0.5], dtype=F64)
        C = C_root @ C_root.mT
        root = square_root(C)
        return LeastSquares.from_moments(C, (U * s) @ V.mT @ root, s.square().sum() + 1)
    if name == "autoencoder":
        return deeplin.autoencoder(randn(4, 20))
    return MatrixApproximation(randn(4, 3))


def chart_hessian(problem, W):
    """Hess of L¹ at W in the chart (M, A, B) of M_k: (U + U_⊥A)(Σ + M)(V + V_⊥B)ᵀ, by autograd."""
    k = int(torch.linalg.matrix_rank(W, rtol=1e-9))
    U, s, Vh = torch.linalg.svd(W)
    U1, U2, V1, V2 = U[:, :k], U[:, k:], Vh[:k].mT, Vh[k:].mT
    shapes = [(k, k), (U2.shape[1], k), (V2.shape[1], k)]

    def loss(x):
        M, A, B = (
            p.view(shape)
            for p, shape in zip(x.split([a * b for a, b in shapes]), shapes, strict=True)
        )
        return problem.loss((U1 + U2 @ A) @ (torch.diag(s[:k]) + M) @ (V1 + V2 @ B).mT)

    zero = torch.zeros(sum(a * b for a, b in shapes), dtype=W.dtype)
    gradient = torch.func.grad(loss)(zero)
    return gradient, torch.autograd.functional.hessian(loss, zero)


def layers_gradient(problem, layers):
    """∇L^N at layers, by autograd."""
    leaves = [W.detach().clone().requires_grad_() for W in layers]
    W = leaves[0]
    for leaf in leaves[1:]:
        W = leaf @ W
    problem.loss(W).backward()
    return torch.cat([leaf.grad.flatten() for leaf in leaves])


def layers_hessian(problem, layers):
    """Hess L^N at layers, by autograd."""
    shapes = [tuple(W.shape) for W in layers]

    def loss(x):
        W = None
        for part, shape in zip(x.split([a * b for a, b in shapes]), shapes, strict=True):
            W = part.view(shape) if W is None else part.view(shape) @ W
        return problem.loss(W)

    x = torch.cat([W.flatten() for W in layers])
    return torch.autograd.functional.hessian(loss, x)


EIGENVALUES = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=F64)


def covariance(randn):
    """Eigenvectors and C, with the eigenvalues above."""
    E = torch.linalg.qr(randn(4, 4)).Q
    return E, (E * EIGENVALUES) @ E.mT


def random_layers(randn, widths, *batch):
    """Gaussian layers, first layer first."""
    return tuple(randn(*batch, b, a) for a, b in itertools.pairwise(widths))
