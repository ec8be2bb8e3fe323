"""Operators PyG does not have: one operator, one file."""

from gnn.layers.entry_attention import EntryAttention
from gnn.layers.gcn_conv import GCNConv
from gnn.layers.hetero_attention import HeteroAttention
from gnn.layers.simple_attention import SimpleAttention
from gnn.layers.sparse_attention import SparseAttention
from gnn.layers.window_conv import WindowConv

__all__ = ["EntryAttention", "GCNConv", "HeteroAttention", "SimpleAttention", "SparseAttention", "WindowConv"]
