"""Memory-augmented networks: a transformer with slots, and memories to put into them."""

from mann.context import Context
from mann.feedforward import PEER, STEM, MixtureOfExperts, ProductKeyMemory, ReluSquared, SwiGLU, UltraMem
from mann.host_table import HostTable
from mann.memory import BigramMemory, Engram, ExternalMemory, Memory, NGramMemory
from mann.mixer import CausalAttention
from mann.module import LanguageModule
from mann.readers import AttentionReader, Reader
from mann.readout import (
    CacheReadout,
    KNNReadout,
    PointerReadout,
    Readout,
    SoftmaxReadout,
    SuffixReadout,
    TRIMEReadout,
)
from mann.state import State, Streaming
from mann.table_health import TableHealth
from mann.tokenizer_compression import TokenizerCompression
from mann.transformer import Block, Transformer

__all__ = [
    "PEER",
    "STEM",
    "AttentionReader",
    "BigramMemory",
    "Block",
    "CacheReadout",
    "CausalAttention",
    "Context",
    "Engram",
    "ExternalMemory",
    "HostTable",
    "KNNReadout",
    "LanguageModule",
    "Memory",
    "MixtureOfExperts",
    "NGramMemory",
    "PointerReadout",
    "ProductKeyMemory",
    "Reader",
    "Readout",
    "ReluSquared",
    "SoftmaxReadout",
    "State",
    "Streaming",
    "SuffixReadout",
    "SwiGLU",
    "TRIMEReadout",
    "TableHealth",
    "TokenizerCompression",
    "Transformer",
    "UltraMem",
]
