"""A preconditioner of matrices of rank r from the diagonal blocks of the Hessian, row by row."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import torch
from jaxtyping import Float
from torch import Tensor

from deeplin.geometry.coordinates import Point, Tangent
from deeplin.linalg import adjoint_products, plus_tall_times
from deeplin.optim.objectives import ProblemObjective
from deeplin.optim.space import Vector
from deeplin.problems.blocks import RowTimes

__all__ = ["BlockPreconditioner"]

# Of the mean eigenvalue of the blocks: less gains nothing, and rows with few entries need it.
_LEAST = 1e-2
# More damping leaves nothing of the blocks that would be worth their time.
_MOST = 0.3
# The blocks are computed anew where less than this share of their damping is due.
_FALLEN = 0.25


class BlockPreconditioner:
    """P(ξ) = 𝐺(ξV)Vᴴ + U𝐻(ξᴴU)ᴴ at W = USVᴴ, with the inverses 𝐺 and 𝐻 of all diagonal blocks.

    Along AVᴴ + UBᴴ the Hessian of a loss such as completion's has the blocks G_i for the rows of
    A, H_j for those of B (`Problem.inverse_blocks`), and what couples the two. Where each row has d
    known entries at random, coupling alone keeps PHess's eigenvalues from being 1 or 2: they lie
    within about 1 ± 2√(r/d), while those of Hess spread like those of the blocks, the more the more
    rows there are. P is symmetric positive definite in the embedded metric.

    Blocks are kept for as long as neither the space of U nor that of V has turned by more than θ,
    sin²θ = δ, the damping; what they act on is turned back to the bases that they belong to. δ is
    the relative residual √(f(W)/f(0)), at least 0.01: before W fits nothing is to be divided by
    small eigenvalues of the blocks, which are wrong. Above δ = 0.3 P is the identity.

    Source: ours; the blocks are those of alternating least squares, the damping is Levenberg's and
        Marquardt's, [NW06], §10.3.
    Cost: `Problem.inverse_blocks`, as a rule two to four times, more often for spectra that come
        out one by one; then O((m + n)r²).
    """

    def __init__(self) -> None:
        self._inverses: tuple[RowTimes, RowTimes] | None = None
        self.missing = False
        """Whether the problem has turned out to have no blocks."""

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
        """ξ ↦ P(ξ) at x, of this loss; None where no matrix has blocks that are worth it.

        Where the blocks belong to, and what they are damped by, is kept in `kept`; `blocks_used`
        there is 1 for each matrix of which P is not the identity.
        """
        manifold = objective.manifold
        point = manifold.point(x[0])
        if "blocks_at" not in kept:
            nothing = point.U[..., :1] * 0, point.V[..., :1] * 0
            kept["loss_at_zero"] = objective.problem.pair_loss(*nothing).expand_as(loss).clone()
            kept["blocks_at"] = x[0].clone()
            kept["blocks_damping"] = torch.full_like(loss, torch.inf)
        residual = (loss / kept["loss_at_zero"]).clamp(min=0).sqrt()
        damping = residual.nan_to_num(nan=1.0).clamp(min=_LEAST)
        used = damping <= _MOST
        kept["blocks_used"] = used.to(loss.dtype)
        if not bool(used.any()):
            return None
        UU, VV = _turns(point, manifold.point(kept["blocks_at"]))
        turned = torch.maximum(_sine_square(UU), _sine_square(VV))
        due = used & ((turned > damping) | (damping < _FALLEN * kept["blocks_damping"]))
        if bool(due.any()):
            kept["blocks_at"] = torch.where(_wide(due), x[0], kept["blocks_at"])
            kept["blocks_damping"] = torch.where(due, damping, kept["blocks_damping"])
            self._inverses = None
            UU, VV = _turns(point, manifold.point(kept["blocks_at"]))
        if self._inverses is None:
            then = manifold.point(kept["blocks_at"])
            some = kept["blocks_damping"].clamp(max=1.0)  # of matrices that do not use theirs
            self._inverses = objective.problem.inverse_blocks(then.U, then.S, then.V, some)
        if self._inverses is None:
            self.missing = True
            kept["blocks_used"] = torch.zeros_like(loss)
            return None
        rows, columns = self._inverses

        def product(u: Vector) -> list[Tensor]:
            xi = manifold.tangent(u[0])
            A = rows(plus_tall_times(xi.Up, point.U, xi.M), VV)
            B = columns(plus_tall_times(xi.Vp, point.V, xi.M.mH), UU)
            UA, VB = adjoint_products((point.U, A), (point.V, B), group=point.group)
            Up, Vp = plus_tall_times(A, point.U, -UA), plus_tall_times(B, point.V, -VB)
            found = manifold.stored(Tangent(UA + VB.mH, Up, Vp))
            return [torch.where(_wide(used), found, u[0])] if loss.ndim else [found]

        return product


def _turns(point: Point, then: Point) -> tuple[Tensor, ...]:
    """(UᴴU', VᴴV') with the bases U' and V' of another point."""
    return adjoint_products((point.U, then.U), (point.V, then.V), group=point.group)


def _wide(of_each: Tensor) -> Tensor:
    return of_each[..., None, None]


def _sine_square(A: Tensor) -> Float[Tensor, "*batch"]:
    """sin²θ of the largest angle θ between two spaces, A the products of their bases."""
    return 1 - torch.linalg.eigvalsh(A.mH @ A)[..., 0]
