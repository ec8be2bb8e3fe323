"""Stores that are read while they are written, and what a caller may rely on; see also test_datastore_model."""

from __future__ import annotations

import os
import statistics
import threading
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import retrieval.datastore.changes
from retrieval import Neighbors
from retrieval.datastore import Datastore
from retrieval.datastore.entries import whole_numbers
from retrieval.datastore.lock import StoreBusyError
from retrieval.enrollment import enroll
from retrieval.runtime import threads
from tests.retrieval.crashes import forked

D = 16


@pytest.fixture(autouse=True)
def _small_segments_are_indexed_too(monkeypatch):
    monkeypatch.setattr(retrieval.datastore.changes, "_SMALL", 64)


def batch(first, n=100):
    """Entry ``i`` has a key that only the entry itself is near to, and the value ``3 i``."""
    ids = torch.arange(first, first + n)
    rows = [torch.randn(D, generator=torch.Generator().manual_seed(int(i))) for i in ids]
    return torch.nn.functional.normalize(torch.stack(rows), dim=1), 3 * ids, ids // 10, ids % 10


def own_values(store, ids):
    """Whether these keys find their own values, in the generation the store is at."""
    found = store.search(torch.cat([batch(int(i), 1)[0] for i in ids]), 1)
    return found.mask.all() and store.values(found)[:, 0].tolist() == [3 * int(i) for i in ids]


@pytest.fixture
def path(tmp_path):
    Datastore.build(tmp_path / "store", [batch(0)], factory="IVF4,Flat").close()
    return tmp_path / "store"


def test_a_reader_stays_at_its_generation(path):
    reader, writer = Datastore.open(path), Datastore.open(path)
    queries = batch(0, 30)[0]
    before = reader.search(queries, 5)
    writer.append([batch(100)])
    writer.delete(range(50))
    writer.compact()
    writer.reindex("Flat")
    again = reader.search(queries, 5)
    assert torch.equal(again.ids, before.ids)
    assert torch.equal(again.scores, before.scores)
    assert own_values(reader, range(50))
    assert len(reader) == 100
    assert len(reader.refresh()) == len(writer) == 150
    with pytest.raises(KeyError, match="entry 7 was deleted"):
        reader.values(torch.tensor([60, 7]))


def test_a_reader_that_has_not_searched_before_its_index_was_swept_away_still_finds(path):
    reader, other = Datastore.open(path, verify=False), Datastore.open(path)
    other.reindex("HNSW4")
    assert own_values(reader, range(100))


def test_threads_search_while_one_appends_deletes_compacts_and_reindexes(path):
    store, problems, stop = Datastore.open(path), [], threading.Event()

    def search():
        while not stop.is_set():
            try:
                assert own_values(store, range(50, 100, 7))
            except BaseException as error:
                problems.append(error)
                return

    searching = [threading.Thread(target=search) for _ in range(3)]
    for thread in searching:
        thread.start()
    done = store.reindex("HNSW8", background=True)
    for round_ in range(1, 5):
        store.append([batch(100 * round_)])
        store.delete([10 * round_, 100 * round_])
        store.compact()
    done.result(timeout=60)
    store.reindex("IVF4,SQ8", background=True)
    stop.set()
    for thread in searching:
        thread.join(timeout=60)
    store.close()
    assert not problems
    with Datastore.open(path) as store:
        assert len(store) == 500 - 8
        assert store.info()["factory"] == "IVF4,SQ8"


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_processes_read_while_one_writes(path):
    def read():
        store = Datastore.open(path, verify=False)
        for _ in range(6):
            assert own_values(store, [50, 99])
            assert own_values(Datastore.open(path), [50, 99])
            store.refresh()

    readers = [threading.Thread(target=lambda: statuses.append(forked(read))) for _ in range(2)]
    statuses: list[int] = []
    for thread in readers:
        thread.start()
    store, round_ = Datastore.open(path), 0
    while any(thread.is_alive() for thread in readers):
        round_ += 1
        store.append([batch(100 * round_, 3)])
        store.delete([round_ % 40 + 100])
        store.compact()
        store.append([batch(100 * round_, 1)])
        time.sleep(0.02)
        if round_ > 35:
            break
    for thread in readers:
        thread.join()
    assert statuses == [0, 0]


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_worker_searches(path):
    with threads(2):  # FAISS and torch have worker threads, which a child does not have
        store = Datastore.open(path)
        assert own_values(store, range(100))
        before = store.search(batch(0, 40)[0], 5)
        read, write = os.pipe()

        def work():
            found = store.search(batch(0, 40)[0], 5)
            os.write(write, repr(found.ids.tolist()).encode())

        assert forked(work) == 0
        os.close(write)
        assert os.read(read, 1 << 16).decode() == repr(before.ids.tolist())
        os.close(read)


def test_a_second_writer_is_refused_and_changes_nothing(path):
    class Slow:
        """Batches that end when the test says so."""

        def __iter__(self):
            yield batch(100)
            started.set()
            go_on.wait()

    started, go_on = threading.Event(), threading.Event()
    store = Datastore.open(path)
    writing = threading.Thread(target=lambda: store.append(Slow()))
    writing.start()
    started.wait()
    other = Datastore.open(path)
    for change in (other.compact, lambda: other.delete([1]), lambda: Datastore.build(path, [batch(0)])):
        with pytest.raises(StoreBusyError, match=f"process {os.getpid()} on"):
            change()
    assert own_values(other, range(3))
    go_on.set()
    writing.join()
    assert len(other.refresh()) == 200


def test_short_results_and_k_beyond_the_store(path):
    store = Datastore.open(path)
    found = store.search(batch(0, 3)[0], 120)
    assert found.mask.sum(1).tolist() == [100] * 3
    assert (found.ids >= 0).all()
    store.delete(range(1, 100))
    store.compact()
    store.delete([0])
    found = store.search(batch(0, 2)[0].view(2, 1, D), 3)
    assert found.ids.shape == (2, 1, 3)
    assert not found.mask.any()
    assert store.values(found).shape == (2, 1, 3), "where there is no neighbour, nothing is looked up"
    store.compact()
    assert len(store) == 0
    assert not store.search(batch(0, 2)[0], 3).mask.any()
    assert list(store.append([batch(100, 2)])) == [100, 101], "ids are never given twice"
    assert store.search(torch.zeros(0, D), 3).ids.shape == (0, 3)


def test_masked_neighbours_are_not_looked_up(path):
    store = Datastore.open(path)
    store.delete([0])
    found = Neighbors.of(torch.tensor([[1.0, 0.0]]), torch.tensor([[5, -1]]))
    assert store.values(found).tolist() == [[15, 0]]
    assert store.documents(found).tolist() == [[0, 0]]
    assert store.positions(found).tolist() == [[5, 0]]
    with pytest.raises(KeyError, match="entry 0 was deleted"):
        store.values(found.ids)


def test_deleting_is_all_or_nothing(path):
    store = Datastore.open(path)
    for ids, message in (([3, 100], "there is no entry 100"), ([-1], "there is no entry -1")):
        with pytest.raises(KeyError, match=message):
            store.delete(ids)
    assert len(store) == 100
    assert store.delete([3, 3]) == 1
    with pytest.raises(KeyError, match="entry 3 was deleted"):
        store.delete([3])
    assert store.delete(documents=[0, 77]) == 9
    with pytest.raises(ValueError, match="give one of them"):
        store.delete()


def test_merging_needs_the_same_kind_of_store(path, tmp_path):
    store = Datastore.open(path)
    for name, options in {
        "metric": {"metric": "l2"},
        "layout": {"dtype": "float32"},
        "encoder": {"encoder": "e"},
    }.items():
        other = Datastore.build(tmp_path / name, [batch(0, 3)], **options)
        with pytest.raises(ValueError, match=f"has {name}"):
            store.merge([other])
    with (
        Datastore.build(tmp_path / "other", [batch(200, 3)]) as other,
        Datastore.build(tmp_path / "more", [batch(300, 2)]) as more,
    ):
        other.delete([1])
        assert store.merge([other, more, store]) == [range(100, 102), range(102, 104), range(104, 204)]
    assert store.values(torch.arange(100, 104)).tolist() == [600, 606, 900, 903]


def test_documents_of_merged_stores_are_kept_apart(path, tmp_path):
    """Who excludes document 0 of one store must not lose document 0 of another."""
    store = Datastore.open(path)
    keys, values, _, positions = batch(200, 20)
    other = Datastore.build(tmp_path / "other", [(keys, values, torch.arange(20) // 10, positions)])
    (ids,) = store.merge([other])
    assert store.documents(torch.tensor(ids)).tolist() == [10] * 10 + [11] * 10
    found = store.search(keys[:1], 1, exclude=torch.tensor([0]))
    assert store.values(found).tolist() == [[600]]
    first, second = store.merge([other, other])
    assert store.documents(torch.tensor([first[0], first[-1], second[0], second[-1]])).tolist() == [
        12,
        13,
        14,
        15,
    ]
    (ids,) = store.merge([other], documents="same")
    assert store.documents(torch.tensor(ids)).tolist() == [0] * 10 + [1] * 10
    with pytest.raises((ValueError, TypeError), match="documents"):
        store.merge([other], documents="mixed")
    large = torch.full((20,), 2**63 - 5)
    other = Datastore.build(tmp_path / "large", [(keys, values, large, positions)])
    before = len(store)
    with pytest.raises(ValueError, match=r"would not fit 64 bits .* documents='same'"):
        store.merge([other])
    store.merge([other], documents="same")
    assert len(store) == before + 20


def test_a_failure_in_the_background_is_told(path):
    store = Datastore.open(path)
    store.reindex("IVFnonsense", background=True)
    with pytest.raises(ValueError, match="FAISS has no index"):
        store.close()
    store.close()
    with Datastore.open(path) as store:
        done = store.reindex("IVFnonsense", background=True)
        with pytest.raises(ValueError, match="FAISS has no index"):
            done.result()

    def fails():
        with Datastore.open(path) as store:
            store.reindex("IVFnonsense", background=True)
            raise KeyError("mine")

    with (
        pytest.warns(UserWarning, match="in the background failed: FAISS has no index"),
        pytest.raises(KeyError, match="mine"),
    ):
        fails()


def test_what_is_no_id_is_refused(path):
    store = Datastore.open(path)
    mask = torch.zeros(100, dtype=torch.bool)
    with pytest.raises(
        TypeError, match=r"must be integers, got torch\.bool: of a mask give mask\.nonzero\(\)"
    ):
        whole_numbers("ids", mask)
    with pytest.raises(TypeError, match=r"got torch\.float32: give ids\.long\(\) if they are whole"):
        whole_numbers("ids", torch.tensor([5.9]))
    assert whole_numbers("ids", []).tolist() == []
    for wrong in (mask, torch.tensor([5.9]), [True, False], [5.9]):
        for attempt in (
            lambda wrong=wrong: store.delete(wrong),
            lambda wrong=wrong: store.delete(documents=wrong),
            lambda wrong=wrong: store.values(torch.as_tensor(wrong)),
        ):
            with pytest.raises(TypeError):
                attempt()
    assert len(store) == 100
    assert store.delete([]) == 0


def test_a_search_is_an_operator_with_a_price(path):
    store = Datastore.open(path)
    with FlopCounterMode(display=False) as counter:
        found = store.search(batch(0, 5)[0], 4)
    assert counter.get_total_flops() == found.flops > 0
    more = store.search(batch(0, 5)[0], 4, exclude=torch.zeros(5, dtype=torch.int64))
    assert more.flops >= found.flops
    assert more.bytes > found.bytes
    meta = torch.ops.mnemograph.search([torch.zeros(5, D, device="meta")], enroll(store), 4)
    assert [tuple(part.shape) for part in meta] == [(5, 4)] * 3


def test_arguments_of_a_search_are_checked(path):
    store = Datastore.open(path)
    with pytest.raises(ValueError, match="k >= 1"):
        store.search(torch.zeros(1, D), 0)
    with pytest.raises(ValueError, match=r"queries of 3 dimensions, .* has keys of 16"):
        store.search(torch.zeros(1, 3), 1)
    store.close()
    with pytest.raises(ValueError, match=r"was closed: Datastore\.open\("):
        store.search(torch.zeros(1, D), 1)


def test_wrong_settings_are_refused_before_anything_is_read(tmp_path):
    def never():
        yield batch(0)
        raise AssertionError("the second batch is never asked for")

    for options, message in (
        ({"dtype": "int8"}, "dtype must be"),
        ({"factory": "IVFnonsense"}, "FAISS has no index"),
        ({"memory_bytes": 1000}, r"memory_bytes=1,000 is too little: give [\d,]+ or more"),
    ):
        with pytest.raises(ValueError, match=message):
            Datastore.build(tmp_path / "store", never(), **options)
    assert not (tmp_path / "store").exists()
    with pytest.raises(ValueError, match="FAISS has no index"):
        Datastore.build(tmp_path / "store", [batch(0)]).reindex("IVFnonsense")


def test_progress_is_told(tmp_path):
    told: list[int] = []
    with Datastore.build(tmp_path / "store", (batch(i, 5) for i in (0, 5)), progress=told.append) as store:
        store.append([batch(10, 2)], progress=told.append)
    assert told == [5, 10, 2]


def test_lazy_opening_reads_nothing(tmp_path):
    n, d = 1 << 17, 256
    piece = torch.randn(1 << 14, d, generator=torch.Generator().manual_seed(0))
    batches = ((piece, torch.arange(len(piece))) for _ in range(n // len(piece)))
    Datastore.build(tmp_path / "store", batches, dtype="float32").close()
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.npy")) > 128 << 20
    seconds = []
    for _ in range(9):
        begin = time.process_time()
        Datastore.open(tmp_path / "store", verify=False).close()
        seconds.append(time.process_time() - begin)
    assert statistics.median(seconds) < 0.005
