"""Directions that lead from a saddle to lower loss, for a matrix W and for layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deeplin.landscape.classification import classify
from deeplin.landscape.closed_form import closed_form
from deeplin.landscape.critical import GLOBAL, NON_STRICT, NOT_CRITICAL
from deeplin.landscape.criticality import layers_of
from deeplin.landscape.curvature import LayerHessian
from deeplin.landscape.tightened import snapped
from deeplin.network import DeepLinear, end_to_end
from deeplin.problems import LeastSquares, Problem, Spectrum
from deeplin.problems.spectrum import Nearest

__all__ = ["escape_direction"]


def escape_direction(
    problem: Problem, point: Tensor | DeepLinear | Sequence[Tensor], tol: float = 1e-6
) -> Tensor | tuple[Tensor, ...] | None:
    """A direction V, of norm 1, in which the loss falls; None at a global minimum.

    L(point + tV) < L(point) for small t > 0; for a W that is no minimum on M_k, V is tangent to
    M_k and the loss falls along curves in M_k, such as the nearest matrices of rank k to W + tV.
    With u, w = u_j, C^{-1/2}v_j for a j ∉ J and i ∈ J, σ_j > σ_i:

    - W, J not optimal: V ~ (u_jv_iᴴ + u_iv_jᴴ)C^{-1/2} (BRTW Prop. 33); for an autoencoder the
      symmetric u_ju_iᴴ + u_iu_jᴴ (BRTW Theorem 25 for W = VVᵀ, and BRTW Theorem 49);
    - W a minimum on M_k, k < q: V ~ uwᴴ, which leaves M_k (BRTW Theorem 49);
    - layers, J not optimal: V_1 ~ W_1C^{1/2}v_iv_jᴴC^{-1/2}, V_N ~ u_ju_iᴴW_N (BRTW Prop. 35);
    - layers, N = 2, k < min(r, q): V_1 ~ κ^{-1}vwᴴ, V_2 ~ κuvᴴ, v ∈ ker W_1ᴴ or ker W_2
      (BRTW Prop. 38);
    - layers, another strict saddle: the lowest eigenvector of Hess L^N;
    - layers, a non-strict saddle: V_1 ~ a_1wᴴ, V_l ~ a_la_{l−1}ᴴ, V_N ~ ua_{N−1}ᴴ, a_l ∈ ker W_lᴴ ∩
      ker W_{l+1}, along which the product is W + t^N uwᴴ (BRTW Prop. 36 for 0). Where there are no
      such a_l, a direction found by descent on a sphere of a tenth of the layers' size: the loss is
      lower there, though not necessarily at all smaller t.

    Source: BRTW Prop. 33, BRTW Prop. 35, BRTW Prop. 36, BRTW Prop. 38, BRTW Theorem 25,
        BRTW Theorem 49.
    Shapes: unbatched; V as the point: (d_y, d_x), or a tuple of (d_j, d_{j−1}).
    Cost: an SVD of each layer; eigenvectors of Hess L^N only for N ≥ 3.
    Raises: ValueError for a point that is not critical to `tol`, and for a batch;
    TypeError where the critical points are not known in closed form.

    >>> from deeplin import autoencoder
    >>> problem = autoencoder(torch.diag(torch.tensor([2.0, 1.0])))
    >>> escape_direction(problem, torch.zeros(2, 2))
    tensor([[1., 0.],
            [0., 0.]])
    """
    optimum, layers = closed_form(problem, "escape_direction"), layers_of(point)
    if any(A.ndim != 2 for A in (layers or [point])):  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError("escape_direction takes one point, not a batch: loop over the batch.")
    kind = classify(problem, point, tol)
    if kind == NOT_CRITICAL:
        raise ValueError(
            f"escape_direction needs a critical point to tol={tol:g}; this one is not critical: "
            "follow the negative gradient, or take a larger tol."
        )
    if kind == GLOBAL:
        return None
    near = optimum.nearest(end_to_end(layers) if layers else point)  # pyright: ignore
    inside, outside = near.modes.nonzero().ravel(), (~near.modes).nonzero().ravel()
    j = int(outside[0])
    u, v = near.U[:, j], near.V[:, j]
    w = optimum.over_root(v.conj()[None])[0].conj()  # C^{-1/2}v
    if not bool(near.optimal):
        i = int(inside[-1])
        if not layers and isinstance(problem, LeastSquares) and problem.is_autoencoder:
            u_i = near.U[:, i]
            directions = [torch.outer(u, u_i.conj()) + torch.outer(u_i, u.conj())]
        else:
            directions = _to_other_mode(optimum, near, layers, i, j)
    elif not layers:
        directions = [torch.outer(u, w.conj())]
    else:
        exact = snapped(optimum, layers, near)
        if kind == NON_STRICT:
            directions = _through_null_spaces(exact, u, w)
            directions = directions or _by_descent(problem, exact)
        elif len(layers) == 2:
            directions = _through_one_null_space(optimum, exact, u, w, float(optimum.s[j]))
        else:
            directions = _along_lowest_eigenvector(problem, exact)
    directions = _normalised(directions)
    return directions if layers else directions[0]


def _along_lowest_eigenvector(problem: Problem, layers: list[Tensor]) -> list[Tensor]:
    """Of the two signs of an eigenvector, the one along which the loss is lower at order 3."""
    H = LayerHessian(problem, layers)
    V = H.directions(H.extreme().vectors[0])
    t = 0.1 * max(float(torch.linalg.matrix_norm(W_l)) for W_l in layers) + 1e-3
    ahead, behind = (
        float(problem.loss(end_to_end([W_l + h * V_l for W_l, V_l in zip(layers, V, strict=True)])))
        for h in (t, -t)
    )
    return [V_l if ahead <= behind else -V_l for V_l in V]


def _normalised(directions: Sequence[Tensor]) -> tuple[Tensor, ...]:
    norm = math.sqrt(sum(float(torch.linalg.vector_norm(V) ** 2) for V in directions))
    return tuple(V / norm for V in directions)


def _to_other_mode(
    optimum: Spectrum, near: Nearest, layers: list[Tensor], i: int, j: int
) -> list[Tensor]:
    """From mode i towards mode j: BRTW Prop. 33, and BRTW (34) for layers."""
    u_i, u_j, v_i, v_j = near.U[:, i], near.U[:, j], near.V[:, i], near.V[:, j]
    row_i, row_j = optimum.over_root(torch.stack([v_i, v_j]).conj())  # v_iᴴC^{-1/2}, …
    if len(layers) < 2:
        return [torch.outer(u_j, row_i) + torch.outer(u_i, row_j)]
    through = optimum.times_root(v_i.conj()[None])[0].conj()  # C^{1/2}v_i
    first = torch.outer(layers[0] @ through, row_j)
    last = torch.outer(u_j, u_i.conj() @ layers[-1])
    return [first, *[torch.zeros_like(W_l) for W_l in layers[1:-1]], last]


def _through_one_null_space(
    optimum: Spectrum, layers: list[Tensor], u: Tensor, w: Tensor, sigma: float
) -> list[Tensor]:
    """BRTW Prop. 38, with κ such that the second derivative is at most −σ_j."""
    W_1, W_2 = layers
    left, right = _null_space(W_1.mH), _null_space(W_2)
    if left.shape[1]:  # W_1ᴴv = 0: the second derivative is κ^{-2}‖W_2v‖² − 2σ
        v = left[:, 0]
        kappa = max(1.0, float(torch.linalg.vector_norm(W_2 @ v)) ** 2 / sigma) ** 0.5
    else:  # W_2v = 0: it is κ²‖vᴴW_1C^{1/2}‖² − 2σ
        v = right[:, 0]
        row = optimum.times_root((v.conj() @ W_1)[None])
        kappa = max(1.0, float(torch.linalg.vector_norm(row)) ** 2 / sigma) ** -0.5
    return [torch.outer(v, w.conj()) / kappa, kappa * torch.outer(u, v.conj())]


def _through_null_spaces(layers: list[Tensor], u: Tensor, w: Tensor) -> list[Tensor] | None:
    """Rank-one directions that multiply to uwᴴ and to 0 with all layers, if there are such."""
    vectors = [w]
    for before, after in itertools.pairwise(layers):
        null = _null_space(torch.cat([before.mH, after]))
        if null.shape[1] == 0:
            return None
        vectors.append(null[:, 0])
    vectors.append(u)
    return [torch.outer(b, a.conj()) for a, b in itertools.pairwise(vectors)]


def _null_space(A: Tensor) -> Tensor:
    """An orthonormal basis of the kernel of A, in columns."""
    _, s, Vh = torch.linalg.svd(A, full_matrices=True)
    rank = int((s > 1e3 * max(A.shape) * torch.finfo(s.dtype).eps * s.clamp(min=1e-300)[0]).sum())
    return Vh[rank:].mH


def _by_descent(problem: Problem, layers: list[Tensor]) -> list[Tensor]:
    """A direction to lower loss at a tenth of the layers' size, by descent on that sphere."""
    start = float(problem.loss(end_to_end(layers)))
    radius = 0.1 * max(float(torch.linalg.vector_norm(W_l)) for W_l in layers)
    generator = torch.Generator().manual_seed(0)
    best = [torch.zeros_like(W_l) for W_l in layers]
    lowest = math.inf
    for _ in range(8):
        V = [torch.randn(W_l.shape, dtype=W_l.dtype, generator=generator) for W_l in layers]
        V = [V_l.to(W_l.device).requires_grad_() for V_l, W_l in zip(V, layers, strict=True)]
        optimizer = torch.optim.LBFGS(V, max_iter=200, line_search_fn="strong_wolfe")

        def loss(V=V) -> Tensor:
            norm = sum(torch.linalg.vector_norm(V_l) ** 2 for V_l in V) ** 0.5
            moved = [W_l + radius / norm * V_l for W_l, V_l in zip(layers, V, strict=True)]
            return problem.loss(end_to_end(moved))

        def closure(V=V, loss=loss, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
        value = float(loss().detach())
        if value < lowest:
            lowest, best = value, [V_l.detach() for V_l in V]
        if lowest < start:
            break
    return best
