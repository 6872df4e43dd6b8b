"""Retractions onto rank-r matrices, in factored form: svd, orthographic, splitting, layers.

Each step function returns the new point and, per matrix of the batch, whether it is finite and has
rank r (and is positive definite on its range, at a Hermitian point). ``retract`` shortens the step
where not.

Order with respect to a metric: R(tξ) and the geodesic of that metric agree up to O(t^{order+1}).

==============  =============  ==========================================
retraction      depth          order
==============  =============  ==========================================
svd             1 / other      2 / 1
orthographic    1 / other      2 / 1
splitting       1 / other      2 / 1
layers          integer ≥ 2    2; Hermitian points at depth 2: exact (Exp)
==============  =============  ==========================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deeplin.geometry.coordinates import Point, Tangent, project_products
from deeplin.geometry.metric import DepthMetric, Metric
from deeplin.linalg import (
    adjoint_products,
    hermitian_part,
    orthonormal_factor,
    plus_tall_times,
    psd_tangent_step,
    sum_of_tall,
    sum_over,
    tall_qr,
    tangent_step,
    values_known,
)

__all__ = [
    "RETRACTIONS",
    "Landing",
    "inverse_orthographic",
    "layers_step",
    "orthographic_step",
    "retract",
    "splitting_step",
    "svd_step",
    "validate_retraction",
]

RETRACTIONS = ("svd", "orthographic", "splitting", "layers")
_HALVINGS = 4

Step = tuple[Point, Tensor]


def validate_retraction(retraction: str, metric: Metric) -> str:
    """The retraction's name as given, when it exists and is defined for the depth.

    Raises: ValueError otherwise.
    """
    if retraction not in RETRACTIONS:
        raise ValueError(
            f"retraction must be one of {', '.join(map(repr, RETRACTIONS))}; got {retraction!r}; "
            'write retraction="svd".'
        )
    depth = metric.depth if isinstance(metric, DepthMetric) else 0
    if retraction == "layers" and not (float(depth).is_integer() and depth >= 2):
        raise ValueError(
            "retraction='layers' is the product of depth layers and needs an integer depth >= 2 "
            f"(one layer alone does not keep the rank); got depth={depth or metric}; "
            "write retraction='svd'."
        )
    return retraction


def _keeps_rank(values: Tensor, point: Point, tangent: Tangent) -> Tensor:
    """Whether the least of the values is above the round-off of what they were computed from."""
    least, most = values.aminmax(dim=-1)
    scale = torch.maximum(
        most, torch.linalg.matrix_norm(point.S) + torch.linalg.matrix_norm(tangent.M)
    )
    # False, too, where a value is inf or nan: then the scale is inf, or the least is nan.
    return least > values.shape[-1] * torch.finfo(values.dtype).eps * scale


def svd_step(point: Point, tangent: Tangent) -> Step:
    """The nearest rank-r matrix to W + ξ; at a Hermitian point the nearest rank-r PSD matrix.

    By `truncation.tangent_step`, from products with r columns and r×r solves; QR of [U U_p] and an
    SVD of a 2r×2r core where that is not enough. At a Hermitian point the r largest *algebraic*
    eigenvalues are kept: truncation by absolute value leaves the cone. The new S is diagonal, in
    descending order. Order 2 for the embedded metric (depth 1), order 1 for the others.

    Source: HLZ Definition 2.3 (Hermitian: not the definition, which leaves the cone); order:
        [AM12].
    Cost: O((m + n) r² + r³).
    Accuracy: round-off relative to σ_1(W + ξ). Not differentiable: nothing is taped through an SVD.
    """
    with torch.no_grad():
        T = point.S + tangent.M
        batch = torch.broadcast_shapes(*(part.shape[:-2] for part in (T, point.U, tangent.Up)))
        T, U, V, Up, Vp = (
            part.expand(*batch, *part.shape[-2:])
            for part in (T, point.U, point.V, tangent.Up, tangent.Vp)
        )
        if point.hermitian:
            U, S = psd_tangent_step(U, hermitian_part(T), Up, diagonal=True)
            V = U
        else:
            U, S, V = tangent_step(U, T, V, Up, Vp, diagonal=True, group=point.group)
        values = S.diagonal(dim1=-2, dim2=-1).real
        return Point(U, S, V, group=point.group), _keeps_rank(values, point, tangent)


def _zero_unless_finite(core: Tensor) -> Tensor:
    """Zero in place of an overflow, which LAPACK would refuse: rank 0, and so a shorter step."""
    finite = torch.isfinite(core).all(-1).all(-1)[..., None, None]
    return torch.where(finite, core, torch.zeros_like(core))


def orthographic_step(point: Point, tangent: Tangent) -> Step:
    """The rank-r matrix whose difference to W + ξ is normal at W.

    With T = S + M: R(ξ) = (U + U_p T⁻¹) T (V + V_p T⁻ᴴ)ᴴ, that is W + ξ + U_p T⁻¹ V_pᴴ. No SVD and
    no eigendecomposition: one QR of T (a Cholesky factor at a Hermitian point) for T⁻¹, one thin QR
    of each side. Defined where T is invertible, at a Hermitian point positive definite. The new S
    is a full matrix. Order 2 for the embedded metric (depth 1), order 1 for the others.

    Source: [AM12], §4.
    Cost: O((m + n) r² + r³).
    Accuracy: round-off times the condition number of T on the sides.
    """
    T = point.S + tangent.M
    if point.hermitian:
        T = hermitian_part(T)
        L, info = torch.linalg.cholesky_ex(T)
        pivots = L.diagonal(dim1=-2, dim2=-1).real
        kept = (info == 0) & _keeps_rank(pivots**2, point, tangent)
        L = torch.where(kept[..., None, None], L, _identity_like(L))
        sides = point.U + torch.cholesky_solve(tangent.Up.mH, L).mH
        U, R = orthonormal_factor(sides)
        S = hermitian_part(R @ T @ R.mH)
        return Point(U, S, U), kept & torch.isfinite(S).all(-1).all(-1)
    Q, R = torch.linalg.qr(T)
    kept = _keeps_rank(R.diagonal(dim1=-2, dim2=-1).abs(), point, tangent)
    R_safe = torch.where(kept[..., None, None], R, _identity_like(R))
    # U_p T⁻¹ = (U_p R⁻¹) Qᴴ and V_p T⁻ᴴ = (R⁻¹ Qᴴ V_pᴴ)ᴴ
    left = torch.linalg.solve_triangular(R_safe, tangent.Up, upper=True, left=False) @ Q.mH
    right = torch.linalg.solve_triangular(R_safe, Q.mH @ tangent.Vp.mH, upper=True).mH
    U, R_left = orthonormal_factor(point.U + left, group=point.group)
    V, R_right = orthonormal_factor(point.V + right, group=point.group)
    S = R_left @ T @ R_right.mH
    return Point(U, S, V, group=point.group), kept & torch.isfinite(S).all(-1).all(-1)


def splitting_step(point: Point, tangent: Tangent) -> Step:
    """One step of subspace iteration from V: U'U'ᴴ(W + ξ), U' a basis of the range of (W + ξ)V.

    The projector-splitting retraction, by two thin QR and products: K = (W + ξ)V = U'R, then
    (W + ξ)ᴴU' = VRᴴ + V_p UᴴU' = V'S'ᴴ. Nothing is inverted, and no singular value is too small:
    R(ξ) is as far from W + ξ as ‖V_p‖ at most. At a Hermitian point U'(U'ᴴ(W + ξ)U')U'ᴴ, positive
    definite unless the step is long. The new S is triangular (Hermitian). Order 2 for the embedded
    metric (depth 1), order 1 for the others.

    Source: [AO15], the retraction of the splitting of [LO14].
    Cost: O((m + n) r²), the least of all.
    Accuracy: round-off relative to ‖W + ξ‖.
    """
    T = point.S + tangent.M
    if point.hermitian:
        T = hermitian_part(T)
    U, R = tall_qr(plus_tall_times(tangent.Up, point.U, T), point.group)
    (moved,) = adjoint_products((point.U, U), group=point.group)
    if point.hermitian:
        S = hermitian_part(R @ moved + moved.mH @ (tangent.Up.mH @ U))
        L, info = torch.linalg.cholesky_ex(S)
        pivots = L.diagonal(dim1=-2, dim2=-1).real
        return Point(U, S, U), (info == 0) & _keeps_rank(pivots**2, point, tangent)
    V, R = tall_qr(sum_of_tall((point.V, R.mH), (tangent.Vp, moved)), point.group)
    values = R.diagonal(dim1=-2, dim2=-1).abs()
    return Point(U, R.mH, V, group=point.group), _keeps_rank(values, point, tangent)


def _identity_like(A: Tensor) -> Tensor:
    return torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand_as(A)


def layers_step(point: Point, tangent: Tangent, depth: float) -> Step:
    """The product of the balanced layers after the gradient step that ξ stands for.

    R(ξ) = Π_j (W_j + η_j), η_j = W_{j+1}ᴴ···W_Nᴴ 𝒜̄_W⁻¹(ξ) W_1ᴴ···W_{j−1}ᴴ, the layers compressed
    to W_1 = Σ^{1/N}Vᴴ, W_j = Σ^{1/N}, W_N = UΣ^{1/N}: for ξ = −h 𝒜_W(∇f) one step of gradient
    descent with learning rate h on the layers. At a Hermitian point the product is Hermitian.
    Order 2 for g_W: the layers of a geodesic bend in directions that do not change the product.
    At a Hermitian point and depth 2 it is the exponential map of g_W itself (Bures-Wasserstein).

    Source: BRTW Lemma 2 with equal steps; the compression: proof of BRTW Prop. 12. The
        order is ours, measured.
    Cost: O((m + n) r² + N r³).
    Raises: ValueError unless the depth is an integer ≥ 2.
    """
    metric = DepthMetric(depth)
    validate_retraction("layers", metric)
    N = int(depth)
    P, sigma, Q = point.spectrum
    B = (P.mH @ tangent.M @ Q) / metric.core(sigma)
    root = sigma ** (1 / N)
    start = sigma ** (1 - 1 / N)
    side = start / metric.side(sigma)  # Σ^{−(2−2/N)} Σ^{1−1/N}

    def end(basis: Tensor, core: Tensor, perpendicular: Tensor) -> tuple[Tensor, Tensor]:
        layer = basis @ (torch.diag_embed(root).to(core.dtype) + core * start[..., None, :])
        factor = layer + perpendicular * side[..., None, :]
        return orthonormal_factor(factor, group=point.group)

    U, R_left = end(point.U @ P, B, tangent.Up @ Q)
    V, R_right = (U, R_left) if point.hermitian else end(point.V @ Q, B.mH, tangent.Vp @ P)
    S = R_left
    for j in range(N - 1, 1, -1):
        left, right = sigma ** ((N - j) / N), sigma ** ((j - 1) / N)
        eta = left[..., :, None] * B * right[..., None, :]
        S = S @ (torch.diag_embed(root).to(B.dtype) + eta)
    S = S @ R_right.mH
    S = hermitian_part(S) if point.hermitian else S
    core = _zero_unless_finite(S.detach())
    values = torch.linalg.eigvalsh(core) if point.hermitian else torch.linalg.svdvals(core)
    return Point(U, S, V, group=point.group), _keeps_rank(values, point, tangent)


def step_of(retraction: str, metric: Metric) -> Callable[[Point, Tangent], Step]:
    """The step function of a retraction that is valid for the metric."""
    if retraction == "layers" and isinstance(metric, DepthMetric):
        return partial(layers_step, depth=metric.depth)
    steps = {"svd": svd_step, "orthographic": orthographic_step, "splitting": splitting_step}
    return steps[retraction]


def _finite(point: Point, tangent: Tangent) -> Bool[Tensor, "*batch"] | None:
    """Per matrix of the batch, whether all coordinates are finite; None where all are known to."""
    parts = (tangent.M, tangent.Up, tangent.Vp)
    # One pass over each; a sum that overflows leads to the full check.
    if values_known():
        total = parts[0].sum() + parts[1].sum() + parts[2].sum()
        if bool(torch.isfinite(sum_over(point.group, total)[0])):
            return None
    checks = [torch.isfinite(part).all(-1).all(-1) for part in parts]
    finite = checks[0] & checks[1] & checks[2]
    # Where a process has a nan, all must take the same way.
    return finite if point.group is None else sum_over(point.group, (~finite).double())[0] == 0


def _where_finite(tangent: Tangent, finite: Bool[Tensor, "*batch"]) -> Tangent:
    """The tangent vector, and 0 for those matrices of the batch where it is not finite."""

    def masked(part: Tensor) -> Tensor:
        return torch.where(finite[..., None, None], part, torch.zeros_like(part))

    Up = masked(tangent.Up)
    return Tangent(masked(tangent.M), Up, Up if tangent.Vp is tangent.Up else masked(tangent.Vp))


def _safe_length(point: Point, tangent: Tangent, layers: float) -> Float[Tensor, "*batch"]:
    """A power of two t ≤ 1/(2Nμ), μ = ‖S⁻¹M‖ + ‖MS⁻¹‖, for which R(tξ) has σ_r ≥ σ_r(W)/2.

    S + tM = S(I + tS⁻¹M) has such a σ_r, and so has every matrix of which it is the part
    Uᴴ(W + tξ)V: that is svd, orthographic and splitting, N = 1. In the singular basis of S the
    layers are Σ^{1/N}(I + tE_j) with |E_j|_{ab} ≤ |M_ab|/min(σ_a, σ_b), hence ‖E_j‖ ≤ μ, and of
    their product (1 − 1/(2N))^N ≥ ½ is left. At a Hermitian point the same holds for the
    eigenvalues, but for those of splitting, which can ask for a shorter step still.
    """
    S, M = point.S.detach(), tangent.M.detach()
    left = torch.linalg.solve_ex(S, M).result
    right = torch.linalg.solve_ex(S.mH, M.mH).result
    mu = torch.linalg.matrix_norm(left) + torch.linalg.matrix_norm(right)
    return torch.exp2(torch.floor(-torch.log2(2 * layers * mu))).nan_to_num(nan=0.0)


class Landing(NamedTuple):
    """Where `retract` has come to and, per matrix of the batch, what it met; None is all True.

    Shapes: finite, kept (*batch).
    """

    point: Point
    finite: Bool[Tensor, "*batch"] | None
    kept: Bool[Tensor, "*batch"] | None


def retract(point: Point, tangent: Tangent, retraction: str, metric: Metric) -> Landing:
    """R_W(ξ/2^k) with the least k = 0, …, 4 for which that has rank r, or a larger one.

    A step that lands on a matrix of lower rank (numerically: σ_r below r·ε‖W‖), or at a Hermitian
    point outside the cone, is halved until it does not, for those matrices of the batch only. What
    four halvings do not help is shortened at once to a length for which R(tξ) has at least half of
    W's σ_r, whatever ξ is; what even that does not help, W being next to a lower rank, stays at W.
    An iteration whose limit has a lower rank therefore stalls near it, on the manifold.

    A pure function: it neither raises nor warns. A ξ with nan or inf entries moves nothing, and
    ``finite`` says where that was; ``kept`` is False, and the point NaN, where W itself has no
    rank r.

    Cost: that of one step, as a rule; where a step must be shortened, and always under torch.func
    and torch.compile, that of eight on a batch.
    """
    step = step_of(retraction, metric)
    if values_known():
        new, kept = step(point, tangent)
        if bool(kept.all()):  # so all was finite
            return Landing(new, None, None)
    finite = _finite(point, tangent)
    if finite is not None:
        tangent = _where_finite(tangent, finite)
        if values_known():
            new, kept = step(point, tangent)
            if bool(kept.all()):
                return Landing(new, finite, None)
    layers = metric.depth if retraction == "layers" and isinstance(metric, DepthMetric) else 1
    with torch.no_grad():
        safe = _safe_length(point, tangent, layers)
        halved = [torch.full_like(safe, 0.5**k) for k in range(_HALVINGS + 1)]
        safe = torch.minimum(safe, halved[-1] / 2)
        lengths = torch.stack([*halved, safe, torch.zeros_like(safe)])
        kept = step(point, tangent.scaled(lengths[..., None, None]))[1]
        length = torch.where(kept, lengths, 0.0).amax(0)
    new, kept = step(point, tangent.scaled(length[..., None, None]))
    S = torch.where(kept[..., None, None], new.S, math.nan)
    return Landing(Point(new.U, S, new.V, group=point.group), finite, kept)


def inverse_orthographic(start: Point, end: Point) -> Tangent:
    """The tangent vector that the orthographic retraction at ``start`` takes to ``end``.

    ξ = P_W(Y − W), defined for every Y of rank r whose UᴴYV is invertible.

    Source: [AM12], §4.
    Cost: O((m + n) r²).
    """
    right, left = adjoint_products((end.V, start.V), (end.U, start.U), group=start.group)
    YV = end.U @ (end.S @ right)
    if start.hermitian:
        moved = project_products(start, YV, YV)
    else:
        moved = project_products(start, YV, end.V @ (end.S.mH @ left))
    return Tangent(moved.M - start.S, moved.Up, moved.Vp)
