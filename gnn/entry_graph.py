"""Edges between the entries of a store, found once and followed while reading."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from retrieval.passages import Passages
from retrieval.snapshot import SnapshotError, open_snapshot, writing_snapshot
from retrieval.source import Source
from retrieval.stored import mapped

__all__ = ["KINDS", "EntryGraph"]

# Kinds of edges; an entry hears what it is joined to.
KINDS = ("succession", "document", "nearest", "answer")
_KIND, _VERSION = "entry graph", 1
_NOTHING = -1


class EntryGraph:
    r"""What each entry of a store hears of other entries.

    Windows say what stands around a retrieved position; these edges say what stands elsewhere and belongs to it. Where
    RetoMaton follows pointers by rule, a :class:`~gnn.HeteroReader` learns what to make of them, one hop a round.

    * ``"succession"``: the entry after it in its passage
    * ``"document"``: others of its document, drawn once
    * ``"nearest"``: those whose contexts are most like its own, of other documents
    * ``"answer"``: of these, the nearest with the same next token

    Each entry has the same number of places a kind; an edge that is not there is -1.

    Args:
        passages: What the store holds.
        edges: For each token, the entries it is joined to, kind after kind.
        widths: Places of each kind, in that order.
        work: What finding them took, by name, as :attr:`retrieval.Neighbors.work` counts it.

    Shapes:
        edges: ``[tokens, places]``
    """

    def __init__(
        self,
        passages: Passages,
        edges: np.ndarray,
        widths: Mapping[str, int],
        work: Mapping[str, int] | None = None,
    ) -> None:
        unknown = [kind for kind in widths if kind not in KINDS]
        if unknown or edges.shape != (len(passages), sum(widths.values())):
            raise ValueError(
                f"edges of shape {edges.shape} and widths {dict(widths)} for {len(passages)} tokens: one row a token, "
                f"one column a place, kinds among {', '.join(KINDS)}"
            )
        self.passages, self.widths, self.work = passages, dict(widths), dict(work or {})
        self.edges = _mapped(edges)

    def __repr__(self) -> str:
        return f"EntryGraph({len(self.passages):,} tokens, {self.widths})"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of edges, in the order of their places."""
        return tuple(self.widths)

    @classmethod
    def build(
        cls,
        source: Source,
        kinds: tuple[str, ...] = KINDS,
        *,
        places: int = 2,
        candidates: int = 32,
        seed: int = 0,
        chunk: int = 8192,
        progress: Callable[[int], None] | None = None,
    ) -> EntryGraph:
        """Finds the edges of every entry: one search an entry, if any kind needs it.

        Args:
            source: The store.
            kinds: Kinds of edges.
            places: Places of each kind; succession has one.
            candidates: Neighbours among which those with the same answer are looked for.
            seed: Draws entries of the same document.
            chunk: Entries searched for at once.
            progress: Called with the number of tokens done so far.

        Raises:
            ValueError: If a kind is unknown or there are none.
        """
        if not kinds or len(set(kinds)) < len(kinds) or set(kinds) - set(KINDS) or places < 1:
            raise ValueError(
                f"{kinds=}, {places=}: use each of {', '.join(KINDS)} once at most, and places >= 1"
            )
        passages = source.passages
        parts, work = {}, {}
        if "succession" in kinds:
            parts["succession"] = _succession(passages)
        if "document" in kinds:
            parts["document"] = _same_document(passages, places, seed)
        if {"nearest", "answer"} & set(kinds):
            nearest, answer, work = _searched(source, places, max(candidates, places), chunk, progress)
            parts |= {"nearest": nearest, "answer": answer}
        dtype = np.int32 if len(passages) < 2**31 else np.int64
        edges = np.concatenate([parts[kind] for kind in kinds], 1).astype(dtype)
        return cls(passages, edges, {kind: parts[kind].shape[1] for kind in kinds}, work)

    def save(self, path: str | Path) -> None:
        """Writes the edges as a checksummed snapshot; the passages are not in it.

        Args:
            path: Where to; a graph that is there is replaced, whole, at the end.
        """
        about = {"widths": self.widths, "work": self.work, "passages": self.passages.fingerprint}
        with writing_snapshot(path, _KIND, _VERSION, about) as folder:
            np.save(folder / "edges.npy", self.edges.numpy(), allow_pickle=False)

    @classmethod
    def open(cls, path: str | Path, passages: Passages, *, verify: bool = True) -> EntryGraph:
        """Opens a saved graph, memory-mapped.

        Args:
            path: Where it is.
            passages: What it was built for.
            verify: Whether to compare checksums.

        Raises:
            SnapshotError: If it is missing, damaged, foreign, of a newer format, or of other passages.
        """
        about: dict[str, Any] = open_snapshot(path, _KIND, _VERSION, verify=verify)
        if about.get("passages") != passages.fingerprint:
            raise SnapshotError(f"{path} was built for other passages: give those, or build it again")
        try:
            return cls(passages, mapped(Path(path), "edges"), about["widths"], about["work"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise SnapshotError(f"{path} holds no entry graph: delete it and build it again") from None

    def joined(
        self, ids: Int[Tensor, " entries"], exclude: Int[Tensor, " entries"] | None = None
    ) -> tuple[Int[Tensor, "entries places"], Bool[Tensor, "entries places"]]:
        """The entries that some hear, and whether each is there.

        Args:
            ids: Entries.
            exclude: Label of the stored document whose entries are not to be heard, -1 for none: in training that of
                the text that asks, for edges lead from other documents back into it.

        Shapes:
            ids and exclude: ``[entries]``, result: ``[entries, places]``; where an edge is missing its entry is 0
        """
        found = self.edges[ids.cpu()].long()
        there = found >= 0
        found = found.clamp_(min=0)
        if exclude is not None:
            there &= self.labels[found] != exclude.cpu().unsqueeze(1)
        return (found * there).to(ids.device), there.to(ids.device)

    @cached_property
    def labels(self) -> Int[Tensor, " tokens"]:
        """Document label of every token."""
        return _mapped(self.passages.labels)


def _mapped(array: np.ndarray) -> Tensor:
    """The same memory, which torch warns of if it cannot be written; it never is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(np.asarray(array))


def _succession(passages: Passages) -> np.ndarray:
    entries = passages.entries()
    found = np.full((len(passages), 1), _NOTHING, np.int64)
    follows = np.diff(entries) == 1
    # The last token of a passage is no entry, so entries side by side are of one passage.
    found[entries[:-1][follows], 0] = entries[1:][follows]
    return found


def _same_document(passages: Passages, places: int, seed: int) -> np.ndarray:
    """Different entries of each entry's document, at random distances around the circle of them."""
    found = np.full((len(passages), places), _NOTHING, np.int64)
    entries = passages.entries()
    if not len(entries):
        return found
    entries = entries[np.argsort(passages.labels[entries], kind="stable")]
    _, first, sizes = np.unique(passages.labels[entries], return_index=True, return_counts=True)
    begin, size = np.repeat(first, sizes), np.repeat(sizes, sizes)
    place = np.arange(len(entries)) - begin
    steps = np.random.default_rng(seed).random((len(entries), places))
    # One step out of each of so many equal stretches of the circle, so that none is drawn twice.
    steps = 1 + ((np.arange(places) + steps) / places * (size[:, None] - 1)).astype(np.int64)
    others = entries[begin[:, None] + (place[:, None] + steps) % size[:, None]]
    others[:, 1:][steps[:, 1:] == steps[:, :-1]] = _NOTHING
    others[size == 1] = _NOTHING
    found[entries] = others
    return found


def _searched(
    source: Source, places: int, candidates: int, chunk: int, progress: Callable[[int], None] | None
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """The nearest of other documents, and the nearest of those with the same answer."""
    passages, n = source.passages, len(source.passages)
    nearest, answer = (np.full((n, places), _NOTHING, np.int64) for _ in range(2))
    is_entry = np.zeros(n, bool)
    is_entry[passages.entries()] = True
    sizes = np.diff(passages.offsets)
    passage = np.repeat(np.arange(len(sizes)), sizes)
    work: dict[str, int] = {}
    for start in range(0, n, chunk):
        begin, stop = max(0, start - source.depth + 1), min(n, start + chunk)
        wanted = is_entry[begin:stop].copy()
        wanted[: start - begin] = False
        rows = (
            passages.tokens[begin:stop].astype(np.int64),
            passage[begin:stop],
            passages.labels[begin:stop],
        )
        tokens, cuts, labels = (torch.from_numpy(row.astype(np.int64))[None] for row in rows)
        found = source.search(
            tokens, candidates, documents=cuts, exclude=labels, at=torch.from_numpy(wanted)[None]
        )
        work = {name: work.get(name, 0) + amount for name, amount in found.work.items()}
        at = np.flatnonzero(wanted)
        ids = torch.where(found.mask, found.ids, _NOTHING)[0].numpy()[at]
        nearest[begin + at] = ids[:, :places]
        answer[begin + at] = _with_same_answer(passages, begin + at, ids)[:, :places]
        if progress is not None:
            progress(stop)
    return nearest, answer, work


def _with_same_answer(passages: Passages, positions: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Those of each entry's neighbours that go on with the same token, in their order, then nothing."""
    after = passages.tokens[np.minimum(np.maximum(ids, 0) + 1, len(passages) - 1)]
    same = (ids >= 0) & (after == passages.tokens[positions + 1][:, None])
    order = np.argsort(~same, axis=1, kind="stable")
    return np.take_along_axis(np.where(same, ids, _NOTHING), order, 1)
