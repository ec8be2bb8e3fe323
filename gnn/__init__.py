"""Graph networks: message passing over what was retrieved, and over graphs given as data.

Names are loaded on first use: PyG and Lightning take seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnn.encoder import NodeEncoder
    from gnn.graph import neighbor_graph
    from gnn.module import NodeModule
    from gnn.reader import GraphReader

__all__ = ["GraphReader", "NodeEncoder", "NodeModule", "neighbor_graph"]


def __getattr__(name: str) -> Any:
    homes = {
        "GraphReader": "gnn.reader",
        "NodeEncoder": "gnn.encoder",
        "NodeModule": "gnn.module",
        "neighbor_graph": "gnn.graph",
    }
    if name not in homes:
        raise AttributeError(f"module 'gnn' has no attribute {name!r}; it has {', '.join(sorted(homes))}")
    return getattr(import_module(homes[name]), name)


def __dir__() -> list[str]:
    return __all__
