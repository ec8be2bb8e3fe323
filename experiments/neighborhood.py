"""Neighbours found once, kept in pieces that every run of a study shares."""

from __future__ import annotations

import json
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Bool, Int
from torch import Tensor, nn

from experiments.data import Windows
from mann import Context
from mann.chunks import document_chunks
from retrieval import Neighbors, NeighborTable, Passages, Source

# Windows per piece: a smaller budget trains on a prefix of a larger one's windows, so whole pieces are shared.
PIECE = 512
# Windows searched at once.
BATCH = 64


class LazySource(Source):
    """A source that is built on its first search.

    A run whose neighbours all lie in tables needs the passages of its store, not the index over them.

    Args:
        passages: What the store holds.
        build: Makes the real source.
        fingerprint: Digest of store and method.
    """

    def __init__(self, passages: Passages, build: Callable[[], Source], fingerprint: str) -> None:
        self.passages = passages
        self.fingerprint = fingerprint
        self._build = build
        self._built: Source | None = None

    @property
    def built_yet(self) -> Source | None:
        """The real source, if it has been built."""
        return self._built

    @property
    def built(self) -> Source:
        """The real source, built now if need be."""
        if self._built is None:
            self._built = self._build()
        return self._built

    @property
    def depth(self) -> int:  # type: ignore[override]
        """Tokens a query is made of at most."""
        return self.built.depth

    def search(
        self,
        tokens: Int[Tensor, "batch time"],
        k: int,
        *,
        documents: Int[Tensor, "batch time"] | None = None,
        exclude: Int[Tensor, "batch time"] | None = None,
        at: Bool[Tensor, "batch time"] | None = None,
    ) -> Neighbors:
        """See :meth:`retrieval.Source.search`."""
        return self.built.search(tokens, k, documents=documents, exclude=exclude, at=at)

    def find(self, context: np.ndarray, k: int, exclude: np.ndarray) -> Neighbors:
        """See :meth:`retrieval.Source.find`."""
        return self.built.find(context, k, exclude)


class Neighborhood:
    """The neighbours of a list of windows, searched piece by piece as they are asked for.

    Several processes may fill one neighbourhood: each piece is made by whoever locks it first.

    Args:
        folder: Where the tables lie.
        source: Where neighbours come from.
        windows: The windows of a split.
        order: Which windows, in order; row ``i`` belongs to ``windows[order[i]]``.
        k: Neighbours per position.
        exclude: True if the windows' own documents may lie in the store and must not be returned.
        every: Search at the ends of chunks of so many tokens alone, as :func:`read_every` tells.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        windows: Windows,
        order: Int[np.ndarray, " n"],
        k: int,
        *,
        exclude: bool,
        every: int = 1,
    ) -> None:
        self.folder = folder
        self.source = source
        self.windows = windows
        self.order = order
        self.k = k
        self.exclude = exclude
        self.every = every
        self._tables: dict[int, NeighborTable] = {}

    def prepare(self, n_rows: int, progress: Callable[[float], None] = lambda share: None) -> None:
        """Have the first ``n_rows`` rows ready."""
        missing = deque(range(pieces := -(-n_rows // PIECE)))
        # Pieces that another process is at work on come last: two that want the same ones share the work.
        for _ in range(pieces):
            piece = missing.popleft()
            if not self._made(piece, wait=False):
                missing.append(piece)
            progress(1 - len(missing) / pieces)
        for piece in missing:
            self._made(piece)
        progress(1.0)

    def rows(self, index: Int[Tensor, " n"]) -> Neighbors:
        """Neighbours of these rows, ``[n, time, k]``."""
        index = torch.as_tensor(index)
        pieces = torch.div(index, PIECE, rounding_mode="floor")
        first = int(pieces[0])
        if bool((pieces == first).all()):
            return self._table(first).rows(index - first * PIECE)
        return Neighbors.cat(
            [self._table(int(p)).rows((i - int(p) * PIECE)[None]) for i, p in zip(index, pieces, strict=True)]
        )

    def work(self, n_rows: int) -> dict[str, int]:
        """What finding the first ``n_rows`` rows took, by the names of :attr:`retrieval.Neighbors.work`."""
        found: Counter[str] = Counter()
        for table, rows in self._first(n_rows):
            found.update({name: int(amount[:rows].sum()) for name, amount in table.work.items()})
        return dict(found)

    def seconds(self, n_rows: int) -> float:
        """Seconds that finding the first ``n_rows`` rows took."""
        return sum(table.seconds * rows / len(table) for table, rows in self._first(n_rows))

    def _first(self, n_rows: int) -> Iterator[tuple[NeighborTable, int]]:
        """Tables, and how many of the rows of each are among the first ``n_rows``."""
        for piece in range(-(-n_rows // PIECE)):
            yield self._table(piece), min(PIECE, n_rows - piece * PIECE)

    def store_bill(self) -> dict[str, Any]:
        """What building the store took, by kind; kept beside the tables, since later runs never build it."""
        return json.loads((self.folder / "store.json").read_text())

    def _table(self, piece: int) -> NeighborTable:
        if piece not in self._tables:
            self._made(piece)
            self._tables[piece] = NeighborTable.open(self._path(piece))
        return self._tables[piece]

    def _path(self, piece: int) -> Path:
        return self.folder / f"piece-{piece:05d}"

    def _made(self, piece: int, wait: bool = True) -> bool:
        """Make a piece unless it is there; without ``wait`` it is False at once if another process is making it."""
        path = self._path(piece)
        if path.exists():
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            return False
        try:
            if not path.exists():
                # Built first: building is not searching, and is billed by itself.
                self._keep_bill()
                NeighborTable.build(path, self.source, self._queries(piece), self.k)
        finally:
            lock.release()
        return True

    def _keep_bill(self) -> None:
        source = self.source.built if isinstance(self.source, LazySource) else self.source
        path = self.folder / "store.json"
        if path.exists():
            return
        bill = {"flops": source.build_flops, "bytes": source.build_bytes, "seconds": source.build_seconds}
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(bill))
        beside.rename(path)

    def _queries(self, piece: int) -> Iterator[tuple[Tensor, Any, Any, Any]]:
        chosen = self.order[piece * PIECE : (piece + 1) * PIECE]
        for start in range(0, len(chosen), BATCH):
            batch = self.windows.batch(chosen[start : start + BATCH])
            documents = batch["documents"]
            yield batch["tokens"], documents, documents if self.exclude else None, self._read(batch)

    def _read(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Where neighbours are read, if not everywhere."""
        if self.every == 1:
            return None
        context = Context(batch["tokens"], batch["documents"])
        return document_chunks(context, self.every, lead=1).opens


def read_every(network: nn.Module) -> int:
    """The distance, within a document, of positions at which a network reads neighbours: 1 if it reads them everywhere.

    Args:
        network: Whatever in it has a ``source`` reads neighbours: everywhere, or as its ``every`` says
            (:class:`mann.sourced.Sourced`).
    """
    readers = [module for module in network.modules() if getattr(module, "source", None) is not None]
    return math.gcd(*(getattr(reader, "every", 1) for reader in readers)) or 1
