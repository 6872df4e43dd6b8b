"""Products of a Hessian along tangent vectors of rank-r matrices, in one pass or two."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from deeplin.linalg import numbers_alone, plus_tall_times
from deeplin.sampled import kernels
from deeplin.sampled.pattern import Pattern
from deeplin.sampled.places import Places

__all__ = ["TangentProducts"]


class TangentProducts:
    """(M, U_p, V_p) ↦ (HV, HᴴU, GV_p, GᴴU_p) along ξ = UMVᴴ + U_pVᴴ + UV_pᴴ.

    H has the samples of ξ, times `weights`, at the places of the pattern, G the numbers `entries`.
    Where a thread has a matrix to itself that is one pass. Else the samples are computed in each of
    the two orders, where keeping them in one and fetching them in the other would wait for the
    memory; to round-off the numbers are the same. What does not change from product to product is
    laid out once. No derivatives; where `fits` holds.

    Shapes: U (*batch, m, r), V (*batch, n, r), entries (*batch, p), weights (p,), in the order of
        the pattern.
    Cost: a pass of 6r numbers a place, or two of 4r.
    """

    def __init__(
        self,
        pattern: Pattern,
        U: Float[Tensor, "*batch m r"],
        V: Float[Tensor, "*batch n r"],
        entries: Float[Tensor, "*batch p"],
        weights: Float[Tensor, " p"] | None,
    ):
        e = entries.reshape(-1, entries.shape[-1]).contiguous()
        self._columns: _Side | None = None
        once = kernels.alone(len(e))
        self._rows = _Side(pattern.first, U, V, e, weights, both=once)
        if not once:
            order = pattern.second.place
            assert order is not None
            order = order.long()
            second = None if weights is None else weights[order]
            self._columns = _Side(pattern.second, V, U, e[:, order], second)

    @staticmethod
    def fits(pattern: Pattern, U: Tensor, V: Tensor, entries: Tensor) -> bool:
        """Whether compiled loops take these: as `one_pass`, batches too, and the rank in a half."""
        return (
            pattern.compiled
            and pattern.size > 0
            and numbers_alone(U, V, entries)
            and kernels.fits(U, V, entries)
            and U.shape[:-2] == V.shape[:-2] == entries.shape[:-1]
            and 2 * kernels.half_width(U.shape[-1], U) * U.element_size() <= 32 * kernels.WIDEST
        )

    def __call__(self, M: Tensor, Up: Tensor, Vp: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        HV, GVp, *others = self._rows(M, Up, Vp)
        HhU, GhUp = others if self._columns is None else self._columns(M.mT, Vp, Up)
        return HV, HhU, GVp, GhUp


class _Side:
    """(M, U_p, V_p) ↦ (HV, GV_p), from the places row by row; of Hᵀ and Gᵀ with U and V changed.

    With `both` (HV, GV_p, HᴴU, GᴴU_p).
    """

    def __init__(
        self,
        places: Places,
        U: Tensor,
        V: Tensor,
        entries: Float[Tensor, "batch p"],
        weights: Float[Tensor, " p"] | None,
        *,
        both: bool = False,
    ):
        self._U, r = U, U.shape[-1]
        half = kernels.half_width(r, U)
        own, other = slice(0, r), slice(half, half + r)
        # ξ_ij = ⟨A_i, B_j⟩ with A = [UM + U_p, U] and B = [V, V_p]; Q = [U, U_p].
        A, B, Q = (part.new_zeros((*part.shape[:-1], 2 * half)) for part in (U, V, U))
        A[..., other], B[..., own], Q[..., own] = U, V, U
        self._moving, self._perpendicular = A[..., own], B[..., other]
        self._beside = Q[..., other] if both else None
        self._halves, self._shapes = (own, other), (A.shape, B.shape)
        A, B, Q = (part.reshape(-1, *part.shape[-2:]) for part in (A, B, Q))  # views
        self._times = kernels.both_times(places, A, B, entries, weights, Q if both else None)

    def __call__(self, M: Tensor, Up: Tensor, Vp: Tensor) -> tuple[Tensor, ...]:
        self._moving.copy_(plus_tall_times(Up, self._U, M))
        self._perpendicular.copy_(Vp)
        if self._beside is not None:
            self._beside.copy_(Up)
        return tuple(
            found.view(shape)[..., half]
            for found, shape in zip(self._times(), self._shapes, strict=True)
            if found is not None
            for half in self._halves
        )
