"""The store of a corpus: (key, value, document, position), on disk, searched where it lies."""

from __future__ import annotations

import itertools
import secrets
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from torch import Tensor

from retrieval.datastore.changes import Piece, compacted, entries_of, grown, indexed
from retrieval.datastore.derived import check_factory
from retrieval.datastore.entries import Checked, Layout, whole_numbers
from retrieval.datastore.generation import Generation, Settings
from retrieval.datastore.lock import WriterLock
from retrieval.datastore.manifest import changing, commit, load, replaced
from retrieval.datastore.reader import StoreReader, at_least_one
from retrieval.datastore.writer import segment_rows
from retrieval.exact import Metric
from retrieval.snapshot import make_folder

__all__ = ["Datastore"]

Batches = Iterable[Any]


class Datastore(StoreReader):
    r"""A corpus of (key, value, document, position) in a folder, memory-mapped.

    As in `kNN-LM <https://arxiv.org/abs/1911.00172>`_, a key is a vector, and a value is what it stands for: the next
    token, or a vector. Entries are in immutable segments; what is appended becomes new ones, what is deleted is named
    in a small file. Each change makes a new *generation*, in one step: whoever is killed at any moment leaves the old
    one or the new one. A store that was opened stays at its generation until :meth:`refresh`, whatever others write.
    One process writes at a time; any number of threads and processes search, also while it writes.

    An id belongs to one entry for ever, and is 64 bits wide. Results are in the order (score descending, id ascending);
    scores are computed from the stored keys in 32-bit floats, one pair at a time, so that with ``factory="Flat"``
    neither they nor the ids depend on batch, threads, or how entries are spread over segments.

    Make one with :meth:`build` or :meth:`open`.

    Attributes:
        path: Its folder.
        nprobe: Inverted lists to visit in a search, where there are any.
        ef: Candidates kept by a search in a graph.
        k_factor: Candidates for each neighbour, where they are scored again. These three are for this object when they
            are set; :meth:`tune` stores them.
    """

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation)
        self._lock = WriterLock(self.path)
        self._background: list[_Change] = []

    @classmethod
    def build(
        cls,
        path: str | Path,
        batches: Batches,
        *,
        metric: Metric = "ip",
        dtype: str = "float16",
        factory: str = "Flat",
        encoder: str | None = None,
        tokenizer: str | None = None,
        nprobe: int = 8,
        ef: int = 64,
        k_factor: int = 8,
        progress: Callable[[int], None] | None = None,
        memory_bytes: int = 4 << 30,
    ) -> Datastore:
        """Write a store and open it.

        Entries are written as they come; their ids are 0, 1, 2 and so on. A store that is there already is replaced,
        whole, at the end.

        Args:
            path: Folder of the store.
            batches: :class:`retrieval.Entries`, or tuples ``(keys, values, documents, positions)``, of which the last
                two may be left out.
            metric: ``"ip"`` (inner product) or ``"l2"`` (minus the squared distance).
            dtype: How keys are stored: ``"float16"`` or ``"float32"``.
            factory: ``"Flat"`` to look at every key, exactly; or a factory string of :class:`retrieval.Index`.
            encoder: Fingerprint of what makes the keys; :meth:`open` can insist on it.
            tokenizer: Fingerprint of what makes the token ids.
            nprobe, ef, k_factor: How it is searched, kept in the store; see :class:`retrieval.Index`.
            progress: Called with the number of entries so far after each batch.
            memory_bytes: Ceiling of resident memory, a batch of yours not counted.

        Shapes:
            batches: keys ``[n, d]``, values ``[n]`` (integers) or ``[n, d_value]`` (floats), documents, positions
            ``[n]``; ``n`` may vary

        Raises:
            ValueError: If there are no entries, a row is not finite (it is named), batches do not fit together, or
                FAISS cannot make such an index. Nothing is stored then.
            FileExistsError: If the folder holds something else.
            StoreBusyError: If another process writes there.
        """
        if dtype not in ("float16", "float32"):
            raise ValueError(f"dtype must be 'float16' or 'float32', got {dtype!r}")
        if metric not in ("ip", "l2"):
            raise ValueError(f"metric must be 'ip' or 'l2', got {metric!r}")
        tuned = {"nprobe": nprobe, "ef": ef, "k_factor": k_factor}
        tuned = {name: at_least_one(name, value) for name, value in tuned.items()}
        path = Path(path)
        replaced(path)
        pieces = _checked(batches, dtype, None, progress)
        first = next(pieces, None)
        if first is None:
            raise ValueError(f"there are no entries to build {path} from: give at least one batch with a row")
        layout, identity = first.layout, secrets.token_hex(16)
        if factory != "Flat":
            check_factory(factory, metric, layout.d)
        rows = segment_rows(memory_bytes, layout)
        settings = Settings(metric, layout, factory, encoder, tokenizer, rows, identity, **tuned)
        make_folder(path)
        with changing(WriterLock(path), build=True):
            generation, segment = replaced(path)
            empty = Generation(path, generation, settings, (), np.zeros(0, np.int64), 0, segment)
            return cls(commit(grown(empty, _numbered(itertools.chain([first], pieces), 0))))

    def append(self, batches: Batches, *, progress: Callable[[int], None] | None = None) -> range:
        """Store more entries, as :meth:`build` takes them; all of them or, on an error, none.

        Returns:
            Their ids.

        Raises:
            ValueError: If there are none, a row is not finite (it is named), or they do not fit the store.
            StoreBusyError: If another process writes to the store.
        """
        with self._writing() as before:
            layout = before.settings.layout
            pieces = _checked(batches, layout.dtype, layout, progress)
            after = grown(before, _numbered(pieces, before.next_id))
            if after.next_id == before.next_id:
                raise ValueError(f"there are no entries to append to {self.path}")
            self._now = commit(after)
        return range(before.next_id, after.next_id)

    def delete(
        self,
        ids: Int[Tensor, "..."] | Sequence[int] | None = None,
        *,
        documents: Int[Tensor, "..."] | Sequence[int] | None = None,
    ) -> int:
        """Take entries away by their ids, or all entries of some documents; :meth:`compact` frees their space.

        Returns:
            How many there were.

        Raises:
            KeyError: If an id is deleted already or was never there; it is named, and nothing is deleted.
            TypeError: If ids or labels are no integers, for example a mask.
            StoreBusyError: If another process writes to the store.
        """
        if (ids is None) == (documents is None):
            raise ValueError("delete(ids) or delete(documents=labels): give one of them")
        what, given = ("ids", ids) if documents is None else ("documents", documents)
        named = whole_numbers(what, given).reshape(-1).cpu().numpy()
        with self._writing() as before:
            if documents is None:
                gone = np.unique(named)
                for _ in before.find(gone):
                    pass
            else:
                gone = before.of_documents(named)
            if len(gone):
                self._now = commit(before.with_deleted(np.union1d(before.deleted, gone)))
        return len(gone)

    def compact(self) -> None:
        """Write segments with deleted entries anew without these, and join small ones; ids stay as they are.

        Raises:
            StoreBusyError: If another process writes to the store.
        """
        with self._writing() as before:
            self._now = commit(compacted(before))

    def tune(self, *, nprobe: int | None = None, ef: int | None = None, k_factor: int | None = None) -> None:
        """Store how the store is searched, for whoever opens it; what is left out stays.

        Raises:
            ValueError: If one is smaller than 1.
            StoreBusyError: If another process writes to the store.
        """
        given = {"nprobe": nprobe, "ef": ef, "k_factor": k_factor}
        new = {name: at_least_one(name, value) for name, value in given.items() if value is not None}
        with self._writing() as before:
            settings = replace(before.settings, **new)
            self._now = commit(replace(before, number=before.number + 1, settings=settings))
            self._tuned = {name: value for name, value in self._tuned.items() if name not in new}

    def merge(
        self, stores: Sequence[Datastore], *, documents: Literal["apart", "same"] = "apart"
    ) -> list[range]:
        """Store all entries of other stores as well; these stay as they are.

        Args:
            stores: The others.
            documents: ``"apart"``: labels of each store are raised by one more than the largest before them, so that no
                document of one is taken for one of another. ``"same"``: labels stay, as where all stores number the
                documents of one collection.

        Returns:
            For each store the ids that its entries have here, in the order of their ids there.

        Raises:
            ValueError: If one has another metric, dimension, type, encoder or tokenizer, or raised labels would not fit
                64 bits. Nothing is stored then.
            StoreBusyError: If another process writes to this store.
        """
        if documents not in ("apart", "same"):
            raise ValueError(f"documents must be 'apart' or 'same', got {documents!r}")
        with self._writing() as before:
            others = [store._generation for store in stores]
            for other in others:
                before.settings.check_merge(other.settings, other.path)
            firsts = list(itertools.accumulate((other.live for other in others), initial=before.next_id))
            raised = _raised(before, others) if documents == "apart" else [0] * len(others)
            columns = (
                {**piece, "documents": piece["documents"] + by} if by else piece
                for other, by in zip(others, raised, strict=True)
                for piece, _ in entries_of(other.parts)
            )
            self._now = commit(grown(before, _with_ids(columns, before.next_id)))
        return list(map(range, firsts[:-1], firsts[1:]))

    def reindex(self, factory: str | None = None, *, background: bool = False) -> Future[None]:
        """Make all indexes anew, and change over to them in one step.

        Searches go on meanwhile, by the old ones; other changes wait.

        Args:
            factory: ``"Flat"`` or a factory string; by default what it is.
            background: Whether to return at once. :meth:`close` waits for the end, and raises what went wrong if
                nobody has asked for it.

        Returns:
            Is done when the change is; ``result()`` raises what went wrong.

        Raises:
            ValueError: If FAISS does not know the factory string.
            StoreBusyError: If another process writes to the store.
        """
        done = _Change()

        def work() -> None:
            try:
                with self._writing() as before:
                    self._now = commit(
                        indexed(before, before.settings.factory if factory is None else factory)
                    )
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        if background:
            self._background = [one for one in self._background if not one.settled] + [done]
            threading.Thread(target=work, name=f"reindex {self.path}").start()
        else:
            work()
            done.result()
        return done

    def close(self) -> None:
        """Wait for what runs in the background, and let go of the files.

        Raises:
            Exception: What went wrong in the background, if nobody has asked for it.
        """
        waiting, self._background = self._background, []
        wait(waiting)
        super().close()
        for one in waiting:
            if not one.settled:
                one.result()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except Exception as error:
            if kind is None:
                raise
            # What went wrong in the block is on its way already.
            warnings.warn(f"a change of {self.path} in the background failed: {error}", stacklevel=2)

    @contextmanager
    def _writing(self) -> Iterator[Generation]:
        known = self._generation
        with changing(self._lock):
            yield load(self.path, verify=False, known=known)


class _Change(Future[None]):
    """A change in the background, which knows whether anybody has asked how it ended."""

    asked = False

    @property
    def settled(self) -> bool:
        """Whether it is over and nobody need be told."""
        return self.done() and (self.asked or super().exception() is None)

    def result(self, timeout: float | int | None = None) -> None:
        self.asked = True
        return super().result(timeout)

    def exception(self, timeout: float | int | None = None) -> BaseException | None:
        self.asked = True
        return super().exception(timeout)


def _raised(before: Generation, others: Sequence[Generation]) -> list[int]:
    """By how much the labels of documents of each store are raised, so that all differ."""
    raised, largest = [], before.largest_document
    for other in others:
        raised.append(largest + 1)
        largest += 1 + other.largest_document
    if largest > np.iinfo(np.int64).max:
        raise ValueError(
            "labels of documents would not fit 64 bits when raised: merge(..., documents='same') keeps them"
        )
    return raised


def _checked(
    batches: Batches, dtype: str, layout: Layout | None, progress: Callable[[int], None] | None
) -> Iterator[Checked]:
    """Batches with a row at least, in the stored types."""
    rows = 0
    for batch in batches:
        piece = Checked.of(batch, dtype, layout, rows)
        if len(piece):
            layout = piece.layout
            yield piece
        rows += len(piece)
        if progress is not None:
            progress(rows)


def _numbered(pieces: Iterable[Checked], first: int) -> Iterator[Piece]:
    return _with_ids((piece.columns for piece in pieces), first)


def _with_ids(columns: Iterable[Mapping[str, np.ndarray]], first: int) -> Iterator[Piece]:
    for piece in columns:
        n = len(piece["keys"])
        yield piece, np.arange(first, first + n)
        first += n
