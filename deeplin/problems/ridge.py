"""A loss with a ridge: half the squared Frobenius norm of the matrix, in any loss's company."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from deeplin.linalg import adjoint_products
from deeplin.problems.autograd import half_square
from deeplin.problems.blocks import RowTimes
from deeplin.problems.contract import Problem

__all__ = ["Ridge"]


class Ridge(Problem):
    """f(W) + ½λ‖W‖_F² of a loss f of another problem.

    The ridge is quadratic in W: where f has exact steps and Hessians, so has the sum, on every
    manifold and flow. Of a pair of factors ‖ABᴴ‖² = tr(AᴴA BᴴB): nothing m×n is formed that f does
    not form.

    Shapes: those of the problem.
    Cost: the problem's, and O((m + n) k²) for pairs of k columns.
    Raises: ValueError unless λ is a finite number >= 0.
    """

    def __init__(self, problem: Problem, reg: float):
        if not 0 <= reg < math.inf:
            raise ValueError(f"Ridge: reg must be a finite number >= 0; got {reg!r}.")
        self.problem, self.reg, self.shape = problem, float(reg), problem.shape
        self.group = problem.group

    @property
    def field(self) -> Literal["real", "complex"]:
        """The problem's."""
        return self.problem.field

    def to(self, *args, **kwargs) -> Ridge:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As `Problem.to`."""
        moved = self.problem.to(*args, **kwargs)
        return self if moved is self.problem else Ridge(moved, self.reg)

    def report(self, W: Inexact[Tensor, "*#batch m n"]):
        """The problem's."""
        return self.problem.report(W)

    def report_pair(self, A: Inexact[Tensor, "*#batch m k"], B: Inexact[Tensor, "*#batch n k"]):
        """The problem's."""
        return self.problem.report_pair(A, B)

    def told(self, report: Mapping[str, float]) -> str:
        """The problem's."""
        return self.problem.told(report)

    def loss(self, W: Inexact[Tensor, "*#batch m n"]) -> Float[Tensor, "*#batch"]:
        """f(W) + ½λ‖W‖²."""
        return self.problem.loss(W) + self.reg * half_square(W, (-2, -1))

    def egrad(self, W: Inexact[Tensor, "*#batch m n"]) -> Inexact[Tensor, "*#batch m n"]:
        """∇f(W) + λW."""
        return self.problem.egrad(W) + self.reg * W

    def pair_loss(
        self, A: Inexact[Tensor, "*#batch m k"], B: Inexact[Tensor, "*#batch n k"]
    ) -> Float[Tensor, "*#batch"]:
        """f(ABᴴ) + ½λ‖ABᴴ‖²."""
        return self.problem.pair_loss(A, B) + 0.5 * self.reg * self._square(A, B)

    def _with(self, scale: float, A: Tensor, B: Tensor, P: Tensor, Q: Tensor, products) -> tuple:
        """The products of a matrix E, and of scale·ABᴴ added to it."""
        EP, EhQ = products
        BhP, AhQ = adjoint_products((B, P), (A, Q), group=self.group)
        return EP + scale * (A @ BhP), EhQ + scale * (B @ AhQ)

    def egrad_times(
        self, A: Tensor, B: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Inexact[Tensor, "*#batch m p"], Inexact[Tensor, "*#batch n q"]]:
        """(GP, GᴴQ) of G = ∇f(ABᴴ) + λABᴴ."""
        return self._with(self.reg, A, B, P, Q, self.problem.egrad_times(A, B, P, Q))

    def loss_and_products(
        self, U: Tensor, S: Tensor, V: Tensor
    ) -> tuple[Float[Tensor, "*#batch"], Tensor, Tensor]:
        """As the problem's, ‖W‖ = ‖S‖ added."""
        loss, GV, GhU = self.problem.loss_and_products(U, S, V)
        diagonal = S.ndim < V.ndim
        square = half_square(S, -1 if diagonal else (-2, -1))
        US = U * S[..., None, :] if diagonal else U @ S
        VSh = V * S[..., None, :].conj() if diagonal else V @ S.mH
        return loss + self.reg * square, GV + self.reg * US, GhU + self.reg * VSh

    def egrad_at(self, A: Tensor, B: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """As `Problem.egrad_at`."""
        times = self.problem.egrad_at(A, B)
        return lambda P, Q: self._with(self.reg, A, B, P, Q, times(P, Q))

    def back_projection(
        self, like: Tensor
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """The problem's: at 0 the ridge has no gradient."""
        return self.problem.back_projection(like)

    def slope_along(
        self, A: Tensor, B: Tensor, left: Tensor, right: Tensor
    ) -> Float[Tensor, "*#batch"]:
        """The problem's, and λ⟨ABᴴ, left·rightᴴ⟩ = λ Re tr(Aᴴleft·rightᴴB)."""
        AhL, BhR = adjoint_products((A, left), (B, right), group=self.group)
        own = (AhL * BhR.conj()).sum((-2, -1)).real
        return self.problem.slope_along(A, B, left, right) + self.reg * own

    def quadratic_along(self, left: Tensor, right: Tensor) -> Float[Tensor, "*#batch"] | None:
        """The problem's, and λ‖ξ‖²."""
        found = self.problem.quadratic_along(left, right)
        return None if found is None else found + self.reg * self._square(left, right)

    def hessian_times(
        self, A: Tensor, B: Tensor, left: Tensor, right: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Inexact[Tensor, "*#batch m p"], Inexact[Tensor, "*#batch n q"]]:
        """(HP, HᴴQ) of H = D∇f[ξ] + λξ, ξ = left·rightᴴ."""
        products = self.problem.hessian_times(A, B, left, right, P, Q)
        return self._with(self.reg, left, right, P, Q, products)

    def hessian_at(
        self, U: Tensor, S: Tensor, V: Tensor
    ) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]:
        """As the problem's, with λξ; λW takes V_p and U_p to 0."""
        of_problem = self.problem.hessian_at(U, S, V)

        def products(M: Tensor, Up: Tensor, Vp: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            HV, HhU, GVp, GhUp = of_problem(M, Up, Vp)
            HV = HV + self.reg * (U @ M + Up)
            return HV, HhU + self.reg * (V @ M.mH + Vp), GVp, GhUp

        return products

    def inverse_blocks(
        self, U: Tensor, S: Tensor, V: Tensor, damping: Tensor, shift: float = 0.0
    ) -> tuple[RowTimes, RowTimes] | None:
        """The problem's, λ added to each eigenvalue."""
        return self.problem.inverse_blocks(U, S, V, damping, shift + self.reg)

    def narrowed(self, which: Bool[Tensor, "*batch"]) -> Ridge | None:
        """As the problem's."""
        narrowed = self.problem.narrowed(which)
        return None if narrowed is None else Ridge(narrowed, self.reg)

    def curvature(self, W: Inexact[Tensor, "*#batch m n"]) -> float:
        """The problem's and λ: exact where f is convex, else a bound."""
        return self.problem.curvature(W) + self.reg

    def pair_curvature(self, A: Tensor, B: Tensor) -> float:
        """The problem's and λ."""
        return self.problem.pair_curvature(A, B) + self.reg

    def _square(self, A: Tensor, B: Tensor) -> Tensor:
        """‖ABᴴ‖² = tr(AᴴA BᴴB)."""
        AhA, BhB = adjoint_products((A, A), (B, B), group=self.group)
        return (AhA * BhB.mT).sum((-2, -1)).real
