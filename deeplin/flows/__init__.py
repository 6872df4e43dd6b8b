"""Vector fields of the flows of both papers; one family per file."""

from deeplin.flows.end_to_end import EndToEndFlow
from deeplin.flows.layers import LayerFlow

__all__ = ["EndToEndFlow", "LayerFlow"]
