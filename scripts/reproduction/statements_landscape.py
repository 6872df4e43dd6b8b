"""BRTW, section 6 and the appendices: saddles, minimizers, the autoencoder of two layers."""

from __future__ import annotations

from reproduction.statement import Statement as S

LANDSCAPE = (
    S(
        "BRTW Definition 26",
        "A strict saddle in R^d is a critical point whose Hessian has a negative eigenvalue.",
        "classify() on layers against the least eigenvalue of autograd's Hessian of L^N.",
    ),
    S(
        "BRTW Definition 27",
        "The same on a Riemannian manifold, and the strict saddle property.",
        "classify() on M_k against the least eigenvalue of autograd's Hessian in a chart.",
    ),
    S(
        "BRTW (28)",
        "d²/dt² f(γ) = g(γ̇, Hess f[γ̇]) + g(Dγ̇/dt, ∇^g f) along curves.",
        "Curves that are no geodesics, off critical points, depths 1, 2, 2.5, 3, 10: geodesics by "
        "differences, Hess^g from the code. Another depth's Hess^g fails.",
    ),
    S(
        "BRTW Theorem 28",
        "Only a null set of starts of a Riemannian gradient flow ends at strict saddles.",
        "Dψ_T = e^{−T·Hess} at a strict saddle with an eigenvalue > 1, and 0 of 200 random starts.",
    ),
    S(
        "BRTW Theorem 29",
        "The same for iterations of a map h with det Dh ≠ 0.",
        "Of 10 000 random starts of gradient descent 0 end at a saddle; those on its line do.",
    ),
    S(
        "BRTW Remark 30",
        "If no eigenvalue of the Hessian vanishes, more can be said of the speed of escape.",
        unchecked="the paper states no bound; the speed itself is measured under Remark 42",
    ),
    S(
        "BRTW Theorem 31(1)",
        "L^N is neither convex nor concave.",
        "Second differences of L^N of both signs.",
    ),
    S(
        "BRTW Theorem 31(2)",
        "Every local minimum of L^N is global (Kawaguchi; distinct eigenvalues, d_y ≤ d_x).",
        "Critical tuples that a search from 100 random starts finds, four sets of widths: those "
        "without a lower point nearby have the least loss. It finds local minima where there are.",
    ),
    S(
        "BRTW Theorem 31(3)",
        "Every other critical point is a saddle.",
        "The others that the search finds have lower and higher points at distance 0.1.",
    ),
    S(
        "BRTW Theorem 31(4)",
        "At a saddle with rank(W_{N−1}···W_2) = r the Hessian has a negative eigenvalue.",
        "The least eigenvalue of autograd's Hessian at all such lifts, N = 3 and 4.",
    ),
    S(
        "BRTW Prop. 32(1)",
        "The critical points of L¹ on M_k are W_J = Σ_J σ_ju_jv_jᵀ(XXᵀ)^{-1/2}, |J| = k ≤ q.",
        "A search on M_k from 150 random starts finds each W_J and nothing else, and nothing of "
        "rank k > q; ‖P_W∇L¹‖ at every W_J.",
    ),
    S(
        "BRTW Prop. 32(2)",
        "L¹(W_J) = ½(tr YYᵀ − Σ_J σ_j²), least if and only if J picks the k largest.",
        "The loss at every W_J from the samples, and against random matrices of rank k.",
    ),
    S(
        "BRTW Prop. 33",
        "All critical points of L¹ on M_k but the minimizers are strict saddles.",
        "d²/dt² L¹ = 2σ_{j0}(σ_{j0} − σ_{j1}) on the proof's curve; eigenvalues of the Hessian.",
    ),
    S(
        "BRTW Prop. 34(a)",
        "A critical tuple of L^N has a critical product on M_k.",
        "‖P_W∇L¹(W)‖ over ‖∇L¹(W)‖ at critical tuples that a search from 300 random starts finds; "
        "tuples 1e-4 off, and the starts, fail.",
    ),
    S(
        "BRTW Prop. 34(b)",
        "Every critical W of rank k ≤ r is the product of a critical tuple.",
        "autograd's gradient of L^N at the lifts, and their products.",
    ),
    S(
        "BRTW Prop. 35",
        "If W is not minimal on its M_k, the tuple is a strict saddle of L^N.",
        "The least eigenvalue of autograd's Hessian at lifts; runs on a stable manifold end there.",
    ),
    S(
        "BRTW Prop. 36",
        "0 is a saddle of L^N if XYᵀ ≠ 0, strict for N = 2, not strict for N ≥ 3.",
        "autograd's Hessian at 0 and a lower point nearby, N = 2, 3, 4.",
    ),
    S(
        "BRTW Remark 37",
        "If XYᵀ = 0, then 0 is a global minimum of L^N.",
        "classify() at 0 for B = 0, and L^N of random layers against L^N(0).",
    ),
    S(
        "BRTW Prop. 38",
        "N = 2: a minimizer on M_k with k < min(r, q) lifts to strict saddles only.",
        "The least eigenvalue of autograd's Hessian at its lifts.",
    ),
    S(
        "BRTW Theorem 39(a)",
        "For almost all layers the flow (5) ends at a W that is minimal on its M_k.",
        "10⁴ starts of each of 7 kinds, N = 2 to 4, r = q, r < q, q < r, until L is below every "
        "critical value but the least: all get there. Starts on stable sets never do.",
    ),
    S(
        "BRTW Theorem 39(a) [k]",
        "There the rank k of W lies between 0 and r̄ = min(q, r).",
        "Ranks of 200 limits by their singular values, q < r, r < q, q = r: 0 to r̄ all occur, from "
        "starts on stable sets, none above; random starts reach r̄.",
    ),
    S(
        "BRTW Theorem 39(b)",
        "For N = 2 and almost all layers it ends at a global minimum of L².",
        "All of 10⁴ starts of each of 3 kinds, r = q, r < q and q < r: none is left undecided.",
    ),
    S(
        "BRTW Theorem 40",
        "For almost all W(0) in M_k, (24) ends at the minimum of M_k or on some M_ℓ, ℓ < k.",
        "All of 10⁴ balanced starts each, N = 2 and 3: of k = 2 ≤ q at the minimum of M_2; of "
        "k = 2 > q at that of M_1; of k = 3 there or on M_2, as the sign of det W(0) says.",
    ),
    S(
        "BRTW Conjecture 41(a)",
        "Theorem 39(b) holds for N > 2 also.",
        "All of 10⁴ starts of each of 3 kinds with N = 3 and one with N = 4; a slow test: starts "
        "near 0.",
    ),
    S(
        "BRTW Conjecture 41(b)",
        "An autoencoder with u_iᵀW(0)u_i > 0 for i ≤ r and W(0)U_r of rank r ends at Σu_iu_iᵀ.",
        "100 random starts of rank 1 with (37), N = 2, 3, and all of 10⁴ of rank 2 < d = 3 each. "
        "But see E11.",
    ),
    S(
        "BRTW Conjecture 41(c)",
        "In Theorem 40 the second case is a null set of starts if k ≤ rank Q.",
        "10⁴ random starts on M_2 of 3×3 matrices, N = 2 and 3: none. For k = d_x = d_y see E10.",
    ),
    S(
        "BRTW Remark 42",
        "Without (37) Conjecture 41(b) is wrong: W_1 = u_1ᵀ, W_2 = −u_1 decays to 0.",
        "W(t) = −Σu_iu_iᵀ/(2e^{2λ_it} − 1) down to 1e-43; the time of escape by rounding.",
    ),
    S(
        "BRTW Lemma 43",
        "Σ_j A^{p−j}XB^{j−1} = Y is solved by the integrals (41) and (42).",
        "The two quadratures against the linear system, p = 2, 3, 5.",
    ),
    S(
        "BRTW (43)",
        "𝒜_{W,u}^{-1}, of 𝒜_W with uI + WWᵀ and uI + WᵀW, is an integral, continuous at u = 0.",
        "The quadrature against the dense matrix; its distance from 𝒜̄_W^{-1} for u down to 1e-8.",
    ),
    S(
        "BRTW (44)",
        "DK_{i,j,t}(W)[Y], the derivative of the integrand of g_W(ξ_i, ξ_j): its first two terms.",
        "The integral of (44) and (45) against differences of g at triple singular values.",
    ),
    S(
        "BRTW (45)",
        "The other two terms of DK_{i,j,t}.",
        "The same; without any one of the four it is another number.",
    ),
    S(
        "BRTW (46)",
        "ξ = P_W(ξ) = UP_kUᵀξ(I − VP_kVᵀ) + ξVP_kVᵀ for tangent vectors.",
        "The difference, for random tangent vectors; others are not of that form.",
    ),
    S(
        "BRTW (47)",
        "|tr(Dφ_t[Y]ξ_iψ_tξ_jᵀ)| ≤ 2t^{-3}‖WYᵀ‖‖ξ_i‖‖ξ_j‖, and the bounds like t^{-1} and t^{-2}.",
        "Left over right sides for t from 1e-8 to 1e8, with the constants of the proof.",
    ),
    S(
        "BRTW Theorem 44",
        "Integral curves with one initial condition agree where both are defined.",
        "The flow (24) by two charts, dense and factored, and back in time to its start.",
    ),
    S(
        "BRTW Theorem 45(1)",
        "The domain of the flow is open and the flow is of class C^{p−1}.",
        "Slopes of ψ_t in three directions around paths of two and four equal singular values (not "
        "C¹ with a kink in the metric), and where three cross: there they are those of the layers. "
        "Openness is no number.",
    ),
    S(
        "BRTW Theorem 45(2)",
        "ψ_t is a diffeomorphism onto an open set, with inverse ψ_{−t}.",
        "‖ψ_{−t}(ψ_t(W)) − W‖, and det Dψ_t against exp ∫ div > 0 (Liouville).",
    ),
    S(
        "BRTW Lemma 46",
        "The balanced equilibria of (48) are W_2 = UVᵀ = W_1ᵀ, U eigenvectors, V orthonormal.",
        "The velocity at all of them; scaled, turned or sign-changed layers move.",
    ),
    S(
        "BRTW Remark 47",
        "W = 0 is an equilibrium of (48) also.",
        "The velocity at 0.",
    ),
    S(
        "BRTW Corollary 48(1)",
        "A balanced autoencoder with one hidden layer ends at a W = Σ_J u_ju_jᵀ, |J| ≤ r.",
        "The distance of 200 limits, 100 of them without u_1 or u_2, from the nearest such sum.",
    ),
    S(
        "BRTW Corollary 48(2)",
        "Then W_2 → UVᵀ with V orthonormal, and W_1 → W_2ᵀ.",
        "‖W_1 − W_2ᵀ‖ at the end of runs.",
    ),
    S(
        "BRTW Corollary 48(3)",
        "If L¹(W(0)) < ½Σ_{i≥r, i≠r+1}λ_i, W(t) ends at the optimum.",
        "All of the starts below that bound, and that it is the loss of the best saddle.",
    ),
    S(
        "BRTW Corollary 48(4)",
        "If λ_r > λ_{r+1}, starts near the optimum converge to it.",
        "Starts at distances up to 0.05.",
    ),
    S(
        "BRTW Theorem 49",
        "Near every other equilibrium there is a W of rank ≤ r and lower loss.",
        "The loss along the escape direction, k < r and k = r.",
    ),
    S(
        "BRTW Remark 50",
        "(48) is the Riccati-like equation (53) for the stacked V = (W_1ᵀ; W_2).",
        "The right-hand side of (53), block by block, against the layers' flow.",
    ),
    S(
        "BRTW §7.1.1",
        "The setting: Gaussian X, widths on an integer grid, balanced orthogonal starts.",
        "Widths with halves rounded up, the edges of the spectrum, singular values 1 and gaps 0.",
    ),
    S(
        "BRTW §7.2",
        "The supervised setting: Y = W̃X with a random W̃ of rank r.",
        "rank Q = r and an optimal loss of 0.",
    ),
    S(
        "BRTW §7.3 [sizes]",
        "Rates decrease with d_x and r, in the autoencoder case more than in the supervised one.",
        "Medians of the local rate over 21 draws, N = 2 and 5: from (20, 1) to (200, 10) it falls "
        "more than from (20, 2) to (200, 20), where a lower bound stands for it.",
    ),
)
