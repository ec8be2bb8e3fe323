"""Tasks on graphs, as Lightning modules."""

from gnn.modules.distillation import Distillation, observed, soft_targets
from gnn.modules.graph import GraphModule
from gnn.modules.link import LinkModule
from gnn.modules.node import NodeModule

__all__ = ["Distillation", "GraphModule", "LinkModule", "NodeModule", "observed", "soft_targets"]
