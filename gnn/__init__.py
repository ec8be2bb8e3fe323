"""Graph networks: message passing over what was retrieved, and over graphs given as data.

Names are loaded on first use: PyG and Lightning take seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnn.adjacency import adjacency_matrix, normalized_adjacency
    from gnn.data import GraphDataModule, LinkDataModule, NodeDataModule, RowDataModule
    from gnn.encoders import (
        APPNP,
        GAT,
        GCN,
        GIN,
        GPS,
        MLP,
        SAGE,
        SGC,
        SIGN,
        Exphormer,
        GATv2,
        GraphEncoder,
        NodeEncoder,
        SGFormer,
        TunedGNN,
    )
    from gnn.encodings import LaplacianEigenvectors
    from gnn.entry_graph import EntryGraph
    from gnn.expander import AddExpander
    from gnn.graph import neighbor_graph
    from gnn.hetero_reader import HeteroReader
    from gnn.leaks import LeakError, assert_blind, assert_causal, assert_incremental, assert_prefix_invariant
    from gnn.memory_classifier import MemoryGraphClassifier
    from gnn.modules import Distillation, GraphModule, LinkModule, NodeModule, observed, soft_targets
    from gnn.reader import GraphReader
    from gnn.selection import Selection
    from gnn.smoothing import Smoothed, smoothed
    from gnn.splits import Split, fold_split, per_class_split, random_split

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
    "AddExpander",
    "Distillation",
    "EntryGraph",
    "Exphormer",
    "GATv2",
    "GraphDataModule",
    "GraphEncoder",
    "GraphModule",
    "GraphReader",
    "HeteroReader",
    "LaplacianEigenvectors",
    "LeakError",
    "LinkDataModule",
    "LinkModule",
    "MemoryGraphClassifier",
    "NodeDataModule",
    "NodeEncoder",
    "NodeModule",
    "RowDataModule",
    "SGFormer",
    "Selection",
    "Smoothed",
    "Split",
    "TunedGNN",
    "adjacency_matrix",
    "assert_blind",
    "assert_causal",
    "assert_incremental",
    "assert_prefix_invariant",
    "fold_split",
    "neighbor_graph",
    "normalized_adjacency",
    "observed",
    "per_class_split",
    "random_split",
    "smoothed",
    "soft_targets",
]

_ENCODERS = (
    *(
        "APPNP",
        "GAT",
        "GCN",
        "GIN",
        "GPS",
        "MLP",
        "SAGE",
        "SGC",
        "SIGN",
        "Exphormer",
        "GATv2",
        "GraphEncoder",
        "NodeEncoder",
    ),
    *("SGFormer", "TunedGNN"),
)
_MODULES = ("Distillation", "GraphModule", "LinkModule", "NodeModule", "observed", "soft_targets")
_DATA = ("GraphDataModule", "LinkDataModule", "NodeDataModule", "RowDataModule")
_LEAKS = ("LeakError", "assert_blind", "assert_causal", "assert_incremental", "assert_prefix_invariant")


def __getattr__(name: str) -> Any:
    homes = {
        "EntryGraph": "gnn.entry_graph",
        "GraphReader": "gnn.reader",
        "HeteroReader": "gnn.hetero_reader",
        "AddExpander": "gnn.expander",
        "LaplacianEigenvectors": "gnn.encodings",
        "MemoryGraphClassifier": "gnn.memory_classifier",
        "Selection": "gnn.selection",
        "Smoothed": "gnn.smoothing",
        "neighbor_graph": "gnn.graph",
        "smoothed": "gnn.smoothing",
        **dict.fromkeys(_ENCODERS, "gnn.encoders"),
        **dict.fromkeys(_MODULES, "gnn.modules"),
        **dict.fromkeys(_DATA, "gnn.data"),
        **dict.fromkeys(("Split", "fold_split", "per_class_split", "random_split"), "gnn.splits"),
        **dict.fromkeys(("adjacency_matrix", "normalized_adjacency"), "gnn.adjacency"),
        **dict.fromkeys(_LEAKS, "gnn.leaks"),
    }
    if name not in homes:
        raise AttributeError(f"module 'gnn' has no attribute {name!r}; it has {', '.join(sorted(homes))}")
    return getattr(import_module(homes[name]), name)


def __dir__() -> list[str]:
    return __all__
