"""What the papers have wrong, with the number that decides it."""

from __future__ import annotations

from reproduction.statement import Statement as S

ERRATA = (
    S(
        "BRTW Prop. 32(1), erratum",
        "“Precisely” needs distinct σ_j, or “for some SVD of Q”.",
        "Q = I_2, u = (1, 1)/√2: W = uuᵀ is critical on M_1 and no u_ju_jᵀ of the fixed SVD.",
    ),
    S(
        "BRTW Conjecture 41(b), erratum",
        "Fails for every r ≥ 2: det M of W(0) = U_rMU_rᵀ keeps its sign.",
        "M = 0.3·[[1, 2], [2, 1]], C = diag(2, 1): (37) holds, the loss tends to 0.5, not to 0.",
    ),
    S(
        "BRTW Conjecture 41(c), erratum",
        "Fails for k = d_x = d_y: det W(t) keeps its sign, and the optimum has one sign.",
        "Of 250 Gaussian starts on M_3, those of the wrong sign end on a lower rank: about half.",
    ),
    S(
        "BRTW §5, erratum",
        "Section 7 runs another flow than section 5: (48) does not keep W_2 = W_1ᵀ.",
        "‖W_1 − W_2ᵀ‖ from tied layers: 0, then of order 1, then back to 0.",
    ),
    S(
        "BRTW §7.1.1, erratum",
        "Its balanced start does not satisfy (37): with independent ends it does so in 2^{−r}.",
        "The fraction over 4000 draws, r = 4: about 0.0625; 1 if the ends are tied.",
    ),
    S(
        "BRTW §7.1.1, erratum 2",
        "√Σ_{i>r}λ_i is the limit of ‖X − WX‖_F, not of L¹.",
        "At the optimum ‖X − WX‖_F = √Σλ_i and L¹ = ½Σλ_i.",
    ),
    S(
        "BRTW §7.1.1, erratum 3",
        "A plain integrator’s escape, as in Figure 4, can also contradict the true limit.",
        "On the counterexample to 41(b): a plain integrator’s loss is 0.5 at t = 20 and 0 at 150.",
    ),
    S(
        "BRTW §7.2, erratum",
        "It does not test Theorem 31 (rank XYᵀ = r < d_y), nor are there saddles on M_r (k = q).",
        "rank XYᵀ and the number of critical points on M_r of its data: r and 1.",
    ),
    S(
        "BRTW §7.3, erratum",
        "“Rates decrease with N” is a transient in the autoencoder.",
        "The local rate at N = 1, 2, 3, 7.5, 40 against one closed form without N.",
    ),
    S(
        "HLZ Definition 2.3, erratum",
        "On SPSD matrices the nearest matrix of rank r can have a negative eigenvalue.",
        "A step where truncation by size leaves the cone and the r largest eigenvalues do not.",
    ),
    S(
        "HLZ Lemma 2.1(2), erratum",
        "M_r is not connected for F = R and m = n = r.",
        "The least σ_n on 100 paths from det > 0 to det < 0: 0, at a change of sign.",
    ),
    S(
        "HLZ Lemma 2.1(3), erratum",
        "Complex: 2(m+n−r)r in general, (2m−r)r Hermitian, not (2m+2n−r)r and (4m−r+1)r/2.",
        "m = 6, n = 5, r = 2: 36, not 40; m = 6 Hermitian: 20, not 23.",
    ),
    S(
        "HLZ Lemma 3.5, erratum",
        "σ_min of (DLRA*) is bounded by 1/(1/σ_0 + t): algebraically, not geometrically.",
        "On a run that decays: t·σ_min(t) tends to 1, while e^{ct}σ_min(t) grows for every c > 0.",
    ),
    S(
        "HLZ Lemma 3.7, erratum",
        "In cases (2) and (3) the limit is −d_i^{-1}p_ip_r*, with a minus.",
        "The derivative of σ_min(S)S^{-1} along p_ip_r* near S_#: −1/d_i.",
    ),
    S(
        "HLZ Lemma 3.8, erratum",
        "The eigenvalue is the one that Z_# misses, not always d_r.",
        "X with eigenvalues 3, 2, 1: Z_# without the first has the eigenvalue 3.",
    ),
    S(
        "HLZ (4), erratum",
        "Its first curvature term must read (Z − X)ŪN*Σ^{-1}U_z*, and signs differ later on.",
        "Second differences of f: the transposed term with a plus fits, with a minus it does not.",
    ),
    S(
        "HLZ Lemma 4.1, erratum",
        "The escaping eigenvalue is 1 + αD_2, not 1 + 2αD_2.",
        "X = diag(2, 1, 0), Z = diag(2, 0, 1e-4), α = 0.7: a stretch of 1.69993; 2.4 is printed.",
    ),
    S(
        "HLZ Lemma 4.1, erratum 2",
        "“Arbitrarily large α” concerns escape: convergence to X needs ασ_r(X) < 2.",
        "Runs with ασ_r(X) = 1.98 reach X, with 2.02 they do not.",
    ),
)
