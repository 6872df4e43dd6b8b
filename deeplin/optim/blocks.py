"""A preconditioner of matrices of rank r from the diagonal blocks of the Hessian, row by row."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.geometry.coordinates import Point, Tangent
from deeplin.linalg import adjoint_products
from deeplin.optim.objectives import ProblemObjective
from deeplin.optim.space import Vector

__all__ = ["BlockPreconditioner"]

# Of the mean eigenvalue of the blocks: less gains nothing, and rows with few entries need it.
_LEAST = 1e-2
# The blocks are computed anew where less than this share of their damping is due.
_FALLEN = 0.25

Inverses = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


class BlockPreconditioner:
    """P(ξ) = 𝐺(ξV)Vᴴ + U𝐻(ξᴴU)ᴴ at W = USVᴴ, with the inverses 𝐺 and 𝐻 of all diagonal blocks.

    Along AVᴴ + UBᴴ the Hessian of a loss such as completion's has the blocks G_i for the rows of
    A, H_j for those of B (`Problem.inverse_blocks`), and what couples the two. Where each row has d
    known entries at random, coupling alone keeps PHess's eigenvalues from being 1 or 2: they lie
    within 1 ± 2√(r/d), while those of Hess spread like those of the blocks, the more the more rows
    there are. P is symmetric positive definite in the embedded metric.

    Blocks are kept for as long as the spaces of U and V turn, together, by less than θ with
    sin²θ = δ, the damping; what they act on is turned back to the bases that they belong to. δ is
    the relative residual √(f(W)/f(0)), at least 0.01: before W fits nothing is to be divided by
    small eigenvalues of the blocks, which are wrong.

    Source: ours; the blocks are those of alternating least squares, the damping is Levenberg's and
        Marquardt's, [NW06], §10.3.
    Cost: `Problem.inverse_blocks`, as a rule two to four times, more often for spectra that come
        out one by one; then O((m + n)r²).
    """

    def __init__(self) -> None:
        self._inverses: Inverses | None = None

    def forget(self) -> None:
        """The blocks are made again from what was kept, of which they are a function."""
        self._inverses = None

    def at(
        self,
        objective: ProblemObjective,
        x: Vector,
        loss: Float[Tensor, "*batch"],
        kept: MutableMapping[str, Tensor],
    ) -> Callable[[Vector], list[Tensor]] | None:
        """ξ ↦ P(ξ) at x, of this loss; None where the problem has no blocks.

        Where the blocks belong to, and what they are damped by, is kept in `kept`.
        """
        manifold = objective.manifold
        point = manifold.point(x[0])
        if "blocks_at" not in kept:
            nothing = point.U[..., :1] * 0, point.V[..., :1] * 0
            kept["loss_at_zero"] = objective.problem.pair_loss(*nothing).expand_as(loss).clone()
            kept["blocks_at"] = x[0].clone()
            kept["blocks_damping"] = torch.full_like(loss, torch.inf)
        residual = (loss / kept["loss_at_zero"]).clamp(min=0).sqrt()
        damping = residual.nan_to_num(nan=1.0).clamp(_LEAST, 1.0)
        UU, VV = _turns(point, manifold.point(kept["blocks_at"]))
        turned = 2 * UU.shape[-1] - _square(UU) - _square(VV)
        due = (turned > damping) | (damping < _FALLEN * kept["blocks_damping"])
        if bool(due.any()):
            wide = due[..., None, None]
            kept["blocks_at"] = torch.where(wide, x[0], kept["blocks_at"])
            kept["blocks_damping"] = torch.where(due, damping, kept["blocks_damping"])
            self._inverses = None
            UU, VV = _turns(point, manifold.point(kept["blocks_at"]))
        if self._inverses is None:
            then = manifold.point(kept["blocks_at"])
            self._inverses = objective.problem.inverse_blocks(
                then.U, then.S, then.V, kept["blocks_damping"]
            )
        if self._inverses is None:
            return None
        rows, columns = self._inverses

        def product(u: Vector) -> list[Tensor]:
            xi = manifold.tangent(u[0])
            A = rows((xi.Up + point.U @ xi.M) @ VV) @ VV.mH
            B = columns((xi.Vp + point.V @ xi.M.mH) @ UU) @ UU.mH
            UA, VB = adjoint_products((point.U, A), (point.V, B), group=point.group)
            return [manifold.stored(Tangent(UA + VB.mH, A - point.U @ UA, B - point.V @ VB))]

        return product


def _turns(point: Point, then: Point) -> tuple[Tensor, ...]:
    """(UᴴU', VᴴV') with the bases U' and V' of another point."""
    return adjoint_products((point.U, then.U), (point.V, then.V), group=point.group)


def _square(A: Tensor) -> Float[Tensor, "*batch"]:
    return A.abs().square().sum((-2, -1))
