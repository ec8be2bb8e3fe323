"""Operators PyG does not have: one operator, one file."""

from gnn.layers.entry_attention import EntryAttention
from gnn.layers.window_conv import WindowConv

__all__ = ["EntryAttention", "WindowConv"]
