"""BRTW, sections 2 to 5: the flows, the metric, the tied autoencoder."""

from __future__ import annotations

from reproduction.statement import Statement as S

FLOWS = (
    S(
        "BRTW Definition 1",
        "Layers are balanced if W_{j+1}ᵀW_{j+1} = W_jW_jᵀ for every j.",
        "The gaps of the library's balanced starts, relative to ‖W‖.",
    ),
    S(
        "BRTW Lemma 2(1)",
        "∇_{W_j}L^N = W_{j+1}ᵀ···W_Nᵀ ∇L¹(W) W_1ᵀ···W_{j−1}ᵀ.",
        "The layers' gradients against autograd on the samples.",
    ),
    S(
        "BRTW Lemma 2(2)",
        "The product of layers under (5) obeys (6), balanced or not.",
        "d/dt(W_N···W_1) along the layer flow against the sum (6), written out.",
    ),
    S(
        "BRTW Lemma 2(3)",
        "W_{j+1}ᵀW_{j+1} − W_jW_jᵀ and ‖W_j‖² − ‖W_i‖² are constant along (5).",
        "Their drift over a run, and that it shrinks with the integrator's order 4.",
    ),
    S(
        "BRTW Lemma 2(4)",
        "Balanced layers stay balanced, and their product obeys (7), an equation in W alone.",
        "dW/dt of balanced layers against −Σ(WWᵀ)^{(N−j)/N}∇L¹(WᵀW)^{(j−1)/N}, and whole paths.",
    ),
    S(
        "BRTW Definition 3",
        "𝒜_W(Z) = Σ_j (WWᵀ)^{(N−j)/N} Z (WᵀW)^{(j−1)/N}, equation (8).",
        "The closed form of the code against explicit matrix powers, σ_r down to 1e-9.",
    ),
    S(
        "BRTW Theorem 4",
        "A bounded gradient flow of an analytic function converges to a critical point.",
        "The length of the layers' path over [T, 2T] and the gradient at its end, on random data.",
    ),
    S(
        "BRTW Theorem 5",
        "If XXᵀ has full rank, the layers stay bounded and converge to a critical point of L^N.",
        "‖W(t)‖ ≤ (√(2L¹(W(0))) + ‖Y‖)‖Xᵀ(XXᵀ)^{-1}‖ of the proof, along 80 unbalanced runs and "
        "where it is attained; the gradient at the end of runs. Ascent breaks the bound.",
    ),
    S(
        "BRTW §3",
        "dL^N/dt = −Σ_i‖∇_{W_i}L^N‖² along (5), from the proof of Theorem 5.",
        "The loss of the samples along the flow's velocity against autograd's gradients.",
    ),
    S(
        "BRTW (10)",
        "‖W_i‖_F ≤ C_i‖W‖_F^{1/N} + C̃_i with constants of the conserved gaps alone.",
        "C_i and C̃_i of the proof, from the start's gaps, along runs; the slope of log‖W_i‖ to "
        "log‖W‖ in families of fixed gaps, rectangular ones too: at most 1/N, more if gaps grow.",
    ),
    S(
        "BRTW (12)",
        "WWᵀ = (W_NW_Nᵀ)^N + a polynomial in the layers of degree at most 2N − 2.",
        "The polynomial written out, with the gaps of the start, along runs of rectangular layers; "
        "the growth exponent of WWᵀ − (W_NW_Nᵀ)^N in families of fixed gaps.",
    ),
    S(
        "BRTW (13)",
        "σ_N^{2N} ≤ ‖WWᵀ‖ + ‖P‖ for the largest singular value σ_N of W_N and P of (12).",
        "Both sides along runs, and ‖P‖ against the P_N(σ_N) of the proof, written out.",
    ),
    S(
        "BRTW (14)",
        "σ_N^{2N} ≤ 2‖WWᵀ‖ + B̃_N with a constant of the start's gaps.",
        "B̃_N from the largest value of P_N(x) − x^{2N}/2, along runs; large layers without it.",
    ),
    S(
        "BRTW (15)",
        "σ_N ≤ B'_N‖W‖^{1/N} + B̃'_N.",
        "The same constants, their 2N-th roots, along runs.",
    ),
    S(
        "BRTW Definition 6",
        "A polynomial in matrices and its degree.",
        unchecked="names a notion; it is used, and measured, in (12)",
    ),
    S(
        "BRTW Lemma 7",
        "P_W(Z) = Q_U Z + Z Q_V − Q_U Z Q_V is the orthogonal projection onto T_W M_k.",
        "Idempotence and self-adjointness on random points, real and complex.",
    ),
    S(
        "BRTW Lemma 8",
        "𝒜_W is self-adjoint with image T_W M_k, and positive definite there.",
        "Symmetry, the kernel, the number of positive eigenvalues and 𝒜∘𝒜^{-1} = 1.",
    ),
    S(
        "BRTW Definition 9",
        "g_W(Z_1, Z_2) = ⟨𝒜_W^{-1}Z_1, Z_2⟩_F is a Riemannian metric on M_k.",
        "The inner product in factored form against ⟨𝒜_W^{-1}u, u⟩ at σ_r = 1e-9.",
    ),
    S(
        "BRTW Prop. 10",
        "g_W equals the integrals (19), (20), and (21) for N = 2.",
        "The closed form against quadratures of the three integrals.",
    ),
    S(
        "BRTW Prop. 11",
        "The metric is of class C¹ on M_k.",
        "Slopes of g in three directions and their sum at double and triple singular values: "
        "one-sided ones agree, they add up, and are continuous; of a metric with a kink not.",
    ),
    S(
        "BRTW (22)",
        "The Riemannian gradient of f is 𝒜_W(∇f(W)).",
        "g(∇^g f, v) − Df[v] on random tangent vectors of every manifold class.",
    ),
    S(
        "BRTW Prop. 12",
        "Under a balanced flow the rank of W(t) is that of W(0) for all finite t.",
        "σ_k and σ_{k+1} along runs of layers with room for more; the proof's narrow layers.",
    ),
    S(
        "BRTW (23)",
        "P = (WᵀW)^{1/N}, Q = (WWᵀ)^{1/N} and W obey a polynomial system.",
        "Its W against the product of the layers at t = 5, N = 2 to 10.",
    ),
    S(
        "BRTW Remark 13",
        "In the limit t → ∞ the rank cannot grow, but it can drop.",
        "A run of rank 2 whose σ_2 is 1e-132 at t = 150 while its loss tends to that of rank 1.",
    ),
    S(
        "BRTW Remark 14",
        "Without balance the rank may change in finite time: W_1 = 0, W_2 = 1.",
        "The example: W(0) = 0 of rank 0, W(0.1) > 0.05 of rank 1.",
    ),
    S(
        "BRTW Lemma 15",
        "With a C¹ metric and a C² function, −∇^g L is a C¹ vector field.",
        "The same for the field, and for that of the metric with a kink.",
    ),
    S(
        "BRTW Corollary 16",
        "Through every point passes one maximal integral curve of −∇^g L.",
        "Forward for t and back for t returns to the start; two parametrisations give one curve.",
    ),
    S(
        "BRTW Corollary 17",
        "The product of balanced layers solves Ẇ = −∇^g L¹(W), (24), and is its only solution.",
        "Layers, reduced layers, P-Q-W and manifold form at t = 5, N = 2, 3, 5, 10.",
    ),
    S(
        "BRTW Theorem 18",
        "From any W(0) of rank k there is one flow (24) on M_k for all t ≥ 0.",
        "Layers of narrow and wide balanced factorisations, by scipy: one path, of rank 2, that of "
        "(24) up to t = 5. Layers that are not balanced leave it, and M_2.",
    ),
    S(
        "BRTW Remark 19",
        "As N → ∞ the metric resembles the Bogoliubov inner product (logarithmic means).",
        "The coefficients of 𝒜/N at N = 1e9 and at ∞ against (a − b)/(log a − log b).",
    ),
    S(
        "BRTW (25)",
        "∇E(V) = −(I − VVᵀ)XXᵀV − XXᵀ(I − VVᵀ)V for E(V) = ½‖X − VVᵀX‖².",
        "The tied flow's velocity against autograd.",
    ),
    S(
        "BRTW Theorem 20(1)",
        "The tied flow (26) has a unique solution on [0, ∞).",
        "The integrated flow and Oja's against the closed form of Oja's flow.",
    ),
    S(
        "BRTW Theorem 20(2)",
        "V(t)ᵀV(t) = I_r for all t.",
        "‖VᵀV − I‖ at t = 3.",
    ),
    S(
        "BRTW Theorem 20(3)",
        "V(t) has a limit and it is an equilibrium.",
        "The velocity at the end of runs and ‖V(T) − V(2T)‖.",
    ),
    S(
        "BRTW Theorem 20(4)",
        "The convergence is exponential.",
        "The slope of log‖VVᵀ − limit‖ against the eigengap λ_r − λ_{r+1}.",
    ),
    S(
        "BRTW Theorem 20(5)",
        "The equilibria are V = (v_1|…|v_r)Q with eigenvectors v_i of XXᵀ and Q orthogonal.",
        "The velocity there, and that every limit spans eigenvectors.",
    ),
    S(
        "BRTW Remark 21",
        "With eigenvectors of the r largest eigenvalues these V are the solutions of PCA.",
        "The flow's limits against the minimal value of (27), for random rotations Q.",
    ),
    S(
        "BRTW Theorem 22",
        "(27) is minimal for eigenvectors of the r largest eigenvalues and h_i = Vᵀx_i.",
        "The value Σ_{i>r}λ_i/m there; no random V and no random change of h is below it.",
    ),
    S(
        "BRTW Theorem 23",
        "The limit is optimal if and only if V_0ᵀ(v_1|…|v_r) has rank r.",
        "Limits of starts with that rank and of starts that miss v_1.",
    ),
    S(
        "BRTW Corollary 24",
        "From almost all starts the tied flow reaches an optimal equilibrium.",
        "200 of 200 random starts.",
    ),
    S(
        "BRTW Theorem 25",
        "Near any other equilibrium there is a V of lower E with VᵀV = I.",
        "The loss along the escape direction from all principal subspaces of a 5-d autoencoder.",
    ),
)
