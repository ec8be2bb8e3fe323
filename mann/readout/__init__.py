"""The readout slot, a distribution over the next token: one mechanism, one file, one paper."""

from mann.readout.automaton import Automaton
from mann.readout.base import Readout, SoftmaxReadout
from mann.readout.continuous_cache import CacheReadout
from mann.readout.knn import KNNReadout
from mann.readout.pointer import PointerReadout
from mann.readout.suffix import SuffixReadout
from mann.readout.trime import TRIMEReadout

__all__ = [
    "Automaton",
    "CacheReadout",
    "KNNReadout",
    "PointerReadout",
    "Readout",
    "SoftmaxReadout",
    "SuffixReadout",
    "TRIMEReadout",
]
