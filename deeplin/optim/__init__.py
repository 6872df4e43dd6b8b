"""Riemannian solvers of second order, as torch.optim.Optimizers, for any geoopt manifold."""

from deeplin.optim.conjugate_gradient import ConjugateGradient
from deeplin.optim.directions import (
    Products,
    fletcher_reeves,
    hestenes_stiefel,
    polak_ribiere_plus,
)
from deeplin.optim.trust_region import TrustRegion

__all__ = [
    "ConjugateGradient",
    "Products",
    "TrustRegion",
    "fletcher_reeves",
    "hestenes_stiefel",
    "polak_ribiere_plus",
]
