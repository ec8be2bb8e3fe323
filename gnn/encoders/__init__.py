"""Encoders of nodes, and of graphs: one model, one file, one paper."""

from gnn.encoders.appnp import APPNP
from gnn.encoders.base import Encoder, NodeEncoder
from gnn.encoders.exphormer import Exphormer
from gnn.encoders.gat import GAT
from gnn.encoders.gatv2 import GATv2
from gnn.encoders.gcn import GCN
from gnn.encoders.gin import GIN
from gnn.encoders.gps import GPS
from gnn.encoders.graph import GraphEncoder
from gnn.encoders.mlp import MLP
from gnn.encoders.sage import SAGE
from gnn.encoders.sgc import SGC
from gnn.encoders.sgformer import SGFormer
from gnn.encoders.sign import SIGN
from gnn.encoders.tuned import TunedGNN

__all__ = [
    "APPNP",
    "GAT",
    "GCN",
    "GIN",
    "GPS",
    "MLP",
    "SAGE",
    "SGC",
    "SIGN",
    "Encoder",
    "Exphormer",
    "GATv2",
    "GraphEncoder",
    "NodeEncoder",
    "SGFormer",
    "TunedGNN",
]
