"""A store of a corpus, open for searching."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from retrieval.datastore.entries import whole_numbers
from retrieval.datastore.exclusion import EVERYTHING, NO_DOCUMENT, Exclusion
from retrieval.datastore.generation import Generation
from retrieval.datastore.manifest import load
from retrieval.datastore.ranking import Ranking
from retrieval.datastore.scan import propose, scan
from retrieval.exact import Metric
from retrieval.neighbors import Neighbors
from retrieval.search import Searchable, check_queries, run_search
from retrieval.snapshot import SnapshotError
from retrieval.work import Work

__all__ = ["StoreReader", "at_least_one"]

Self = TypeVar("Self", bound="StoreReader")


class StoreReader(Searchable):
    """The half of :class:`retrieval.Datastore` that changes nothing.

    Args:
        generation: The state of the store that is read.
    """

    def __init__(self, generation: Generation) -> None:
        self.path = generation.path
        self._tuned: dict[str, int] = {}
        self._now: Generation | None = generation

    @classmethod
    def open(
        cls: type[Self],
        path: str | Path,
        *,
        encoder: str | None = None,
        tokenizer: str | None = None,
        verify: bool = True,
    ) -> Self:
        """Open a store that was built before.

        Args:
            path: Its folder.
            encoder: Fingerprint of what makes the queries; it must be what made the keys. By default anything.
            tokenizer: Fingerprint of what reads the values; it must be what made them.
            verify: Whether to read everything once and compare checksums. Lengths are always compared; without this
                no entry is read before it is wanted.

        Raises:
            SnapshotError: If there is none, or it is damaged, foreign, of a newer format, or of another encoder or
                tokenizer.
        """
        generation = load(Path(path), verify=verify)
        _check_fingerprints(generation, encoder, tokenizer)
        return cls(generation)

    def __len__(self) -> int:
        """Entries that are not deleted."""
        return self._generation.live

    def __repr__(self) -> str:
        if self._now is None:
            return f"{type(self).__name__}({str(self.path)!r}, closed)"
        settings = self._now.settings
        about = f"{len(self):,} entries, {settings.metric}, {settings.factory}"
        return f"{type(self).__name__}({str(self.path)!r}, {about})"

    def search(
        self,
        queries: Float[Tensor, "*batch d"],
        k: int,
        *,
        exclude: Int[Tensor, "*batch"] | None = None,
        visible_at: Int[Tensor, "*batch"] | None = None,
        own: Int[Tensor, "*batch"] | None = None,
    ) -> Neighbors:
        """The ``k`` nearest entries of each query that it may be given, by (score descending, id ascending).

        The search goes on behind entries that are hidden until there are ``k`` others or no more in the store. A query
        with a value that is no number has no neighbours.

        Args:
            queries: What to look for.
            k: Neighbours per query.
            exclude: Label of the document whose entries a query must not be given, -1 for none.
            visible_at: An entry is visible if its position is smaller than this; why so is said at
                :class:`retrieval.datastore.exclusion.Exclusion`.
            own: Label of the query's own document: positions then count in it only, and -1 for a query without one.

        Shapes:
            queries: ``[*batch, d]``, exclude, visible_at, own: ``[*batch]``, result: ``[*batch, k]``

        Raises:
            ValueError: If ``k < 1``, shapes differ, or queries are no floating-point vectors of the keys' dimension.
        """
        check_queries(queries, k)
        d, shape = self._generation.settings.layout.d, queries.shape[:-1]
        if queries.shape[-1] != d:
            raise ValueError(
                f"queries of {queries.shape[-1]} dimensions, {self.path} has keys of {d}: ask with what its encoder "
                "makes, or build it again"
            )
        rules = []
        for name, rule, default in (
            ("exclude", exclude, NO_DOCUMENT),
            ("visible_at", visible_at, EVERYTHING),
            ("own", own, NO_DOCUMENT),
        ):
            if rule is not None and rule.shape != shape:
                raise ValueError(
                    f"{name} {tuple(rule.shape)} must have the shape of the batch {tuple(shape)}"
                )
            default = torch.full(shape, default, dtype=torch.int64, device=queries.device)
            rules.append(default if rule is None else rule.long())
        return run_search(self, [queries, *rules], k)

    def neighbors(self, inputs: Sequence[Tensor], k: int) -> Neighbors:
        """The search behind the operator; call :meth:`search`."""
        generation, metric = self._generation, self._generation.settings.metric
        batch = inputs[0].shape[:-1]
        queries = np.ascontiguousarray(inputs[0].reshape(-1, inputs[0].shape[-1]).float().numpy())
        rules, best, work = Exclusion.of(*inputs[1:]), Ranking(len(queries), k), Work()
        real = np.flatnonzero(np.isfinite(queries).all(1))
        gave_out = []
        for part in generation.parts if len(real) else ():
            index = None if part.index is None else part.index.open(self.nprobe, self.ef, self.k_factor)
            if index is None:
                work += scan(part, queries, real, rules, best, metric)
            else:
                rows, cost = propose(part, index, queries, real, rules, best, metric)
                work += cost
                gave_out.append((part, rows))
        for part, rows in gave_out:
            # All indexes together gave fewer than k: what they have not looked at is looked at now.
            rows = np.intersect1d(rows, best.short)
            if len(rows):
                work += scan(part, queries, rows, rules, best, metric)
        return best.neighbors(batch, work)

    def exhaustive(self, queries: Float[Tensor, "n d"], k: int) -> Neighbors:
        """What :meth:`search` would find if it looked at every entry: the truth that indexes are judged by.

        Shapes:
            queries: ``[n, d]``, result: ``[n, k]``
        """
        x = np.ascontiguousarray(queries.detach().cpu().float().numpy())
        rules = Exclusion.of(
            *(torch.full((len(x),), rule) for rule in (NO_DOCUMENT, EVERYTHING, NO_DOCUMENT))
        )
        best, work = Ranking(len(x), k), Work()
        real = np.flatnonzero(np.isfinite(x).all(1))
        for part in self._generation.parts if len(real) else ():
            work += scan(part, x, real, rules, best, self.metric)
        return best.neighbors(torch.Size((len(x),)), work)

    @property
    def metric(self) -> Metric:
        """What scores are: ``"ip"`` or ``"l2"``."""
        return self._generation.settings.metric

    @property
    def nprobe(self) -> int:
        """Inverted lists to visit in a search, where there are any: what the store keeps, or what was set here."""
        return self._tuned.get("nprobe", self._generation.settings.nprobe)

    @nprobe.setter
    def nprobe(self, value: int) -> None:
        self._tuned["nprobe"] = at_least_one("nprobe", value)

    @property
    def ef(self) -> int:
        """Candidates kept by a search in a graph, as :attr:`nprobe`."""
        return self._tuned.get("ef", self._generation.settings.ef)

    @ef.setter
    def ef(self, value: int) -> None:
        self._tuned["ef"] = at_least_one("ef", value)

    @property
    def k_factor(self) -> int:
        """Candidates for each neighbour where they are scored again, as :attr:`nprobe`."""
        return self._tuned.get("k_factor", self._generation.settings.k_factor)

    @k_factor.setter
    def k_factor(self, value: int) -> None:
        self._tuned["k_factor"] = at_least_one("k_factor", value)

    def ids(self) -> Int[Tensor, " n"]:
        """Ids of all entries that are not deleted, ascending."""
        parts = self._generation.parts
        found = [part.segment.ids(part.live_places(0, len(part.segment))) for part in parts]
        return torch.from_numpy(np.sort(np.concatenate([*found, np.zeros(0, np.int64)])))

    def values(self, ids: Int[Tensor, "*batch"] | Neighbors) -> Shaped[Tensor, "*batch ..."]:
        """What entries stand for: token ids ``int32``, or vectors.

        Args:
            ids: Ids of entries; or what a search returned, and then 0 where there is no neighbour.

        Shapes:
            ids: ``[*batch]``, result: ``[*batch]`` or ``[*batch, d_value]``

        Raises:
            KeyError: If one is deleted or was never there; it is named.
            TypeError: If ids are no integers.
        """
        return self._gather("values", ids)

    def keys(self, ids: Int[Tensor, "*batch"] | Neighbors) -> Shaped[Tensor, "*batch d"]:
        """Stored keys of entries, as :meth:`values`."""
        return self._gather("keys", ids)

    def documents(self, ids: Int[Tensor, "*batch"] | Neighbors) -> Int[Tensor, "*batch"]:
        """Labels of the documents that entries are from, as :meth:`values`."""
        return self._gather("documents", ids)

    def positions(self, ids: Int[Tensor, "*batch"] | Neighbors) -> Int[Tensor, "*batch"]:
        """Stamps of entries, as :meth:`values`."""
        return self._gather("positions", ids)

    def refresh(self: Self) -> Self:
        """Go on with what the store is now, whoever wrote it."""
        self._now = load(self.path, verify=False, known=self._generation)
        return self

    def verify(self) -> None:
        """Read every file of the store as it is now and compare checksums.

        Raises:
            SnapshotError: Naming the file that is damaged, and what to do.
        """
        load(self.path, verify=True)

    def info(self) -> dict[str, Any]:
        """What the store is, as one would print it: sizes in entries and bytes, types, fingerprints."""
        return self._generation.info()

    def close(self) -> None:
        """Let go of the files."""
        self._now = None

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _generation(self) -> Generation:
        if self._now is None:
            raise ValueError(f"{self.path} was closed: Datastore.open({str(self.path)!r}) opens it again")
        return self._now

    def _gather(self, column: str, ids: Tensor | Neighbors) -> Tensor:
        if isinstance(ids, Neighbors):
            numbers, mask = ids.ids, ids.mask
        else:
            numbers = whole_numbers("ids", ids)
            mask = torch.ones_like(numbers, dtype=torch.bool)
        wanted = numbers[mask].cpu()
        dtype, shape = self._generation.settings.layout.columns[column]
        rows = torch.empty(len(wanted), *shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype)
        for part, places, where in self._generation.find(wanted.numpy()):
            rows[torch.from_numpy(where)] = part.segment.take(column, places)
        found = rows.new_zeros(*mask.shape, *shape)
        found[mask.cpu()] = rows
        return found.to(mask.device)


def at_least_one(name: str, value: int) -> int:
    """A setting of a search.

    Raises:
        ValueError: If it is smaller than 1.
    """
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, got {value}")
    return int(value)


def _check_fingerprints(generation: Generation, encoder: str | None, tokenizer: str | None) -> None:
    """Refuse a store whose keys or values were made by something else than the caller says.

    Args:
        generation: The store.
        encoder: Fingerprint it must have; ``None`` for any.
        tokenizer: The same of the tokenizer.

    Raises:
        SnapshotError: If it has another.
    """
    for what, wanted in (("encoder", encoder), ("tokenizer", tokenizer)):
        found = getattr(generation.settings, what)
        if wanted is not None and found != wanted:
            said = f"with {what} {found!r}" if found else f"without saying with which {what}"
            raise SnapshotError(
                f"{generation.path} was built {said}, not with {wanted!r}: open it with what made it, or build it again"
            )
