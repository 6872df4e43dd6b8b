"""What the papers have wrong, with the number that decides it, and where a reader may trip.

Errors E1 to E11 and slips of the pen S1 are the papers'; cautions C1 to C3 are ours: there the
paper is right, or silent.
"""

from __future__ import annotations

from reproduction.statement import Statement as S

ERRORS = (
    S(
        "HLZ Lemma 4.1, E1",
        "The escaping eigenvalue is 1 + αD_2, not 1 + 2αD_2.",
        "X = diag(2, 1, 0), Z = diag(2, 0, 1e-4), α = 0.7: a stretch of 1.69993; 2.4 is printed.",
    ),
    S(
        "HLZ (4), E2",
        "Its first curvature term must read (Z − X)ŪN*Σ^{-1}U_z*, and signs differ later on.",
        "Second differences of f: the transposed term with a plus fits, with a minus it does not.",
    ),
    S(
        "HLZ Lemma 2.1(3), E3",
        "Complex: 2(m+n−r)r in general, (2m−r)r Hermitian, not (2m+2n−r)r and (4m−r+1)r/2.",
        "m = 6, n = 5, r = 2: 36, not 40; m = 6 Hermitian: 20, not 23.",
    ),
    S(
        "HLZ Lemma 2.1(2), E3",
        "M_r is not connected for F = R and m = n = r.",
        "The least σ_n on 100 paths from det > 0 to det < 0: 0, at a change of sign.",
    ),
    S(
        "HLZ Lemma 3.7, E3",
        "In cases (2) and (3) the limit is −d_i^{-1}p_ip_r*, with a minus.",
        "The derivative of σ_min(S)S^{-1} along p_ip_r* near S_#: −1/d_i.",
    ),
    S(
        "HLZ Theorem 2.13, E4",
        "As printed, like Theorem 2.10, it bounds no step and asks no det Dφ ≠ 0: false.",
        "f = x²/2 + h(y), h′ = −y near 0, y for |y| ≥ 1, step 1: starts that end at the saddle 0.",
    ),
    S(
        "HLZ Lemma 3.8, E5",
        "Its N_{Z#} lacks U_3 ⊥ U_x of §3.1: on the larger fibre (DLRA*) does not vanish.",
        "‖F*‖ at ε = 1e-2, 1e-4, 1e-6 from a point of it with U_3 in the span of U_x, and without.",
    ),
    S(
        "HLZ App. B, E5",
        "Two charts do not cover St(n, k), k ≥ 2, whatever Q and Q′.",
        "St(5, 2), Q = (I, 0), five random Q′: for each a U that is in neither chart.",
    ),
    S(
        "BRTW §7.1.1, E6",
        "Its balanced start does not satisfy (37): with independent ends it does so in 2^{−r}.",
        "The fraction over 4000 draws, r = 4: about 0.0625; 1 if the ends are tied.",
    ),
    S(
        "BRTW Prop. 32(1), E7",
        "“Precisely”, as in Corollary 48(1), needs distinct σ_j, or “for some SVD of Q”.",
        "Q = I_2, u = (1, 1)/√2: W = uuᵀ is critical on M_1 and no u_ju_jᵀ of the fixed SVD.",
    ),
    S(
        "BRTW §7.2, E8",
        "It does not test Theorem 31 (rank XYᵀ = r < d_y), nor are there saddles on M_r (k = q).",
        "rank XYᵀ and the number of critical points on M_r of its data: r and 1.",
    ),
    S(
        "BRTW §7.3, E9",
        "Autoencoder: the asymptotic rate does not decrease with N, it does not depend on N.",
        "The local rate at N = 1, 2, 3, 7.5, 40 against one closed form without N; fitted decays.",
    ),
    S(
        "BRTW §7.2, E9",
        "Supervised, “slower for larger N”: the teacher, drawn with N layers, weakens with N.",
        "Medians of σ_r of such teachers; with a fixed teacher the rate rises, stays or falls.",
    ),
    S(
        "BRTW Conjecture 41(c), E10",
        "Fails for k = d_x = d_y: det W(t) keeps its sign, and the optimum has one sign.",
        "Of 10⁴ Gaussian starts on M_3, N = 2, 3, those of the wrong sign end on M_2: about half.",
    ),
    S(
        "BRTW Conjecture 41(b), E11",
        "Fails as far as it can be read: det M of W(0) = U_rMU_rᵀ keeps its sign.",
        "M = 0.3·[[1, 2], [2, 1]]: r = d = 2 (an open set), the loss tends to 0.5, not to 0; "
        "r = 2 < d = 3 (it looks like a null set), to 0.7, not to 0.2.",
    ),
)

SLIPS = (
    S(
        "BRTW §7.1.1, S1",
        "√Σ_{i>r}λ_i is the limit of ‖X − WX‖_F, not of L¹.",
        "At the optimum ‖X − WX‖_F = √Σλ_i and L¹ = ½Σλ_i.",
    ),
    S(
        "BRTW Theorem 39, S1",
        "Its proof’s “only if k = r” must be k = r̄ = min(q, r).",
        "q = 1 < r = 2: the global minimum of the layers has rank 1, not r.",
    ),
    S(
        "BRTW Corollary 24, S1",
        "“Lebesgue measure”: St(d, r) is a null set of R^{d×r}; its own measure is meant.",
        "d = 4, r = 2: the dimension of St(d, r), from the rank of D(VᵀV), is 5 of 8.",
    ),
    S(
        "BRTW §7.3, S1",
        "W_2(t) = W_1(t)ᵀ holds in the limit (Lemma 46), not along the way.",
        "‖W_1 − W_2ᵀ‖ from tied layers: 0, then of order 1, then back to 0.",
    ),
    S(
        "HLZ §2, S1",
        "St(n, n) is O(n), not SO(n).",
        "A member of St(3, 3) with determinant −1.",
    ),
    S(
        "HLZ App. B, S1",
        "R_3 is (r−s)×s, not (r−s)×(r−s).",
        unchecked="read off the shapes: R_3 = U_3ᵀM_4 with M_4 of s columns",
    ),
)

CAUTIONS = (
    S(
        "HLZ Definition 2.3, C1",
        "From §3 on M_r is semidefinite: R keeps the r largest algebraic eigenvalues.",
        "A step where truncation by size leaves the cone and the r largest eigenvalues do not.",
    ),
    S(
        "HLZ Lemma 3.5, C1",
        "“No faster than geometrically” is true; the sharp bound of σ_min is 1/(1/σ_0 + t).",
        "On a run that decays: t·σ_min(t) tends to 1, while e^{ct}σ_min(t) grows for every c > 0.",
    ),
    S(
        "HLZ Lemma 3.8, C1",
        "d_r is the eigenvalue that Z_# misses (proof of Lemma 3.4), not always the least.",
        "X with eigenvalues 3, 2, 1: Z_# without the first has the eigenvalue 3.",
    ),
    S(
        "HLZ Lemma 4.1, C1",
        "“Arbitrarily large α” concerns escape: convergence to X needs ασ_r(X) < 2.",
        "Runs with ασ_r(X) = 1.98 reach X, with 2.02 they do not.",
    ),
    S(
        "BRTW §5, C2",
        "§5 ties the layers, §7 runs (48), as both say: (48) does not keep W_2 = W_1ᵀ.",
        "‖W_1 − W_2ᵀ‖ from tied layers under (48): 0, then of order 1, then back to 0.",
    ),
    S(
        "BRTW Fig. 4, C3",
        "The escape is the integrator’s, as the paper says; it can contradict the true limit.",
        "On E11’s start with r = d: a plain integrator’s loss is 0.5 at t = 20 and 0 at 150.",
    ),
)
