"""Tasks on graphs, as Lightning modules."""

from gnn.modules.graph import GraphModule
from gnn.modules.link import LinkModule
from gnn.modules.node import NodeModule

__all__ = ["GraphModule", "LinkModule", "NodeModule"]
