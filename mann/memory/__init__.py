"""Memories: one mechanism, one file, one paper; exported here means enrolled in the contract tests."""

from mann.memory.base import Memory
from mann.memory.bigram import BigramMemory
from mann.memory.engram import Engram
from mann.memory.external import ExternalMemory
from mann.memory.ngram import NGramMemory

__all__ = ["BigramMemory", "Engram", "ExternalMemory", "Memory", "NGramMemory"]
