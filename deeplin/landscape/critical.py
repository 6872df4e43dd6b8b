"""The critical points of L¹ on the matrices of rank k, and of L^N: enumeration and lifts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.landscape.closed_form import closed_form
from deeplin.network import check_widths
from deeplin.problems import Problem, Spectrum

__all__ = [
    "CriticalPoint",
    "critical_points",
    "lift",
    "point_kind",
    "saddle_curve",
]

GLOBAL, MINIMUM, STRICT, NON_STRICT, NOT_CRITICAL, LOCAL, DEGENERATE = KINDS = (
    "global minimum",
    "minimum on M_k",
    "strict saddle",
    "non-strict saddle",
    "not critical",
    "local minimum",
    "degenerate",
)


@dataclass(frozen=True)
class CriticalPoint:
    """A critical point W_J = Σ_{j∈J} σ_j u_j v_jᴴ C^{-1/2} of L¹ on M_k, k = |J|.

    - `J`: indices from 1; `loss`: ½(‖Y‖² − Σ_J σ_j²);
    - `index`: the number of negative directions of the Hessian, #{(i, j): i ∈ J, j ∉ J, σ_j > σ_i};
    - `nullity`: the number of null directions, #{(i, j): i ∈ J, j ∉ J, σ_j = σ_i}. They are tangent
      to a continuum of critical points of that dimension, of which W is a representative: where
      σ_j are repeated, the u_j, v_j of BRTW Prop. 32 may be those of any SVD of Q;
    - `kind`: "global minimum" (over all ranks), "minimum on M_k" or "strict saddle".

    For complex problems index and nullity count real dimensions, two for each pair (i, j).
    Source: BRTW Prop. 32, 33; the Hessian is 1 ± σ_j/σ_i on (u_jv_iᵀ ∓ u_iv_jᵀ)C^{-1/2} in the
    metric ⟨·C, ·⟩, and the index does not depend on the metric.
    """

    W: Inexact[Tensor, "d_y d_x"]
    J: tuple[int, ...]
    loss: Float[Tensor, ""]
    index: int
    kind: str
    nullity: int = 0
    _optimum: Spectrum | None = field(default=None, repr=False, compare=False)

    @property
    def is_isolated(self) -> bool:
        """Whether W is no member of a continuum of critical points."""
        return self.nullity == 0

    def null_directions(self) -> Inexact[Tensor, "nullity d_y d_x"]:
        """A basis of the kernel of the Hessian: the tangent space of the continuum of W.

        (u_jv_iᵀ + u_iv_jᵀ)C^{-1/2}; for complex problems i(u_jv_iᴴ − u_iv_jᴴ)C^{-1/2} as well.
        """
        return self._directions(lambda outside, inside: outside == inside)

    def negative_directions(self) -> Inexact[Tensor, "index d_y d_x"]:
        """As many independent directions as `index` in which L¹ falls to second order.

        σ_i(u_jv_iᵀ + u_iv_jᵀ)C^{-1/2}: the tangent at 0 of the curve in the proof of BRTW Prop. 33,
        along which the second derivative of L¹ is 2σ_i(σ_i − σ_j).
        """
        return self._directions(lambda outside, inside: outside < inside)

    def _directions(self, wanted: Callable[[int, int], bool]) -> Tensor:
        """Those of pairs i ∈ J, j ∉ J whose groups of equal σ (j's, i's) are wanted."""
        optimum = self._optimum
        assert optimum is not None
        group = {j + 1: n for n, members in enumerate(optimum.groups) for j in members}
        pairs = [
            (i - 1, j - 1)
            for i in self.J
            for j in range(1, optimum.rank + 1)
            if j not in self.J and wanted(group[j], group[i])
        ]
        out = []
        for i, j in pairs:
            forward = torch.outer(optimum.U[:, j], optimum.V[:, i].conj())
            backward = torch.outer(optimum.U[:, i], optimum.V[:, j].conj())
            out.append(optimum.over_root(optimum.s[i] * (forward + backward)))
            if self.W.is_complex():
                out.append(optimum.over_root(1j * optimum.s[i] * (forward - backward)))
        return torch.stack(out) if out else self.W.new_zeros((0, *self.W.shape))


def critical_points(problem: Problem, k: int) -> Iterator[CriticalPoint]:
    """All critical points of L¹ on M_k, the minimizer first, lazily: there are binom(q, k).

    W_J = Σ_{j∈J} σ_j u_j v_jᵀ C^{-1/2} for J ⊆ {1..q}, |J| = k; none if k > q. Of sets J that
    differ by equal σ_j (to √eps·σ_1) only the first is returned: it represents the continuum on
    which the others lie, and its `nullity` is the dimension of that continuum.

    Source: BRTW Prop. 32, 33. Its "precisely" needs distinct σ_j, or "for some SVD".
    Cost: O(d_x³) once, O(d_y d_x (k + d_x)) for each point; Hessians are not formed.
    Raises: ValueError unless 0 <= k <= min(d_y, d_x); TypeError without a closed form.

    >>> from deeplin import autoencoder
    >>> problem = autoencoder(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    >>> [(p.J, float(p.loss), p.index, p.kind) for p in critical_points(problem, 1)]
    ... # doctest: +NORMALIZE_WHITESPACE
    [((1,), 2.5, 0, 'minimum on M_k'), ((2,), 5.0, 1, 'strict saddle'),
     ((3,), 6.5, 2, 'strict saddle')]
    """
    optimum = closed_form(problem, "critical_points")
    return (_point(optimum, J, W) for J, W in optimum.critical_points(k))


def _point(optimum: Spectrum, J: tuple[int, ...], W: Tensor) -> CriticalPoint:
    chosen = {j - 1 for j in J}
    real_dim = 2 if W.is_complex() else 1
    index = nullity = larger = 0  # larger: how many j ∉ J have a larger σ_j than the group
    for g in optimum.groups:
        inside = sum(j in chosen for j in g)
        index += inside * larger
        nullity += inside * (len(g) - inside)
        larger += len(g) - inside
    outside = [j for j in range(optimum.rank) if j not in chosen]
    loss = optimum.residual + 0.5 * optimum.s[outside].square().sum()
    kind = point_kind(len(J), optimum.rank, optimal=index == 0)
    return CriticalPoint(W, J, loss, real_dim * index, kind, real_dim * nullity, optimum)


def point_kind(k: int, highest: int, *, optimal: bool) -> str:
    """What W_J is on M_k: `highest` is the largest rank that a critical point can have."""
    if not optimal:
        return STRICT
    return GLOBAL if k == highest else MINIMUM


def saddle_curve(
    problem: Problem, J: Sequence[int], j0: int, j1: int
) -> Callable[[float | Tensor], Tensor]:
    """The curve γ of BRTW Prop. 33 through W_J in M_k, along which L¹ falls if σ_{j1} > σ_{j0}.

    γ(t) = (σ_{j0} u(t)v(t)ᵀ + Σ_{J∖j0} σ_j u_j v_jᵀ) C^{-1/2}, u(t) = t u_{j1} + √(1−t²) u_{j0},
    v(t) likewise; d²/dt² L¹(γ(t)) = 2σ_{j0}(σ_{j0} − σ_{j1}) at t = 0.

    Source: the proof of BRTW Prop. 33.
    Shapes: indices from 1; returns a function of t with |t| < 1, a float or a 0-dim tensor.
    Raises: ValueError unless j0 ∈ J and j1 ∉ J are indices of singular values; TypeError without a
    closed form.
    """
    optimum = closed_form(problem, "saddle_curve")
    U, V, s = optimum.U, optimum.V, optimum.s
    valid = range(1, optimum.rank + 1)
    if j0 not in J or j1 in J or j1 not in valid or any(j not in valid for j in J):
        raise ValueError(
            f"saddle_curve needs j0 in J and j1 outside, all in 1..{optimum.rank}; "
            f"got J={tuple(J)}, j0={j0}, j1={j1}."
        )
    rest = [j - 1 for j in J if j != j0]
    fixed = (U[:, rest] * s[rest]) @ V[:, rest].mH

    def gamma(t: float | Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=s.dtype)
        u, v = (t * A[:, j1 - 1] + (1 - t**2).sqrt() * A[:, j0 - 1] for A in (U, V))
        return optimum.over_root(s[j0 - 1] * torch.outer(u, v.conj()) + fixed)

    return gamma


def lift(
    problem: Problem,
    W: Inexact[Tensor, "d_y d_x"],
    widths: Sequence[int],
    *,
    balanced: bool = False,
    tol: float = 1e-6,
) -> list[Tensor]:
    """Layers of the given widths whose product is the critical point W, critical for L^N.

    With WC^{1/2} = Σ_{i≤k} σ_i u_i v_iᵀ: W_1 = Σ_i e_i v_iᵀ C^{-1/2}, W_l = Σ_i e_i e_iᵀ,
    W_N = Σ_i σ_i u_i e_iᵀ, filled with zeros. `balanced` takes instead W_1 = Σ^{1/N}Vᵀ,
    W_l = Σ^{1/N}, W_N = UΣ^{1/N} with the SVD of W itself, critical as well.

    Source: BRTW Prop. 34(b).
    Shapes: W (d_y, d_x); widths (d_0, …, d_N) with d_0 = d_x, d_N = d_y.
    Cost: one SVD.
    Raises: ValueError if W is farther than tol·σ_1 from every critical point, if its rank exceeds
    a width, or for widths that do not fit; TypeError without a closed form.
    """
    widths, optimum = check_widths(widths), closed_form(problem, "lift")
    d_y, d_x = problem.shape
    if (widths[-1], widths[0]) != (d_y, d_x) or W.shape != (d_y, d_x):
        raise ValueError(
            f"lift needs widths from d_x = {d_x} to d_y = {d_y} and W of shape "
            f"(d_y, d_x); got widths {list(widths)} and W {tuple(W.shape)}."
        )
    near = optimum.nearest(W)
    if float(near.distance) > tol * optimum.scale:
        raise ValueError(
            "lift needs a critical point W, such as one of critical_points(problem, k); this one "
            f"is {float(near.distance) / optimum.scale:.2g}·σ_1 away from the nearest: "
            "BRTW Prop. 34 has no lift of others."
        )
    k, depth = int(near.rank), len(widths) - 1
    if k > min(widths):
        raise ValueError(
            f"widths must all be >= rank W = {k}; got {list(widths)}: widen the layers."
        )
    if depth == 1:
        return [W.clone()]
    U, s, V = near.U[:, near.modes], optimum.s[near.modes], near.V[:, near.modes]
    last, first = U * s, optimum.over_root(V.mH)
    middle = torch.eye(k, dtype=U.dtype, device=U.device)
    if balanced and k:
        U, s, Vh = torch.linalg.svd(last @ first, full_matrices=False)
        root = s[:k] ** (1 / depth)
        last, first = U[:, :k] * root, root[:, None] * Vh[:k]
        middle = torch.diag(root).to(U.dtype)
    layers = [first, *[middle] * (depth - 2), last]
    shapes = zip(widths[1:], widths[:-1], strict=True)
    return [
        torch.nn.functional.pad(A, (0, cols - A.shape[1], 0, rows - A.shape[0]))
        for A, (rows, cols) in zip(layers, shapes, strict=True)
    ]
