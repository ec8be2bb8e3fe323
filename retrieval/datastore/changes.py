"""How one generation of a store becomes the next: grown, compacted, indexed anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from retrieval.datastore.derived import DerivedIndex, build_index, check_factory
from retrieval.datastore.generation import Generation
from retrieval.datastore.manifest import engine
from retrieval.datastore.segment import Part, Segment
from retrieval.datastore.writer import SegmentWriter

__all__ = ["Piece", "compacted", "entries_of", "grown", "indexed"]

Piece = tuple[Mapping[str, np.ndarray], np.ndarray]
# What is copied at once.
_BYTES = 1 << 20
# Below this many keys an index is not worth its folder.
_SMALL = 1024


def grown(before: Generation, pieces: Iterable[Piece]) -> Generation:
    """The same store with more entries, in new segments.

    Args:
        before: What there is.
        pieces: Columns and ids; ids ascend and come after all that were given.
    """
    names, last = _written(before, before.next_segment, pieces)
    parts = tuple(_part(before, name) for name in names)
    return replace(
        before,
        number=before.number + 1,
        parts=before.parts + parts,
        next_id=max(before.next_id, last + 1),
        next_segment=before.next_segment + len(names),
    )


def compacted(before: Generation) -> Generation:
    """The same entries without the deleted ones, neighbouring small segments joined; ids stay."""
    parts: list[Part] = []
    number = before.next_segment
    for group in _groups(before):
        if len(group) == 1 and group[0].dead is None:
            parts.append(group[0])
            continue
        names, _ = _written(before, number, entries_of(group))
        parts += [_part(before, name) for name in names]
        number += len(names)
    return replace(
        before,
        number=before.number + 1,
        parts=tuple(parts),
        deleted=np.zeros(0, np.int64),
        next_segment=number,
    )


def indexed(before: Generation, factory: str) -> Generation:
    """The same entries, indexed in another way.

    Raises:
        ValueError: If FAISS does not know the factory string.
        NotImplementedError: If the work of such an index is not known.
    """
    if factory != "Flat":
        check_factory(factory, before.settings.metric, before.settings.layout.d)
    after = replace(before, number=before.number + 1, settings=replace(before.settings, factory=factory))
    return replace(
        after, parts=tuple(replace(part, index=_index(after, part.segment)) for part in before.parts)
    )


def entries_of(parts: Sequence[Part]) -> Iterator[Piece]:
    """All entries that are not deleted, a piece at a time, in the order of their ids."""
    for part in parts:
        segment = part.segment
        rows = max(1, _BYTES // segment.layout.entry_bytes)
        for begin in range(0, len(segment), rows):
            places = part.live_places(begin, begin + rows)
            if len(places) == min(rows, len(segment) - begin):  # straight from the map: nothing is copied
                columns = {name: column[begin : begin + rows] for name, column in segment.columns.items()}
            else:
                columns = {name: segment.take(name, places).numpy() for name in segment.columns}
            yield columns, segment.ids(places)
            segment.release()


def _groups(generation: Generation) -> Iterator[list[Part]]:
    """Neighbouring parts that become one segment; a part that is well as it is comes alone."""
    rows = generation.settings.rows
    group: list[Part] = []
    for part in generation.parts:
        small = part.dead is not None or 2 * len(part.segment) <= rows
        if group and (not small or sum(one.live for one in group) + part.live > rows):
            yield group
            group = []
        if small:
            group.append(part)
        else:
            yield [part]
    if group:
        yield group


def _written(generation: Generation, number: int, pieces: Iterable[Piece]) -> tuple[list[str], int]:
    """Names of new segments, and the last id in them."""
    settings, last = generation.settings, -1
    about = {"store": settings.identity, "metric": settings.metric, "engine": engine()}
    about |= {"encoder": settings.encoder, "tokenizer": settings.tokenizer}
    with SegmentWriter(generation.path, number, settings.rows, settings.layout, about) as writer:
        for columns, ids in pieces:
            if len(ids):
                writer.add(columns, ids)
                last = int(ids[-1])
    return writer.names, last


def _part(generation: Generation, name: str) -> Part:
    segment = Segment(generation.path / name, verify=False)
    return Part(segment, None, _index(generation, segment))


def _index(generation: Generation, segment: Segment) -> DerivedIndex | None:
    """The index of a segment that the coming generation shall have."""
    settings = generation.settings
    if settings.factory == "Flat" or len(segment) < _SMALL:
        return None
    name = f"index-{segment.name.removeprefix('seg-')}-{generation.number:06d}"
    keys = segment.columns["keys"]
    index = build_index(generation.path / name, keys, settings.factory, settings.metric)
    segment.release()
    return index
