"""Vector fields of the flows of both papers; one family per file."""

from deeplin.flows.autoencoder import CoupledAutoencoderFlow, OjaFlow, RiccatiFlow
from deeplin.flows.contract import Flow, TangentFlow
from deeplin.flows.dlra import DLRAFlow, PSDDLRAFlow
from deeplin.flows.end_to_end import EndToEndFlow
from deeplin.flows.layers import LayerFlow
from deeplin.flows.pqw import PQWFlow
from deeplin.network.balanced import compress, rebalance

__all__ = [
    "CoupledAutoencoderFlow",
    "DLRAFlow",
    "EndToEndFlow",
    "Flow",
    "LayerFlow",
    "OjaFlow",
    "PQWFlow",
    "PSDDLRAFlow",
    "RiccatiFlow",
    "TangentFlow",
    "compress",
    "rebalance",
]
