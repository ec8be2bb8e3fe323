"""The index of a segment: made of its keys and of nothing else, so it can always be made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from retrieval.exact import Metric
from retrieval.index import Index
from retrieval.snapshot import SnapshotError

__all__ = ["DerivedIndex", "build_index", "check_factory"]

# What is handed to FAISS at once: what is copied for it stays small.
_BYTES = 1 << 23
# FAISS trains on 256 vectors of each cluster; this many are enough for a thousand.
_SAMPLE = 1 << 18


class DerivedIndex:
    """A FAISS index in a folder of its own, read when it is first asked.

    Args:
        path: Folder of the index.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._index: Index | None = None

    def open(self, nprobe: int, ef: int, k_factor: int) -> Index | None:
        """The index, or ``None`` if its folder is gone: a newer generation of the store did not need it any more.

        Raises:
            SnapshotError: If it is damaged.
        """
        # Without a lock: threads that come at once read it twice, and a forked child never waits for one.
        index = self._index
        try:
            index = self._index = Index.open(self.path, verify=False) if index is None else index
        except (SnapshotError, FileNotFoundError):
            if self.path.exists():
                raise
            return None
        index.nprobe, index.ef, index.k_factor = nprobe, ef, k_factor
        return index

    def verify(self) -> None:
        """Compare the checksums of its files.

        Raises:
            SnapshotError: Naming the file that is damaged.
        """
        Index.open(self.path, mmap=True)


def check_factory(factory: str, metric: Metric, d: int) -> None:
    """Find out whether a factory string can be used, before anything is stored.

    Raises:
        ValueError: If FAISS does not know it, or ignores the metric with it.
        NotImplementedError: If the work of that kind of index is not known.
    """
    Index(factory, metric)._made(d)


def build_index(path: Path, keys: np.ndarray, factory: str, metric: Metric) -> DerivedIndex | None:
    """Make the index of some keys and write it.

    Args:
        path: Where to put it.
        keys: What is searched; may be a mapped file, of which a part is read at a time.
        factory: Factory string of :class:`retrieval.Index`.
        metric: ``"ip"`` or ``"l2"``.

    Shapes:
        keys: ``[n, d]``

    Returns:
        The index, or ``None`` if the keys are too few to train it: they are searched one by one.
    """
    index = Index(factory, metric)
    sample = keys[:: max(1, -(-len(keys) // _SAMPLE))]
    try:
        index.train(torch.from_numpy(sample.astype(np.float32)))
    except ValueError:
        return None
    rows = max(1, _BYTES // (4 * keys.shape[1]))
    for i in range(0, len(keys), rows):
        index.add(torch.from_numpy(keys[i : i + rows].astype(np.float32)))
    index.save(path)
    return DerivedIndex(path)
