"""Riemannian optimizers, as torch.optim.Optimizers, for any geoopt manifold."""

from deeplin.manifolds.optimizers import RiemannianSGD
from deeplin.optim.conjugate_gradient import ConjugateGradient
from deeplin.optim.directions import (
    Products,
    fletcher_reeves,
    hestenes_stiefel,
    polak_ribiere_plus,
)
from deeplin.optim.rank_increase import continuation, continuation_start, with_next_pair
from deeplin.optim.solving import Minimum, minimize
from deeplin.optim.trust_region import TrustRegion

__all__ = [
    "ConjugateGradient",
    "Minimum",
    "Products",
    "RiemannianSGD",
    "TrustRegion",
    "continuation",
    "continuation_start",
    "fletcher_reeves",
    "hestenes_stiefel",
    "minimize",
    "polak_ribiere_plus",
    "with_next_pair",
]
