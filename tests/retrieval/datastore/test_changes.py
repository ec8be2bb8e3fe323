"""Whoever changes a store and is killed, or runs out of disk, leaves the old store or the new one."""

from __future__ import annotations

import random
import shutil
from contextlib import suppress

import pytest
import torch

import retrieval.datastore.changes
from retrieval.datastore import Datastore
from retrieval.snapshot import SnapshotError
from tests.retrieval.crashes import killed_after, killed_before_step, small_disk, with_files_of_at_most

D = 8


@pytest.fixture(autouse=True)
def _small_segments_are_indexed_too(monkeypatch):
    monkeypatch.setattr(retrieval.datastore.changes, "_SMALL", 16)


def batch(first, n=20):
    ids = torch.arange(first, first + n)
    keys = torch.randn(n, D, generator=torch.Generator().manual_seed(first))
    return keys, ids * 7, ids // 5, ids % 5


def built(path, factory="IVF2,Flat"):
    store = Datastore.build(path, [batch(0)], dtype="float32", factory=factory)
    store.append([batch(20)])
    store.delete([3, 20])
    return store


def content(path):
    """Everything in a store, by id; every file is read and compared with its checksum."""
    with Datastore.open(path) as store:
        parts = store._generation.parts
        ids = [int(i) for part in parts for i in part.segment.ids(part.live_places(0, len(part.segment)))]
        at = torch.tensor(ids, dtype=torch.int64)
        found = store.search(store.keys(at).float(), 1)
        assert found.mask.all()
        rows = zip(
            *(column(at).tolist() for column in (store.keys, store.values, store.documents)), strict=True
        )
        return store.info()["factory"], dict(zip(ids, rows, strict=True))


CHANGES = {
    "append": lambda store: store.append([batch(40, 9), batch(49, 11)]),
    "delete": lambda store: store.delete(documents=[1, 6]),
    "compact": lambda store: store.compact(),
    "reindex": lambda store: store.reindex("HNSW4"),
    "merge": lambda store: store.merge([store]),
    "build": lambda store: built(store.path, factory="Flat"),
}


@pytest.mark.filterwarnings("ignore:.*fork.*")
@pytest.mark.parametrize("name", CHANGES)
def test_kill_at_any_step_leaves_the_old_store_or_a_new_one(tmp_path, name):
    base = tmp_path / "base"
    built(base).close()
    path = tmp_path / "store"
    shutil.copytree(base, path)
    old = content(path)
    with Datastore.open(path) as store:
        CHANGES[name](store)
    new = content(path)
    allowed = [old, new]
    if name == "build":  # it is three changes: the store is each of these in turn
        for steps in (1, 2):
            between = tmp_path / str(steps)
            with Datastore.build(between, [batch(0)], dtype="float32") as store:
                if steps == 2:
                    store.append([batch(20)])
            allowed.append(content(between))
    step, seen = 0, []
    while True:
        shutil.rmtree(path)
        shutil.copytree(base, path)
        killed = killed_before_step(step, lambda: CHANGES[name](Datastore.open(path, verify=False)))
        left = content(path)
        assert left in allowed, f"killed before step {step}"
        seen.append(allowed.index(left))
        with Datastore.open(path) as store:  # and it can be written to as if nothing had been
            store.append([batch(100, 3)])
            assert len(store) == len(left[1]) + 3
            hidden = [entry.name for entry in path.iterdir() if entry.name.startswith(".")]
            named = {folder for part in store._generation.parts for folder in part.folders}
        assert not hidden
        assert {entry.name for entry in path.glob("seg-*")} | {
            entry.name for entry in path.glob("index-*")
        } == named
        if not killed:
            break
        step += random.Random(step).randint(2, 9)
    assert seen[0] == 0
    assert seen[-1] == allowed.index(new)
    assert step > 10


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_kill_during_the_first_build_leaves_no_store_or_the_whole_one(tmp_path):
    path, complete = tmp_path / "store", 0
    expected = {}
    for step in [*range(0, 60, 4), 1000]:
        shutil.rmtree(path, ignore_errors=True)
        killed_before_step(step, lambda: Datastore.build(path, [batch(0)], factory="IVF2,Flat"))
        try:
            expected = content(path)
            complete += 1
        except SnapshotError:
            with pytest.raises(SnapshotError, match="build it first"):
                Datastore.open(path)
            Datastore.build(path, [batch(0)]).close()
    assert complete
    assert len(expected[1]) == 20


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_kill_at_random_moments(tmp_path):
    path = tmp_path / "store"
    built(path).close()

    def work():
        store = Datastore.open(path, verify=False)
        for round_ in range(1000):
            store.append([batch(1000 * round_)])
            store.delete([int(store._generation.parts[-1].segment.first_id)])
            if round_ % 3 == 2:
                store.compact()

    generations = []
    for round_ in range(8):
        assert killed_after(0.02 + 0.03 * round_, work)
        content(path)
        generations.append(Datastore.open(path).info()["generation"])
    assert generations == sorted(generations)
    assert generations[-1] > generations[0]


def test_a_full_disk_leaves_the_old_store_and_its_space(tmp_path):
    with small_disk(tmp_path / "disk", 600) as disk:
        path = disk / "store"
        store = built(path)
        old, free = content(path), shutil.disk_usage(disk).free
        for change in (
            lambda: store.append([batch(100, 100)] * 200),
            lambda: store.merge([store] * 500),
            lambda: Datastore.build(path, [batch(100, 100)] * 200),
        ):
            said = r"No space .* nothing was changed, .* is as it was before\. Make room|could not be written"
            with pytest.raises((OSError, SnapshotError), match=said):
                change()
            assert content(path) == old
            assert shutil.disk_usage(disk).free >= free - 8192
        store.append([batch(100)])
        filler = disk / "filler"
        changes, told = 0, []
        for kilobytes in range(0, 120, 8):  # the space gives out at one step after the other
            filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - 1024 * kilobytes)))
            for change in (
                lambda: store.append([batch(200 + kilobytes)]),  # noqa: B023
                lambda: store.delete([int(store.ids()[0])]),
                store.compact,
            ):
                before = len(store)
                try:
                    change()
                    changes += 1
                except (OSError, SnapshotError) as error:
                    told.append(str(error))
                    assert len(store) == before
            filler.unlink()
            assert len(content(path)[1]) == len(store)
        assert 0 < changes < 45
        assert told
        assert all("nothing was changed" in said or "could not be written" in said for said in told)


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_files_that_cannot_grow_leave_the_old_store(tmp_path):
    path = tmp_path / "store"
    built(path).close()
    old = content(path)
    for limit in (100, 1000, 2000, 5000):

        def work():
            with suppress(OSError):
                Datastore.open(path).append([batch(100, 1000)])
                raise AssertionError("it should not have fitted")

        assert with_files_of_at_most(limit, work) == 0
        assert content(path) == old
