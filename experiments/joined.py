"""A store whose entries are joined, for arms that read along these edges."""

from __future__ import annotations

import hashlib
import time

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from experiments.neighborhood import LazySource
from gnn import EntryGraph
from retrieval import ContextSource, Passages, Source

__all__ = ["JoinedSource", "edges_of"]

# Places of each kind of edge.
WIDTHS = {"succession": 1, "document": 2, "nearest": 2, "answer": 2}


class JoinedSource(ContextSource):
    """Neighbours by context vectors, and :class:`gnn.EntryGraph` among the entries, whose building is billed.

    Args:
        passages: What to store.
    """

    def __init__(self, passages: Passages) -> None:
        super().__init__(passages)
        begin = time.perf_counter()
        self.edges = EntryGraph.build(self, tuple(WIDTHS), places=2)
        self.build_flops |= {"edges": self.edges.work.get("flops", 0)}
        self.build_bytes |= {"edges": self.edges.work.get("bytes", 0)}
        self.build_seconds += time.perf_counter() - begin
        self.fingerprint = hashlib.sha256(f"joined-1 {WIDTHS} {self.fingerprint}".encode()).hexdigest()


class _PlannedEdges(EntryGraph):
    """Edges of a store that is not there yet, all of them leading elsewhere: no reader takes more for those there."""

    def __init__(self, source: LazySource) -> None:
        self.passages, self.widths, self.work = source.passages, dict(WIDTHS), {}

    def joined(
        self, ids: Int[Tensor, " entries"], exclude: Int[Tensor, " entries"] | None = None
    ) -> tuple[Int[Tensor, "entries places"], Bool[Tensor, "entries places"]]:
        """See :meth:`gnn.EntryGraph.joined`."""
        places = sum(self.widths.values())
        found = torch.arange(1, places + 1, device=ids.device) * 7919 + ids.unsqueeze(1) * places
        found %= max(1, len(self.passages))
        return found, torch.ones_like(found, dtype=torch.bool)


def edges_of(source: Source) -> EntryGraph:
    """Edges among the entries of a :class:`JoinedSource`, or of one that is planned.

    Args:
        source: The source, or what will build it.

    Raises:
        TypeError: If it is another kind of source.
    """
    if isinstance(source, LazySource) and source.built_yet is None:
        return _PlannedEdges(source)
    found = source.built if isinstance(source, LazySource) else source
    if not isinstance(found, JoinedSource):
        raise TypeError(f"{type(found).__name__} has no edges between entries: use JoinedSource")
    return found.edges
