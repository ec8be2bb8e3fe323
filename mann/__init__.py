"""Memory-augmented networks: a transformer with slots, and memories to put into them."""

from mann.attachment import Attached, attach
from mann.auxiliary import Auxiliary
from mann.context import Context
from mann.feedforward import PEER, STEM, MixtureOfExperts, ProductKeyMemory, ReluSquared, SwiGLU, UltraMem
from mann.gates import GateCallback, GateHistogram
from mann.host_table import HostTable
from mann.knockout import KnockoutCallback
from mann.memory import (
    BigramMemory,
    ChunkedCrossAttention,
    CompressiveMemory,
    Engram,
    ExternalMemory,
    Memory,
    MemorySlots,
    NeuralMemory,
    NGramMemory,
)
from mann.mixer import (
    CachedAttention,
    CausalAttention,
    DeltaRule,
    KNNAttention,
    LatentAttention,
    NativeSparseAttention,
    SlidingWindowAttention,
    ValueEmbeddingAttention,
)
from mann.module import LanguageModule
from mann.networks import DNC, NTM, EndToEndMemoryNetwork, MemoryNetwork, SparseAccessMemory
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
from mann.table_health import TableHealth, TableHealthCallback
from mann.tokenizer_compression import TokenizerCompression
from mann.transformer import Block, Transformer

__all__ = [
    "DNC",
    "NTM",
    "PEER",
    "STEM",
    "Attached",
    "AttentionReader",
    "Auxiliary",
    "BigramMemory",
    "Block",
    "CacheReadout",
    "CachedAttention",
    "CausalAttention",
    "ChunkedCrossAttention",
    "CompressiveMemory",
    "Context",
    "DeltaRule",
    "EndToEndMemoryNetwork",
    "Engram",
    "ExternalMemory",
    "GateCallback",
    "GateHistogram",
    "HostTable",
    "KNNAttention",
    "KNNReadout",
    "KnockoutCallback",
    "LanguageModule",
    "LatentAttention",
    "Memory",
    "MemoryNetwork",
    "MemorySlots",
    "MixtureOfExperts",
    "NGramMemory",
    "NativeSparseAttention",
    "NeuralMemory",
    "PointerReadout",
    "ProductKeyMemory",
    "Reader",
    "Readout",
    "ReluSquared",
    "SlidingWindowAttention",
    "SoftmaxReadout",
    "SparseAccessMemory",
    "State",
    "Streaming",
    "SuffixReadout",
    "SwiGLU",
    "TRIMEReadout",
    "TableHealth",
    "TableHealthCallback",
    "TokenizerCompression",
    "Transformer",
    "UltraMem",
    "ValueEmbeddingAttention",
    "attach",
]
