"""Several parameters as one point of a product of manifolds; one for each matrix of a batch."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import starmap

import geoopt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deeplin.manifolds import FixedRankFactored
from deeplin.optim.fixed_rank import TangentFixedRank

__all__ = ["Space", "Vector", "manifold_of"]

# A point or tangent vector: one tensor for each parameter.
Vector = Sequence[Tensor]
_STIEFEL = geoopt.EuclideanStiefel()


def manifold_of(p: Tensor) -> geoopt.Manifold:
    """The manifold of a parameter; a Euclidean space where it says none."""
    if isinstance(p, geoopt.ManifoldParameter | geoopt.ManifoldTensor):
        return p.manifold
    return geoopt.Euclidean()


def _solving(manifold: geoopt.Manifold) -> geoopt.Manifold | TangentFixedRank:
    return TangentFixedRank(manifold) if isinstance(manifold, FixedRankFactored) else manifold


class Space:
    """The product of the manifolds of parameters, with the operations of solvers.

    A parameter without a manifold lies in a Euclidean space. Where the loss is one number for each
    matrix of a batch, of shape `batch`, the leading dimensions of each parameter are that batch,
    and all numbers here are tensors of this shape.
    """

    def __init__(self, parameters: Sequence[Tensor]):
        self.parameters = list(parameters)
        self.manifolds = [_solving(manifold_of(p)) for p in parameters]
        self.batch = torch.Size()

    def set_batch(self, shape: torch.Size) -> None:
        """The shape of the losses. Raises: ValueError unless every parameter begins with it."""
        given = [tuple(p.shape) for p in self.parameters]
        if any(p[: len(shape)] != shape for p in given):
            raise ValueError(
                "the closure must return one loss, or one for each matrix of a batch that all "
                f"parameters begin with; got losses of shape {tuple(shape)} for parameters of "
                f"shapes {', '.join(map(str, given))}: sum the losses over what is no batch."
            )
        self.batch = shape

    def point(self) -> list[Tensor]:
        """Where the parameters are."""
        return [p.detach().clone(memory_format=torch.contiguous_format) for p in self.parameters]

    def narrowed(self, which: Bool[Tensor, "*batch"]) -> Space:
        """The space of these matrices of a batch alone, which has no parameters to move."""
        other = copy.copy(self)
        other.parameters, other.batch = [], torch.Size([int(which.sum())])
        return other

    def move(self, x: Vector) -> None:
        """Puts the parameters to a point."""
        with torch.no_grad():
            for p, part in zip(self.parameters, x, strict=True):
                p.copy_(part)

    # -- numbers ---------------------------------------------------------------------------------

    def inner(self, x: Vector, u: Vector, v: Vector) -> Float[Tensor, "*batch"]:
        """g_x(u, v), summed over the parameters."""
        return self._summed(starmap(_inner, zip(self.manifolds, x, u, v, strict=True)))

    def across(self, x: Vector, u: Vector, y: Vector, v: Vector) -> Float[Tensor, "*batch"]:
        """g_y(T(u), v), u tangent at x and T its transport to y, where v is tangent."""
        return self._summed(starmap(_across, zip(self.manifolds, x, u, y, v, strict=True)))

    def _summed(self, values: Iterable[Tensor]) -> Float[Tensor, "*batch"]:
        """Of the parameters, and of all entries that are no batch."""
        total: Tensor | None = None
        for value in values:
            if value.shape != self.batch:
                value = value.reshape(*self.batch, -1).sum(-1)
            total = value if total is None else total + value
        assert total is not None
        return total

    def norm(self, x: Vector, u: Vector) -> Float[Tensor, "*batch"]:
        """‖u‖_x."""
        return self.inner(x, u, u).clamp(min=0).sqrt()

    # -- vectors ---------------------------------------------------------------------------------

    def _wide(self, numbers: Tensor, like: Tensor) -> Tensor:
        return numbers.reshape(*self.batch, *(1,) * (like.ndim - len(self.batch)))

    def scaled(self, factor: Tensor, u: Vector) -> list[Tensor]:
        """factor·u, a number for each matrix of the batch."""
        return [self._wide(factor, part) * part for part in u]

    def plus(self, u: Vector, factor: Tensor | float, v: Vector) -> list[Tensor]:
        """u + factor·v, a number for each matrix of the batch, or one of Python's for all."""
        if not isinstance(factor, Tensor):
            return [torch.add(a, b, alpha=factor) for a, b in zip(u, v, strict=True)]
        return [torch.addcmul(a, self._wide(factor, b), b) for a, b in zip(u, v, strict=True)]

    def where(self, mask: Bool[Tensor, "*batch"], u: Vector, v: Vector) -> list[Tensor]:
        """u for the matrices of the mask, v for the others."""
        if not self.batch:
            return list(u if bool(mask) else v)
        return [torch.where(self._wide(mask, a), a, b) for a, b in zip(u, v, strict=True)]

    # -- geometry --------------------------------------------------------------------------------

    def gradient(self, x: Vector, egrads: Vector) -> list[Tensor]:
        """The Riemannian gradient from what autograd left."""
        parts = zip(self.manifolds, x, egrads, strict=True)
        return [manifold.egrad2rgrad(a, g) for manifold, a, g in parts]

    def retract(self, x: Vector, u: Vector) -> list[Tensor]:
        """R_x(u)."""
        return [m.retr(a, b) for m, a, b in zip(self.manifolds, x, u, strict=True)]

    def transport(self, x: Vector, y: Vector, u: Vector) -> list[Tensor]:
        """u, tangent at x, as a tangent vector at y."""
        parts = zip(self.manifolds, x, y, u, strict=True)
        return [_transported(manifold, a, b, c) for manifold, a, b, c in parts]


def _inner(manifold: geoopt.Manifold | TangentFixedRank, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """g_x(u, v), in a Euclidean space entry by entry."""
    if isinstance(manifold, geoopt.Euclidean):
        return (u.conj() * v).real
    return manifold.inner(x, u, v, keepdim=True)


def _across(
    manifold: geoopt.Manifold | TangentFixedRank, x: Tensor, u: Tensor, y: Tensor, v: Tensor
) -> Tensor:
    """g_y(T(u), v)."""
    if isinstance(manifold, TangentFixedRank):
        return manifold.across(x, u, y, v)
    return _inner(manifold, y, _transported(manifold, x, y, u), v)


def _transported(
    manifold: geoopt.Manifold | TangentFixedRank, x: Tensor, y: Tensor, u: Tensor
) -> Tensor:
    base = manifold
    while isinstance(base, geoopt.Scaled):
        base = base.base
    if isinstance(base, geoopt.CanonicalStiefel):
        # It transports along steps alone, and its proju is no projection; the tangent space is the
        # same as in the Euclidean metric.
        return _STIEFEL.transp(x, y, u)
    return manifold.transp(x, y, u)
