"""Pairs of nodes that no edge joins."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["sample_negatives"]


def sample_negatives(
    edge_index: Int[Tensor, "2 edges"],
    n_nodes: int,
    count: int,
    generator: torch.Generator,
    *,
    undirected: bool = True,
) -> Int[Tensor, "2 count"]:
    """Pairs drawn uniformly from those that are no edge and no loop; the same pair may come twice.

    PyG's ``negative_sampling`` draws from global generators, so that what a model samples changes what its neighbour in
    a script does.

    Args:
        edge_index: Edges that must not be drawn.
        n_nodes: Number of nodes.
        count: Pairs to draw.
        generator: Where they come from, on the CPU.
        undirected: Whether the opposite of an edge is none either.

    Shapes:
        result: ``[2, count]``, on the device of the edges

    Raises:
        ValueError: If nearly all pairs are edges.
    """
    taken = edge_index.cpu()
    if undirected:
        taken = torch.cat([taken, taken.flip(0)], dim=1)
    taken = torch.unique(taken[0] * n_nodes + taken[1])
    found = torch.empty(0, dtype=torch.int64)
    for _ in range(100):
        if len(found) >= count or n_nodes < 2:
            break
        pairs = torch.randint(n_nodes**2, (2 * (count - len(found)) + 16,), generator=generator)
        loop = pairs % (n_nodes + 1) == 0  # i * n + i
        found = torch.cat([found, pairs[~loop & ~torch.isin(pairs, taken)]])
    if len(found) < count:
        raise ValueError(
            f"a graph of {n_nodes} nodes has hardly a pair that is no edge: {count} were asked for"
        )
    found = found[:count].to(edge_index.device)
    return torch.stack([found // n_nodes, found % n_nodes])
