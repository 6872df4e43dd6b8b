"""The numbered equations, figures and sections of the two papers: what a docstring may cite.

With the statements (`statements.py`) these are all the locators that there are.
"""

from __future__ import annotations

import re

from reproduction.statement import label_of
from reproduction.statements import STATEMENTS

__all__ = ["EQUATIONS", "LOCATOR", "known"]

LOCATOR = re.compile(
    r"\b(BRTW|HLZ)\s+("
    r"(?:Definition|Lemma|Theorem|Prop\.|Remark|Corollary|Conjecture|Example)\s+"
    r"[0-9AB]+(?:\.[0-9]+)?(?:\([0-9a-e]\))?"
    r"|\((?:[0-9]+|DLRA\*?)\)|Fig\.\s+[0-9]+[a-d]?|§[0-9](?:\.[0-9])*|App\.\s+[A-D])"
)

_BRTW = (
    "W = W_N···W_1",
    "L^N, the loss of the layers",
    "the problem min L^N",
    "L¹, the loss of the product",
    "Ẇ_j = −∇_{W_j}L^N, the flow of the layers",
    "the flow of the product of any layers",
    "R(t) = 0: the flow of the product of balanced layers",
    "𝒜_W(Z) = Σ_j (WWᵀ)^{(N−j)/N} Z (WᵀW)^{(j−1)/N}",
    "Ẇ = −𝒜_W(∇L¹(W))",
    "‖W_i‖ is bounded by ‖W‖^{1/N}",
    "a term of a polynomial in matrices",
    "WWᵀ = (W_NW_Nᵀ)^N + a polynomial of lower degree",
    "a bound of σ_1(W_N)^{2N} by ‖WWᵀ‖ and the polynomial",
    "a bound of σ_1(W_N)^{2N} by ‖WWᵀ‖",
    "a bound of σ_1(W_N) by ‖W‖^{1/N}",
    "the tangent space of M_k at W",
    "(WWᵀ)^{(N−j)/N} as W times a matrix",
    "the metric g_W = ⟨𝒜̄_W⁻¹·, ·⟩_F",
    "g_W as an integral of resolvents",
    "g_W as an integral of exponentials",
    "g_W for N = 2",
    "the Riemannian gradient ∇^g f(W) = 𝒜_W(∇f(W))",
    "the flow of P, Q and W",
    "Ẇ = −∇^g L¹(W) on M_k",
    "∇E(V) of E(V) = L²(Vᵀ, V)",
    "the flow of the autoencoder with tied layers",
    "principal components as a minimum",
    "the second derivative of f along a curve",
    "a Riemannian gradient flow",
    "its map ψ_t",
    "Q = YXᵀ(XXᵀ)^{-1/2}",
    "the critical points W_J = Σ_J σ_ju_jv_jᵀ(XXᵀ)^{-1/2}",
    "L¹ along a curve",
    "a curve through a critical tuple",
    "a tuple is critical if (WXXᵀ − YXᵀ)W_1ᵀ = 0 and W_Nᵀ(WXXᵀ − YXᵀ) = 0",
    "the same by Q",
    "condition u_iᵀW(0)u_i > 0",
    "the system of Remark 42",
    "its solution",
    "the matrix equation Σ_j A^{p−j}XB^{j−1} = Y",
    "its solution by resolvents",
    "its solution by exponentials",
    "𝒜_{W,u}⁻¹, the regularised metric",
    "a derivative in the proof of Prop. 11, first part",
    "a derivative in the proof of Prop. 11, second part",
    "a frame split by Lemma 7",
    "a bound in the proof of Prop. 11",
    "the flow of an autoencoder of two layers",
    "its equilibria",
    "its balanced equilibria",
    "their products",
    "(I − W_2W_2ᵀ)XXᵀW_2 = 0",
    "the Riccati-like form",
)
_HLZ = {
    "(1)": "U̇ = P_U^⊥MVS⁻¹, V̇ = P_V^⊥MᴴUS^{−ᴴ}, Ṡ = UᴴMV",
    "(2)": "Riemannian gradient descent with the step ασ_r(Z_k)",
    "(3)": "its iteration function φ",
    "(4)": "the Riemannian Hessian of ½‖Z − X‖²",
    "(DLRA)": "the flow of U and S on semidefinite matrices",
    "(DLRA*)": "the same times σ_min(S)",
}

EQUATIONS = {f"BRTW ({i})": says for i, says in enumerate(_BRTW, 1)}
EQUATIONS |= {f"HLZ {number}": says for number, says in _HLZ.items()}

_SECTIONS = {
    "BRTW": "1 2 3 4 5 6 6.1 6.2 6.3 6.4 6.5 7 7.1 7.1.1 7.1.2 7.1.3 7.2 7.3",
    "HLZ": "1 1.1 1.2 2 2.1 2.2 2.3 2.4 3 3.1 3.2 3.3 3.4 3.5 4 5 6",
}
_FIGURES = {"BRTW": " ".join(map(str, range(1, 13))), "HLZ": "1 2 2a 2b 3 3a 3b 3c 3d"}
_APPENDICES = {"BRTW": "A B C D", "HLZ": "A B"}


def known() -> dict[str, str]:
    """Every locator, with what stands there: statements whole and by their parts, in order."""
    found: dict[str, str] = {}
    for paper in ("BRTW", "HLZ"):
        for s in STATEMENTS:
            # A reference that a section speaks of, HLZ §1 [30], is cited by its section.
            of_section = " [" in s.source
            if s.source.startswith(paper + " ") and not label_of(s.source) and not of_section:
                whole = re.sub(r"(?<=\w)\([0-9a-e]\)$", "", s.source)
                if whole != s.source:
                    found.setdefault(whole, "in parts")
                found[s.source] = s.says
        found |= {key: says for key, says in EQUATIONS.items() if key.startswith(paper + " ")}
        found |= {f"{paper} Fig. {n}": "" for n in _FIGURES[paper].split()}
        sections = (f"{paper} §{n}" for n in _SECTIONS[paper].split())
        found |= {section: "" for section in sections if section not in found}
        found |= {f"{paper} App. {n}": "" for n in _APPENDICES[paper].split()}
    return found
