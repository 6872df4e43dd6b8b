"""Every numbered statement of the two papers, in their order; their errors, slips, our cautions.

BRTW = Bah, Rauhut, Terstiege, Westdickenberg, Learning deep linear neural networks: Riemannian
gradient flows and convergence to global minimizers (2020). HLZ = Hou, Li, Zhang, Asymptotic escape
of spurious critical points on the low-rank matrix manifold (2021).
"""

from __future__ import annotations

from reproduction.statement import Statement
from reproduction.statements_brtw import FLOWS
from reproduction.statements_errata import CAUTIONS, ERRORS, SLIPS
from reproduction.statements_hlz import HLZ
from reproduction.statements_landscape import LANDSCAPE

__all__ = ["PAPERS", "STATEMENTS", "Statement"]

# Part of the ledger -> its rows.
PAPERS: dict[str, tuple[Statement, ...]] = {
    "BRTW": FLOWS + LANDSCAPE,
    "HLZ": HLZ,
    "Errors": ERRORS,
    "Slips": SLIPS,
    "Cautions": CAUTIONS,
}
STATEMENTS: tuple[Statement, ...] = tuple(s for part in PAPERS.values() for s in part)
