"""Graph networks: message passing over what was retrieved, and over graphs given as data.

Names are loaded on first use: PyG and Lightning take seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnn.encoder import NodeEncoder
    from gnn.graph import neighbor_graph
    from gnn.hetero_reader import HeteroReader
    from gnn.leaks import LeakError, assert_blind, assert_causal, assert_incremental, assert_prefix_invariant
    from gnn.module import NodeModule
    from gnn.reader import GraphReader

__all__ = [
    "GraphReader",
    "HeteroReader",
    "LeakError",
    "NodeEncoder",
    "NodeModule",
    "assert_blind",
    "assert_causal",
    "assert_incremental",
    "assert_prefix_invariant",
    "neighbor_graph",
]

_LEAKS = ("LeakError", "assert_blind", "assert_causal", "assert_incremental", "assert_prefix_invariant")


def __getattr__(name: str) -> Any:
    homes = {
        "GraphReader": "gnn.reader",
        "HeteroReader": "gnn.hetero_reader",
        "NodeEncoder": "gnn.encoder",
        "NodeModule": "gnn.module",
        "neighbor_graph": "gnn.graph",
        **dict.fromkeys(_LEAKS, "gnn.leaks"),
    }
    if name not in homes:
        raise AttributeError(f"module 'gnn' has no attribute {name!r}; it has {', '.join(sorted(homes))}")
    return getattr(import_module(homes[name]), name)


def __dir__() -> list[str]:
    return __all__
