"""Whole networks that are built around a memory: one network, one file, one paper."""

from mann.networks.base import MemoryNetwork
from mann.networks.dnc import DNC
from mann.networks.memn2n import EndToEndMemoryNetwork
from mann.networks.ntm import NTM
from mann.networks.sam import SparseAccessMemory

__all__ = ["DNC", "NTM", "EndToEndMemoryNetwork", "MemoryNetwork", "SparseAccessMemory"]
