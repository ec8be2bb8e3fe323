"""TU data sets: many small graphs in text files."""

from __future__ import annotations

from pathlib import Path

from torch_geometric.data import Data
from torch_geometric.data.separate import separate
from torch_geometric.io import read_tu_data

from experiments.data.graph_files import GraphFileError

__all__ = ["read_tu"]


def read_tu(folder: str | Path, name: str) -> list[Data]:
    """The graphs of a TU data set, as PyG reads its text files.

    `TUDataset: a Collection of Benchmark Datasets for Learning with Graphs <https://arxiv.org/abs/2007.08663>`_ (Morris
    et al., 2020). Nothing runs that is in the files, and nothing is stored: PyG's ``TUDataset`` keeps a pickle beside
    them. There is no official split: :func:`~gnn.fold_split`, and no epoch is to be chosen by the fold that is tested.

    Args:
        folder: Where ``NAME_A.txt``, ``NAME_graph_indicator.txt`` and the others are.
        name: Of the set, such as ``MUTAG``.

    Shapes:
        each: ``x`` ``[nodes, attributes and labels]``, if there are any, ``edge_index`` ``[2, edges]``, ``y`` ``[1]``

    Raises:
        GraphFileError: If the files are not there.
    """
    folder = Path(folder)
    needed = [f"{name}_{part}.txt" for part in ("A", "graph_indicator", "graph_labels")]
    missing = [file for file in needed if not (folder / file).is_file()]
    if missing:
        raise GraphFileError(f"{folder} has no {', '.join(missing)}: unpack the archive of {name} there")
    together, slices, _ = read_tu_data(str(folder), name)
    count = len(slices["edge_index"]) - 1
    return [
        separate(Data, together, idx=number, slice_dict=slices, decrement=False) for number in range(count)
    ]
