"""What a problem is: a loss of an m×n matrix, and what is known of its optimum."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import Literal, Self, cast

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from deeplin.linalg import largest_modulus, sum_over
from deeplin.problems.autograd import beside, for_each, real, summed, zeros_between
from deeplin.problems.moved import moved
from deeplin.problems.shape import Shape, checked_shape

__all__ = ["Optimum", "Problem"]


class Optimum(ABC):
    """What is known, in closed form, of the critical points of a loss on the matrices of rank k.

    `rank` is q, the largest rank that a critical point can have; minimizers of rank k exist for
    k <= q.
    """

    rank: int

    @abstractmethod
    def minimizer(self, k: int) -> Inexact[Tensor, "m n"]:
        """A minimizer of the loss on the matrices of rank k. Raises ValueError for k > rank."""

    @abstractmethod
    def optimal_loss(self, k: int) -> Float[Tensor, ""]:
        """The infimum of the loss over the matrices of rank k."""

    @abstractmethod
    def is_unique(self, k: int) -> bool:
        """Whether there is one minimizer of rank k."""

    @abstractmethod
    def critical_points(self, k: int) -> Iterator[tuple[tuple[int, ...], Inexact[Tensor, "m n"]]]:
        """All (J, W_J), |J| = k, the minimizer first, lazily; one of each continuum."""


class Problem(ABC):
    """A loss f(W) of an m×n matrix, to be minimised by any flow, manifold or network of deeplin.

    A subclass has `shape` = (m, n) and `loss(W)`, one number for each matrix of a batch; all else
    follows, by autograd and Lanczos. A loss that should never form an m×n matrix overrides
    `pair_loss`, f(ABᴴ) of two thin factors, from which all products below follow without forming
    one; whoever knows better overrides those, too. `optimum` is None where nothing is known of it.

    Gradients of a real loss of complex W are ∂f/∂Re W + i ∂f/∂Im W, as torch has them:
    f(W + ξ) ≈ f(W) + Re⟨∇f(W), ξ⟩ with ⟨G, ξ⟩ = tr(Gᴴξ).

    The defaults differentiate `loss` or `pair_loss` as often as they say: a loss that cuts the
    tape (`detach`, `no_grad`, `item`) gets a wrong derivative, as everywhere in torch.

    >>> class Distance(Problem):
    ...     shape = (2, 3)
    ...     def loss(self, W):
    ...         return 0.5 * (W - 1).square().sum((-2, -1))
    >>> Distance().egrad(torch.zeros(2, 3))
    tensor([[-1., -1., -1.],
            [-1., -1., -1.]])
    """

    shape: tuple[int, int] = cast(tuple[int, int], Shape())
    group: dist.ProcessGroup | None = None
    """The processes that share the rows of factors; None: this one has them all."""

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        if "shape" in vars(cls) and not inspect.isdatadescriptor(vars(cls)["shape"]):
            cls.shape = checked_shape(vars(cls)["shape"], cls.__name__)

    @abstractmethod
    def loss(self, W: Inexact[Tensor, "*#batch m n"]) -> Float[Tensor, "*#batch"]:
        """f(W), a real number for each matrix."""

    @property
    def field(self) -> Literal["real", "complex"]:
        """Which matrices W are meant; by default complex where a tensor of the problem is."""
        complex_ = any(isinstance(v, Tensor) and v.is_complex() for v in vars(self).values())
        return "complex" if complex_ else "real"

    @property
    def optimum(self) -> Optimum | None:
        """What is known of the optimum in closed form; None: nothing."""
        return None

    def report(self, W: Inexact[Tensor, "*#batch m n"]) -> Mapping[str, Float[Tensor, "*#batch"]]:
        """Numbers of the problem's own to be logged beside the loss: an accuracy, a test error."""
        return {}

    def report_pair(
        self, A: Inexact[Tensor, "*#batch m k"], B: Inexact[Tensor, "*#batch n k"]
    ) -> Mapping[str, Float[Tensor, "*#batch"]]:
        """`report` at ABᴴ, by default through it, where it says anything."""
        silent = type(self).report is Problem.report
        return {} if silent else self.report(A @ B.mH)

    def told(self, report: Mapping[str, float]) -> str:
        """What the numbers of a `report` mean, as the end of a sentence; "" where that is plain."""
        return ""

    def to(self, *args, **kwargs) -> Self:
        """The problem with its tensors on another device or in another dtype, as `Tensor.to`.

        A real dtype means its complex counterpart for complex tensors; integers keep theirs. What
        `functools.cached_property` keeps is computed anew. The problem itself is returned where
        nothing changes.
        """
        other = copy.copy(self)
        changed = False
        for name, value in vars(self).items():
            if any(isinstance(vars(c).get(name), cached_property) for c in type(self).__mro__):
                del vars(other)[name]
            else:
                vars(other)[name] = moved(value, args, kwargs)
                changed |= vars(other)[name] is not value
        return other if changed else self

    def narrowed(self, which: Bool[Tensor, "*batch"]) -> Problem | None:
        """The problem of these matrices of a batch alone; None, the default: not known how."""
        return None

    # -- first order -----------------------------------------------------------------------------

    def egrad(self, W: Inexact[Tensor, "*#batch m n"]) -> Inexact[Tensor, "*#batch m n"]:
        """∇f(W), by default by autograd of `loss`."""
        return for_each(torch.func.grad(lambda X: summed(self.loss(X)), has_aux=True), W)

    def pair_loss(
        self, A: Inexact[Tensor, "*#batch m k"], B: Inexact[Tensor, "*#batch n k"]
    ) -> Float[Tensor, "*#batch"]:
        """f(ABᴴ), by default through `loss`."""
        return self.loss(A @ B.mH)

    def egrad_times(
        self,
        A: Inexact[Tensor, "*#batch m k"],
        B: Inexact[Tensor, "*#batch n k"],
        P: Inexact[Tensor, "*#batch n p"],
        Q: Inexact[Tensor, "*#batch m q"],
    ) -> tuple[Inexact[Tensor, "*#batch m p"], Inexact[Tensor, "*#batch n q"]]:
        """(GP, GᴴQ) of G = ∇f(ABᴴ): the gradient of f(ABᴴ + KPᴴ + QLᴴ) at K = L = 0.

        Cost: a backward pass of `pair_loss` with k + p + q columns.
        """

        def products(A: Tensor, B: Tensor, P: Tensor, Q: Tensor):
            def taped(K: Tensor, L: Tensor):
                return summed(self.pair_loss(beside(A, K, Q), beside(B, P, L)))

            K, L = zeros_between(A, P, B, Q), zeros_between(B, Q, A, P)
            return torch.func.grad(taped, argnums=(0, 1), has_aux=True)(K, L)

        return for_each(products, A, B, P, Q)

    def egrad_products(
        self,
        U: Inexact[Tensor, "*#batch m k"],
        S: Tensor,
        V: Inexact[Tensor, "*#batch n k"],
    ) -> tuple[Inexact[Tensor, "*#batch m k"], Inexact[Tensor, "*#batch n k"]]:
        """(GV, GᴴU) of G = ∇f(USVᴴ) at orthonormal U and V; S a matrix or the diagonal of one.

        Shapes: S (*batch, k, k), or its diagonal (*batch, k): known by having one dimension less
            than V.
        """
        return self.egrad_times(_core_times(U, S, V), V, V, U)

    def loss_and_products(
        self,
        U: Inexact[Tensor, "*#batch m k"],
        S: Tensor,
        V: Inexact[Tensor, "*#batch n k"],
    ) -> tuple[Float[Tensor, "*#batch"], Tensor, Tensor]:
        """(f, GV, GᴴU): `pair_loss` and `egrad_products`, for who needs both at one point."""
        return self.pair_loss(_core_times(U, S, V), V), *self.egrad_products(U, S, V)

    def egrad_pair(
        self, L: Inexact[Tensor, "*#batch m k"], R: Inexact[Tensor, "*#batch k n"]
    ) -> tuple[Inexact[Tensor, "*#batch m k"], Inexact[Tensor, "*#batch k n"]]:
        """(GRᴴ, LᴴG) of G = ∇f(LR): what the gradients by the two factors are."""
        GRh, GhL = self.egrad_times(L, R.mH, R.mH, L)
        return GRh, GhL.mH

    def egrad_split(
        self, S: Inexact[Tensor, "*#batch k k"], V: Inexact[Tensor, "*#batch n k"]
    ) -> tuple[Inexact[Tensor, "*#batch k k"], Inexact[Tensor, "*#batch m k"]] | None:
        """(K, N) with GV = UK − N for G = ∇f(USVᴴ), V orthonormal, whatever U is.

        Quadratic losses of the Hessian ξ ↦ ξC have this form, from which steps along U follow
        without GV. None, the default: the gradient has no such form.
        """
        return None

    def egrad_at(
        self, A: Inexact[Tensor, "*#batch m k"], B: Inexact[Tensor, "*#batch n k"]
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(P, Q) ↦ `egrad_times(A, B, P, Q)`, for who needs many products at one ABᴴ."""
        return partial(self.egrad_times, A, B)

    def back_projection(
        self, like: Inexact[Tensor, ""]
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """(P ↦ XP, Q ↦ XᴴQ) of X = −∇f(0): what the data say of W before anything is fitted.

        Shapes: P (n, k), Q (*batch, m, k), of the dtype and on the device of `like`.
        Cost: as `egrad_times`.
        """
        m, n = self.shape
        A, B = like.new_zeros((m, 1)), like.new_zeros((n, 1))

        def times(P: Tensor) -> Tensor:
            return -self.egrad_times(A, B, P, like.new_zeros((m, 0)))[0]

        def adjoint_times(Q: Tensor) -> Tensor:
            return -self.egrad_times(A, B, like.new_zeros((n, 0)), Q)[1]

        return times, adjoint_times

    def slope_along(
        self,
        A: Inexact[Tensor, "*#batch m k"],
        B: Inexact[Tensor, "*#batch n k"],
        left: Inexact[Tensor, "*#batch m l"],
        right: Inexact[Tensor, "*#batch n l"],
    ) -> Float[Tensor, "*#batch"]:
        """⟨∇f(ABᴴ), left·rightᴴ⟩. Cost: as `egrad_times`, of ∇f·right alone."""
        GR = self.egrad_times(A, B, right, A[..., :0])[0]
        return sum_over(self.group, (left.conj() * GR).real.sum((-2, -1)))[0]

    # -- second order ----------------------------------------------------------------------------

    def quadratic_along(
        self, left: Inexact[Tensor, "*#batch m l"], right: Inexact[Tensor, "*#batch n l"]
    ) -> Float[Tensor, "*#batch"] | None:
        """⟨ξ, D∇f[ξ]⟩ along ξ = left·rightᴴ where it is the same at every W: of quadratic losses.

        From it follow exact steps. None, the default: the loss is not known to be quadratic.
        """
        return None

    def hessian_times(
        self,
        A: Inexact[Tensor, "*#batch m k"],
        B: Inexact[Tensor, "*#batch n k"],
        left: Inexact[Tensor, "*#batch m l"],
        right: Inexact[Tensor, "*#batch n l"],
        P: Inexact[Tensor, "*#batch n p"],
        Q: Inexact[Tensor, "*#batch m q"],
    ) -> tuple[Inexact[Tensor, "*#batch m p"], Inexact[Tensor, "*#batch n q"]]:
        """(HP, HᴴQ) of H = D∇f(W)[ξ] at W = ABᴴ along ξ = left·rightᴴ.

        Cost: a double backward pass of `pair_loss` with k + l + p + q columns.
        """

        def products(A: Tensor, B: Tensor, left: Tensor, right: Tensor, P: Tensor, Q: Tensor):
            def slope(K: Tensor, L: Tensor):
                def along(s: Tensor):
                    first, second = beside(A, s * left, K, Q), beside(B, right, P, L)
                    return summed(self.pair_loss(first, second))

                return torch.func.grad(along, has_aux=True)(A.real.new_zeros(()))

            K, L = zeros_between(A, P, B, Q, left, right), zeros_between(B, Q, A, P, left, right)
            return torch.func.grad(slope, argnums=(0, 1), has_aux=True)(K, L)

        return for_each(products, A, B, left, right, P, Q)

    def hessian_products(
        self,
        U: Inexact[Tensor, "*#batch m k"],
        S: Tensor,
        V: Inexact[Tensor, "*#batch n k"],
        left: Inexact[Tensor, "*#batch m l"],
        right: Inexact[Tensor, "*#batch n l"],
    ) -> tuple[Inexact[Tensor, "*#batch m k"], Inexact[Tensor, "*#batch n k"]]:
        """(HV, HᴴU) of H = D∇f(USVᴴ)[ξ] along ξ = left·rightᴴ, U and V orthonormal.

        Shapes: S as in `egrad_products`.
        """
        return self.hessian_times(_core_times(U, S, V), V, left, right, V, U)

    def hessian_at(
        self,
        U: Inexact[Tensor, "*batch m r"],
        S: Inexact[Tensor, "*batch r r"],
        V: Inexact[Tensor, "*batch n r"],
    ) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(M, U_p, V_p) ↦ (HV, HᴴU, GV_p, GᴴU_p) at W = USVᴴ: what Riemannian Hessians are made of.

        H = D∇f(W)[ξ] along ξ = UMVᴴ + U_pVᴴ + UV_pᴴ, U_p ⟂ U, V_p ⟂ V, and G = ∇f(W).

        Cost: of each call `hessian_products` and one of `egrad_at`.
        """
        times = self.egrad_at(_core_times(U, S, V), V)

        def products(M: Tensor, Up: Tensor, Vp: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            left, right = torch.cat([U @ M + Up, U], -1), torch.cat([V, Vp], -1)
            return *self.hessian_products(U, S, V, left, right), *times(Vp, Up)

        return products

    def inverse_blocks(
        self,
        U: Inexact[Tensor, "*batch m r"],
        S: Inexact[Tensor, "*batch r r"],
        V: Inexact[Tensor, "*batch n r"],
        damping: Float[Tensor, "*batch"],
        shift: float = 0.0,
    ) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] | None:
        """((X, Q) ↦ X_iQ (G_i + (δμ + λ)·1)⁻¹Qᴴ, (Y, Q) ↦ Y_jQ (H_j + (δν + λ)·1)⁻¹Qᴴ) at USVᴴ.

        G_i is the Hessian of f(W + AVᴴ) in the row A_i, H_j that of f(W + UBᴴ) in B_j, each r×r,
        of losses in which the rows of W meet in no term, nor the columns; μ and ν are the means of
        their eigenvalues, δ is `damping`, λ `shift`. Where f is convex both are positive definite.
        None, the default: f has no such form, or none that is known.
        """
        return None

    def curvature(self, W: Inexact[Tensor, "*#batch m n"]) -> float:
        """max |λ| of Hess f(W) over its eigenvalues and the matrices W; it limits explicit steps.

        By Lanczos from a fixed start. A linear loss has 0.

        Cost: at most 40 products with the Hessian, each a double backward pass of `loss`.
        Accuracy: from below, about 1 per cent.
        Raises: ValueError where the second derivative of `loss` is not finite.
        """
        W = for_each(lambda X: (X, real(self.loss(X))), W.detach())

        def times(direction: Tensor) -> Tensor:
            def slope(X: Tensor) -> Tensor:
                gradient = torch.func.grad(lambda Y: self.loss(Y).sum())(X)
                return (gradient.conj() * direction).real.sum()

            return torch.func.grad(slope)(W)

        return self._finite(largest_modulus(times, _random(W, W.shape)))

    def pair_curvature(
        self, A: Inexact[Tensor, "*#batch m k"], B: Inexact[Tensor, "*#batch n k"]
    ) -> float:
        """`curvature` at ABᴴ for steps on matrices of rank k, from two thin factors.

        By default max |⟨ξ, Hess f ξ⟩| over the ξ of norm 1 that are tangent at ABᴴ to the matrices
        of rank k, ξ = KVᴴ + ULᴴ with U and V the bases of A and B; never more than the curvature.

        Cost: at most 40 calls of `hessian_times`; nothing m×n unless `pair_loss` forms it.
        Accuracy, Raises: as `curvature`.
        """
        A, B = for_each(lambda A, B: ((A, B), real(self.pair_loss(A, B))), A.detach(), B.detach())
        m, shape = A.shape[-2], (*A.shape[:-2], A.shape[-2] + B.shape[-2], A.shape[-1])
        U, V = torch.linalg.qr(A).Q, torch.linalg.qr(B).Q

        def projected(K: Tensor, L: Tensor) -> Tensor:  # L is orthogonal to V: each ξ once
            return torch.cat([K, L - V @ (V.mH @ L)], -2)

        def times(x: Tensor) -> Tensor:
            left, right = torch.cat([x[..., :m, :], U], -1), torch.cat([V, x[..., m:, :]], -1)
            return projected(*self.hessian_times(A, B, left, right, V, U))

        x = _random(A, shape)
        return self._finite(largest_modulus(times, projected(x[..., :m, :], x[..., m:, :])))

    def _finite(self, curvatures: Tensor) -> float:
        if not bool(torch.isfinite(curvatures).all()):
            raise ValueError(
                f"the curvature of {type(self).__name__} must be finite where a step is to be "
                "chosen; its second derivative holds NaN or ±inf there: start elsewhere, make the "
                "loss twice differentiable, or give dt."
            )
        return float(curvatures.max())


def _core_times(U: Tensor, S: Tensor, V: Tensor) -> Tensor:
    """US, S a matrix or the diagonal of one."""
    return U * S[..., None, :] if S.ndim < V.ndim else U @ S


def _random(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The fixed start of a power iteration: repeatable, and orthogonal to no eigenvector."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, dtype=like.dtype, generator=generator).to(like.device)
