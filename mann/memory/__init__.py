"""The memory slot, what is added to the residual stream: one mechanism, one file, one paper."""

from mann.memory.base import Memory
from mann.memory.bigram import BigramMemory
from mann.memory.compressive import CompressiveMemory
from mann.memory.engram import Engram
from mann.memory.external import ExternalMemory
from mann.memory.neural import NeuralMemory
from mann.memory.ngram import NGramMemory
from mann.memory.retro import ChunkedCrossAttention
from mann.memory.slots import MemorySlots

__all__ = [
    "BigramMemory",
    "ChunkedCrossAttention",
    "CompressiveMemory",
    "Engram",
    "ExternalMemory",
    "Memory",
    "MemorySlots",
    "NGramMemory",
    "NeuralMemory",
]
