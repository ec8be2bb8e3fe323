"""A store against a dictionary, through any sequence of changes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import retrieval.datastore.changes
from retrieval.datastore import Datastore
from retrieval.datastore.entries import Entries

D = 3
# Few numbers: many entries have the same key, so that the order of equals is tested all the time.
KEY = st.lists(st.integers(-2, 2), min_size=D, max_size=D)
ENTRY = st.tuples(KEY, st.integers(0, 3), st.integers(0, 5))


class StoreAgainstDictionary(RuleBasedStateMachine):
    """The store under test, and what it should hold: id -> (key, value, document, position)."""

    @initialize(entries=st.lists(ENTRY, min_size=1, max_size=30), indexed=st.booleans())
    def build(self, entries, indexed):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "store"
        self.count = 0
        self.expected = self.numbered(entries, 0)
        factory = "IVF2,Flat" if indexed else "Flat"
        self.store = Datastore.build(self.path, [self.batch(self.expected)], metric="l2", factory=factory)
        self.store.nprobe = 8
        self.gone = set()

    def numbered(self, entries, first):
        """Each entry gets a value no other has."""
        found = {}
        for id_, (key, document, position) in enumerate(entries, start=first):
            self.count += 1
            found[id_] = (key, self.count, document, position)
        return found

    @staticmethod
    def batch(entries):
        keys, values, documents, positions = zip(*entries.values(), strict=True)
        return Entries(
            torch.tensor(keys, dtype=torch.float32), *map(torch.tensor, (values, documents, positions))
        )

    @rule(entries=st.lists(ENTRY, min_size=1, max_size=12), pieces=st.integers(1, 3))
    def append(self, entries, pieces):
        new = self.numbered(entries, max([*self.expected, *self.gone]) + 1)
        batch = self.batch(new)
        parts = zip(*(torch.tensor_split(column, pieces) for column in vars(batch).values()), strict=True)
        assert list(self.store.append(parts)) == list(new)
        self.expected |= new

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def delete(self, data):
        ids = data.draw(st.lists(st.sampled_from(sorted(self.expected)), max_size=10))
        assert self.store.delete(ids) == len(set(ids))
        self.forget(ids)

    @rule(documents=st.lists(st.integers(0, 4), max_size=2))
    def delete_documents(self, documents):
        ids = [id_ for id_, entry in self.expected.items() if entry[2] in documents]
        assert self.store.delete(documents=documents) == len(ids)
        self.forget(ids)

    def forget(self, ids):
        self.gone |= set(ids)
        self.expected = {id_: entry for id_, entry in self.expected.items() if id_ not in self.gone}

    @rule()
    def compact(self):
        self.store.compact()
        assert not any(part.dead is not None for part in self.store._generation.parts)

    @rule(entries=st.lists(ENTRY, min_size=1, max_size=8), delete=st.booleans(), apart=st.booleans())
    def merge(self, entries, delete, apart):
        others = self.numbered(entries, 0)
        with Datastore.build(Path(self.folder.name) / "other", [self.batch(others)], metric="l2") as other:
            if delete:
                other.delete([0])
                del others[0]
            raised = self.store._generation.largest_document + 1 if apart else 0
            (ids,) = self.store.merge([other], documents="apart" if apart else "same")
        labels = {entry[2] for entry in self.expected.values()}
        assert not apart or all(label < raised for label in labels)
        entries = [(key, value, label + raised, at) for key, value, label, at in others.values()]
        self.expected |= dict(zip(ids, entries, strict=True))

    @rule(factory=st.sampled_from(["Flat", "IVF2,Flat", "HNSW8"]), background=st.booleans())
    def reindex(self, factory, background):
        self.store.reindex(factory, background=background).result()

    @rule(verify=st.booleans())
    def reopen(self, verify):
        self.store.close()
        self.store = Datastore.open(self.path, verify=verify)
        self.store.nprobe = 8

    @invariant()
    def every_id_has_its_own_entry(self):
        assert len(self.store) == len(self.expected)
        ids = torch.tensor(sorted(self.expected), dtype=torch.int64)
        columns = [self.store.keys, self.store.values, self.store.documents, self.store.positions]
        stored = zip(*(column(ids).tolist() for column in columns), strict=True)
        for id_, (key, value, document, position) in zip(ids.tolist(), stored, strict=True):
            assert (key, value, document, position) == self.expected[id_]

    @invariant()
    def what_is_gone_is_an_error(self):
        for id_ in [*sorted(self.gone)[:2], 10**6, -1]:
            with pytest.raises(KeyError, match=str(id_)):
                self.store.values(torch.tensor([id_]))

    @invariant()
    def every_key_finds_its_own_value(self):
        if not self.expected:
            assert not self.store.search(torch.zeros(1, D), 2).mask.any()
            return
        queries = torch.tensor([entry[0] for entry in self.expected.values()], dtype=torch.float32)
        found = self.store.search(queries, len(self.expected))
        for row, (id_, entry) in enumerate(self.expected.items()):
            ranked = sorted((distance(entry[0], other[0]), i) for i, other in self.expected.items())
            assert found.ids[row].tolist() == [i for _, i in ranked]
            assert (-found.scores[row]).tolist() == [squared for squared, _ in ranked]
            at = found.ids[row].tolist().index(id_)
            assert self.store.values(found)[row, at] == entry[1]

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()


def distance(one, other):
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


@pytest.fixture(autouse=True)
def _small_segments_are_indexed_too(monkeypatch):
    monkeypatch.setattr(retrieval.datastore.changes, "_SMALL", 4)


class TestStore(StoreAgainstDictionary.TestCase):
    settings = settings(
        max_examples=12,
        stateful_step_count=10,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
