"""Matrix sensing: a matrix known by its inner products with given ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.linalg import largest_modulus
from deeplin.problems.autograd import half_square
from deeplin.problems.contract import Problem
from deeplin.problems.memory import ask_for_memory
from deeplin.problems.planted import planted_factors

__all__ = ["OPERATORS", "MatrixSensing"]

OPERATORS = ("gaussian", "rank_one")

# Up to this many measurements λ_1 of their Gram matrix is computed densely; beyond it, by Lanczos.
_DENSE = 1000
_BLOCK = 1024


class MatrixSensing(Problem):
    """f(W) = ½Σ_l |⟨A_l, W⟩ − b_l|², ⟨A, W⟩ = tr(AᴴW), the error of p linear measurements of W.

    The operators A_l are given as one tensor, or as two, a and b, where A_l = a_l b_lᴴ has rank
    one: ⟨A_l, W⟩ = a_lᴴ W b_l, and no m×n matrix is formed but in `egrad`.

    Shapes: operators (p, m, n), or the pair of a (p, m) and b (p, n); values (*batch, p); all real
        or all complex.
    Cost: O(p m n) for a loss or a gradient; of rank one O(p q (m + n)) for a factor pair of q
        columns.
    Raises: TypeError for what is no floating-point or complex tensor; ValueError for shapes that
        do not fit.

    >>> problem = MatrixSensing(torch.eye(2).reshape(1, 2, 2), torch.tensor([3.0]))
    >>> problem.loss(torch.eye(2))  # the trace of W should be 3
    tensor(0.5000)
    """

    def __init__(
        self,
        operators: Inexact[Tensor, "p m n"] | tuple[Inexact[Tensor, "p m"], Inexact[Tensor, "p n"]],
        values: Inexact[Tensor, "*batch p"],
    ):
        pair = isinstance(operators, tuple | list)
        parts = list(operators) if isinstance(operators, tuple | list) else [operators]
        for name, part in (*(("operators", part) for part in parts), ("values", values)):
            if not isinstance(part, Tensor) or not (part.is_floating_point() or part.is_complex()):
                given = f"dtype {part.dtype}" if isinstance(part, Tensor) else type(part).__name__
                raise TypeError(
                    f"MatrixSensing: {name} must be floating-point or complex tensors; got "
                    f"{given}: convert them with torch.as_tensor(..., dtype=torch.float64)."
                )
        if len({part.dtype for part in (*parts, values)}) > 1:
            raise TypeError(
                "MatrixSensing: operators and values must have one dtype; got "
                f"{', '.join(str(part.dtype) for part in (*parts, values))}."
            )
        given = ", ".join(str(tuple(part.shape)) for part in parts)
        if [part.ndim for part in parts] != ([2, 2] if pair else [3]):
            raise ValueError(
                "MatrixSensing(operators, values) needs operators of shape (p, m, n), or a pair "
                f"(a, b) of shapes (p, m) and (p, n); got {given}."
            )
        if values.ndim < 1 or {len(part) for part in parts} != {values.shape[-1]}:
            raise ValueError(
                "MatrixSensing(operators, values) needs one value per operator; got operators of "
                f"shape {given} and values of shape {tuple(values.shape)}."
            )
        self.operators: Tensor | tuple[Tensor, Tensor] = (parts[0], parts[1]) if pair else parts[0]
        self.values = values
        self.shape = (parts[0].shape[1], parts[-1].shape[-1])

    @classmethod
    def planted(
        cls,
        shape: tuple[int, int],
        rank: int,
        *,
        measurements: int | None = None,
        operators: str = "gaussian",
        spectrum: Sequence[float] | None = None,
        condition: float = 1.0,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[MatrixSensing, tuple[Tensor, Tensor, Tensor]]:
        """The problem of a random W* of rank r, and the factors (U, σ, V) of W*.

        The entries of the operators A_l are Gaussian of variance 1/p, so that Σ_l |⟨A_l, W⟩|² has
        the mean ‖W‖²; with operators="rank_one" they are a_l b_lᴴ, alike. The values are those of
        W* (see `planted_factors`) and `noise`/√p times normal errors: `noise` is the standard
        deviation for a measurement of norm 1. `measurements`: p, by default four times the
        dimension r(m + n − r) of the matrices of rank r.

        Cost: O(p m n) numbers, of rank one O(p (m + n)).
        Raises: ValueError for other operators, and as `planted_factors`.
        """
        if operators not in OPERATORS:
            raise ValueError(
                f"operators must be {' or '.join(map(repr, OPERATORS))}; got {operators!r}."
            )
        U, sigma, V = planted_factors(
            shape, rank, spectrum=spectrum, condition=condition, generator=generator, dtype=dtype
        )
        m, n = shape
        p = 4 * rank * (m + n - rank) if measurements is None else measurements
        entries = p * (m * n if operators == "gaussian" else m + n)
        ask_for_memory(f"{p} measurements of {m}×{n} matrices", 2 * entries * U.dtype.itemsize)

        def drawn(*size: int) -> Tensor:
            return torch.randn(*size, dtype=U.dtype, generator=generator)

        A: Tensor | tuple[Tensor, Tensor]
        if operators == "rank_one":
            A = drawn(p, m) / p**0.25, drawn(p, n) / p**0.25
        else:
            A = drawn(p, m, n) / p**0.5
        exact = cls(A, U.new_zeros(p)).measure((U * sigma) @ V.mH)
        return cls(A, exact + noise * drawn(p) / p**0.5), (U, sigma, V)

    def measure(self, W: Inexact[Tensor, "*#batch m n"]) -> Inexact[Tensor, "*#batch p"]:
        """⟨A_l, W⟩ for each l."""
        if isinstance(self.operators, Tensor):
            return W.flatten(-2) @ self.operators.flatten(1).mH
        a, b = self.operators
        return ((a.conj() @ W) * b).sum(-1)

    def _measure_pair(self, A: Tensor, B: Tensor) -> Tensor:
        """⟨A_l, ABᴴ⟩ for each l."""
        if isinstance(self.operators, Tensor):
            return self.measure(A @ B.mH)
        a, b = self.operators
        return ((a.conj() @ A) * (b.conj() @ B).conj()).sum(-1)

    def adjoint(self, weights: Inexact[Tensor, "*#batch p"]) -> Inexact[Tensor, "*#batch m n"]:
        """Σ_l weights_l A_l."""
        if isinstance(self.operators, Tensor):
            return (weights @ self.operators.flatten(1)).unflatten(-1, self.shape)
        a, b = self.operators
        return (a.mT * weights[..., None, :]) @ b.conj()

    def _adjoint_times(self, weights: Tensor, P: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
        """(EP, EᴴQ) of E = Σ_l weights_l A_l."""
        if isinstance(self.operators, Tensor):
            E = self.adjoint(weights)
            return E @ P, E.mH @ Q
        a, b = self.operators
        EP = a.mT @ (weights[..., None] * (b.conj() @ P))
        return EP, b.mT @ (weights.conj()[..., None] * (a.conj() @ Q))

    def loss(self, W: Inexact[Tensor, "*#batch m n"]) -> Float[Tensor, "*#batch"]:
        """½Σ_l |⟨A_l, W⟩ − b_l|²."""
        return half_square(self.measure(W) - self.values, -1)

    def egrad(self, W: Inexact[Tensor, "*#batch m n"]) -> Inexact[Tensor, "*#batch m n"]:
        """∇f(W) = Σ_l (⟨A_l, W⟩ − b_l) A_l."""
        return self.adjoint(self.measure(W) - self.values)

    def pair_loss(
        self, A: Inexact[Tensor, "*#batch m k"], B: Inexact[Tensor, "*#batch n k"]
    ) -> Float[Tensor, "*#batch"]:
        """f(ABᴴ); of operators of rank one, from their products with A and B."""
        return half_square(self._measure_pair(A, B) - self.values, -1)

    def egrad_times(
        self, A: Tensor, B: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Inexact[Tensor, "*#batch m p"], Inexact[Tensor, "*#batch n q"]]:
        """(GP, GᴴQ) of G = ∇f(ABᴴ).

        Shapes: A (*batch, m, k), B (*batch, n, k), P (*batch, n, p), Q (*batch, m, q).
        """
        return self._adjoint_times(self._measure_pair(A, B) - self.values, P, Q)

    def quadratic_along(self, left: Tensor, right: Tensor) -> Float[Tensor, "*#batch"]:
        """Σ_l |⟨A_l, ξ⟩|² along ξ = left·rightᴴ."""
        return 2 * half_square(self._measure_pair(left, right), -1)

    def hessian_times(
        self, A: Tensor, B: Tensor, left: Tensor, right: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Inexact[Tensor, "*#batch m p"], Inexact[Tensor, "*#batch n q"]]:
        """(HP, HᴴQ) of H = Σ_l ⟨A_l, ξ⟩ A_l, ξ = left·rightᴴ; the same at every ABᴴ."""
        measured = self._measure_pair(left, right)
        batch = torch.broadcast_shapes(
            measured.shape[:-1], A.shape[:-2], B.shape[:-2], self.values.shape[:-1]
        )
        return self._adjoint_times(measured.expand(*batch, -1), P, Q)

    def _gram_times(self, x: Tensor) -> Tensor:
        """Kx with K_lk = ⟨A_l, A_k⟩, by rows; K itself is not kept."""
        if isinstance(self.operators, Tensor):
            return self.measure(self.adjoint(x.mT)).mT
        a, b = self.operators
        blocks = zip(a.split(_BLOCK), b.split(_BLOCK), strict=True)
        return torch.cat([((c.conj() @ a.mT) * (d @ b.mH)) @ x for c, d in blocks])

    @cached_property
    def _largest(self) -> float:
        p, device = self.values.shape[-1], self.values.device
        if p == 0:
            return 0.0
        if p <= _DENSE:
            K = self._gram_times(torch.eye(p, dtype=self.values.dtype, device=device))
            return float(torch.linalg.eigvalsh(K)[-1])
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(p, 1, dtype=self.values.dtype, generator=generator).to(device)
        return float(largest_modulus(self._gram_times, start, iterations=200, rtol=1e-3))

    def curvature(self, W: Inexact[Tensor, "*#batch m n"]) -> float:
        """λ_1 of the Gram matrix ⟨A_l, A_k⟩ of the operators; the same at every W. Computed once.

        Cost: of p <= 1000 operators the eigenvalues of a p×p matrix; of more, at most 200 products
        with it, which is not kept.
        Accuracy: for p > 1000 about 1e-5 relative, from below.
        """
        return self._largest

    def pair_curvature(self, A: Tensor, B: Tensor) -> float:
        """λ_1 of the Gram matrix of the operators, as `curvature`."""
        return self._largest
