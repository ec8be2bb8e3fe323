"""The mixer slot, how positions exchange: one mechanism, one file, one paper."""

from mann.mixer.attention import CausalAttention
from mann.mixer.cache import CachedAttention
from mann.mixer.delta import DeltaRule
from mann.mixer.knn import KNNAttention
from mann.mixer.latent import LatentAttention
from mann.mixer.sparse import NativeSparseAttention
from mann.mixer.value import ValueEmbeddingAttention
from mann.mixer.window import SlidingWindowAttention

__all__ = [
    "CachedAttention",
    "CausalAttention",
    "DeltaRule",
    "KNNAttention",
    "LatentAttention",
    "NativeSparseAttention",
    "SlidingWindowAttention",
    "ValueEmbeddingAttention",
]
