"""Neighbours looked up once and read many times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from retrieval.neighbors import Neighbors
from retrieval.snapshot import SnapshotError, open_snapshot, writing_snapshot
from retrieval.source import Source
from retrieval.stored import mapped, write_header

__all__ = ["NeighborTable"]

_KIND, _VERSION = "neighbor table", 2


class NeighborTable:
    """Neighbours of every position of rows of tokens, precomputed and memory-mapped.

    A frozen source gives the same neighbours every time, so a training set's are looked up once. Scores are kept in
    16 bits, ids in 32 where the store allows. A table is written beside its place and takes it whole, so whatever ends
    the writing early, a full disk or a killed process, leaves the one that was there. It is checked when opened.

    Attributes:
        k: Neighbours per position.
        time: Positions per row.
        source: Fingerprint of the source that was asked.
        work: Work of the searches by name (that of :attr:`Neighbors.work`), per row; a batch's work is spread evenly
            over its rows.
        seconds: Time the searches took.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self._ids, self._scores, work = (mapped(path, name) for name in ("ids", "scores", "work"))
        try:
            self.k: int = about["k"]
            self.time: int = about["time"]
            self.source: str = about["source"]
            self.seconds: float = about["seconds"]
            names: list[str] = list(about["work"])
        except (KeyError, TypeError) as error:
            raise SnapshotError(f"{path} lacks {error}: delete it and build it again") from None
        shape = (len(self._ids), self.time, self.k)
        if self._ids.shape != shape or self._scores.shape != shape or work.shape != (len(names), len(self)):
            raise SnapshotError(f"the files of {path} are of different tables: delete it and build it again")
        self.work: dict[str, np.ndarray] = dict(zip(names, np.array(work), strict=True))

    @classmethod
    def build(
        cls,
        path: str | Path,
        source: Source,
        batches: Iterable[
            tuple[Tensor, Tensor | None, Tensor | None]
            | tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
        ],
        k: int,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> NeighborTable:
        """Look up the neighbours of all rows, write them, and open the result.

        Args:
            path: Where to put the table; one that is there is replaced, whole, at the end.
            source: What to ask.
            batches: ``(tokens, documents, exclude)``, or ``at`` too, as :meth:`Source.search` takes them; all of one
                ``time``.
            k: Neighbours per position.
            progress: Called with the number of rows done so far after each batch.

        Shapes:
            batches: each ``[n, time]``, ``n`` may vary

        Raises:
            ValueError: If rows differ in length or there are none.
        """
        about: dict[str, Any] = {"k": k, "source": source.fingerprint, "time": 0, "seconds": 0.0, "work": []}
        id_type = np.dtype(np.int32 if len(source.passages) < 2**31 else np.int64)
        bills: list[np.ndarray] = []
        rows = 0
        with writing_snapshot(path, _KIND, _VERSION, about) as folder:
            with (folder / "ids.npy").open("wb+") as ids, (folder / "scores.npy").open("wb+") as scores:
                for tokens, documents, exclude, *at in batches:
                    n, length = tokens.shape
                    if rows and length != about["time"]:
                        raise ValueError(f"rows of {length} positions among rows of {about['time']}")
                    about["time"] = length
                    begin = time.perf_counter()
                    options = {"at": at[0]} if at else {}
                    found = source.search(tokens, k, documents=documents, exclude=exclude, **options)
                    about["seconds"] += time.perf_counter() - begin
                    if not rows:
                        write_header(ids, id_type, (0, length, k))
                        write_header(scores, np.dtype(np.float16), (0, length, k))
                    raw = torch.where(found.mask, found.ids, -1).cpu().numpy()
                    ids.write(raw.astype(id_type).tobytes())
                    scores.write(found.scores.cpu().numpy().astype(np.float16).tobytes())
                    about["work"] = list(found.work)
                    bills.append(np.stack([_spread(total, n) for total in found.work.values()]))
                    rows += n
                    if progress is not None:
                        progress(rows)
                if not rows:
                    raise ValueError("there are no rows to look up neighbours for")
                write_header(ids, id_type, (rows, about["time"], k))
                write_header(scores, np.dtype(np.float16), (rows, about["time"], k))
            np.save(folder / "work.npy", np.concatenate(bills, axis=1))
        return cls.open(path, verify=False)

    @classmethod
    def open(cls, path: str | Path, *, source: str | None = None, verify: bool = True) -> NeighborTable:
        """Open a table that was built before.

        Args:
            path: Where it is.
            source: Fingerprint of the source it must have been built from; by default any.
            verify: Whether to compare checksums.

        Raises:
            SnapshotError: If it is missing, damaged, foreign, of a newer format, or of another source.
        """
        table = cls(Path(path), open_snapshot(path, _KIND, _VERSION, verify=verify))
        if source is not None and table.source != source:
            raise SnapshotError(f"{path} was built from another source: delete it and build it again")
        return table

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._ids)

    def rows(self, index: Int[Tensor, " batch"]) -> Neighbors:
        """Neighbours of rows, with what looking them up has cost.

        Shapes:
            index: ``[batch]``, result: ``[batch, time, k]``

        Raises:
            IndexError: If a row is outside the table.
        """
        at = index.detach().cpu().numpy()
        if at.size and not 0 <= at.min() <= at.max() < len(self):
            raise IndexError(f"rows {at.min()}..{at.max()} of a table of {len(self)}")
        found = Neighbors.of(
            torch.from_numpy(self._scores[at]).float(),
            torch.from_numpy(self._ids[at]).long(),
            **{name: int(amount[at].sum()) for name, amount in self.work.items()},
        )
        return found.to(index.device)


def _spread(total: int, n: int) -> np.ndarray:
    """A total as ``n`` nearly equal integers that add up to it."""
    return np.diff(np.arange(n + 1, dtype=np.int64) * total // n) if n else np.zeros(0, np.int64)
