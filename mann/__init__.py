"""Memory-augmented networks: a transformer with slots, and memories to put into them."""

from mann.attention import CausalAttention
from mann.context import Context
from mann.feedforward import ReluSquared, SwiGLU
from mann.memory import ExternalMemory, Memory, NGramMemory
from mann.module import LanguageModule
from mann.pointer import PointerReadout
from mann.product_key import ProductKeyMemory
from mann.readers import AttentionReader, Reader
from mann.readout import Readout, SoftmaxReadout
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
    "SwiGLU",
    "Transformer",
]
