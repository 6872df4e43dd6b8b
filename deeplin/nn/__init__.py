"""Layers of torch.nn whose weight lies on a manifold of low-rank matrices."""

from deeplin.nn.fixed_rank_linear import FixedRankLinear

__all__ = ["FixedRankLinear"]
