"""HLZ: the escape from spurious critical points."""

from __future__ import annotations

from reproduction.statement import Statement as S

HLZ = (
    S(
        "HLZ Example 1.1",
        "X = diag(2, 1, 0): from diag(2, 0, 1) descent ends at diag(2, 0, 0), perturbed at X.",
        "The limits with α = 0.2 and 0.5, without and with a perturbation of 1e-6.",
    ),
    S(
        "HLZ §1",
        "Spurious points are singular, with negative infinity Hessian directions.",
        "ε·λ_min at distance ε tends to minus the largest eigenvalue of X that Z_# misses; around "
        "a strict saddle of rank r it tends to 0.",
    ),
    S(
        "HLZ §1 [19]",
        "Example 1.1 is an apocalypse: where its sequence ends the tangent cone is larger.",
        "Stationarity is (1 − α)^k → 0 on M_2 and 1 at the limit, by random matrices of rank 2 "
        "nearby; e_2e_2ᵀ is in no tangent space on the way. LRᵀ has the eigenvalue −1 there.",
    ),
    S(
        "HLZ §1 [23]",
        "Reducing the rank where it is numerically lower avoids the spurious point.",
        "From the start of Example 1.1 the distance to X ends at 1 without it, at 0 with Δ = 0.1, "
        "1e-6; elsewhere it changes no limit.",
    ),
    S(
        "HLZ §1 [30]",
        "μ²(‖Z‖² + ‖Z†‖²) added to f keeps Z from lower ranks.",
        "From the start of Example 1.1 σ_r ≥ μ/√g(Z_0), and rests at (2μ²/(1 + 2μ²))^{1/4}; for "
        "μ = 0 it is lost.",
    ),
    S(
        "HLZ Lemma 2.1(1)",
        "M_r is dense in the matrices of rank at most r.",
        "The distance of a rank-s matrix from points of M_r with σ_r = 1e-1 to 1e-12.",
    ),
    S(
        "HLZ Lemma 2.1(2)",
        "M_r of general matrices is connected; of Hermitian ones it has r + 1 branches.",
        "Paths are built between 100 pairs: σ_r stays that of their ends. The same on GL(3) fails "
        "for every pair of two signs. Hermitian paths join within a signature and nowhere else.",
    ),
    S(
        "HLZ Lemma 2.1(3)",
        "dim M_r = (m+n−r)r real, (2m−r+1)r/2 symmetric; complex ones see E3.",
        "The rank of the Gram matrix of 130 projected random directions.",
    ),
    S(
        "HLZ Lemma 2.1(4)",
        "The boundary of M_r is the set of matrices of lower rank.",
        "Points of M_r with σ_r → 0; no rank below r within σ_r of a point, and one at σ_r.",
    ),
    S(
        "HLZ Lemma 2.2",
        "T_X M_r = U⊗V + U⊗V^⊥ + U^⊥⊗V, with projection P_UY + YP_V − P_UYP_V.",
        "Idempotence and self-adjointness on random points, real and complex.",
    ),
    S(
        "HLZ Definition 2.3",
        "The retraction is the nearest matrix of rank r.",
        "The step against a truncated SVD; for SPSD matrices see C1.",
    ),
    S(
        "HLZ Lemma 2.4(1)",
        "Gradient descent has the fixed points X and the partial sums of X's SVD.",
        "‖P_T(Z − X)‖ at each; 150 runs on stable manifolds end at the predicted ones.",
    ),
    S(
        "HLZ Lemma 2.4(2)",
        "With distinct singular values there are 2^r − 1 spurious points.",
        "Their number and the set of index sets, r = 4.",
    ),
    S(
        "HLZ Definition 2.5",
        "S_# is the union of the sets S_s of spurious points of rank s < r.",
        "The listed points: rank, what they miss of X, their order.",
    ),
    S(
        "HLZ Lemma 2.6",
        "U̇ = P_U^⊥MVS^{-1}, V̇ = P_V^⊥M*US^{-*}, Ṡ = U*MV is the gradient flow on M_r.",
        "Its Z(t) against the flow of singular values and frames, and the SPSD form against it.",
    ),
    S(
        "HLZ Lemma 2.7",
        "The SPSD flow exists for all times: σ_min(S) decays at most like e^{−t}.",
        "σ_min(t) over σ_min(0)e^{−t} along runs, t > 0, and where it is attained; with 0.95t in "
        "place of t it is broken.",
    ),
    S(
        "HLZ Theorem 2.8",
        "At an equilibrium there are stable, unstable and center manifolds.",
        unchecked="existence of invariant manifolds, cited from a textbook; the eigenvalues that "
        "the proofs put into it are measured under Lemma 3.8 and Lemma 4.1",
    ),
    S(
        "HLZ Definition 2.9",
        "A strict saddle is a critical point whose Hessian has a negative eigenvalue.",
        "The index of critical points of ½‖Z − X‖² on M_k, by finite differences.",
    ),
    S(
        "HLZ Theorem 2.10",
        "Gradient descent ends at isolated strict saddles with probability 0.",
        "0 of 10 000 random starts on an example; those on the stable line do.",
    ),
    S(
        "HLZ Definition 2.11",
        "A critical submanifold consists of critical points.",
        "The field (DLRA*) at distance ε from random points of N_{Z#}, over ε: bounded.",
    ),
    S(
        "HLZ Definition 2.12",
        "It is strict if the least eigenvalue is below a negative constant on all of it.",
        "The escaping eigenvalue at random points of every N_{Z#}: the missing one of X.",
    ),
    S(
        "HLZ Theorem 2.13",
        "Gradient descent ends on strict critical submanifolds with probability 0.",
        "0 of 10 000 random starts end on a circle of strict saddles.",
    ),
    S(
        "HLZ Theorem 3.1",
        "The gradient flow from a random start ends in S_{r−1} with probability 0.",
        "100 of 100 starts near S_{r−1} and 100 of 100 random ones reach X.",
    ),
    S(
        "HLZ Lemma 3.2",
        "N_{Z#} is an embedded submanifold of St(n, r) ⊕ S_r.",
        "The rank of its parametrisation's derivative at random points: the proof's dimension.",
    ),
    S(
        "HLZ Lemma 3.3",
        "The fields of (DLRA*) are continuous on M_r.",
        "Its differences over h at an S with a double σ_min: bounded; the code against (DLRA*).",
    ),
    S(
        "HLZ Lemma 3.4",
        "They extend continuously, by 0, to S_{r−1}.",
        "The field at distances ε = 1e-2 to 1e-6 from random points of N_{Z#}, over ε: bounded.",
    ),
    S(
        "HLZ Lemma 3.5",
        "(DLRA*) has a unique solution for all times.",
        "The same with the bound 1/(1/σ_min(0) + t).",
    ),
    S(
        "HLZ Lemma 3.6",
        "(DLRA) and (DLRA*) have the same critical points and limits.",
        "Their paths by arc length, and their limits.",
    ),
    S(
        "HLZ Lemma 3.7",
        "The fields extend to S_{r−1} with their derivatives.",
        "The extended Jacobian against finite differences at distances 1e-3 and 1e-4.",
    ),
    S(
        "HLZ Lemma 3.8",
        "N_{Z#} is strict: ξ = (u_r p_{#,r}*, 0) has the eigenvalue d_r > 0.",
        "The Jacobian applied to ξ, at every point of S_{r−1}, and all eigenvalues at one.",
    ),
    S(
        "HLZ Lemma 4.1",
        "Gradient descent with step ασ_r(Z_k) ends in S_{r−1} with probability 0.",
        "120 runs of (2), α = 0.5, 2 and 10, from around every point of S_{r−1}: none ends there; "
        "starts without the missing eigenvector do. The Jacobian by finite differences.",
    ),
    S(
        "HLZ Remark 4.2(1)",
        "The step ασ_r(Z_k) does not vanish in practice, and α has no upper bound for escape.",
        "The least step on 100 runs from random starts, and escape at α = 10.",
    ),
    S(
        "HLZ Remark 4.2(2)",
        "The step makes the iteration's Jacobian extendable to S_{r−1}.",
        "The extended Jacobian against finite differences at distances 1e-3 and 1e-4.",
    ),
    S(
        "HLZ (4)",
        "Hess f[ξ] = ξ + curvature terms with Σ^{-1}, for ξ = U_zMU_z* + U_zNŪ* + ŪN*U_z*.",
        "The formula, with the shapes and the sign of E2, against second differences of f.",
    ),
    S(
        "HLZ §6",
        "All of S_# is left in practice, s < r − 1 and repeated eigenvalues included, though there "
        "(DLRA*) has no continuous extension.",
        "20 runs from around every Z_#, s = 0, …, r − 1, r = 4, both steps; X semidefinite, "
        "general, indefinite, real, complex, repeated: all reach X. (DLRA*) has two limits there.",
    ),
    S(
        "HLZ Lemma A.1",
        "δ‖sin Θ_0‖ ≤ ‖BE_0 − E_0A_0‖ (Davis and Kahan).",
        "The largest quotient of the two sides over random perturbations.",
    ),
    S(
        "HLZ Lemma B.1",
        "A submanifold is, locally, a coordinate slice.",
        unchecked="a textbook’s criterion; it is used for Lemma 3.2, whose dimension is measured",
    ),
    S(
        "HLZ Lemma B.2",
        "(Ω_11, Ω_21) is a chart of the real Stiefel manifold, Ω_11 skew.",
        "Skewness, and the rank nk − k(k+1)/2 of its derivative along the manifold.",
    ),
)
