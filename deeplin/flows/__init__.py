"""Vector fields of the flows of both papers; one family per file."""

from deeplin.flows.layers import LayerFlow

__all__ = ["LayerFlow"]
