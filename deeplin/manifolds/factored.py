"""What the two manifolds of packed factors share: the tape, the gradient, dense conversions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Inexact
from torch import Tensor

from deeplin.geometry.coordinates import Point, Tangent, project_packed
from deeplin.geometry.metric import Metric, gradient_from_partials, metric_operator
from deeplin.geometry.points import nearest_point
from deeplin.linalg import adjoint_products, hermitian_part, orthonormal_factor, working
from deeplin.manifolds.defects import check_numbers, spectrum_defect
from deeplin.manifolds.low_rank import LowRankManifold

__all__ = ["FactoredManifold"]

GRADIENTS = ("partials", "taped")


class FactoredManifold(LowRankManifold):
    """Rank-r matrices stored as factors, one below the other in a single tensor.

    ``gradient`` says what autograd leaves in ``x.grad``:

    - ``"partials"``: the loss is written with ``x.unpack_tensor()``, and x.grad holds
      (∂_U, ∂_V, ∂_S). No inverse of S is taken for depth ≥ 2. At depth 1 ∂_U S⁻ᴴ is needed, which
      costs ε·σ_1/σ_r unless S is diagonal, as ``retraction="svd"`` leaves it.
    - ``"taped"``: the loss is written with ``A, B = x.manifold.factor_pair(x)``, whose product ABᴴ
      is W, or with ``to_dense(x)``, and x.grad holds (GV, GᴴU, UᴴGV), G = ∇f: accurate at every
      depth, gauge and σ_r. ``unpack_tensor`` then is for looking alone: what it returns carries no
      gradient, and where one would be wanted of it, it raises.
    """

    def __init__(self, rank: int, depth: float | Metric, retraction: str, gradient: str) -> None:
        super().__init__(rank, depth, retraction)
        if gradient not in GRADIENTS:
            raise ValueError(
                f"gradient must be 'partials' or 'taped'; got {gradient!r}; write "
                'gradient="partials" for a loss written with unpack_tensor.'
            )
        self.gradient = gradient

    _factors: tuple[str, ...] = ("U", "S", "V")

    @abstractmethod
    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(U, S, V), views of the rows of x; V is U for a Hermitian manifold."""

    @abstractmethod
    def _stack(self, U: Tensor, S: Tensor, V: Tensor) -> Tensor:
        """One tensor from its rows, after broadcasting the batch dimensions."""

    def _point(self, x: Tensor) -> Point:
        wide = working(x.detach())
        # Frames that were rounded to bfloat16 or float16 are orthonormal to that only.
        if wide.dtype != x.dtype:
            return self._projection(x)
        return Point(*self._split(wide), group=self.group)

    def _tangent(self, point: Point, u: Tensor) -> Tangent:
        Zu, Zs, Zv = self._parts(u)
        return project_packed(point, Zu, Zv, Zs)

    def _coordinates(self, point: Point, u: Tensor) -> Tangent:
        Up, M, Vp = self._split(working(u))
        return Tangent(M, Up, Up if self._hermitian else Vp)

    def _parts(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows of a vector. Raises: ValueError for another number of columns than r."""
        if u.shape[-1] != self.rank:  # they would broadcast; a wrong number of rows does not
            raise ValueError(self._shape_error(u.shape, "u"))
        return self._split(working(u))

    def _store_point(self, point: Point) -> Tensor:
        return self._stack(point.U, point.S, point.V)

    def _store_tangent(self, point: Point, tangent: Tangent) -> Tensor:
        return self._stack(tangent.Up, tangent.M, tangent.Vp)

    def _gradient(self, point: Point, u: Tensor) -> Tangent:
        if self.gradient == "taped":
            return metric_operator(point, self._tangent(point, u), self.metric)
        dU, dS, dV = self._parts(u)
        return gradient_from_partials(point, dU, dV, dS, self.metric)

    def _readable(self, x: Tensor) -> Tensor:
        """x for `unpack_tensor`. Raises: RuntimeError where a taped gradient would be lost."""
        if self.gradient == "taped":
            if torch.is_grad_enabled() and x.requires_grad:
                raise RuntimeError(
                    f"unpack_tensor of a {self.name} with gradient='taped' carries no gradient: "
                    "write the loss with A, B = x.manifold.factor_pair(x), W = ABᴴ; to look at the "
                    "factors, unpack x.detach() or under torch.no_grad()."
                )
            return x.detach()
        return x

    def factor_pair(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Factors A, B with W = A Bᴴ, to write a loss with; q = r columns, or 2r when taped.

        Partials: A = US, B = V. Taped: A = [US + K, U], B = [V, L] with K = L = 0, so that the
        gradients that reach x are ∂_K = GV and ∂_L = GᴴU, free of S.

        Shapes: A (*batch, m, q), B (*batch, n, q).

        >>> from deeplin.manifolds import FixedRankFactored
        >>> manifold = FixedRankFactored(6, 5, 2, depth=1, gradient="taped")
        >>> x = manifold.random(13, 2).requires_grad_()
        >>> A, B = manifold.factor_pair(x)
        >>> bool(torch.allclose(A @ B.mH, manifold.to_dense(x)))
        True
        """
        U, S, V = self._split(x)
        if self.gradient == "partials":
            return U @ S, V
        frame = U.detach()
        K = U - frame
        if self._hermitian:
            return torch.cat([frame @ S + K / 2, frame], -1), torch.cat([frame, K / 2], -1)
        other = V.detach()
        return torch.cat([frame @ S + K, frame], -1), torch.cat([other, V - other], -1)

    def pack_products(
        self, x: Tensor, GV: Inexact[Tensor, "*batch m r"], GhU: Inexact[Tensor, "*batch n r"]
    ) -> Inexact[Tensor, "*batch k r"]:
        """What autograd leaves in ``x.grad`` when taped, (GV, GᴴU, UᴴGV), from two products.

        On the cone ½(G + Gᴴ)U stands for GV and GᴴU.
        """
        U, _, _ = self._split(x.detach())
        if self._hermitian:
            GV = GhU = (GV + GhU) / 2
        return self._stack(GV, adjoint_products((U, GV), group=self.group)[0], GhU)

    def to_dense(self, x: Tensor) -> Inexact[Tensor, "*batch m n"]:
        """The matrix W itself, differentiable.

        Cost: O(m n r); the only place, with ``tangent_to_dense``, where an m×n matrix is formed.
        """
        A, B = self.factor_pair(x)
        return A @ B.mH

    def tangent_to_dense(self, x: Tensor, u: Tensor) -> Inexact[Tensor, "*batch m n"]:
        """The matrix ξ = U M Vᴴ + U_p Vᴴ + U V_pᴴ of a packed tangent vector.

        Cost: O(m n r).
        """
        point = self._point(x)
        return self._tangent(point, u).dense(point)

    def _projection(self, x: Tensor) -> Point:
        U, S, V = self._split(working(x.detach()))
        U, R = orthonormal_factor(U, group=self.group)
        if self._hermitian:
            return Point(U, hermitian_part(R @ S @ R.mH), U)
        V, R_right = orthonormal_factor(V, group=self.group)
        return Point(U, R @ S @ R_right.mH, V, group=self.group)

    def from_dense(self, W: Inexact[Tensor, "*batch m n"]) -> Inexact[Tensor, "*batch k r"]:
        """The packed factors of the nearest (semidefinite) matrix of rank r, with S diagonal.

        Cost: an SVD, O(m n min(m, n)); an eigendecomposition for Hermitian matrices.
        Raises: ValueError when W has another shape, a lower rank, or fewer than r positive
            eigenvalues.
        """
        m, n = self._matrix_sizes(())
        if tuple(W.shape[-2:]) != (m, n):
            raise ValueError(
                f"from_dense(W) must get W of shape (*batch, {m}, {n}); got {tuple(W.shape)}."
            )
        check_numbers(W, "from_dense")
        point = nearest_point(working(W), self.rank, hermitian=self._hermitian)
        x = self._store_point(self._of_full_rank(point, "from_dense"))
        return self._wrapped(self._like(W, x))

    def pack_point(self, *tensors: Tensor) -> Tensor:
        """One tensor from U, S, V, in this order, or from U, S for a Hermitian manifold.

        Shapes: U (*batch, m, r), S (*batch, r, r), V (*batch, n, r) -> (*batch, m+n+r, r), or
        (*batch, n+r, r).
        Raises: ValueError for another number of tensors, or other shapes.
        """
        m, n = self._matrix_sizes(())
        wanted = [(m, self.rank), (self.rank, self.rank), (n, self.rank)][: len(self._factors)]
        shapes = [tuple(tensor.shape[-2:]) for tensor in tensors]
        if shapes != wanted:
            raise ValueError(
                f"pack_point({', '.join(self._factors)}) must get matrices of shapes {wanted}; "
                f"got {shapes}."
            )
        U, S, V = (*tensors, tensors[0])[:3]
        return self._wrapped(self._stack(U, S, V))

    def random(self, *size, dtype=None, device=None, generator=None):
        """A random point, as ``LowRankManifold.random``; one of them when no size is given."""
        size = size or self._stored_shape
        return super().random(*size, dtype=dtype, device=device, generator=generator)

    def origin(self, *size, dtype=None, device=None, seed=42):
        """The point of ``LowRankManifold.origin``; one of them when no size is given."""
        size = size or self._stored_shape
        return super().origin(*size, dtype=dtype, device=device, seed=seed)

    @property
    def _stored_shape(self) -> tuple[int, int]:
        """The shape of one point as it is stored."""
        m, n = self._matrix_sizes(())
        return (m if self._hermitian else m + n) + self.rank, self.rank

    def _shape_error(self, shape: Sequence[int], name: str) -> str | None:
        if tuple(shape[-2:]) == self._stored_shape:
            return None
        m, n = self._matrix_sizes(())
        rows, sizes = ("n+r", f"{n}") if self._hermitian else ("m+n+r", f"{m}, {n}")
        return (
            f"{name} on {self.name}({sizes}, {self.rank}) must have shape (*batch, {rows}, r) = "
            f"(*batch, {self._stored_shape[0]}, {self.rank}); got {tuple(shape)}; use "
            f"pack_point({', '.join(self._factors)}) or from_dense(W)."
        )

    def _core_defect(self, point: Point, tolerance: float) -> str | None:
        S = point.S
        if self._hermitian and S.numel():
            skew = (torch.linalg.matrix_norm(S - S.mH) / torch.linalg.matrix_norm(S)).max().item()
            if skew > tolerance:
                return f"S must be Hermitian; ‖S − Sᴴ‖/‖S‖ = {skew:.3g} > {tolerance:.3g}."
            values = torch.linalg.eigvalsh(hermitian_part(S)).flip(-1)
            negative = (-values[..., -1] / values[..., 0].abs()).nan_to_num(nan=0.0).max().item()
            if negative > self.rank * torch.finfo(values.dtype).eps:
                return f"S must be positive definite; -λ_r/|λ_1| = {negative:.3g}; use projx(x)."
        else:
            values = torch.linalg.svdvals(S)
        return spectrum_defect(values, torch.zeros_like(values[..., 0]), self.rank, tolerance)

    def _point_defect(self, x: Tensor, tolerance: float) -> str | None:
        point = Point(*self._split(x))
        frames = {"U": point.U} if self._hermitian else {"U": point.U, "V": point.V}
        for name, frame in frames.items():
            (gram,) = adjoint_products((frame, frame), group=self.group)
            eye = torch.eye(self.rank, dtype=gram.dtype, device=gram.device)
            defect = (gram - eye).abs().max().item()
            if defect > tolerance:
                return (
                    f"{name} must have orthonormal columns; max|{name}ᴴ{name} − I| = {defect:.3g} "
                    f"is above {tolerance:.3g}; use projx(x)."
                )
        return self._core_defect(point, tolerance)

    def extra_repr(self) -> str:
        taped = ", gradient='taped'" if self.gradient == "taped" else ""
        return f"{super().extra_repr()}{taped}"
