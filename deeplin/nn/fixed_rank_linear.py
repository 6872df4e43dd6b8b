"""A linear layer whose weight has rank exactly r."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad

from deeplin.geometry.coordinates import Point
from deeplin.geometry.metric import Metric
from deeplin.geometry.points import nearest_point
from deeplin.linalg import random_orthogonal, values_known, working, working_dtype
from deeplin.manifolds import FixedRankFactored

__all__ = ["FixedRankLinear"]


def _is_plain(x: Tensor) -> bool:
    """Whether reverse mode alone is asked for: no transform, trace, autocast, forward mode."""
    return (
        values_known()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled(x.device.type)
        and forward_ad._current_level < 0
    )


def _through_pair(
    x: Tensor, factors: Tensor, bias: Tensor | None, manifold: FixedRankFactored
) -> Tensor:
    """xWᵀ + b with W = ABᵀ, by operations that autograd and all transforms follow."""
    A, B = manifold.factor_pair(factors)
    return nn.functional.linear(nn.functional.linear(x, B.mT), A, bias)


class _Apply(torch.autograd.Function):
    """`_through_pair` with its derivative written out: what depends on r alone is r×r.

    With g = ∂f/∂y, h = xV and p = gU, the factors get GV = gᵀh, GᵀU = xᵀp and UᵀGV = pᵀh.
    """

    @staticmethod
    def forward(ctx, x, factors, bias, manifold):
        U, S, V = manifold.unpack_tensor(factors.detach())
        rows = x.reshape(-1, x.shape[-1])
        h = rows @ V
        ctx.manifold, ctx.parts = manifold, (U, S, V)  # views of factors
        ctx.save_for_backward(x, factors, bias, h)
        core = h @ S.mT
        y = core @ U.mT if bias is None else torch.addmm(bias, core, U.mT)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, factors, bias, h = ctx.saved_tensors
        (grad,), wanted = grads, ctx.needs_input_grad
        if torch.is_grad_enabled():  # to be differentiated again
            return _again(grad, (x, factors, bias), wanted, ctx.manifold)
        U, S, V = ctx.parts
        rows, g = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        p = g @ U
        of_x = of_factors = of_bias = None
        if wanted[0]:
            of_x = ((p @ S) @ V.mT).reshape(x.shape)
        if wanted[1]:
            of_factors = torch.cat([g.mT @ h, rows.mT @ p, p.mT @ h])
        if wanted[2]:
            of_bias = g.sum(0)
        return of_x, of_factors, of_bias, None


def _again(
    grad: Tensor,
    inputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
    manifold: FixedRankFactored,
) -> tuple[Tensor | None, ...]:
    """The same derivatives, from operations that can be differentiated."""
    x, factors, bias = inputs
    assert x is not None
    assert factors is not None
    y = _through_pair(x, factors, bias, manifold)
    asked = [part for part, want in zip(inputs, wanted, strict=False) if want and part is not None]
    found = iter(torch.autograd.grad(y, asked, grad, create_graph=True))
    return (*(next(found) if want else None for want in wanted[:3]), None)


class FixedRankLinear(nn.Module):
    """y = Wx + b with W = U S Vᵀ of rank exactly r: `torch.nn.Linear` on the rank-r matrices.

    `factors` is one geoopt ManifoldParameter of FixedRankFactored, with the metric of depth N; the
    optimizers of geoopt move it along the manifold and `bias` as usual. Optimizers of torch.optim
    would leave the manifold.

    At the start U, V are Haar-distributed and all singular values √(m/3r), m the outputs: an input
    of covariance I leaves with the variance 1/3 that nn.Linear's own start gives; the bias is drawn
    as there.

    The gradient of `factors` is (GV, GᴴU, UᴴGV), G = ∂f/∂W, accurate however small σ_r is; it is
    written at once, with the products of two thin nn.Linear (m×r and r×n) and r×r ones. A step is
    by the retraction "splitting", the cheapest, or by another of FixedRankFactored.

    Source: BRTW §4 (metric); [KL07] (coordinates).
    Shapes: x (*batch, in_features) -> (*batch, out_features); factors (m + n + r, r).
    Cost: O((m + n)r) for each sample; O((m + n)r² + r³) for a step of the optimizer.
    Raises: ValueError if rank is not 1 <= rank <= min(in_features, out_features).

    >>> import geoopt
    >>> _ = torch.manual_seed(0)
    >>> layer = FixedRankLinear(20, 30, rank=4)
    >>> optimizer = geoopt.optim.RiemannianSGD(layer.parameters(), lr=0.1, momentum=0.9)
    >>> layer(torch.randn(8, 20)).square().sum().backward()
    >>> optimizer.step()
    >>> int(torch.linalg.matrix_rank(layer.weight))
    4
    """

    factors: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        depth: float | Metric = 1,
        bias: bool = True,
        *,
        retraction: str = "splitting",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.manifold = FixedRankFactored(
            out_features, in_features, rank, depth, retraction, gradient="taped"
        )
        dtype = torch.get_default_dtype() if dtype is None else dtype
        U, V = (
            random_orthogonal(rows, rank, dtype=working_dtype(dtype), device=device).to(dtype)
            for rows in (out_features, in_features)
        )
        S = math.sqrt(out_features / (3 * rank)) * torch.eye(rank, dtype=dtype, device=device)
        self._place(U, S, V, dtype)
        bound = 1 / math.sqrt(in_features)
        start = torch.empty(out_features, device=device, dtype=dtype).uniform_(-bound, bound)
        self.bias = nn.Parameter(start) if bias else None

    def _place(self, U: Tensor, S: Tensor, V: Tensor, dtype: torch.dtype) -> None:
        parts = (part.to(dtype) for part in (U, S, V))
        self.factors = self.manifold.parameter(self.manifold.pack_point(*parts))

    @property
    def rank(self) -> int:
        return self.manifold.rank

    @property
    def weight(self) -> Float[Tensor, "m n"]:
        """W itself, differentiable. Cost: O(m n r)."""
        return self.manifold.to_dense(self.factors)

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        if torch.is_grad_enabled():
            if not _is_plain(x):  # asked first: torch 2.6 traces no requires_grad of a subclass
                return _through_pair(x, self.factors, self.bias, self.manifold)
            if self.factors.requires_grad:
                return _Apply.apply(x, self.factors, self.bias, self.manifold)
        U, S, V = self.manifold.unpack_tensor(self.factors.detach())
        return nn.functional.linear(nn.functional.linear(x, V.mT), U @ S, self.bias)

    @classmethod
    def from_linear(
        cls,
        layer: nn.Linear,
        rank: int,
        depth: float | Metric = 1,
        *,
        retraction: str = "splitting",
    ) -> FixedRankLinear:
        """The layer whose weight is the best approximation of rank r of another's, with its bias.

        Source: HLZ Definition 2.3 (Eckart, Young).
        Cost: an SVD, O(m n min(m, n)).
        Raises: ValueError for a rank that does not fit, or above that of the weight.
        """
        W = layer.weight.detach()
        new = cls(
            layer.in_features,
            layer.out_features,
            rank,
            depth,
            bias=layer.bias is not None,
            retraction=retraction,
            device=W.device,
            dtype=W.dtype,
        )
        point = nearest_point(working(W), rank)
        _refuse_lower_rank(point, rank)
        new._place(point.U, point.S, point.V, W.dtype)
        if layer.bias is not None and new.bias is not None:
            new.bias = nn.Parameter(layer.bias.detach().clone())
        return new.train(layer.training)

    def to_linear(self) -> nn.Linear:
        """The same map as a dense nn.Linear. Cost: O(m n r)."""
        W = self.weight.detach()
        new = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=W.device,
            dtype=W.dtype,
        )
        new.weight = nn.Parameter(W)
        if self.bias is not None:
            new.bias = nn.Parameter(self.bias.detach().clone())
        return new.train(self.training)

    @torch.no_grad()
    def with_rank(self, rank: int, *, value: float | None = None) -> FixedRankLinear:
        """A new layer of another rank: truncated, or with directions added.

        Below the present rank the best approximation is taken. Above it random directions are
        added, orthogonal to those that are there, with singular values `value`, by default a
        thousandth of σ_r: W moves by as much and the rank is what is asked for.

        Cost: O((m + n)k² + k³), k the larger rank.
        Raises: ValueError for a rank that does not fit, or value that is not in (0, σ_r].
        """
        new = FixedRankLinear(
            self.in_features,
            self.out_features,
            rank,
            self.manifold.metric,
            bias=self.bias is not None,
            retraction=self.manifold.retraction,
            device=self.factors.device,
            dtype=self.factors.dtype,
        )
        U, S, V = self.manifold.unpack_tensor(working(self.factors.detach()))
        left, sigma, right = torch.linalg.svd(S)
        U, V = U @ left, V @ right.mT
        least = float(sigma[-1])
        added = 1e-3 * least if value is None else value
        if not 0 < added <= least:
            raise ValueError(
                f"with_rank(rank, value=...) must satisfy 0 < value <= σ_r = {least:.3g}; got "
                f"value={value}: leave it out for σ_r/1000."
            )
        kept, extra = min(rank, self.rank), max(rank - self.rank, 0)
        U, V = (_extended(frame[:, :kept], extra) for frame in (U, V))
        values = torch.cat([sigma[:kept], sigma.new_full((extra,), added)])
        new._place(U, torch.diag(values), V, self.factors.dtype)
        if self.bias is not None:
            new.bias = nn.Parameter(self.bias.detach().clone())
        return new.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"depth={self.manifold.depth}, bias={self.bias is not None}"
        )


def _extended(frame: Tensor, extra: int) -> Tensor:
    """Orthonormal columns with random ones added, orthogonal to them."""
    if extra == 0:
        return frame
    drawn = torch.randn(frame.shape[0], extra, dtype=frame.dtype, device=frame.device)
    for _ in range(2):  # once leaves a part of the size of round-off times ‖drawn‖
        drawn = drawn - frame @ (frame.mT @ drawn)
        drawn = torch.linalg.qr(drawn).Q
    return torch.cat([frame, drawn], -1)


def _refuse_lower_rank(point: Point, rank: int) -> None:
    """ValueError where the smallest singular value kept is round-off of the largest."""
    values = point.S.diagonal()
    floor = max(point.U.shape[0], point.V.shape[0]) * torch.finfo(values.dtype).eps
    found = int((values > floor * values[0]).sum())
    if found < rank:
        raise ValueError(
            f"the weight must have rank {rank} at least; it has rank {found}: take rank={found}."
        )
