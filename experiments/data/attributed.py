"""Attributed graphs without an official split: products bought together, authors who wrote together, citations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import Data

from experiments.data.graph_files import GraphFileError, arrays, both_directions, sparse_features

__all__ = ["read_attributed"]


def read_attributed(path: str | Path) -> Data:
    """A graph of a file of plain arrays: Amazon Photo and Computers, Coauthor CS and Physics, Cora-ML, DBLP,
    BlogCatalog.

    `Pitfalls of Graph Neural Network Evaluation <https://arxiv.org/abs/1811.05868>`_ (Shchur et al., 2018) splits such
    graphs at random, a number of each class: :func:`~gnn.per_class_split`. The graph comes without masks, so it must be
    given a split, and with it a name, before anything is trained.

    Args:
        path: The ``.npz`` file: ``adj_indptr``, ``adj_indices``, ``x_indptr``, ``x_indices``, ``x_shape``, ``y``, and
            ``x_data`` unless all features are one.

    Shapes:
        result: ``x`` ``[nodes, features]`` in CSR, ``edge_index`` ``[2, edges]`` both directions, ``y`` ``[nodes]``

    Raises:
        GraphFileError: If the file is damaged.
    """
    raw = arrays(path, ("adj_indptr", "adj_indices", "x_indptr", "x_indices", "x_shape", "y"), ("x_data",))
    x = sparse_features(raw["x_indptr"], raw["x_indices"], raw.get("x_data"), raw["x_shape"])
    if not len(raw["y"]) == len(raw["adj_indptr"]) - 1 == x.shape[0]:
        raise GraphFileError(f"{path} has {x.shape[0]} rows of features, and classes or edges of others")
    source = np.repeat(np.arange(x.shape[0]), np.diff(raw["adj_indptr"]))
    edges = np.stack([source, raw["adj_indices"]], axis=1)
    return Data(
        x=x, y=torch.from_numpy(raw["y"].astype(np.int64)), edge_index=both_directions(edges, x.shape[0])
    )
