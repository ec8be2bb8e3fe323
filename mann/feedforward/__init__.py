"""The feedforward slot, what each position computes alone: one mechanism, one file, one paper."""

from mann.feedforward.dense import ReluSquared, SwiGLU
from mann.feedforward.product_key import ProductKeyMemory

__all__ = ["ProductKeyMemory", "ReluSquared", "SwiGLU"]
