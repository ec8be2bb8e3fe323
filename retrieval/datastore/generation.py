"""One state of a store of a corpus: which segments it has and which of their entries are deleted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.datastore.entries import Layout
from retrieval.datastore.segment import Part
from retrieval.exact import Metric

__all__ = ["Generation", "Settings", "bury"]

# Entries looked through at once.
_ROWS = 1 << 20


@dataclass(frozen=True)
class Settings:
    """What a store is, the same in all its generations but for how it is indexed and searched.

    Args:
        metric: ``"ip"`` or ``"l2"``.
        layout: Types and sizes of its entries.
        factory: How its segments are indexed: ``"Flat"``, or a factory string of :class:`retrieval.Index`.
        encoder: Fingerprint of what made the keys.
        tokenizer: Fingerprint of what made the token ids.
        rows: Entries of a segment at most.
        identity: Something no other store has.
        nprobe, ef, k_factor: How it is searched, as :class:`retrieval.Index` takes them.
    """

    metric: Metric
    layout: Layout
    factory: str
    encoder: str | None
    tokenizer: str | None
    rows: int
    identity: str
    nprobe: int
    ef: int
    k_factor: int

    def check_merge(self, other: Settings, path: Path) -> None:
        """Refuse a store whose entries do not belong into one of these settings.

        Raises:
            ValueError: If it differs in more than its index.
        """
        for name in ("metric", "layout", "encoder", "tokenizer"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(
                    f"{path} has {name} {theirs}, this store {ours}: build one of them again like the other"
                )


@dataclass(frozen=True)
class Generation:
    """A store between two changes; nothing in it ever changes.

    Args:
        path: Folder of the store.
        number: Generations before it.
        settings: What the store is.
        parts: Segments in the order of their ids.
        deleted: Ids of deleted entries whose segments are still there, ascending.
        next_id: Id of the next entry.
        next_segment: Number of the next segment.
    """

    path: Path
    number: int
    settings: Settings
    parts: tuple[Part, ...]
    deleted: np.ndarray
    next_id: int
    next_segment: int

    @cached_property
    def live(self) -> int:
        """Entries that are not deleted."""
        return sum(part.live for part in self.parts)

    def find(self, ids: np.ndarray) -> Iterator[tuple[Part, np.ndarray, np.ndarray]]:
        """Where live entries are: parts, the places in each in ascending order, and which of ``ids`` these are.

        Raises:
            KeyError: If one is deleted or was never there; it is named.
        """
        order = np.argsort(ids, kind="stable")
        ascending = ids[order]
        firsts = np.array([part.segment.first_id for part in self.parts], np.int64)
        which = np.searchsorted(firsts, ascending, side="right") - 1
        found = []
        for number in np.unique(which):
            at = np.flatnonzero(which == number)
            if number < 0:
                raise self._missing(int(ascending[0]))
            part = self.parts[number]
            places = part.segment.places(ascending[at])
            gone = places < 0 if part.dead is None else (places < 0) | part.dead[places]
            if gone.any():
                raise self._missing(int(ascending[at][gone][0]))
            found.append((part, places, order[at]))
        yield from found

    def _missing(self, id_: int) -> KeyError:
        known = 0 <= id_ < self.next_id
        why = f"entry {id_} was deleted" if known else f"there is no entry {id_}"
        return KeyError(f"{why}: {self.path} has {self.live:,} entries with ids below {self.next_id:,}")

    def with_deleted(self, deleted: np.ndarray) -> Generation:
        """The next one: the same entries but for those with these ids, ascending."""
        parts = tuple(bury(self.parts, deleted))
        return replace(self, number=self.number + 1, deleted=deleted, parts=parts)

    def of_documents(self, labels: np.ndarray) -> np.ndarray:
        """Ids, ascending, of the live entries of some documents."""
        found = [np.zeros(0, np.int64)]
        for part in self.parts:
            for begin in range(0, len(part.segment), _ROWS):
                documents = part.segment.columns["documents"][begin : begin + _ROWS]
                places = begin + np.flatnonzero(np.isin(documents, labels))
                found.append(part.segment.ids(places if part.dead is None else places[~part.dead[places]]))
        return np.concatenate(found)

    @property
    def largest_document(self) -> int:
        """Largest label of a document, -1 if there is no entry."""
        largest = -1
        for part in self.parts:
            documents = part.segment.columns["documents"]
            for begin in range(0, len(documents), _ROWS):
                largest = max(largest, int(documents[begin : begin + _ROWS].max()))
            part.segment.release()
        return largest

    def info(self) -> dict[str, Any]:
        """What it is, as one would print it."""
        settings = asdict(self.settings)
        files = [file for part in self.parts for file in part.files()]
        return settings.pop("layout") | {
            **settings,
            "path": str(self.path),
            "generation": self.number,
            "entries": self.live,
            "deleted": len(self.deleted),
            "segments": len(self.parts),
            "indexed_segments": sum(part.index is not None for part in self.parts),
            "next_id": self.next_id,
            "bytes": sum(file.stat().st_size for file in files if file.exists()),
        }


def bury(parts: Sequence[Part], deleted: np.ndarray) -> Iterator[Part]:
    """The same parts with the entries of these ids, ascending, deleted."""
    for part in parts:
        segment = part.segment
        if not len(segment):
            continue
        near = slice(*np.searchsorted(deleted, (segment.first_id, segment.last_id + 1)))
        places = segment.places(deleted[near])
        places = places[places >= 0]
        dead = None
        if len(places):
            dead = np.zeros(len(segment), bool)
            dead[places] = True
        yield replace(part, dead=dead)
