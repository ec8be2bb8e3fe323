"""What is stored and how it is found."""

from retrieval.neighbors import Neighbors
from retrieval.passages import Passages
from retrieval.source import Source
from retrieval.suffix import SuffixSource

__all__ = ["Neighbors", "Passages", "Source", "SuffixSource"]
