"""Random regular graphs that spread fast, to be laid over another graph."""

from __future__ import annotations

from math import sqrt

import numpy as np
import torch
from jaxtyping import Int
from scipy.sparse import coo_array
from scipy.sparse.linalg import eigsh
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform
from torch_geometric.utils import degree

__all__ = ["AddExpander", "random_expander", "spectral_gap"]

# A graph this small is joined with everything: it has no random graph of four neighbours that is worth its name.
COMPLETE = 10


def spectral_gap(edge_index: Int[Tensor, "2 edges"], n_nodes: int) -> float:
    """How far the second eigenvalue of a regular graph's adjacency is below its degree, the largest.

    Found by SciPy, by Lanczos' iteration from 64 nodes on: no ledger sees it.

    Args:
        edge_index: Both directions of every edge; edges that are there twice count twice.
        n_nodes: Number of nodes.

    Raises:
        ValueError: If the graph has one node, or its nodes have different degrees.
    """
    degrees = degree(edge_index[1], n_nodes)
    if n_nodes < 2 or degrees.min() != degrees.max():
        raise ValueError("a spectral gap is asked for of a graph of one node or of one that is not regular")
    source, target = edge_index.numpy()
    matrix = coo_array((np.ones(len(source)), (source, target)), shape=(n_nodes, n_nodes)).tocsr()
    if n_nodes < 64:
        second = np.linalg.eigvalsh(matrix.toarray())[-2]
    else:
        start = np.cos(np.arange(n_nodes))  # the same in every run
        largest = eigsh(matrix, k=2, which="LA", v0=start, return_eigenvectors=False, tol=1e-4)  # type: ignore[arg-type]
        second = np.asarray(largest).min()
    return float(degrees[0] - second)


def random_expander(
    n_nodes: int, half_degree: int, generator: torch.Generator, tries: int = 100
) -> Int[Tensor, "2 edges"]:
    r"""A random graph in which every node has :math:`2 d` neighbours, made of :math:`d` permutations.

    Friedman's construction, as in `Exphormer <https://arxiv.org/abs/2303.06147>`_ (Shirzad et al., 2023): node
    :math:`i` is joined with :math:`\pi_1(i), \dots, \pi_d(i)`. Nearly all such graphs have a spectral gap of nearly
    :math:`2 d - 2 \sqrt{2 d - 1}`, the best there is; one whose gap is more than 0.1 below is drawn again. A node may
    be its own neighbour, or one twice.

    Args:
        n_nodes: Number of nodes; up to 10 are joined all with all.
        half_degree: Permutations :math:`d`, 2 or more.
        generator: Where the permutations come from.
        tries: Graphs drawn before giving up.

    Raises:
        ValueError: If ``half_degree`` is below 2: one permutation is a set of circles.
        RuntimeError: If no graph drawn had the gap.
    """
    if half_degree < 2:
        raise ValueError(f"{half_degree=}: one permutation makes circles, give 2 or more")
    here = torch.arange(n_nodes)
    if n_nodes <= COMPLETE:
        pairs = torch.cartesian_prod(here, here).t() if n_nodes else here.new_empty(2, 0)
        return pairs[:, pairs[0] != pairs[1]]
    wanted = 2 * half_degree - 2 * sqrt(2 * half_degree - 1) - 0.1
    for _ in range(tries):
        there = torch.stack([torch.randperm(n_nodes, generator=generator) for _ in range(half_degree)])
        forth = torch.stack([here.repeat(half_degree), there.flatten()])
        edges = torch.cat([forth, forth.flip(0)], dim=1)
        if spectral_gap(edges, n_nodes) >= wanted:
            return edges
    raise RuntimeError(
        f"none of {tries} random graphs of {n_nodes} nodes has a spectral gap of {wanted:.3f}: allow more tries, "
        "or a larger half_degree"
    )


class AddExpander(BaseTransform):
    """Lays :func:`random_expander` over a graph, as ``expander_index``, which PyG batches as edges.

    Args:
        half_degree: Half the neighbours each node gets.
        seed: Of the first graph; each further one continues from there.
        tries: Graphs drawn before giving up.
    """

    def __init__(self, half_degree: int = 3, seed: int = 0, tries: int = 100) -> None:
        self.half_degree, self.seed, self.tries = half_degree, seed, tries
        self._generator = torch.Generator().manual_seed(seed)

    def forward(self, data: Data) -> Data:
        """A graph with ``expander_index``."""
        data.expander_index = random_expander(
            int(data.num_nodes or 0), self.half_degree, self._generator, self.tries
        )
        return data
