"""The readout slot, a distribution over the next token: one mechanism, one file, one paper."""

from mann.readout.base import Readout, SoftmaxReadout
from mann.readout.pointer import PointerReadout

__all__ = ["PointerReadout", "Readout", "SoftmaxReadout"]
