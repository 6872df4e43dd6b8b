"""Losses of a matrix W, their Euclidean gradients, and what is known of their optima."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from deeplin.linalg import matmul, tall_times
from deeplin.problems.contract import Problem
from deeplin.problems.spectrum import Eigen, Spectrum, times_inverse_root

__all__ = ["LeastSquares", "autoencoder"]


class LeastSquares(Problem):
    """The loss L¹(W) = ½‖Y − WX‖_F² of a linear map, known through its moments alone.

    Everything is computed from C = XXᵀ, B = YXᵀ and ‖Y‖²; the samples are not kept, so nothing
    below depends on their number m. With Q = YXᵀ(XXᵀ)^{-1/2} = Σ_j σ_j u_j v_jᵀ the critical
    points on the matrices of rank k are W_J = Σ_{j∈J} σ_j u_j v_jᵀ C^{-1/2}, |J| = k.

    Source: BRTW (2), (4), (31), Proposition 32. Where XXᵀ is singular, inverse powers of C are
    those of its pseudo-inverse and `rank_warning` says so: the papers assume full rank.
    Shapes: X (d_x, m), Y (d_y, m), a sample per column; W (*batch, d_y, d_x).
    Cost: O(m d_x (d_x + d_y)) once; then O(d_y d_x²) for each loss or gradient.
    Raises: TypeError for what is no floating-point tensor; ValueError for shapes that do not fit
    and for values that are not finite.
    """

    def __init__(self, X: Float[Tensor, "d_x m"], Y: Float[Tensor, "d_y m"]):
        _check_matrix("X", X)
        _check_matrix("Y", Y)
        if X.shape[1] != Y.shape[1]:
            raise ValueError(
                "X and Y must have one column per sample, equally many; got shapes "
                f"{tuple(X.shape)} and {tuple(Y.shape)}: transpose them, or use from_samples."
            )
        C = X @ X.mT
        B = C if torch.equal(X, Y) else Y @ X.mT  # two equal products can differ in bits
        self._set_moments(C, B, Y.square().sum(), X.shape[1])
        # Σ over samples keeps digits that the difference ‖Y‖² − ‖Q‖² of two large numbers loses.
        self.residual_loss = 0.5 * (Y - self.solution @ X).square().sum()

    def _set_moments(self, C: Tensor, B: Tensor, yy: Tensor, m: int | None) -> None:
        self.is_autoencoder = bool(B.shape == C.shape and torch.equal(B, C))
        self.C = 0.5 * (C + C.mT)
        self.B, self.yy, self.m = self.C if self.is_autoencoder else B, yy, m
        self.d_x, self.d_y = C.shape[0], B.shape[0]
        self.shape = (self.d_y, self.d_x)
        self._white = torch.equal(C, torch.eye(self.d_x, dtype=C.dtype, device=C.device))

    @classmethod
    def from_samples(cls, x: Float[Tensor, "m d_x"], y: Float[Tensor, "m d_y"]) -> LeastSquares:
        """The same problem from samples in rows, as PyTorch's data sets have them."""
        _check_matrix("x", x)
        _check_matrix("y", y)
        return cls(x.mT, y.mT)

    @classmethod
    def from_moments(
        cls,
        C: Float[Tensor, "d_x d_x"],
        B: Float[Tensor, "d_y d_x"],
        yy: float | Tensor,
        m: int | None = None,
    ) -> LeastSquares:
        """The problem with C = XXᵀ, B = YXᵀ, ‖Y‖_F² = yy, from m samples if that is known.

        Accuracy: the loss of the best W of any rank, ½(yy − ‖Q‖²), is a difference here, good to
        eps·yy; from samples it is a sum.
        """
        _check_matrix("C", C)
        _check_matrix("B", B)
        if C.shape[0] != C.shape[1] or B.shape[1] != C.shape[0]:
            raise ValueError(
                "C must be (d_x, d_x) and B (d_y, d_x); got shapes "
                f"{tuple(C.shape)} and {tuple(B.shape)}."
            )
        if not torch.allclose(C, C.mT, rtol=1e-6, atol=1e-6 * float(C.abs().max())):
            raise ValueError("C = XXᵀ must be symmetric; symmetrise it as (C + C.mT) / 2.")
        problem = cls.__new__(cls)
        problem._set_moments(C, B, torch.as_tensor(yy, dtype=C.dtype, device=C.device), m)
        lowest = float(problem.spectrum.values[-1])
        if lowest < -1e-6 * float(problem.spectrum.values[0].abs()):
            raise ValueError(
                f"C = XXᵀ must be positive semidefinite; its smallest eigenvalue is {lowest:.3g}."
            )
        explained = torch.linalg.vector_norm(times_inverse_root(problem.B, problem._positive()))
        problem.residual_loss = 0.5 * (problem.yy - explained**2).clamp(min=0)
        _ = problem.solution  # cached now, not first inside a torch.func transform
        return problem

    @classmethod
    def from_batches(cls, batches: Iterable[Tensor | tuple[Tensor, Tensor]]) -> LeastSquares:
        """The problem of all samples of a stream, in one pass, for data larger than memory.

        Shapes: each batch is (x, y) with x (b, d_x), y (b, d_y), or x alone for an autoencoder.
        Accuracy: moments are summed in float64 and returned in the samples' own dtype.
        """
        C, B, yy, m, autoencoder = None, None, None, 0, True
        dtype = torch.get_default_dtype()
        for batch in batches:
            x, y = batch if isinstance(batch, (tuple, list)) else (batch, batch)
            autoencoder = autoencoder and torch.equal(x, y)
            _check_matrix("x of a batch", x)
            _check_matrix("y of a batch", y)
            if x.shape[0] != y.shape[0]:
                raise ValueError(
                    "x and y of a batch must have equally many rows; got "
                    f"{x.shape[0]} and {y.shape[0]}."
                )
            dtype = x.dtype
            x64, y64 = x.double(), y.double()
            if C is None or B is None or yy is None:
                C = x64.new_zeros(x.shape[1], x.shape[1])
                B = x64.new_zeros(y.shape[1], x.shape[1])
                yy = x64.new_zeros(())
            C.addmm_(x64.mT, x64)
            B.addmm_(y64.mT, x64)
            yy += y64.square().sum()
            m += x.shape[0]
        if C is None or B is None or yy is None:
            raise ValueError("from_batches needs at least one batch; the stream was empty.")
        return cls.from_moments(C.to(dtype), (C if autoencoder else B).to(dtype), yy.to(dtype), m)

    # -- loss and gradient ---------------------------------------------------------------------

    def loss(self, W: Float[Tensor, "*batch d_y d_x"]) -> Float[Tensor, "*batch"]:
        """L¹(W) = ½‖Y − WX‖_F², as ½‖(W − BC⁺)C^{1/2}‖² + ½‖Y − BC⁺X‖².

        Source: BRTW (4). Accuracy: no cancellation as W → BC⁺, where the first term vanishes.
        """
        E = W - self.solution
        return 0.5 * (E * self._times_C(E)).sum((-2, -1)) + self.residual_loss

    def _times_C(self, A: Tensor) -> Tensor:
        """AC; for C = I, as in the approximation of a matrix, A itself."""
        return A if self._white else matmul(A, self.C)

    def egrad(self, W: Float[Tensor, "*batch d_y d_x"]) -> Float[Tensor, "*batch d_y d_x"]:
        """∇L¹(W) = WC − B, computed as (W − BC⁺)C: accurate as W → BC⁺. Source: BRTW §2."""
        return self._times_C(W - self.solution)

    def egrad_pair(
        self, L: Float[Tensor, "*batch d_y k"], R: Float[Tensor, "*batch k d_x"]
    ) -> tuple[Float[Tensor, "*batch d_y k"], Float[Tensor, "*batch k d_x"]]:
        """(GRᵀ, LᵀG) of G = ∇L¹(LR): what the gradients by the two factors are.

        As L(RCRᵀ) − BRᵀ and (LᵀL)RC − LᵀB or through G, whichever takes fewer multiplications.

        Cost: at most those of LR, its gradient and its two products; for k much smaller than d_x
        the products of C and B with k columns.
        Accuracy: eps·(‖LRC‖ + ‖B‖)·max(‖L‖, ‖R‖), absolute.
        """
        k, d_x, d_y = R.shape[-2], self.d_x, self.d_y
        products_with_B = 1 if self.is_autoencoder else 2
        thin = k * (d_x * d_x + 2 * k * (d_x + d_y) + products_with_B * d_x * d_y)
        if thin > d_y * d_x * (3 * k + d_x):
            G = self.egrad(matmul(L, R))
            return matmul(G, R.mT), matmul(L.mT, G)
        RC = self._times_C(R)
        BRt = RC.mT if self.is_autoencoder else matmul(self.B, R.mT)
        LtB = matmul(L.mT, self.B)
        GRt = matmul(L, matmul(RC, R.mT)) - BRt
        return GRt, matmul(matmul(L.mT, L), RC) - LtB

    def egrad_products(
        self,
        U: Float[Tensor, "*batch d_y k"],
        S: Float[Tensor, "*batch k k"] | Float[Tensor, "*batch k"],
        V: Float[Tensor, "*batch d_x k"],
    ) -> tuple[Float[Tensor, "*batch d_y k"], Float[Tensor, "*batch d_x k"]]:
        """(GV, GᵀU) of G = ∇L¹(USVᵀ) at orthonormal U and V, without forming G.

        S is a matrix or the diagonal of one.
        Cost: the products of C and B with k columns. Accuracy: eps·(‖WC‖ + ‖B‖), absolute.
        """
        if S.ndim < V.ndim and S.shape[-1] == 1:
            # Rows times matrices: one product, where a batch of columns is many.
            u, v = U[..., 0], V[..., 0]
            Cv = self._times_C(v)
            Bv, Btu = (Cv, self._times_C(u)) if self.is_autoencoder else (v @ self.B.mT, u @ self.B)
            Gv = torch.addcmul(-Bv, u, S * (v * Cv).sum(-1, keepdim=True))
            return Gv[..., None], (Cv * S - Btu)[..., None]
        if self.is_autoencoder:  # one product of rows with the symmetric C, faster than two
            CV, BtU = (torch.cat([V.mT, U.mT], -2) @ self.C).mT.split(V.shape[-1], -1)
            BV = CV
        else:
            CV = V if self._white else matmul(self.C, V)
            BV, BtU = matmul(self.B, V), matmul(self.B.mT, U)
        S = torch.diag_embed(S) if S.ndim < V.ndim else S
        return tall_times(U, S @ (V.mT @ CV)) - BV, tall_times(CV, S.mT) - BtU

    def egrad_split(
        self, S: Float[Tensor, "*batch k k"], V: Float[Tensor, "*batch d_x k"]
    ) -> tuple[Float[Tensor, "*batch k k"], Float[Tensor, "*batch d_y k"]]:
        """(K, N) with GV = UK − N for G = ∇L¹(USVᵀ), whatever U is: K = SVᵀCV, N = BV.

        Cost: the products of C and B with k columns.
        """
        CV = V if self._white else matmul(self.C, V)
        return S @ (V.mT @ CV), CV if self.is_autoencoder else matmul(self.B, V)

    def loss_difference(self, W: Tensor, W_ref: Tensor) -> Float[Tensor, "*batch"]:
        """L¹(W) − L¹(W_ref) = ½⟨ΔC, Δ⟩ + ⟨∇L¹(W_ref), Δ⟩ with Δ = W − W_ref, to the last digit.

        Unlike a difference of losses this keeps its relative accuracy near W_ref.
        """
        D = W - W_ref
        return (D * (0.5 * self._times_C(D) + self.egrad(W_ref))).sum((-2, -1))

    def curvature(self, W: Float[Tensor, "*batch d_y d_x"]) -> float:
        """λ_1(C), the largest eigenvalue of the Hessian everywhere."""
        return float(self.spectrum.values[0])

    # -- spectrum --------------------------------------------------------------------------------

    @cached_property
    def spectrum(self) -> Eigen:
        """Eigenvalues λ_1 ≥ … ≥ λ_{d_x} of C and its eigenvectors."""
        values, vectors = torch.linalg.eigh(self.C)
        return Eigen(values.flip(0), vectors.flip(1))

    @cached_property
    def rank_X(self) -> int:
        """The numerical rank of XXᵀ: eigenvalues above d_x·eps·λ_1."""
        values = self.spectrum.values
        return int((values > self.d_x * torch.finfo(values.dtype).eps * values[0]).sum())

    def rank_warning(self) -> str | None:
        """A sentence if XXᵀ is singular, against the papers' assumption; None if it is not."""
        if self.rank_X == self.d_x:
            return None
        return (
            f"XXᵀ has rank {self.rank_X} of {self.d_x}, but the theory assumes full rank: W is "
            f"not determined on the {self.d_x - self.rank_X} directions that the data never "
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
    def optimum(self) -> Spectrum:
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

    def range_basis(self) -> Float[Tensor, "d_x rank_X"]:
        """An orthonormal basis E of the range of X, leading eigenvectors of C first."""
        return self.spectrum.vectors[:, : self.rank_X]

    def whitening(self) -> Float[Tensor, "rank_X d_x"]:
        """The map T = Λ^{-1/2}Eᵀ for which TX(TX)ᵀ = I."""
        return self.spectrum.values[: self.rank_X].rsqrt()[:, None] * self.range_basis().mT

    def projected(self) -> LeastSquares:
        """The problem for the coordinates EᵀX on the range of X (and EᵀY for an autoencoder)."""
        C = torch.diag(self.spectrum.values[: self.rank_X])
        B = C if self.is_autoencoder else self.B @ self.range_basis()
        return self._with_moments(C, B)

    def whitened(self) -> LeastSquares:
        """The problem for the whitened data Λ^{-1/2}EᵀX, Y unchanged: C = I, the same σ_j."""
        T = self.whitening()
        return self._with_moments(torch.eye(len(T), dtype=T.dtype, device=T.device), self.B @ T.mT)

    def to(self, *args, **kwargs) -> LeastSquares:
        """The problem with its moments on another device or in another dtype, as `Tensor.to`."""
        return self._with_moments(self.C.to(*args, **kwargs), self.B.to(*args, **kwargs))

    def _with_moments(self, C: Tensor, B: Tensor) -> LeastSquares:
        """A problem of the same least-squares residual."""
        problem = LeastSquares.from_moments(C, B, self.yy.to(C), self.m)
        problem.residual_loss = self.residual_loss.to(C)
        return problem

    def __repr__(self) -> str:
        kind = "autoencoder" if self.is_autoencoder else "least squares"
        samples = "" if self.m is None else f", {self.m} samples"
        return f"LeastSquares({kind}, d_x={self.d_x}, d_y={self.d_y}{samples})"


def autoencoder(X: Float[Tensor, "d m"]) -> LeastSquares:
    """The problem ½‖X − WX‖_F²; its best W of rank r is U_rU_rᵀ, the PCA projection.

    Source: BRTW §5. Shapes: X (d, m), a sample per column.
    """
    return LeastSquares(X, X)


def _check_matrix(name: str, A: object) -> None:
    if not isinstance(A, Tensor) or not A.is_floating_point():
        given = f"dtype {A.dtype}" if isinstance(A, Tensor) else type(A).__name__
        raise TypeError(
            f"{name} must be a real floating-point tensor; got {given}: convert it with "
            "torch.as_tensor(..., dtype=torch.float64)."
        )
    if A.ndim != 2 or 0 in A.shape:
        raise ValueError(f"{name} must be a non-empty matrix; got shape {tuple(A.shape)}.")
    bad = int((~torch.isfinite(A)).sum())
    if bad:
        raise ValueError(f"{name} must be finite; {bad} of {A.numel()} entries are NaN or ±inf.")
