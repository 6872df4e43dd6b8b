"""Manifolds of low-rank matrices with the metrics of deep linear networks, for geoopt."""

from deeplin.manifolds.fixed_rank import FixedRank
from deeplin.manifolds.fixed_rank_factored import FixedRankFactored
from deeplin.manifolds.psd_fixed_rank import PSDFixedRank
from deeplin.manifolds.psd_fixed_rank_factored import PSDFixedRankFactored
from deeplin.manifolds.sharded import ShardedFixedRank

__all__ = [
    "FixedRank",
    "FixedRankFactored",
    "PSDFixedRank",
    "PSDFixedRankFactored",
    "ShardedFixedRank",
]
