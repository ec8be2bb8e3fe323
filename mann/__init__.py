"""Memory-augmented networks: a transformer with slots, and memories to put into them."""

from mann.context import Context
from mann.feedforward import ProductKeyMemory, ReluSquared, SwiGLU
from mann.memory import ExternalMemory, Memory, NGramMemory
from mann.mixer import CausalAttention
from mann.module import LanguageModule
from mann.readers import AttentionReader, Reader
from mann.readout import PointerReadout, Readout, SoftmaxReadout
from mann.state import State, Streaming
from mann.transformer import Block, Transformer

__all__ = [
    "AttentionReader",
    "Block",
    "CausalAttention",
    "Context",
    "ExternalMemory",
    "LanguageModule",
    "Memory",
    "NGramMemory",
    "PointerReadout",
    "ProductKeyMemory",
    "Reader",
    "Readout",
    "ReluSquared",
    "SoftmaxReadout",
    "State",
    "Streaming",
    "SwiGLU",
    "Transformer",
]
