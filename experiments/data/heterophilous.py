"""Heterophilous graphs, in which neighbours are of different classes more often than not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import Data

from experiments.data.graph_files import GraphFileError, arrays, both_directions
from gnn.splits import Split

__all__ = ["read_heterophilous"]

_SPLITS = ("train_masks", "val_masks", "test_masks")


def read_heterophilous(path: str | Path, fold: int) -> Data:
    """A graph of one of these sets, with one of its official splits.

    `A Critical Look at the Evaluation of GNNs under Heterophily <https://arxiv.org/abs/2302.11640>`_ (Platonov et al.,
    ICLR 2023): Minesweeper, Tolokers, Squirrel and Chameleon without their duplicate nodes, and older ones. PyG's
    ``HeterophilousGraphDataset`` knows five of them by name and stores what it reads as a pickle; the files themselves
    hold plain arrays. Two classes are told by one score and judged by ROC-AUC.

    Args:
        path: The ``.npz`` file: ``node_features``, ``node_labels``, ``edges`` and ten rows each of ``train_masks``,
            ``val_masks`` and ``test_masks``.
        fold: Which split, from 0.

    Shapes:
        result: ``x`` ``[nodes, features]``, ``edge_index`` ``[2, edges]`` both directions, ``y`` ``[nodes]``, three
        masks, and ``split``, such as ``"fold 3 of 10"``

    Raises:
        GraphFileError: If the file is damaged, or has no such split.
    """
    raw = arrays(path, ("node_features", "node_labels", "edges", *_SPLITS))
    folds, n_nodes = raw["train_masks"].shape
    if not 0 <= fold < folds:
        raise GraphFileError(f"{path} has splits 0 to {folds - 1}, and {fold} is asked for")
    if not n_nodes == len(raw["node_features"]) == len(raw["node_labels"]):
        raise GraphFileError(f"{path} has masks of {n_nodes} nodes, and features or classes of others")
    data = Data(
        x=torch.from_numpy(raw["node_features"].astype(np.float32)),
        y=torch.from_numpy(raw["node_labels"].astype(np.int64)),
        edge_index=both_directions(raw["edges"], n_nodes),
    )
    masks = (torch.from_numpy(raw[name][fold].astype(bool)) for name in _SPLITS)
    return Split.of_masks(f"fold {fold} of {folds}", *masks).onto(data)
