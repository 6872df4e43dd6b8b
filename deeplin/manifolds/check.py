"""Numerical checks of any geoopt manifold, gradient, retraction, transport or Hessian.

In the spirit of Manopt's checkmanifold, checkgradient, checkhessian, but returning numbers and a
verdict, so that they can be asserted on: ``assert check_gradient(manifold, loss, x)``. Points with
a gauge (packed factors) are compared through ``to_dense`` and ``tangent_to_dense``, if the manifold
has both. Run them in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from geoopt.manifolds.base import Manifold
from torch import Tensor

__all__ = [
    "Report",
    "check_gradient",
    "check_hessian",
    "check_manifold",
    "check_retraction",
    "check_transport",
    "convergence_slope",
]

_STEPS = tuple(10 ** (-0.25 * k) for k in range(4, 25))


@dataclass(frozen=True)
class Report:
    """The outcome of a check: each measured number beside its bound, and the verdict.

    True when everything holds. A bound that starts with ``slope`` is a lower one, the others are
    upper ones.

    >>> print(Report("check_example", {"defect": 1e-15}, {"defect": 1e-10}))
    check_example: ok
      defect            1.00e-15   <= 1.0e-10
    """

    name: str
    numbers: Mapping[str, float]
    bounds: Mapping[str, float]

    def holds(self, key: str) -> bool:
        """Whether one number keeps its bound; NaN never does."""
        if key.startswith("slope"):
            return self.numbers[key] >= self.bounds[key]
        return self.numbers[key] <= self.bounds[key]

    @property
    def ok(self) -> bool:
        return all(self.holds(key) for key in self.bounds)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = [f"{self.name}: {'ok' if self.ok else 'FAILED'}"]
        for key, value in self.numbers.items():
            sign = ">=" if key.startswith("slope") else "<="
            bound = f"   {sign} {self.bounds[key]:.1e}" if key in self.bounds else ""
            mark = "" if key not in self.bounds or self.holds(key) else "   <- violated"
            lines.append(f"  {key:<18}{value:.2e}{bound}{mark}")
        return "\n".join(lines)


def convergence_slope(steps: Sequence[float], errors: Sequence[float], floor: float) -> float:
    """The order p in error = O(tᵖ), measured where the error is above round-off.

    The median of the local slopes log(e_i/e_{i+1})/log(t_i/t_{i+1}) over the smaller half of the
    steps whose error is above the floor; infinite when fewer than three are, because the error is
    then round-off everywhere.
    """
    usable = [(t, e) for t, e in zip(steps, errors, strict=True) if e > floor]
    if len(usable) < 3:
        return float("inf")
    t, e = torch.tensor(usable, dtype=torch.float64).log().unbind(-1)
    slopes = (e[:-1] - e[1:]) / (t[:-1] - t[1:])
    return slopes[len(slopes) // 2 :].median().item()


@runtime_checkable
class Gauged(Protocol):
    """A manifold whose points have many packed forms, with what they all stand for."""

    def to_dense(self, x: Tensor) -> Tensor: ...

    def tangent_to_dense(self, x: Tensor, u: Tensor) -> Tensor: ...


def _dense_point(manifold: Manifold, x: Tensor) -> Tensor:
    return (manifold.to_dense(x) if isinstance(manifold, Gauged) else x).detach()


def _dense_vector(manifold: Manifold, x: Tensor, u: Tensor) -> Tensor:
    return (manifold.tangent_to_dense(x, u) if isinstance(manifold, Gauged) else u).detach()


def _distance(a: Tensor, b: Tensor) -> float:
    """Relative to b, unless b vanishes."""
    size = torch.linalg.vector_norm(b).item()
    return torch.linalg.vector_norm(a - b).item() / (size if size > 0 else 1.0)


def _tangents(manifold: Manifold, x: Tensor, count: int, seed: int) -> list[Tensor]:
    """Random tangent vectors of Frobenius norm 1."""
    generator = torch.Generator(device=x.device).manual_seed(seed)
    vectors = []
    for _ in range(count):
        draw = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        u = manifold.proju(x, draw)
        vectors.append(u / torch.linalg.vector_norm(u))
    return vectors


def _plain(x: Tensor) -> Tensor:
    return x.detach().as_subclass(torch.Tensor)


def check_manifold(manifold: Manifold, x: Tensor, *, atol: float = 1e-10, seed: int = 0) -> Report:
    """Whether the parts of a geoopt manifold fit together at the point x.

    Measured: x and its random tangent vectors pass the manifold's own checkers (``off point``,
    ``off tangent``: 0 or 1); proju is idempotent; inner is bilinear, symmetric and positive; projx
    leaves x where it is; retr(x, 0) = x; norm² = inner.

    Cost: a dozen operations of the manifold.
    """
    x = _plain(x)
    u, v, w = _tangents(manifold, x, 3, seed)
    on_point = manifold.check_point_on_manifold(x, atol=atol, rtol=atol)
    on_tangent = manifold.check_vector_on_tangent(x, u, atol=atol, rtol=atol)
    uv, vu = manifold.inner(x, u, v), manifold.inner(x, v, u)
    uu, vv = manifold.inner(x, u, u), manifold.inner(x, v, v)
    size = (uu * vv).sqrt().max().item()
    sum_defect = manifold.inner(x, 2 * u - w, v) - (2 * uv - manifold.inner(x, w, v))
    here = _dense_point(manifold, x)
    numbers = {
        "off point": 0.0 if on_point else 1.0,
        "off tangent": 0.0 if on_tangent else 1.0,
        "proju idempotent": _distance(manifold.proju(x, u), u),
        "inner symmetric": (uv - vu).abs().max().item() / size,
        "inner linear": sum_defect.abs().max().item() / size,
        "inner negative": 0.0 if bool((uu > 0).all()) else 1.0,
        "norm": _distance(manifold.norm(x, u) ** 2, uu),
        "projx": _distance(_dense_point(manifold, manifold.projx(x)), here),
        "retr at 0": _distance(_dense_point(manifold, manifold.retr(x, 0 * u)), here),
    }
    return Report("check_manifold", numbers, dict.fromkeys(numbers, atol))


def check_gradient(
    manifold: Manifold,
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    atol: float = 1e-8,
    seed: int = 0,
) -> Report:
    """Whether egrad2rgrad gives the Riemannian gradient of a loss.

    The error of f(R(tu)) = f(x) + t·g(grad f, u) + O(t²) has slope 2 in t when the gradient, the
    metric and the retraction fit; the gradient must also be tangent.

    Shapes: the loss takes a point and returns a number.
    """
    x = _plain(x).requires_grad_()
    value = loss(x)
    (egrad,) = torch.autograd.grad(value, x)
    x = x.detach()
    rgrad = manifold.egrad2rgrad(x, egrad)
    (u,) = _tangents(manifold, x, 1, seed)
    slope_at_0 = manifold.inner(x, rgrad, u).sum().item()
    with torch.no_grad():
        f0 = loss(x).item()
        errors = [abs(loss(manifold.retr(x, t * u)).item() - f0 - t * slope_at_0) for t in _STEPS]
    floor = 1e3 * torch.finfo(x.dtype).eps * max(abs(f0), abs(slope_at_0), 1e-300)
    numbers = {
        "slope": convergence_slope(_STEPS, errors, floor),
        "off tangent": _distance(manifold.proju(x, rgrad), rgrad),
    }
    return Report("check_gradient", numbers, {"slope": 1.9, "off tangent": atol})


def check_retraction(
    manifold: Manifold,
    x: Tensor,
    u: Tensor | None = None,
    *,
    geodesic: Callable[[float], Tensor] | None = None,
    order: int = 1,
    steps: Sequence[float] = _STEPS,
    seed: int = 0,
) -> Report:
    """Whether retr is a retraction, and of which order.

    Order 1: R(tu) = x + tu + O(t²) in the ambient space, slope 2. With the geodesic t ↦ γ(t) that
    starts at x along u (as dense points), R(tu) − γ(t) has slope order + 1.

    Raises: ValueError for order 2 without a geodesic.
    """
    if order > 1 and geodesic is None:
        raise ValueError(
            f"check_retraction needs a geodesic to measure order {order}; got None; pass "
            "geodesic=lambda t: ... (dense points), or order=1."
        )
    x = _plain(x)
    u = _tangents(manifold, x, 1, seed)[0] if u is None else u
    here, direction = _dense_point(manifold, x), _dense_vector(manifold, x, u)
    errors, on_manifold = [], True
    for t in steps:
        y = manifold.retr(x, t * u)
        target = here + t * direction if geodesic is None else geodesic(t)
        errors.append(torch.linalg.vector_norm(_dense_point(manifold, y) - target).item())
        on_manifold = on_manifold and manifold.check_point_on_manifold(y)
    floor = 1e3 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(here).item()
    numbers = {
        "slope": convergence_slope(steps, errors, floor),
        "off manifold": 0.0 if on_manifold else 1.0,
    }
    return Report("check_retraction", numbers, {"slope": order + 0.9, "off manifold": 0.5})


def check_transport(
    manifold: Manifold, x: Tensor, u: Tensor | None = None, *, atol: float = 1e-9, seed: int = 0
) -> Report:
    """Whether transp is a vector transport along retr, and the combined methods agree with it.

    Measured: the result is tangent at the new point; transp is linear, and the identity from x to
    x; retr_transp and transp_follow_retr give what retr and transp give.
    """
    x = _plain(x)
    first, v, w = _tangents(manifold, x, 3, seed)
    u = 0.1 * first if u is None else u
    y = manifold.retr(x, u)
    moved_v, moved_w = manifold.transp(x, y, v), manifold.transp(x, y, w)
    combined_y, combined_v = manifold.retr_transp(x, u, v)
    numbers = {
        "off tangent": _distance(manifold.proju(y, moved_v), moved_v),
        "linear": _distance(manifold.transp(x, y, 2 * v - w), 2 * moved_v - moved_w),
        "identity at x": _distance(manifold.transp(x, x, v), v),
        "retr_transp point": _distance(
            _dense_point(manifold, combined_y), _dense_point(manifold, y)
        ),
        "retr_transp vector": _distance(
            _dense_vector(manifold, combined_y, combined_v), _dense_vector(manifold, y, moved_v)
        ),
        "transp_follow_retr": _distance(manifold.transp_follow_retr(x, u, v), moved_v),
    }
    return Report("check_transport", numbers, dict.fromkeys(numbers, atol))


def check_hessian(
    manifold: Manifold,
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    hessian: Callable[[Tensor], Tensor],
    *,
    geodesic: Callable[[Tensor, float], Tensor] | None = None,
    atol: float = 1e-8,
    seed: int = 0,
) -> Report:
    """Whether u ↦ Hess f(x)[u] is the Riemannian Hessian of a loss.

    f(R(tu)) = f(x) + t·g(grad f, u) + ½t²·g(Hess u, u) + O(t³) has slope 3 in t. That holds for a
    retraction of order 2 in the manifold's metric (here: svd and orthographic at depth 1, layers at
    integer depths), and at critical points for every retraction. For another metric, away from
    critical points, give (u, t) ↦ γ(t), stored points on its geodesic along u, or on any curve that
    agrees with it to order 2. The Hessian must also be tangent, linear and self-adjoint in the
    metric.
    """
    x = _plain(x).requires_grad_()
    (egrad,) = torch.autograd.grad(loss(x), x)
    x = x.detach()
    rgrad = manifold.egrad2rgrad(x, egrad)
    u, v = _tangents(manifold, x, 2, seed)
    Hu, Hv = hessian(u), hessian(v)
    first = manifold.inner(x, rgrad, u).sum().item()
    second = manifold.inner(x, Hu, u).sum().item()

    def curve(t: float) -> Tensor:
        return manifold.retr(x, t * u) if geodesic is None else geodesic(u, t)

    with torch.no_grad():
        f0 = loss(x).item()
        errors = [abs(loss(curve(t)).item() - f0 - t * first - 0.5 * t**2 * second) for t in _STEPS]
    floor = 1e3 * torch.finfo(x.dtype).eps * max(abs(f0), abs(first), abs(second), 1e-300)
    size = (manifold.norm(x, Hu) * manifold.norm(x, v)).max().item()
    asymmetry = (manifold.inner(x, Hu, v) - manifold.inner(x, u, Hv)).abs().max().item()
    numbers = {
        "slope": convergence_slope(_STEPS, errors, floor),
        "off tangent": _distance(manifold.proju(x, Hu), Hu),
        "linear": _distance(hessian(2 * u - v), 2 * Hu - Hv),
        "symmetric": asymmetry / (size if size > 0 else 1.0),
    }
    bounds = {"slope": 2.9, "off tangent": atol, "linear": atol, "symmetric": atol}
    return Report("check_hessian", numbers, bounds)
