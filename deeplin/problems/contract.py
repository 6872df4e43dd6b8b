"""What a problem is: a loss of an m×n matrix, and what is known of its optimum."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Literal, Self

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

__all__ = ["FromLoss", "Optimum", "Problem", "from_loss"]

_ITERATIONS = 40


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

    A subclass has `shape` = (m, n) and `loss(W)`; all else follows, by autograd and power
    iteration. A loss that should never form an m×n matrix overrides `pair_loss`, f(ABᴴ) of two
    thin factors, from which all products below follow without forming one; whoever knows better
    overrides those, too. `optimum` is None where nothing is known of the optimum.

    `field` says which matrices W are meant: "real" or "complex". Gradients of a real loss of
    complex W are ∂f/∂Re W + i ∂f/∂Im W, as torch has them: f(W + ξ) ≈ f(W) + Re⟨∇f(W), ξ⟩.

    >>> class Distance(Problem):
    ...     shape = (2, 3)
    ...     def loss(self, W):
    ...         return 0.5 * (W - 1).square().sum((-2, -1))
    >>> Distance().egrad(torch.zeros(2, 3))
    tensor([[-1., -1., -1.],
            [-1., -1., -1.]])
    """

    shape: tuple[int, int]
    field: Literal["real", "complex"] = "real"

    @abstractmethod
    def loss(self, W: Inexact[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
        """f(W), a real number for each matrix."""

    @property
    def optimum(self) -> Optimum | None:
        """What is known of the optimum in closed form; None: nothing."""
        return None

    def report(self, W: Inexact[Tensor, "*batch m n"]) -> Mapping[str, Float[Tensor, "*batch"]]:
        """Numbers of the problem's own to be logged beside the loss: an accuracy, a test error."""
        return {}

    def to(self, *args, **kwargs) -> Self:
        """The problem with its tensors on another device or in another dtype, as `Tensor.to`."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(vars(type(self)).get(name), cached_property):
                del moved.__dict__[name]
            elif isinstance(value, Tensor) and value.is_floating_point() | value.is_complex():
                moved.__dict__[name] = value.to(*args, **kwargs)
            elif isinstance(value, Tensor):  # indices and masks change their device alone
                moved.__dict__[name] = value.to(torch.empty(0).to(*args, **kwargs).device)
        return moved

    # -- first order -----------------------------------------------------------------------------

    def egrad(self, W: Inexact[Tensor, "*batch m n"]) -> Inexact[Tensor, "*batch m n"]:
        """∇f(W), by default by autograd of `loss`."""
        return torch.func.grad(lambda X: self.loss(X).sum())(W)

    def pair_loss(
        self, A: Inexact[Tensor, "*batch m k"], B: Inexact[Tensor, "*batch n k"]
    ) -> Float[Tensor, "*batch"]:
        """f(ABᴴ), by default through `loss`."""
        return self.loss(A @ B.mH)

    def egrad_times(
        self,
        A: Inexact[Tensor, "*batch m k"],
        B: Inexact[Tensor, "*batch n k"],
        P: Inexact[Tensor, "*batch n p"],
        Q: Inexact[Tensor, "*batch m q"],
    ) -> tuple[Inexact[Tensor, "*batch m p"], Inexact[Tensor, "*batch n q"]]:
        """(GP, GᴴQ) of G = ∇f(ABᴴ): the gradient of f(ABᴴ + KPᴴ + QLᴴ) at K = L = 0.

        Cost: a backward pass of `pair_loss` with k + p + q columns.
        """

        def taped(K: Tensor, L: Tensor) -> Tensor:
            return self.pair_loss(_side_by_side(A, K, Q), _side_by_side(B, P, L)).sum()

        K, L = _zeros_beside(A, P, Q), _zeros_beside(B, Q, P)
        return torch.func.grad(taped, argnums=(0, 1))(K, L)

    def egrad_products(
        self,
        U: Inexact[Tensor, "*batch m k"],
        S: Inexact[Tensor, "*batch k k"] | Inexact[Tensor, "*batch k"],
        V: Inexact[Tensor, "*batch n k"],
    ) -> tuple[Inexact[Tensor, "*batch m k"], Inexact[Tensor, "*batch n k"]]:
        """(GV, GᴴU) of G = ∇f(USVᴴ) at orthonormal U and V; S a matrix or the diagonal of one."""
        US = U * S[..., None, :] if S.ndim < V.ndim else U @ S
        return self.egrad_times(US, V, V, U)

    def egrad_pair(
        self, L: Inexact[Tensor, "*batch m k"], R: Inexact[Tensor, "*batch k n"]
    ) -> tuple[Inexact[Tensor, "*batch m k"], Inexact[Tensor, "*batch k n"]]:
        """(GRᴴ, LᴴG) of G = ∇f(LR): what the gradients by the two factors are."""
        GRh, GhL = self.egrad_times(L, R.mH, R.mH, L)
        return GRh, GhL.mH

    # -- second order ----------------------------------------------------------------------------

    def hessian_times(
        self,
        A: Inexact[Tensor, "*batch m k"],
        B: Inexact[Tensor, "*batch n k"],
        left: Inexact[Tensor, "*batch m l"],
        right: Inexact[Tensor, "*batch n l"],
        P: Inexact[Tensor, "*batch n p"],
        Q: Inexact[Tensor, "*batch m q"],
    ) -> tuple[Inexact[Tensor, "*batch m p"], Inexact[Tensor, "*batch n q"]]:
        """(HP, HᴴQ) of H = D∇f(W)[ξ] at W = ABᴴ along ξ = left·rightᴴ.

        Cost: a double backward pass of `pair_loss` with k + l + p + q columns.
        """

        def slope(K: Tensor, L: Tensor) -> Tensor:
            def along(s: Tensor) -> Tensor:
                first, second = _side_by_side(A, s * left, K, Q), _side_by_side(B, right, P, L)
                return self.pair_loss(first, second).sum()

            return torch.func.grad(along)(A.new_zeros((), dtype=A.real.dtype))

        K, L = _zeros_beside(A, P, Q, left, right), _zeros_beside(B, Q, P, left, right)
        return torch.func.grad(slope, argnums=(0, 1))(K, L)

    def hessian_products(
        self,
        U: Inexact[Tensor, "*batch m k"],
        S: Inexact[Tensor, "*batch k k"] | Inexact[Tensor, "*batch k"],
        V: Inexact[Tensor, "*batch n k"],
        left: Inexact[Tensor, "*batch m l"],
        right: Inexact[Tensor, "*batch n l"],
    ) -> tuple[Inexact[Tensor, "*batch m k"], Inexact[Tensor, "*batch n k"]]:
        """(HV, HᴴU) of H = D∇f(USVᴴ)[ξ] along ξ = left·rightᴴ, U and V orthonormal."""
        US = U * S[..., None, :] if S.ndim < V.ndim else U @ S
        return self.hessian_times(US, V, left, right, V, U)

    def curvature(self, W: Inexact[Tensor, "*batch m n"]) -> float:
        """The largest eigenvalue of Hess f, in modulus, over the matrices W; it limits steps.

        By power iteration from a fixed start; a quadratic loss has the same everywhere.

        Cost: at most 40 products with the Hessian, each a double backward pass of `loss`.
        Accuracy: a few per cent, from below.
        """
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(W.shape, dtype=W.dtype, generator=generator).to(W.device)
        norm = torch.linalg.matrix_norm(vector, keepdim=True)
        for _ in range(_ITERATIONS):
            unit = vector / torch.where(norm > 0, norm, 1.0)
            vector = self._hessian_of(W, unit)
            previous, norm = norm, torch.linalg.matrix_norm(vector, keepdim=True)
            if bool(((norm - previous).abs() <= 1e-3 * norm).all()):
                break
        return float(norm.max())

    def _hessian_of(self, W: Tensor, direction: Tensor) -> Tensor:
        """D∇f(W)[direction], dense."""

        def slope(X: Tensor) -> Tensor:
            return (self.egrad(X).conj() * direction).real.sum()

        return torch.func.grad(slope)(W)


def _side_by_side(*parts: Tensor) -> Tensor:
    """Columns of matrices beside each other, their batch dimensions broadcast."""
    batch = torch.broadcast_shapes(*(part.shape[:-2] for part in parts))
    return torch.cat([part.expand(*batch, *part.shape[-2:]) for part in parts], -1)


def _zeros_beside(A: Tensor, P: Tensor, *others: Tensor) -> Tensor:
    """Zeros of as many rows as A and columns as P, in the batch of all."""
    batch = torch.broadcast_shapes(*(part.shape[:-2] for part in (A, P, *others)))
    return A.new_zeros((*batch, A.shape[-2], P.shape[-1]))


class FromLoss(Problem):
    """The problem of a function; see `from_loss`."""

    def __init__(self, loss: Callable[..., Tensor], shape: tuple[int, int], *, pair: bool):
        m, n = shape
        if not all(isinstance(d, int) and d >= 1 for d in (m, n)):
            raise ValueError(f"shape must be two positive integers (m, n); got {shape}.")
        if not callable(loss):
            raise TypeError(f"loss must be a function of W; got {type(loss).__name__}.")
        self._function, self._pair, self.shape = loss, pair, (m, n)

    def loss(self, W: Tensor) -> Tensor:
        if not self._pair:
            return self._function(W)
        eye = torch.eye(self.shape[1], dtype=W.dtype, device=W.device)
        return self._function(W, eye.expand(*W.shape[:-2], *eye.shape))

    def pair_loss(self, A: Tensor, B: Tensor) -> Tensor:
        return self._function(A, B) if self._pair else self._function(A @ B.mH)


def from_loss(
    loss: Callable[..., Tensor], shape: tuple[int, int], *, pair: bool = False
) -> Problem:
    """The problem of a function loss(W), or with `pair` of loss(A, B) = f(ABᴴ).

    The function takes batches: W (*batch, m, n) -> (*batch), written with torch.

    Shapes: shape = (m, n).
    Raises: ValueError for a shape that is not two positive integers; TypeError for no function.

    >>> problem = from_loss(lambda W: (W - 1).square().sum((-2, -1)), (2, 3))
    >>> problem.curvature(torch.zeros(2, 3))
    2.0
    """
    return FromLoss(loss, shape, pair=pair)
