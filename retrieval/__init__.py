"""What is stored and how it is found."""

from retrieval.context import ContextSource
from retrieval.encoder import ContextEncoder
from retrieval.index import Index
from retrieval.neighbors import Neighbors
from retrieval.passages import Passages
from retrieval.random import RandomSource
from retrieval.snapshot import SnapshotError
from retrieval.source import Source
from retrieval.suffix import SuffixSource
from retrieval.table import NeighborTable

__all__ = [
    "ContextEncoder",
    "ContextSource",
    "Index",
    "NeighborTable",
    "Neighbors",
    "Passages",
    "RandomSource",
    "SnapshotError",
    "Source",
    "SuffixSource",
]
