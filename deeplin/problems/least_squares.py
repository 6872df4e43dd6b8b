"""Least squares: the loss of a linear map, known through its second moments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Self

import torch
import torch.distributed as dist
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.linalg import matmul, tall_times
from deeplin.problems.autograd import half_square
from deeplin.problems.contract import Problem
from deeplin.problems.held_out import HeldOut
from deeplin.problems.memory import ask_for_memory
from deeplin.problems.moments import (
    Stream,
    check_matrix,
    check_sizes,
    moments_of_stream,
    of_one_dtype,
)
from deeplin.problems.spectrum import Eigen, Spectrum, times_inverse_root

__all__ = ["LeastSquares", "autoencoder"]


class LeastSquares(Problem):
    """The loss L¹(W) = ½‖Y − WX‖_F² of a linear map, known through its moments alone.

    Everything is computed from C = XXᴴ, B = YXᴴ and ‖Y‖²; the samples are not kept, so nothing
    below depends on their number m. With Q = YXᴴ(XXᴴ)^{-1/2} = Σ_j σ_j u_j v_jᴴ the critical
    points on the matrices of rank k are W_J = Σ_{j∈J} σ_j u_j v_jᴴ C^{-1/2}, |J| = k.

    Source: BRTW (2), BRTW (4), BRTW (31), BRTW Prop. 32, for real matrices. Where XXᴴ is singular,
    inverse powers of C are those of its pseudo-inverse and `rank_warning` says so: the papers
    assume full rank.
    Shapes: X (d_x, m), Y (d_y, m), a sample per column, real or complex; W (*batch, d_y, d_x).
    Cost: O(m d_x (d_x + d_y)) once; then O(d_y d_x²) for each loss or gradient.
    Raises: TypeError for what is no floating-point or complex tensor; ValueError for shapes that
    do not fit and for values that are not finite.

    `held_out` are samples that it was not made of, if there are: `report` has their scores.
    """

    held_out: HeldOut | None = None

    def __init__(self, X: Inexact[Tensor, "d_x m"], Y: Inexact[Tensor, "d_y m"]):
        check_matrix("X", X)
        check_matrix("Y", Y)
        if X.shape[1] != Y.shape[1]:
            raise ValueError(
                "X and Y must have one column per sample, equally many; got shapes "
                f"{tuple(X.shape)} and {tuple(Y.shape)}: transpose them, or use from_samples."
            )
        X, Y = of_one_dtype(X, Y)
        d_x, d_y = X.shape[0], Y.shape[0]
        ask_for_memory(f"XXᴴ of {d_x} columns of x", (2 * d_x + d_y) * d_x * X.dtype.itemsize)
        C = X @ X.mH
        B = C if torch.equal(X, Y) else Y @ X.mH  # two equal products can differ in bits
        self._set_moments(C, B, 2 * half_square(Y, (-2, -1)), X.shape[1])
        # Σ over samples keeps digits that the difference ‖Y‖² − ‖Q‖² of two large numbers loses.
        self.residual_loss = half_square(Y - self.solution @ X, (-2, -1))

    def _set_moments(self, C: Tensor, B: Tensor, yy: Tensor, m: int | None) -> None:
        check_sizes(C, B, yy)
        self.is_autoencoder = bool(B.shape == C.shape and torch.equal(B, C))
        self.C = 0.5 * (C + C.mH)
        self.B, self.yy, self.m = self.C if self.is_autoencoder else B, yy, m
        self.d_x, self.d_y = C.shape[0], B.shape[0]
        self.shape = (self.d_y, self.d_x)
        self._white = torch.equal(C, torch.eye(self.d_x, dtype=C.dtype, device=C.device))

    @classmethod
    def from_samples(cls, x: Inexact[Tensor, "m d_x"], y: Inexact[Tensor, "m d_y"]) -> LeastSquares:
        """The same problem from samples in rows, W x_i ≈ y_i, as PyTorch's data sets have them."""
        check_matrix("x", x)
        check_matrix("y", y)
        return cls(x.mT, y.mT)

    @classmethod
    def from_moments(
        cls,
        C: Inexact[Tensor, "d_x d_x"],
        B: Inexact[Tensor, "d_y d_x"],
        yy: float | Tensor,
        m: int | None = None,
    ) -> LeastSquares:
        """The problem with C = XXᴴ, B = YXᴴ, ‖Y‖_F² = yy, from m samples if that is known.

        Accuracy: the loss of the best W of any rank, ½(yy − ‖Q‖²), is a difference here, good to
        eps·yy; from samples it is a sum.
        """
        check_matrix("C", C)
        check_matrix("B", B)
        if C.shape[0] != C.shape[1] or B.shape[1] != C.shape[0]:
            raise ValueError(
                "C must be (d_x, d_x) and B (d_y, d_x); got shapes "
                f"{tuple(C.shape)} and {tuple(B.shape)}."
            )
        C, B = of_one_dtype(C, B)
        if not torch.allclose(C, C.mH, rtol=1e-6, atol=1e-6 * float(C.abs().max())):
            what = "Hermitian" if C.is_complex() else "symmetric"
            raise ValueError(f"C = XXᴴ must be {what}; make it so as (C + C.mH) / 2.")
        problem = cls.__new__(cls)
        problem._set_moments(C, B, torch.as_tensor(yy, dtype=C.real.dtype, device=C.device), m)
        lowest = float(problem.spectrum.values[-1])
        if lowest < -1e-6 * float(problem.spectrum.values[0].abs()):
            raise ValueError(
                f"C = XXᴴ must be positive semidefinite; its smallest eigenvalue is {lowest:.3g}."
            )
        explained = torch.linalg.vector_norm(times_inverse_root(problem.B, problem._positive()))
        problem.residual_loss = 0.5 * (problem.yy - explained**2).clamp(min=0)
        _ = problem.solution  # cached now, not first inside a torch.func transform
        return problem

    @classmethod
    def from_batches(cls, batches: Stream, group: dist.ProcessGroup | None = None) -> LeastSquares:
        """The problem of all samples of a stream, in one pass, for data larger than memory.

        A DataLoader, a generator, or the blocks of memory maps, which are read one by one:
        ``zip(np.array_split(x, 99), np.array_split(y, 99))``, x = ``np.load(file, mmap_mode="r")``.
        With a `group` of torch.distributed the samples are spread over its processes: each gives
        its own batches, of which one may have none, and all get the problem of all samples.

        Shapes: each batch is (x, y) with x (b, d_x), y (b, d_y), or x alone for an autoencoder.
        Cost: a pass over the samples; over processes one all-reduce of (d_x + d_y) d_x numbers.
        Accuracy: moments are summed in float64 and returned in the samples' own dtype.
        """
        C, B, yy, m = moments_of_stream(batches, group)
        return cls.from_moments(C, B, yy, m)

    # -- loss and gradient ---------------------------------------------------------------------

    def loss(self, W: Inexact[Tensor, "*batch d_y d_x"]) -> Float[Tensor, "*batch"]:
        """L¹(W) = ½‖Y − WX‖_F², as ½‖(W − BC⁺)C^{1/2}‖² + ½‖Y − BC⁺X‖².

        Source: BRTW (4). Accuracy: no cancellation as W → BC⁺, where the first term vanishes.
        """
        E = W - self.solution
        return 0.5 * (E.conj() * self._times_C(E)).sum((-2, -1)).real + self.residual_loss

    def _times_C(self, A: Tensor) -> Tensor:
        """AC; for C = I, as in the approximation of a matrix, A itself."""
        return A if self._white else matmul(A, self.C)

    def egrad(self, W: Inexact[Tensor, "*batch d_y d_x"]) -> Inexact[Tensor, "*batch d_y d_x"]:
        """∇L¹(W) = WC − B, computed as (W − BC⁺)C: accurate as W → BC⁺. Source: BRTW §2."""
        return self._times_C(W - self.solution)

    def egrad_pair(
        self, L: Inexact[Tensor, "*batch d_y k"], R: Inexact[Tensor, "*batch k d_x"]
    ) -> tuple[Inexact[Tensor, "*batch d_y k"], Inexact[Tensor, "*batch k d_x"]]:
        """(GRᴴ, LᴴG) of G = ∇L¹(LR): what the gradients by the two factors are.

        As L(RCRᴴ) − BRᴴ and (LᴴL)RC − LᴴB or through G, whichever takes fewer multiplications.

        Cost: at most those of LR, its gradient and its two products; for k much smaller than d_x
        the products of C and B with k columns.
        Accuracy: eps·(‖LRC‖ + ‖B‖)·max(‖L‖, ‖R‖), absolute.
        """
        k, d_x, d_y = R.shape[-2], self.d_x, self.d_y
        products_with_B = 1 if self.is_autoencoder else 2
        thin = k * (d_x * d_x + 2 * k * (d_x + d_y) + products_with_B * d_x * d_y)
        if thin > d_y * d_x * (3 * k + d_x):
            G = self.egrad(matmul(L, R))
            return matmul(G, R.mH), matmul(L.mH, G)
        RC = self._times_C(R)
        BRh = RC.mH if self.is_autoencoder else matmul(self.B, R.mH)
        LhB = matmul(L.mH, self.B)
        GRh = matmul(L, matmul(RC, R.mH)) - BRh
        return GRh, matmul(matmul(L.mH, L), RC) - LhB

    def egrad_times(
        self, A: Tensor, B: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Inexact[Tensor, "*batch d_y p"], Inexact[Tensor, "*batch d_x q"]]:
        """(GP, GᴴQ) of G = ∇L¹(ABᴴ), without forming G.

        Shapes: A (*batch, d_y, k), B (*batch, d_x, k), P (*batch, d_x, p), Q (*batch, d_y, q).
        Cost: the products of C with k, and of YXᴴ with p and q columns.
        """
        CB = B if self._white else matmul(self.C, B)
        GP = A @ (CB.mH @ P) - matmul(self.B, P)
        return GP, CB @ (A.mH @ Q) - matmul(self.B.mH, Q)

    def egrad_products(
        self,
        U: Inexact[Tensor, "*batch d_y k"],
        S: Tensor,
        V: Inexact[Tensor, "*batch d_x k"],
    ) -> tuple[Inexact[Tensor, "*batch d_y k"], Inexact[Tensor, "*batch d_x k"]]:
        """(GV, GᴴU) of G = ∇L¹(USVᴴ) at orthonormal U and V, without forming G.

        Shapes: S (*batch, k, k), or its diagonal (*batch, k).
        Cost: the products of C and B with k columns. Accuracy: eps·(‖WC‖ + ‖B‖), absolute.
        """
        if S.ndim < V.ndim and S.shape[-1] == 1 and not V.is_complex():
            # Rows times matrices: one product, where a batch of columns is many.
            u, v = U[..., 0], V[..., 0]
            Cv = v if self._white else v @ self.C
            Bv, Btu = (Cv, u @ self.C) if self.is_autoencoder else (v @ self.B.mT, u @ self.B)
            Gv = torch.addcmul(-Bv, u, S * (v * Cv).sum(-1, keepdim=True))
            return Gv[..., None], (Cv * S - Btu)[..., None]
        if self.is_autoencoder:  # one product of rows with the Hermitian C, faster than two
            CV, BhU = (torch.cat([V.mH, U.mH], -2) @ self.C).mH.split(V.shape[-1], -1)
            BV = CV
        else:
            CV = V if self._white else matmul(self.C, V)
            BV, BhU = matmul(self.B, V), matmul(self.B.mH, U)
        S = torch.diag_embed(S) if S.ndim < V.ndim else S
        S = S.to(V.dtype) if V.is_complex() else S  # singular values are real
        return tall_times(U, S @ (V.mH @ CV)) - BV, tall_times(CV, S.mH) - BhU

    def egrad_split(
        self, S: Inexact[Tensor, "*batch k k"], V: Inexact[Tensor, "*batch d_x k"]
    ) -> tuple[Inexact[Tensor, "*batch k k"], Inexact[Tensor, "*batch d_y k"]]:
        """(K, N) with GV = UK − N for G = ∇L¹(USVᴴ), whatever U is: K = SVᴴCV, N = BV.

        Cost: the products of C and B with k columns.
        """
        CV = V if self._white else matmul(self.C, V)
        return S @ (V.mH @ CV), CV if self.is_autoencoder else matmul(self.B, V)

    def loss_difference(self, W: Tensor, W_ref: Tensor) -> Float[Tensor, "*batch"]:
        """L¹(W) − L¹(W_ref) = ½⟨ΔC, Δ⟩ + Re⟨∇L¹(W_ref), Δ⟩ with Δ = W − W_ref, to the last digit.

        Unlike a difference of losses this keeps its relative accuracy near W_ref.
        """
        D = W - W_ref
        return (D.conj() * (0.5 * self._times_C(D) + self.egrad(W_ref))).sum((-2, -1)).real

    def hessian_times(
        self, A: Tensor, B: Tensor, left: Tensor, right: Tensor, P: Tensor, Q: Tensor
    ) -> tuple[Inexact[Tensor, "*batch d_y p"], Inexact[Tensor, "*batch d_x q"]]:
        """(HP, HᴴQ) of H = ξC, ξ = left·rightᴴ; the same at every ABᴴ."""
        left = left.expand(*torch.broadcast_shapes(A.shape[:-2], left.shape[:-2]), *left.shape[-2:])
        C_right = right if self._white else matmul(self.C, right)
        return left @ (C_right.mH @ P), C_right @ (left.mH @ Q)

    def curvature(self, W: Inexact[Tensor, "*batch d_y d_x"]) -> float:
        """λ_1(C), the largest eigenvalue of the Hessian everywhere."""
        return float(self.spectrum.values[0])

    def pair_curvature(self, A: Tensor, B: Tensor) -> float:
        """λ_1(C), the largest eigenvalue of the Hessian everywhere."""
        return float(self.spectrum.values[0])

    def report(self, W: Inexact[Tensor, "*batch d_y d_x"]) -> Mapping[str, Float[Tensor, "*batch"]]:
        """How well W predicts the samples held out, as `HeldOut.scores` has it; {} without any."""
        return {} if self.held_out is None else self.held_out.scores(W)

    # -- spectrum --------------------------------------------------------------------------------

    @cached_property
    def spectrum(self) -> Eigen:
        """Eigenvalues λ_1 ≥ … ≥ λ_{d_x} of C and its eigenvectors."""
        values, vectors = torch.linalg.eigh(self.C)
        return Eigen(values.flip(0), vectors.flip(1))

    @cached_property
    def rank_X(self) -> int:
        """The numerical rank of XXᴴ: eigenvalues above d_x·eps·λ_1."""
        values = self.spectrum.values
        return int((values > self.d_x * torch.finfo(values.dtype).eps * values[0]).sum())

    def rank_warning(self) -> str | None:
        """A sentence if XXᴴ is singular, against the papers' assumption; None if it is not."""
        if self.rank_X == self.d_x:
            return None
        adjoint = "ᴴ" if self.field == "complex" else "ᵀ"
        return (
            f"XX{adjoint} has rank {self.rank_X} of {self.d_x}, but the theory assumes full rank: "
            f"W is not determined on the {self.d_x - self.rank_X} directions that the data never "
            "excite. Project onto the range of X, or whiten X."
        )

    def _positive(self) -> Eigen:
        """The eigenpairs of C with positive eigenvalues."""
        values, vectors = self.spectrum
        return Eigen(values[: self.rank_X], vectors[:, : self.rank_X])

    @cached_property
    def Q(self) -> Inexact[Tensor, "d_y d_x"]:
        """Q = YXᴴ(XXᴴ)^{-1/2}, which decides the whole landscape. Source: BRTW (31)."""
        if self._white:
            return self.B
        return times_inverse_root(self.B, self._positive()) @ self._positive().vectors.mH

    @cached_property
    def solution(self) -> Inexact[Tensor, "d_y d_x"]:
        """BC⁺, the minimizer of L¹ over all matrices (of least norm where XXᴴ is singular)."""
        values, E = self._positive()
        if self.is_autoencoder:
            full = self.rank_X == self.d_x
            return torch.eye(self.d_x, dtype=E.dtype, device=E.device) if full else E @ E.mH
        return (self.B @ E / values) @ E.mH

    # -- optimum and critical points -----------------------------------------------------------

    @cached_property
    def optimum(self) -> Spectrum:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The SVD of Q and all that follows from it: minimizers, losses, critical points."""
        if self._white and not self.is_autoencoder:
            return Spectrum.of_matrix(self.B, self.residual_loss)
        eigen, same = self._positive(), self.is_autoencoder
        return Spectrum.of_moments(self.C, self.B, eigen, self.residual_loss, autoencoder=same)

    @property
    def svd_Q(self) -> tuple[Tensor, Tensor, Tensor]:
        """(U, σ, Vᴴ) of the reduced SVD Q = UΣVᴴ with σ_1 ≥ … ≥ σ_q > 0. Source: BRTW (31)."""
        return self.optimum.U, self.optimum.s, self.optimum.V.mH

    @property
    def singular_values(self) -> Float[Tensor, " q"]:
        """The positive singular values σ_1 ≥ … ≥ σ_q of Q; for an autoencoder √λ_i."""
        return self.optimum.s

    @property
    def rank_Q(self) -> int:
        """q = rank Q. Source: BRTW (31)."""
        return self.optimum.rank

    def optimal_loss(self, k: int) -> Float[Tensor, ""]:
        """inf L¹ on rank k, ½(‖Y‖² − Σ_{i≤min(k,q)} σ_i²). Source: BRTW Prop. 32."""
        return self.optimum.optimal_loss(k)

    def minimizer(self, k: int) -> Inexact[Tensor, "d_y d_x"]:
        """The minimizer W_{{1..k}} of L¹ on rank k, unique iff σ_k > σ_{k+1}.

        Source: BRTW Prop. 32.
        Raises: ValueError for k > rank Q, where the infimum is not attained.
        """
        return self.optimum.minimizer(k)

    def has_unique_minimizer(self, k: int) -> bool:
        """Whether σ_k > σ_{k+1}, by more than √eps·σ_1."""
        return self.optimum.is_unique(k)

    def critical_point(self, J: Iterable[int]) -> Inexact[Tensor, "d_y d_x"]:
        """W_J = Σ_{j∈J} σ_j u_j v_jᴴ C^{-1/2}, J ⊆ {1..q} counted from 1 as in the paper.

        Source: BRTW Prop. 32. For an autoencoder W_J = Σ_{j∈J} u_j u_jᴴ.
        Raises: ValueError for indices outside 1..q or given twice.
        """
        return self.optimum.point(J)

    # -- singular data -------------------------------------------------------------------------

    def range_basis(self) -> Inexact[Tensor, "d_x rank_X"]:
        """An orthonormal basis E of the range of X, leading eigenvectors of C first."""
        return self.spectrum.vectors[:, : self.rank_X]

    def whitening(self) -> Inexact[Tensor, "rank_X d_x"]:
        """The map T = Λ^{-1/2}Eᴴ for which TX(TX)ᴴ = I."""
        return self.spectrum.values[: self.rank_X].rsqrt()[:, None] * self.range_basis().mH

    def projected(self) -> LeastSquares:
        """The problem for the coordinates EᴴX on the range of X (and EᴴY for an autoencoder)."""
        C = torch.diag(self.spectrum.values[: self.rank_X]).to(self.C.dtype)
        B = C if self.is_autoencoder else self.B @ self.range_basis()
        return self._with_moments(C, B)

    def whitened(self) -> LeastSquares:
        """The problem for the whitened data Λ^{-1/2}EᴴX, Y unchanged: C = I, the same σ_j."""
        T = self.whitening()
        return self._with_moments(torch.eye(len(T), dtype=T.dtype, device=T.device), self.B @ T.mH)

    def to(self, *args, **kwargs) -> Self:
        """The problem with its moments on another device or in another dtype, as `Tensor.to`."""
        moved = super().to(*args, **kwargs)
        if moved is not self:
            moved.B = moved.C if moved.is_autoencoder else moved.B
            moved.held_out = self.held_out and self.held_out.to(*args, **kwargs)
            _ = moved.solution  # cached now, not first inside a torch.func transform
        return moved

    def _with_moments(self, C: Tensor, B: Tensor) -> LeastSquares:
        """A problem of the same least-squares residual."""
        problem = LeastSquares.from_moments(C, B, self.yy, self.m)
        problem.residual_loss = self.residual_loss
        return problem

    def __repr__(self) -> str:
        kind = "autoencoder" if self.is_autoencoder else "least squares"
        samples = "" if self.m is None else f", {self.m} samples"
        return f"LeastSquares({kind}, d_x={self.d_x}, d_y={self.d_y}{samples})"


def autoencoder(X: Inexact[Tensor, "d m"]) -> LeastSquares:
    """The problem ½‖X − WX‖_F²; its best W of rank r is U_rU_rᴴ, the PCA projection.

    Source: BRTW §5. Shapes: X (d, m), a sample per column.
    """
    return LeastSquares(X, X)
