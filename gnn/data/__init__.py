"""Graphs as Lightning takes data: one whole, batches of several, or edges to be told."""

from gnn.data.graph import GraphDataModule
from gnn.data.link import LinkDataModule
from gnn.data.node import NodeDataModule

__all__ = ["GraphDataModule", "LinkDataModule", "NodeDataModule"]
