"""Planetoid: networks of citations, each paper a bag of words, with the public split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.io import read_planetoid_data

from experiments.data.graph_files import (
    GraphFileError,
    arrays,
    both_directions,
    row_normalized,
    sparse_features,
)
from gnn.splits import Split

__all__ = ["read_planetoid"]


def read_planetoid(path: str | Path, *, normalize: bool = True) -> Data:
    """A graph of Planetoid from a file of plain arrays, or from the files it was published in.

    `Revisiting Semi-Supervised Learning with Graph Embeddings <https://arxiv.org/abs/1603.08861>`_ (Yang et al., 2016).
    The public split trains on 20 papers of each class, chooses by 500 and tests on 1000; numbers on random splits of
    the same size are another task's.

    Args:
        path: ``cora.npz`` (``edges``, ``x_indptr``, ``x_indices``, ``x_shape``, ``y``, ``train_idx``, ``val_idx``,
            ``test_idx``), which is read without running anything in it; or, as ``FOLDER/ind.cora``, the beginning of
            the eight published files. Those are pickles of Python 2, which PyG's own reader loads: that runs whatever
            is in them, so give no file that you would not run.
        normalize: Whether each bag of words is divided by its size.

    Shapes:
        result: ``x`` ``[nodes, words]`` in CSR, ``edge_index`` ``[2, edges]`` both directions, ``y`` ``[nodes]``, three
        masks, and ``split`` ``"public"``. Fifteen papers of CiteSeer have neither words nor a class: -1 in the plain
        arrays, 0 as PyG reads the published files.

    Raises:
        GraphFileError: If the files are not there or are damaged.
    """
    path = Path(path)
    data = _published(path) if path.name.startswith("ind.") and not path.is_file() else _arrays(path)
    if normalize:
        data["x"] = row_normalized(data["x"])
    return data


def _arrays(path: Path) -> Data:
    raw = arrays(
        path,
        ("edges", "x_indptr", "x_indices", "x_shape", "y", "train_idx", "val_idx", "test_idx"),
        ("x_data",),
    )
    x = sparse_features(raw["x_indptr"], raw["x_indices"], raw.get("x_data"), raw["x_shape"])
    if len(raw["y"]) != x.shape[0]:
        raise GraphFileError(f"{path} has {x.shape[0]} rows of features and {len(raw['y'])} classes")
    data = Data(
        x=x,
        y=torch.from_numpy(raw["y"].astype(np.int64)),
        edge_index=both_directions(raw["edges"], x.shape[0]),
    )
    items = (torch.from_numpy(raw[f"{part}_idx"].astype(np.int64)) for part in ("train", "val", "test"))
    return Split("public", *items).onto(data)


def _published(path: Path) -> Data:
    name = path.name.removeprefix("ind.")
    ends = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
    missing = [f"ind.{name}.{end}" for end in ends if not (path.parent / f"ind.{name}.{end}").is_file()]
    if missing:
        raise GraphFileError(f"{path.parent} has no {', '.join(missing)}: all eight files are needed")
    data = read_planetoid_data(str(path.parent), name)
    data["x"] = data["x"].to_sparse_csr()
    data["split"] = "public"
    return data
