"""What the readers of graphs share: arrays from a file that holds nothing else, and features from their parts."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_geometric.utils import to_undirected

__all__ = ["GraphFileError", "arrays", "both_directions", "row_normalized", "sparse_features"]


class GraphFileError(ValueError):
    """A file of a graph that cannot be read; the message says what to do about it."""


def arrays(path: str | Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by name. Pickled objects are refused, so nothing in it runs.

    Args:
        path: The file.
        names: Arrays that it must hold.
        optional: Arrays that it may hold.

    Raises:
        GraphFileError: If there is no such file, it is damaged, or an array is missing or holds objects.
    """
    path = Path(path)
    if not path.is_file():
        raise GraphFileError(f"{path} is not there: give the path of the .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in names if name not in file.files]
            if missing:
                raise GraphFileError(
                    f"{path} has no {', '.join(missing)}; it holds {', '.join(sorted(file.files)) or 'nothing'}"
                )
            return {name: file[name] for name in (*names, *optional) if name in file.files}
    except GraphFileError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise GraphFileError(
            f"{path} cannot be read as plain arrays ({error}): fetch it again, or convert what is pickled"
        ) from error


def sparse_features(
    indptr: np.ndarray, indices: np.ndarray, values: np.ndarray | None, shape: np.ndarray
) -> Tensor:
    """A matrix of features in CSR; without values, of ones.

    Raises:
        GraphFileError: If the parts do not make a matrix.
    """
    rows, columns = (int(size) for size in shape)
    if len(indptr) != rows + 1 or indptr[0] != 0 or indptr[-1] != len(indices) or (np.diff(indptr) < 0).any():
        raise GraphFileError(
            f"features of {rows} rows have pointers that do not divide {len(indices)} entries"
        )
    if len(indices) and int(indices.max()) >= columns:
        raise GraphFileError(f"features name column {int(indices.max())} of {columns}")
    data = torch.ones(len(indices)) if values is None else torch.from_numpy(values.astype(np.float32))
    return torch.sparse_csr_tensor(
        torch.from_numpy(indptr.astype(np.int64)),
        torch.from_numpy(indices.astype(np.int64)),
        data,
        (rows, columns),
        check_invariants=False,
    )


def row_normalized(x: Tensor) -> Tensor:
    """Each row of a CSR matrix divided by its sum; an empty row stays empty."""
    counts = x.crow_indices().diff()
    row = torch.arange(len(counts)).repeat_interleave(counts)
    sums = torch.zeros(len(counts)).index_add(0, row, x.values())
    values = x.values() / torch.where(sums == 0, 1.0, sums)[row]
    return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), values, x.shape, check_invariants=False)


def both_directions(edges: np.ndarray, n_nodes: int) -> Tensor:
    """Edges ``[edges, 2]`` as ``[2, edges]``, each direction once, loops left out.

    Raises:
        GraphFileError: If an edge names a node that is not there.
    """
    edge_index = torch.from_numpy(edges.astype(np.int64)).reshape(-1, 2).t()
    if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < n_nodes:
        raise GraphFileError(f"edges name nodes beyond the {n_nodes} there are")
    return to_undirected(edge_index[:, edge_index[0] != edge_index[1]], num_nodes=n_nodes)
