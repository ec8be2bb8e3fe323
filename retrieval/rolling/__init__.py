"""Memory of the recent past, for training: a ring of keys and values for each row."""

from retrieval.rolling.memory import RollingMemory
from retrieval.rolling.recall import Recalled

__all__ = ["Recalled", "RollingMemory"]
