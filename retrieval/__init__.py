"""What is stored and how it is found."""

from retrieval.audit import Audit, audit
from retrieval.bm25 import BM25Source
from retrieval.calibrate import Calibration, calibrate
from retrieval.context import ContextSource
from retrieval.database import LanceIndex
from retrieval.datastore import Datastore, Entries, StoreBusyError
from retrieval.distributed import RankError, ShardedSearch, open_ranks, save_ranks
from retrieval.encoder import ContextEncoder
from retrieval.index import Index
from retrieval.neighbors import Neighbors
from retrieval.passages import Passages
from retrieval.random import RandomSource
from retrieval.rolling import Recalled, RollingMemory
from retrieval.snapshot import SnapshotError
from retrieval.source import Source
from retrieval.suffix import SuffixSource
from retrieval.table import NeighborTable

__all__ = [
    "Audit",
    "BM25Source",
    "Calibration",
    "ContextEncoder",
    "ContextSource",
    "Datastore",
    "Entries",
    "Index",
    "LanceIndex",
    "NeighborTable",
    "Neighbors",
    "Passages",
    "RandomSource",
    "RankError",
    "Recalled",
    "RollingMemory",
    "ShardedSearch",
    "SnapshotError",
    "Source",
    "StoreBusyError",
    "SuffixSource",
    "audit",
    "calibrate",
    "open_ranks",
    "save_ranks",
]
