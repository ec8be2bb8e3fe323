"""Segments written as entries come, none of which is kept in memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from retrieval.datastore.entries import Layout
from retrieval.datastore.segment import SEGMENT, SEGMENT_VERSION
from retrieval.snapshot import writing_snapshot
from retrieval.stored import write_header

__all__ = ["SegmentWriter", "segment_rows"]


def segment_rows(memory_bytes: int, layout: Layout) -> int:
    """Entries of a segment such that it, its index and what making that takes fit into a half of the memory.

    Args:
        memory_bytes: Ceiling of resident memory while a store is written.
        layout: What an entry is made of.

    Raises:
        ValueError: If too little is left for a segment to be worth its folder.
    """
    # Twice the keys as FAISS has them, its ids and links, and the mapped files.
    each = layout.entry_bytes + 2 * 4 * layout.d + 256
    rows = memory_bytes // (2 * each)
    if rows < 1024:
        raise ValueError(f"memory_bytes={memory_bytes:,} is too little: give {2048 * each:,} or more")
    return min(rows, 2**31 - 1)


class SegmentWriter(AbstractContextManager["SegmentWriter"]):
    """Writes entries one after the other into new segments, which no generation names yet.

    Args:
        folder: The store.
        number: Number of the first segment.
        rows: Entries of a segment at most.
        layout: Types of the columns.
        about: What every segment says about itself beside that.

    Attributes:
        names: Segments that are complete.
        written: Entries so far.
    """

    def __init__(
        self, folder: Path, number: int, rows: int, layout: Layout, about: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        self.number = number
        self.rows = rows
        self.layout = layout
        self.about = about
        self.names: list[str] = []
        self.written = 0
        self._open: _OpenSegment | None = None

    def add(self, columns: Mapping[str, np.ndarray], ids: np.ndarray) -> None:
        """Write entries whose ids come after all those before."""
        done = 0
        while done < len(ids):
            if self._open is None:
                self._open = _OpenSegment(self)
            take = min(len(ids) - done, self.rows - self._open.n)
            part = slice(done, done + take)
            self._open.add({name: columns[name][part] for name in self.layout.columns}, ids[part])
            done += take
            self.written += take
            if self._open.n == self.rows:
                self._finish()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self._finish()
        elif self._open is not None:
            self._open.abandon(kind, error, trace)

    def _finish(self) -> None:
        if self._open is not None:
            segment, self._open = self._open, None
            segment.finish()
            self.names.append(f"seg-{self.number:06d}")
            self.number += 1


class _OpenSegment:
    """The files of a segment that is being written."""

    def __init__(self, writer: SegmentWriter) -> None:
        self.n = 0
        self._columns = writer.layout.columns | {"ids": (np.dtype(np.int64), ())}
        self._first = self._last = 0
        layout = writer.layout
        self._about = {"d": layout.d, "dtype": layout.dtype, "d_value": layout.d_value, **writer.about}
        path = writer.folder / f"seg-{writer.number:06d}"
        self._files: dict[str, BinaryIO] = {}
        with ExitStack() as stack:
            self._folder = stack.enter_context(writing_snapshot(path, SEGMENT, SEGMENT_VERSION, self._about))
            # Runs when the files are closed: what does not fit on a full disk may be found out no earlier.
            stack.push(self._describe)
            for name in self._columns:
                self._files[name] = stack.enter_context((self._folder / f"{name}.npy").open("wb+"))
                self._header(name)
            self._stack = stack.pop_all()

    def add(self, columns: Mapping[str, np.ndarray], ids: np.ndarray) -> None:
        self._first = int(ids[0]) if not self.n else self._first
        self._last = int(ids[-1])
        for name, column in {**columns, "ids": ids}.items():
            self._files[name].write(np.ascontiguousarray(column, self._columns[name][0]).data)
        self.n += len(ids)

    def finish(self) -> None:
        """All entries are written: the segment takes its place."""
        with self._stack:
            for name in self._files:
                self._header(name)

    def abandon(self, kind: Any, error: Any, trace: Any) -> None:
        """There was an error: nothing stays."""
        self._stack.__exit__(kind, error, trace)

    def _describe(self, kind: Any, *_: object) -> None:
        if kind is None:
            dense = self._last - self._first + 1 == self.n
            if dense:
                (self._folder / "ids.npy").unlink()
            self._about |= {"entries": self.n, "first_id": self._first, "dense": dense}

    def _header(self, name: str) -> None:
        dtype, shape = self._columns[name]
        write_header(self._files[name], dtype, (self.n, *shape))
