"""The feedforward slot, what each position computes alone: one mechanism, one file, one paper."""

from mann.feedforward.dense import ReluSquared, SwiGLU
from mann.feedforward.mixture import MixtureOfExperts
from mann.feedforward.peer import PEER
from mann.feedforward.product_key import ProductKeyMemory
from mann.feedforward.stem import STEM
from mann.feedforward.ultramem import UltraMem

__all__ = ["PEER", "STEM", "MixtureOfExperts", "ProductKeyMemory", "ReluSquared", "SwiGLU", "UltraMem"]
