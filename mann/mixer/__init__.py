"""The mixer slot, how positions exchange: one mechanism, one file, one paper."""

from mann.mixer.attention import CausalAttention

__all__ = ["CausalAttention"]
