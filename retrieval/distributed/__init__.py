"""The same search, and the same memories, over the ranks of a process group."""

from retrieval.distributed.group import RankError
from retrieval.distributed.ranks import open_ranks, save_ranks
from retrieval.distributed.sharding import ShardedSearch

__all__ = ["RankError", "ShardedSearch", "open_ranks", "save_ranks"]
