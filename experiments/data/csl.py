"""Circular skip links, made here: ten kinds of graphs that messages between neighbours cannot tell apart."""

from __future__ import annotations

import torch
from torch_geometric.data import Data

__all__ = ["NODES", "SKIPS", "circular_skip_link", "csl_graphs"]

NODES = 41
SKIPS = (2, 3, 4, 5, 6, 9, 11, 12, 13, 16)


def circular_skip_link(skip: int, nodes: int = NODES) -> Data:
    """A circle in which each node is also joined with those ``skip`` places before and after it.

    Args:
        skip: Places skipped.
        nodes: Nodes of the circle.

    Shapes:
        result: ``x`` ``[nodes, 1]``, all ones, ``edge_index`` ``[2, 4 · nodes]``

    Raises:
        ValueError: If a node would not have four neighbours.
    """
    if not 2 <= skip < nodes - 1 or 2 * skip == nodes:
        raise ValueError(
            f"{skip=} in a circle of {nodes} nodes does not give each node two further neighbours"
        )
    here = torch.arange(nodes)
    forth = torch.cat([torch.stack([here, (here + step) % nodes]) for step in (1, skip)], dim=1)
    return Data(x=torch.ones(nodes, 1), edge_index=torch.cat([forth, forth.flip(0)], dim=1))


def csl_graphs(copies: int = 15, seed: int = 0) -> list[Data]:
    """The set of `Relational Pooling for Graph Representations <https://arxiv.org/abs/1903.02541>`_ (Murphy et al.,
    2019).

    Every node has four neighbours, so whatever is made of sums over neighbours is the same for all: 10 % of the graphs
    are told without encodings of where nodes are, all of them with. As `Benchmarking Graph Neural Networks
    <https://arxiv.org/abs/2003.00982>`_ (Dwivedi et al., 2020) has it: 41 nodes, ten skips, 15 copies of each with
    nodes in random order, and five folds (:func:`~gnn.fold_split`).

    Args:
        copies: Graphs of each skip.
        seed: Of the orders of nodes.

    Shapes:
        each: ``x`` ``[41, 1]``, all ones, ``edge_index`` ``[2, 164]``, ``y`` ``[1]``, the number of its skip
    """
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    for label, skip in enumerate(SKIPS):
        for _ in range(copies):
            graph = circular_skip_link(skip)
            order = torch.randperm(NODES, generator=generator)
            graph.edge_index = order[graph.edge_index]
            graph.y = torch.tensor([label])
            graphs.append(graph)
    return graphs
