"""Graphs as Lightning takes data: one whole, batches of several, edges to be told, or rows of nodes."""

from gnn.data.graph import GraphDataModule
from gnn.data.link import LinkDataModule
from gnn.data.node import NodeDataModule
from gnn.data.rows import RowDataModule

__all__ = ["GraphDataModule", "LinkDataModule", "NodeDataModule", "RowDataModule"]
